"""Neural Cleanse: its schedule and its index by hand, and masks of models where they are known."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
import torch

from scanner.classifier import Classifier
from scanner.detectors.mask_pattern import NO_IMAGES, STEPS_DONE, TIME_LIMIT, MaskEstimate
from scanner.detectors.misclassification import GroupMisclassification
from scanner.detectors.neural_cleanse import (
    CONVERGED,
    NeuralCleanseConfig,
    _Schedule,
    anomaly_index,
    neural_cleanse_masks,
)
from scanner.triggers import embed_mask_pattern
from tests.models import as_classifier, linear_model, template_images, template_model

PIXEL = 5  # of 16
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def search(
    classifier: Classifier,
    data: tuple[Floats, Labels],
    targets: list[int],
    config: NeuralCleanseConfig | None = None,
    seed: int = 0,
    deadline: float | None = None,
) -> tuple[list[MaskEstimate], int]:
    objective = GroupMisclassification(
        classifier, *data, targets, 256, deadline, embed_mask_pattern
    )
    estimates = neural_cleanse_masks(objective, config or NeuralCleanseConfig(), seed)
    return estimates, objective.image_gradients


def one_pixel_classifier() -> Classifier:
    """Class 1 wins where 40 x[PIXEL] + x[others] > 20."""
    w = np.zeros((2, 16))
    w[1] = 1.0
    w[1, PIXEL] = 40.0
    return as_classifier(linear_model(w, np.array([20.0, 0.0])))


def black(count: int) -> tuple[Floats, Labels]:
    return np.zeros((count, 1, 4, 4), np.float32), np.zeros(count, np.int64)


def test_one_pixel_is_found_near_its_smallest_mask() -> None:
    """On black images m * u must exceed a half at that pixel."""
    found = search(one_pixel_classifier(), black(40), [1])[0][0]
    assert found.found
    assert found.stop_reason == CONVERGED
    assert found.gradient_evaluations < 1000
    assert 0.45 <= found.size <= 1.0
    assert found.mask.argmax() == PIXEL
    assert found.pattern.reshape(-1)[PIXEL] > 0.9


@pytest.mark.parametrize("target_class_images", [False, True])
def test_classes_are_searched_as_if_alone(target_class_images: bool) -> None:
    classifier, data = as_classifier(template_model(4)), template_images(4, 12)
    config = NeuralCleanseConfig(steps=40, batch_images=16, target_class_images=target_class_images)
    together, spent = search(classifier, data, [0, 1, 2, 3], config)
    alone = [search(classifier, data, [t], config)[0][0] for t in range(4)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.trace, other.trace, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(one.mask, other.mask, atol=1e-2)
    images = 48 if target_class_images else 36
    assert spent == images * sum(e.gradient_evaluations for e in together)


def test_what_is_told_of_a_mask_is_true() -> None:
    classifier, (images, labels) = as_classifier(template_model(4)), template_images(4, 12)
    for found in search(classifier, (images, labels), [0, 1, 2, 3])[0]:
        assert found.found
        trigger = torch.from_numpy(found.trigger)
        triggered = embed_mask_pattern(torch.from_numpy(images), trigger).numpy()
        hit = classifier.predictions(triggered) == found.target_class
        others = labels != found.target_class
        assert found.misclassification == pytest.approx(hit[others].mean())
        assert found.size == pytest.approx(found.mask.sum(), rel=1e-5)
        assert found.size == pytest.approx(found.trace[found.trace[:, 1] >= 0.99, 0].min())


def test_a_start_depends_on_the_seed() -> None:
    classifier, data = as_classifier(template_model(4)), template_images(4, 4)
    config = NeuralCleanseConfig(steps=1)
    sizes = [search(classifier, data, [2], config, seed)[0][0].trace[0, 0] for seed in (0, 0, 1)]
    assert sizes[0] == sizes[1] != sizes[2]


def test_an_unreachable_class_is_not_found_and_never_costs() -> None:
    unreachable = as_classifier(linear_model(np.zeros((3, 16)), np.array([1.0, 0.5, 0.0])))
    found = search(unreachable, black(3), [2], NeuralCleanseConfig(steps=10))[0][0]
    assert not found.found
    assert found.size is None
    assert found.stop_reason == STEPS_DONE
    assert found.misclassification == 0
    assert np.ptp(found.trace[:, 0]) == pytest.approx(0, abs=1e-5)  # no cost, no gradient


def test_a_class_without_other_images_and_a_passed_deadline_are_said_so() -> None:
    classifier = one_pixel_classifier()
    found = search(classifier, black(3), [0, 1], NeuralCleanseConfig(steps=5))[0]
    assert [e.stop_reason for e in found] == [NO_IMAGES, STEPS_DONE]
    late = search(classifier, black(3), [1], deadline=time.monotonic() - 1)[0][0]
    assert late.stop_reason == TIME_LIMIT
    assert not late.found


def run_schedule(steps: list[tuple[float, float]]) -> tuple[list[float], _Schedule]:
    """The cost after each (success, size)."""
    schedule = _Schedule(NeuralCleanseConfig())
    costs = []
    for success, size in steps:
        schedule.update(success, size)
        costs.append(schedule.cost)
    return costs, schedule


def test_the_cost_begins_after_five_successes_and_moves_after_five_more() -> None:
    costs, _ = run_schedule([(0.5, 9)] * 3 + [(1.0, 9)] * 10 + [(0.5, 9)] * 5)
    begun, up = 1e-3, 1.5e-3
    expected = [0.0] * 7 + [begun] * 5 + [up] * 5 + [up / 1.5**1.5]
    np.testing.assert_allclose(costs, expected, atol=0, rtol=1e-12)


def test_an_interrupted_run_of_successes_counts_from_the_beginning() -> None:
    costs, _ = run_schedule([(1.0, 9)] * 4 + [(0.5, 9)] + [(1.0, 9)] * 4)
    assert costs == [0.0] * 9


def test_it_stops_ten_steps_after_the_last_gain_once_the_cost_went_both_ways() -> None:
    up_and_down = [(1.0, 100.0)] * 10 + [(0.5, 50.0)] * 5
    schedule = run_schedule(up_and_down)[1]
    assert not schedule.finished
    assert schedule.best_size == 100
    small_gains = [(1.0, 99.5 - 0.01 * i) for i in range(20)]  # each less than 1 %
    finished = []
    for success, size in small_gains:
        schedule.update(success, size)
        finished.append(schedule.finished)
    assert finished.index(True) == 0  # 14 steps without gain lie behind it
    fresh = run_schedule([*up_and_down, (1.0, 80.0)])[1]
    for step in range(1, 11):
        assert fresh.finished == (step == 0)
        fresh.update(0.5, 10.0)
    assert fresh.finished


def test_the_anomaly_index_is_the_distance_below_the_median_in_deviations() -> None:
    sizes = np.array([10.0, 12.0, 14.0, 15.0, 16.0, 18.0, 2.0])
    # median 14; |size - 14| sorted: 0 1 2 2 4 4 12, its median 2
    np.testing.assert_allclose(anomaly_index(sizes), (14 - sizes) / (1.4826 * 2))
    assert anomaly_index(sizes).argmax() == 6
    np.testing.assert_array_equal(
        anomaly_index([1.0, 3.0, 3.0, 3.0, 9.0]), [np.inf, 0, 0, 0, -np.inf]
    )
    assert anomaly_index([1.0, 2.0, 3.0, np.inf])[3] == -np.inf


@pytest.mark.parametrize(
    "sizes", [[1.0, 2.0], [1.0, np.nan, 2.0], [-1.0, 1.0, 2.0], [1.0] + [np.inf] * 3]
)
def test_sizes_that_have_no_index_are_refused(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match=r"sizes|mask"):
        anomaly_index(sizes)


def test_its_constant_makes_the_deviation_that_of_a_normal() -> None:
    sizes = np.random.default_rng(0).normal(50.0, 3.0, size=200_001)
    np.testing.assert_allclose(anomaly_index(sizes), (50.0 - sizes) / 3.0, atol=0.08)
