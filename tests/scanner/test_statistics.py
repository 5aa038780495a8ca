"""The outlier test: right numbers, right error rates, and no underflow."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, getcontext

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from scanner import statistics
from scanner.statistics import (
    fit_gamma,
    fit_gamma_censored,
    log_order_statistic_p,
    order_statistic_test,
)

DRAWS = 3000
SHAPE = 6.0

PValues = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@pytest.fixture(scope="module", params=[5, 10, 43])
def null_p_values(request: pytest.FixtureRequest) -> tuple[int, PValues]:
    """(K, (paper's, calibrated p)) of experiments in which no class is special."""
    classes: int = request.param
    draws = np.random.default_rng(classes).gamma(SHAPE, size=(DRAWS, classes))
    tests = [order_statistic_test(row) for row in draws]
    paper = np.array([test.paper_p for test in tests])
    return classes, (paper, np.array([test.calibrated_p for test in tests]))


def test_calibrated_p_keeps_its_level_under_the_null(null_p_values: tuple[int, PValues]) -> None:
    _, (_, calibrated) = null_p_values
    assert np.mean(calibrated < 0.05) == pytest.approx(0.05, abs=0.015)
    assert np.mean(calibrated < 0.5) == pytest.approx(0.5, abs=0.04)


def test_paper_p_accuses_far_more_often_than_its_level(
    null_p_values: tuple[int, PValues],
) -> None:
    classes, (paper, _) = null_p_values
    expected = {5: 0.42, 10: 0.26, 43: 0.11}[classes]
    assert np.mean(paper < 0.05) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("shape", [1.5, 40.0])
def test_calibration_hardly_depends_on_the_shape_and_not_on_the_scale(shape: float) -> None:
    draws = np.random.default_rng(7).gamma(shape, size=(DRAWS, 10))
    tests = [order_statistic_test(1000 * row) for row in draws]
    assert np.mean([t.calibrated_p < 0.05 for t in tests]) == pytest.approx(0.05, abs=0.015)
    again = order_statistic_test(draws[0])
    assert again.log10_paper_p == pytest.approx(tests[0].log10_paper_p, rel=1e-6)
    assert again.calibrated_p == pytest.approx(tests[0].calibrated_p, rel=1e-6)


@pytest.mark.parametrize("classes", [5, 10, 43, 1000])
@pytest.mark.parametrize("shape", [0.7, 6.0, 300.0])
@pytest.mark.parametrize("quantile", [0.2, 0.9, 0.9999, 1 - 1e-12])
def test_log_p_agrees_with_scipy_where_that_does_not_underflow(
    classes: int, shape: float, quantile: float
) -> None:
    r_max = float(stats.gamma.ppf(quantile, shape, scale=2.5))
    survival = stats.gamma.sf(r_max, shape, scale=2.5)
    expected = math.log(-math.expm1(classes * math.log1p(-survival)))
    assert log_order_statistic_p(r_max, shape, 2.5, classes) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("x", [60.0, 400.0, 690.0])
@pytest.mark.parametrize("shape", [2.0, 9.3])
def test_far_tail_agrees_with_scipys_logsf(shape: float, x: float) -> None:
    expected = math.log(10) + float(stats.gamma.logsf(x, shape))
    assert log_order_statistic_p(x, shape, 1.0, 10) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("x", [700, 1500, 20_000])
@pytest.mark.parametrize("shape", [3, 12])
def test_log_p_is_exact_where_double_precision_underflows(shape: int, x: int) -> None:
    # For a whole shape a, Q(a, x) = exp(-x) * sum_{k<a} x^k / k!: exact in decimal arithmetic.
    getcontext().prec = 60
    tail = sum(Decimal(x) ** k / Decimal(math.factorial(k)) for k in range(shape))
    expected = float(Decimal(10).ln() + tail.ln() - Decimal(x))
    assert log_order_statistic_p(x, shape, 1.0, 10) == pytest.approx(expected, rel=1e-12)


def test_a_huge_outlier_has_a_finite_log_p_and_a_zero_p() -> None:
    test = order_statistic_test([1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98, 1.01, 0.99, 500.0])
    assert math.isfinite(test.log10_paper_p)
    assert test.log10_paper_p < -300
    assert test.paper_p == 0.0
    assert 0 < test.calibrated_p < 0.001


def test_log_p_falls_as_the_largest_statistic_grows_across_the_underflow() -> None:
    values = [log_order_statistic_p(x, 4.0, 1.0, 10) for x in np.linspace(1, 3000, 400)]
    assert all(later < earlier for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("shape", [0.8, 5.0, 80.0])
def test_fit_gamma_is_the_maximum_likelihood_fit(shape: float) -> None:
    samples = np.random.default_rng(3).gamma(shape, 2.0, size=42)
    expected_shape, _, expected_scale = stats.gamma.fit(samples, floc=0)
    fitted = fit_gamma(samples)
    assert float(fitted[0]) == pytest.approx(expected_shape, rel=1e-4)
    assert float(fitted[1]) == pytest.approx(expected_scale, rel=1e-4)


def test_fit_gamma_works_along_the_last_axis() -> None:
    samples = np.random.default_rng(4).gamma(3.0, size=(6, 20))
    together = fit_gamma(samples)
    alone = [fit_gamma(row) for row in samples]
    np.testing.assert_allclose(together[0], [float(a) for a, _ in alone])
    np.testing.assert_allclose(together[1], [float(b) for _, b in alone])


def test_fit_gamma_of_equal_values_is_a_finite_point() -> None:
    shape, scale = fit_gamma([2.0, 2.0, 2.0])
    assert math.isfinite(shape)
    assert float(shape * scale) == pytest.approx(2.0)


def test_censored_fit_recovers_the_parameters() -> None:
    generator = np.random.default_rng(5)
    values = generator.gamma(5.0, 0.4, size=4000)
    bounds = generator.gamma(5.0, 0.4, size=4000)
    censored = (bounds > values) & (generator.random(4000) < 0.5)
    shape, scale = fit_gamma_censored(np.where(censored, bounds, values), censored)
    assert 0.15 < censored.mean() < 0.35
    assert shape == pytest.approx(5.0, rel=0.08)
    assert scale == pytest.approx(0.4, rel=0.08)


def test_censored_fit_without_censored_values_is_the_plain_fit() -> None:
    values = np.random.default_rng(6).gamma(5.0, size=20)
    plain = tuple(map(float, fit_gamma(values)))
    assert fit_gamma_censored(values, np.zeros(20, bool)) == plain


def test_a_bound_far_above_the_rest_does_not_move_the_fit() -> None:
    values = np.random.default_rng(8).gamma(5.0, size=12)
    with_bound = fit_gamma_censored(np.append(values, 1e4), np.arange(13) == 12)
    plain = tuple(map(float, fit_gamma(values)))
    assert with_bound == pytest.approx(plain, rel=1e-2)


def test_ratios_by_hand() -> None:
    test = order_statistic_test([1.0, 2.0, 9.0, 3.0, 4.0])
    assert test.ratio_to_median == pytest.approx(3.0)
    assert test.ratio_to_second == pytest.approx(2.25)


def test_a_larger_bound_of_a_censored_class_does_not_become_the_suspect() -> None:
    r = [1.0, 1.2, 0.9, 1.1, 5.0, 8.0]
    test = order_statistic_test(r, [False] * 5 + [True])
    assert test.ratio_to_second == pytest.approx(5.0 / 8.0)


def test_the_paper_p_of_the_definition() -> None:
    r = np.array([1.0, 1.3, 0.8, 1.1, 0.7, 2.6])
    shape, _, scale = stats.gamma.fit(r[:-1], floc=0)
    expected = 1 - stats.gamma.cdf(2.6, shape, scale=scale) ** 6
    test = order_statistic_test(r)
    assert test.paper_p == pytest.approx(expected, rel=1e-3)
    assert test.log10_paper_p == pytest.approx(math.log10(expected), rel=1e-3)


@pytest.mark.parametrize(
    "values",
    [[1.0, 2.0], [1.0, 2.0, 0.0], [1.0, -1.0, 2.0], [1.0, 2.0, math.inf], [1, 2, math.nan]],
)
def test_statistics_that_are_no_positive_numbers_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        order_statistic_test(values)


def test_a_set_of_censored_classes_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="censored"):
        order_statistic_test([1.0, 2.0, 3.0], [True, True, True])


def test_one_known_class_is_too_few_for_a_censored_fit() -> None:
    with pytest.raises(ValueError, match="two classes"):
        order_statistic_test([1.0, 2.0, 3.0], [False, False, True])


def test_results_are_the_same_in_every_call() -> None:
    r = [1.0, 1.3, 0.8, 1.1, 0.7, 1.6]
    first = order_statistic_test(r)
    statistics._null_log_p.cache_clear()
    assert order_statistic_test(r) == first
