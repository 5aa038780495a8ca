"""Maximum margins of linear models, whose optimum is a linear program's."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linprog

from scanner.config import MaximumMarginConfig
from scanner.detectors.maximum_margin import TIME_LIMIT, estimate_margins
from tests.models import as_classifier, linear_model, random_network

PIXELS = 16


def weights(classes: int, seed: int = 0) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(classes, PIXELS)), generator.normal(size=classes)


def largest_margin(w: npt.NDArray[np.float64], b: npt.NDArray[np.float64], target: int) -> float:
    """max_x min_{k != t} (w_t - w_k) x + b_t - b_k over [0, 1]^D, by linear programming."""
    others = [k for k in range(len(w)) if k != target]
    gaps = w[target] - w[others]
    bounded = np.hstack([-gaps, np.ones((len(others), 1))])  # margin <= gap x + offset
    objective = np.append(np.zeros(PIXELS), -1)
    bounds = [(0, 1)] * PIXELS + [(None, None)]
    result = linprog(objective, A_ub=bounded, b_ub=b[target] - b[others], bounds=bounds)
    return float(-result.fun)


@pytest.mark.parametrize("target", [0, 1])
def test_two_linear_classes_reach_the_corner(target: int) -> None:
    w, b = weights(2)
    found = estimate_margins(
        as_classifier(linear_model(w, b)), [target], MaximumMarginConfig(), 0, 64
    )[0]
    gap = w[target] - w[1 - target]
    expected = np.maximum(gap, 0).sum() + b[target] - b[1 - target]
    assert found.margin == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(found.image.reshape(-1), gap > 0, atol=1e-6)


def test_several_linear_classes_come_close_to_the_optimum_and_never_pass_it() -> None:
    w, b = weights(5, seed=3)
    estimates = estimate_margins(
        as_classifier(linear_model(w, b)), range(5), MaximumMarginConfig(), 0, 64
    )
    for target, found in enumerate(estimates):
        optimum = largest_margin(w, b, target)
        assert found.target_class == target
        assert 0.9 * optimum <= found.margin <= optimum + 1e-4


def test_the_image_has_the_margin_that_is_told() -> None:
    classifier = as_classifier(random_network(1, 4))
    found = estimate_margins(classifier, [2], MaximumMarginConfig(), 0, 64)[0]
    logits = classifier.logits(found.image[None])[0]
    assert found.margin == pytest.approx(logits[2] - np.delete(logits, 2).max(), rel=1e-4)
    assert found.trace[:, 0].max() == pytest.approx(found.margin)
    assert found.gradient_evaluations == 3 * 40


def test_batches_and_other_classes_change_nothing() -> None:
    classifier = as_classifier(random_network(1, 4))
    config = MaximumMarginConfig(starts=2, steps=10)
    together = estimate_margins(classifier, range(4), config, 7, 64)
    alone = [estimate_margins(classifier, [t], config, 7, 1)[0] for t in range(4)]
    np.testing.assert_allclose([e.margin for e in together], [e.margin for e in alone], rtol=1e-5)


def test_a_passed_deadline_stops_the_search() -> None:
    classifier = as_classifier(random_network(1, 4))
    found = estimate_margins(
        classifier, [0, 1], MaximumMarginConfig(), 0, 64, deadline=time.monotonic() - 1
    )
    assert [e.stop_reason for e in found] == [TIME_LIMIT] * 2
    assert [e.gradient_evaluations for e in found] == [0, 0]
