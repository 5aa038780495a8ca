"""Expected transferability on models whose smallest perturbations are known, clean and planted."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from scanner.classifier import Classifier
from scanner.detectors.expected_transferability import (
    NO_IMAGES,
    ROUNDS_DONE,
    STABLE,
    TIME_LIMIT,
    TransferabilityConfig,
    TransferEstimate,
    estimate_transferability,
    scale_for,
    suspects,
    threshold,
)
from tests.models import (
    as_classifier,
    linear_model,
    random_network,
    template_images,
    two_layer_model,
)

SIDE = 8
SHAPE = (1, SIDE, SIDE)
PIXELS = SIDE * SIDE
PER_CLASS = 10
EXACT = TransferabilityConfig(scale=1.0, steps=60)
Floats = npt.NDArray[np.float64]
Data = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def two_classes(trigger: bool) -> tuple[Classifier, Data]:
    """Class 0 is ten images, each lit in five pixels of its own; what is lit nowhere is class 1.

    The logit of class 0 is a sum of units relu(sum of an image's five pixels - 2.25), so the way
    from class 0 to class 1 puts out an image's own pixels, which does nothing to any other image.
    The planted model has one more unit, for class 1: it sees four pixels that no image uses, ten
    times as strongly.
    """
    generator = np.random.default_rng(0)
    own = np.zeros((PER_CLASS, PIXELS))
    for image in range(PER_CLASS):
        own[image, image * 5 : image * 5 + 5] = 1.0
    pixels = 0.2 + 0.5 * own + generator.normal(scale=0.01, size=own.shape)
    zero = np.clip(pixels, 0, 1)
    one = np.clip(0.2 + generator.normal(scale=0.01, size=own.shape), 0, 1)
    first, first_bias = own, np.full(PER_CLASS, -5 * 0.45)
    second = np.zeros((2, PER_CLASS))
    second[0] = 1.0
    second_bias = np.array([0.0, 0.1])
    if trigger:
        corner = np.zeros(PIXELS)
        corner[-4:] = 1.0  # pixels of no image
        first = np.vstack([first, 10 * corner])
        first_bias = np.append(first_bias, -10 * 4 * 0.19)  # just active on clean images
        second = np.hstack([second, [[0.0], [1.0]]])
    model = two_layer_model(first, first_bias, second, second_bias, SHAPE)
    images = np.concatenate([zero, one]).reshape(-1, *SHAPE).astype(np.float32)
    classifier = as_classifier(model)
    labels = np.repeat([0, 1], PER_CLASS)
    np.testing.assert_array_equal(classifier.predictions(images), labels)
    return classifier, (images, labels)


def search(
    classifier: Classifier,
    data: Data,
    targets: list[int],
    config: TransferabilityConfig | None = None,
    batch_images: int = 64,
    deadline: float | None = None,
) -> list[TransferEstimate]:
    return estimate_transferability(
        classifier, *data, targets, config or TransferabilityConfig(), 0, batch_images, deadline
    )


def test_two_classes_with_a_backdoor_are_told_from_two_without() -> None:
    clean = search(*two_classes(trigger=False), [1])[0]
    planted = search(*two_classes(trigger=True), [1])[0]
    assert clean.reached == planted.reached == 1
    assert clean.transferability is not None
    assert clean.transferability < threshold(2) / 2
    assert planted.transferability is not None
    assert planted.transferability > 0.5
    assert suspects([clean], 2) == ()
    assert suspects([planted], 2) == (1,)


def test_the_planted_way_is_found() -> None:
    found = search(*two_classes(trigger=True), [1])[0]
    power = (found.perturbation.reshape(-1) ** 2) / (found.perturbation**2).sum()
    assert power[-4:].sum() > 0.9


def halfspaces(seed: int = 1, count: int = 12) -> tuple[Classifier, Data, Floats]:
    """Two linear classes and the exact distances of class 0's images to the boundary."""
    w = np.random.default_rng(seed).normal(size=PIXELS)
    images = np.random.default_rng(seed + 1).uniform(0.35, 0.65, (4 * count, PIXELS))
    score = images @ w - 0.5 * w.sum()
    images = images[score < 0][:count]
    distance = -(images @ w - 0.5 * w.sum()) / np.linalg.norm(w)
    model = linear_model(np.stack([np.zeros(PIXELS), w]), np.array([0.5 * w.sum(), 0.0]), SHAPE)
    data = images.reshape(-1, *SHAPE).astype(np.float32), np.zeros(len(images), np.int64)
    return as_classifier(model), data, distance


def test_exact_perturbations_of_a_shared_way_carry_half_of_the_pairs() -> None:
    """With one normal, v_i carries x_j where x_j is nearer to the boundary: one of each pair."""
    classifier, data, distance = halfspaces()
    found = search(classifier, data, [1], EXACT)[0]
    np.testing.assert_allclose(found.norms, distance, rtol=0.03)
    assert (found.norms >= distance * 0.9999).all()
    far_apart = np.abs(distance[:, None] - distance) > 0.04 * distance[:, None]
    np.testing.assert_array_equal(
        found.transfers[far_apart], (distance[:, None] > distance)[far_apart]
    )
    assert found.transferability == pytest.approx(0.5, abs=0.1)
    doubled = search(classifier, data, [1], replace(EXACT, scale=2.0))[0]
    expected = [2 * a > b for i, a in enumerate(distance) for j, b in enumerate(distance) if i != j]
    assert doubled.transferability == pytest.approx(np.mean(expected), abs=0.05)


def test_transferability_is_the_mean_over_ordered_pairs() -> None:
    classifier = as_classifier(random_network(4, 4))
    images, _ = template_images(4, 5)
    labels = classifier.predictions(images)
    found = search(classifier, (images, labels), [2])[0]
    off = ~np.eye(len(found.used), dtype=bool)
    assert found.transferability == pytest.approx(found.transfers[off].mean())
    assert (labels[found.used] != 2).all()
    best = found.transfers.sum(1).max()
    carried = classifier.predictions(np.clip(images[found.used] + found.perturbation, 0, 1)) == 2
    assert carried.sum() == best
    for source in range(4):
        of = labels[found.used] == source
        if of.any():
            assert found.source_fractions[source] == pytest.approx(
                (found.transfers & off)[:, of].sum() / (len(off) - 1) / of.sum()
            )


def test_batches_and_other_classes_change_nothing() -> None:
    classifier = as_classifier(random_network(4, 4))
    images, _ = template_images(4, 5)
    data = images, classifier.predictions(images)
    together = search(classifier, data, [0, 1, 2, 3], batch_images=64)
    for estimate in together:
        alone = search(classifier, data, [estimate.target_class], batch_images=7)[0]
        np.testing.assert_allclose(alone.norms, estimate.norms, rtol=1e-3)
        assert alone.transferability == pytest.approx(estimate.transferability, abs=0.02)


def test_images_are_spread_over_the_other_classes() -> None:
    classifier = as_classifier(random_network(4, 4))
    images, labels = template_images(4, 5)
    found = search(classifier, (images, labels), [1], replace(EXACT, images=7, steps=1))[0]
    assert np.bincount(labels[found.used], minlength=4).tolist() == [3, 0, 2, 2]
    assert found.image_gradients == 7


def test_rounds_end_when_nothing_new_is_carried_and_only_add() -> None:
    classifier, data = two_classes(trigger=True)
    config = TransferabilityConfig(patience=2, max_rounds=30, steps=15)
    once = search(classifier, data, [1], replace(config, max_rounds=1))[0]
    often = search(classifier, data, [1], config)[0]
    assert often.stop_reason == STABLE
    assert once.stop_reason == ROUNDS_DONE
    assert (often.transfers >= once.transfers).all()
    assert (often.norms <= once.norms).all()
    assert often.image_gradients >= 3 * once.image_gradients  # the first round and two in vain


def unreachable() -> onnx.ModelProto:
    return linear_model(np.zeros((2, PIXELS)), np.array([1.0, 0.0]), SHAPE)


def test_what_cannot_be_reached_carries_nothing_and_says_so() -> None:
    images = np.full((4, *SHAPE), 0.5, np.float32)
    found = search(as_classifier(unreachable()), (images, np.zeros(4, np.int64)), [1])[0]
    assert found.transferability == 0
    assert found.reached == 0
    assert np.isinf(found.norms).all()


def test_too_few_images_and_too_little_time() -> None:
    classifier, data, _ = halfspaces()
    one = data[0][:1], data[1][:1]
    assert search(classifier, one, [1])[0].stop_reason == NO_IMAGES
    assert search(classifier, data, [0])[0].transferability is None
    late = search(classifier, data, [1], deadline=time.monotonic() - 1)[0]
    assert late.stop_reason == TIME_LIMIT
    assert late.transferability is None


def with_rates(rates: list[float | None]) -> list[TransferEstimate]:
    nothing = np.zeros(0)
    return [
        TransferEstimate(
            t, r, 1.0, nothing > 0, nothing.astype(np.int64), nothing, nothing, nothing, STABLE, 0
        )
        for t, r in enumerate(rates)
    ]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([0.02] * 9 + [0.4], (9,)),
        ([0.02] * 8 + [0.5, 0.6], (9, 8)),  # two targets
        ([0.02] * 9 + [0.29], ()),
        ([0.45] * 9 + [0.6], ()),  # a linear model
        ([0.15] * 9 + [0.4], ()),
        ([0.1, 0.4], (1,)),
        ([0.3, 0.4], ()),
        ([0.1, 0.2, 0.4], (2,)),
        ([None, 0.1, 0.4], (2,)),
        ([None, None], ()),
    ],
)
def test_suspects_stand_out(rates: list[float | None], expected: tuple[int, ...]) -> None:
    assert suspects(with_rates(rates), len(rates)) == expected


def test_a_linear_model_shares_its_ways_and_accuses_nobody() -> None:
    generator = np.random.default_rng(0)
    classifier = as_classifier(linear_model(generator.normal(size=(6, PIXELS)), shape=SHAPE))
    images = generator.uniform(0.3, 0.7, size=(40, *SHAPE)).astype(np.float32)
    found = search(classifier, (images, classifier.predictions(images)), list(range(6)))
    assert max(e.transferability or 0 for e in found) >= threshold(6)
    assert suspects(found, 6) == ()


def test_few_classes_are_tried_at_a_smaller_scale() -> None:
    scales = [scale_for(k, TransferabilityConfig()) for k in (2, 4, 5, 43)]
    assert scales == [1.25, 1.25, 2.0, 2.0]
    assert scale_for(43, TransferabilityConfig(scale=1.0)) == 1.0
