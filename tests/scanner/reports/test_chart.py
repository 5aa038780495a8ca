"""The chart: its null is the test's, its lines are where the keys turn, its bars are to scale."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from scanner.config import VerdictConfig
from scanner.reports.html.chart import LEFT, RIGHT, SHOWN_CLASSES, WIDTH, draw
from scanner.reports.html.null import fit_null
from scanner.results import DetectorResult, to_json
from scanner.statistics import log_order_statistic_p, order_statistic_test
from scanner.verdict import evaluate_statistics
from tests.scanner.reports.made import NORMS, detector, make_report


def plain(made: DetectorResult) -> dict[str, Any]:
    report = json.loads(json.dumps(to_json(make_report(detectors=(made,)))))
    result: dict[str, Any] = report["detectors"][0]
    return result


def statistics(made: dict[str, Any]) -> list[float]:
    return [c["statistic"] for c in made["classes"]]


@pytest.mark.parametrize("censored", [(), (4, 5)])
def test_the_null_is_the_one_of_the_test(censored: tuple[int, ...]) -> None:
    made = plain(detector(censored=censored))
    null = fit_null(made)
    flags = [t in censored for t in range(len(NORMS))]
    tested = order_statistic_test(statistics(made), flags)
    assert null is not None
    assert (null.shape, null.scale) == (tested.shape, tested.scale)


def test_beyond_line_a_the_paper_s_p_is_below_the_significance() -> None:
    null = fit_null(plain(detector()))
    assert null is not None
    log_p = log_order_statistic_p(null.significant_beyond, null.shape, null.scale, len(NORMS))
    assert math.exp(log_p) == pytest.approx(null.significance)


@pytest.mark.parametrize(("factor", "far"), [(0.999, False), (1.001, True)])
def test_beyond_line_b_the_effect_is_large_enough(factor: float, far: bool) -> None:
    # A far suspect leaves the median alone when it moves, so the line of one is that of the other.
    null = fit_null(plain(detector()))
    assert null is not None
    norms = [*NORMS[:2], 1 / (null.far_beyond * factor), *NORMS[3:]]
    test = evaluate_statistics(detector(norms=norms).classes, VerdictConfig())
    assert test is not None
    assert test.suspect == 2
    assert test.large is far


def test_the_density_is_a_gamma() -> None:
    null = fit_null(plain(detector()))
    assert null is not None
    at = np.array([0.0, 0.1, 0.25, 0.4])
    expected = stats.gamma.pdf(at, null.shape, scale=null.scale)
    np.testing.assert_allclose(null.density(at), expected, rtol=1e-9, atol=1e-12)
    area, _ = integrate.quad(lambda x: float(null.density(np.array(x))), *null.middle)
    assert area == pytest.approx(0.9, abs=1e-3)


def test_without_a_test_there_is_no_null() -> None:
    made = replace(detector(), statistics=None)
    assert fit_null(plain(made)) is None
    chart = draw(plain(made), None)
    assert chart.null_outline == ""
    assert chart.significant is None


def test_bars_are_to_scale_and_the_largest_comes_first() -> None:
    made = plain(detector())
    chart = draw(made, fit_null(made))
    values = [bar.value for bar in chart.bars]
    assert values == sorted(statistics(made), reverse=True)
    ratios = [bar.length / bar.value for bar in chart.bars if bar.value]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert [bar.target_class for bar in chart.bars if bar.suspect] == [2]
    assert all(0 <= bar.length <= WIDTH - LEFT - RIGHT for bar in chart.bars)
    assert chart.significant is not None
    assert (chart.significant.x - LEFT) / chart.significant.value == pytest.approx(ratios[0])


def test_a_class_of_which_nothing_is_known_comes_last() -> None:
    made = plain(detector())
    made["classes"][2]["statistic"] = None
    bar = draw(made, None).bars[-1]
    assert (bar.target_class, bar.value, bar.length) == (2, None, 0)


def test_censored_classes_are_marked() -> None:
    made = plain(detector(censored=(4,)))
    assert [bar.target_class for bar in draw(made, None).bars if bar.censored] == [4]


def test_of_many_classes_the_least_suspicious_are_counted() -> None:
    norms = [0.2, *np.linspace(3, 6, 42)]
    made = plain(detector(norms=norms))
    chart = draw(made, fit_null(made))
    assert len(chart.bars) == SHOWN_CLASSES
    assert chart.hidden == 43 - SHOWN_CLASSES
    left_out = sorted(statistics(made))[: chart.hidden]
    assert chart.hidden_range == pytest.approx((left_out[0], left_out[-1]))


def test_a_far_line_does_not_press_the_bars_to_nothing() -> None:
    made = plain(detector(norms=(3.0, 3.1, 3.2, 3.3, 3.4, 3.5)))
    made["statistics"]["required_ratio_to_median"] = 100.0
    chart = draw(made, fit_null(made))
    assert chart.far is not None
    assert chart.far.beyond_axis
    assert chart.bars[0].length > (WIDTH - LEFT - RIGHT) / 4


def test_the_outline_stays_inside_and_is_closed() -> None:
    made = plain(detector())
    chart = draw(made, fit_null(made))
    assert chart.null_outline.startswith("M")
    assert chart.null_outline.endswith("Z")
    points = [p.split() for p in chart.null_outline[1:-2].split(" L")]
    assert all(LEFT <= float(x) <= WIDTH - RIGHT for x, _ in points)
    assert all(chart.rows_end <= float(y) <= chart.baseline for _, y in points)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 7e5])
def test_ticks_are_few_and_round(scale: float) -> None:
    made = plain(detector(norms=[n * scale for n in NORMS]))
    ticks = draw(made, fit_null(made)).ticks
    values = [float(label) for _, label in ticks]
    assert 3 <= len(values) <= 6
    step = values[1] - values[0]
    assert round(step / 10.0 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_all_statistics_zero_or_unknown_is_still_a_chart() -> None:
    made = plain(detector())
    for searched in made["classes"]:
        searched["statistic"] = None
    made["statistics"] = None
    assert len(draw(made, fit_null(made)).bars) == len(NORMS)
