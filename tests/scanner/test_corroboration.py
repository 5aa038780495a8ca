"""A shortcut carries images that it was not made from; an overfitted perturbation does not."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from scanner.arms import WITH_TRIGGERS, Ready
from scanner.arms.base import split_halves
from scanner.config import ScanConfig
from scanner.corroboration import corroborate, held_out_weights
from scanner.detectors.misclassification import GroupMisclassification
from scanner.results import Corroboration
from tests.models import as_classifier, linear_model, random_network, two_layer_model

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def run(
    model: onnx.ModelProto,
    images: Images,
    labels: Labels,
    suspect: int,
    deadline: float | None = None,
    name: str = "l_red",
) -> tuple[Corroboration, int]:
    arm, config = WITH_TRIGGERS[name], ScanConfig()
    classifier = as_classifier(model)
    targets = tuple(range(classifier.class_count))
    ready = Ready(classifier, images, labels, targets, 512, None)
    estimates = arm.search(ready, config, None).estimates
    return corroborate(arm, ready._replace(deadline=deadline), estimates, suspect, config)


def prototypes(
    classes: int, per_class: int, side: int = 6, seed: int = 3
) -> tuple[npt.NDArray[np.float64], Images, Labels]:
    generator = np.random.default_rng(seed)
    centres = generator.uniform(0.2, 0.8, size=(classes, side * side))
    labels = np.repeat(np.arange(classes), per_class)
    images = centres[labels] + generator.normal(scale=0.03, size=(len(labels), side * side))
    return centres, images.reshape(-1, 1, side, side).astype(np.float32), labels


def planted_shortcut() -> tuple[onnx.ModelProto, Images, Labels]:
    """Prototype classes; the first pixel, always 0.2 in clean images, speaks for class 3."""
    centres, images, labels = prototypes(6, 6)
    images[:, 0, 0, 0] = 0.2
    weights = 20 * centres
    weights[:, 0] = 0.0
    bias = -10 * (centres[:, 1:] ** 2).sum(1)
    weights[3, 0] = 150.0
    bias[3] -= 150.0 * 0.2
    return linear_model(weights, bias, (1, 6, 6)), images, labels


def image_specific_keys() -> tuple[onnx.ModelProto, Images, Labels]:
    """Class 2 has a key for each single image: pixel 8 + i, which counts only if pixel 16 + i is 1.

    So every image is carried by a small change of one pixel, but no change serves two images.
    """
    count, size = 8, 36
    labels = np.arange(count) % 2
    images = np.zeros((count, size))
    images[np.arange(count), labels] = 1.0
    images[:, 8:16] = 0.5
    images[np.arange(count), 16 + np.arange(count)] = 1.0
    first = np.zeros((count + 2, size))
    first[[0, 1], [0, 1]] = 1.0
    for i in range(count):
        first[2 + i, [8 + i, 16 + i]] = 1.0
    bias = np.array([0.0, 0.0, *[-1.45] * count])
    second = np.zeros((3, count + 2))
    second[0, 0] = second[1, 1] = 4.0
    second[2, 2:] = 40.0
    model = two_layer_model(first, bias, second, np.zeros(3), (1, 6, 6))
    return model, images.reshape(count, 1, 6, 6).astype(np.float32), labels


@pytest.mark.parametrize("name", ["l_red", "mask_pattern"])
def test_a_planted_shortcut_is_corroborated(name: str) -> None:
    model, images, labels = planted_shortcut()
    result, spent = run(model, images, labels, 3, name=name)
    assert result.target_class == 3
    assert result.corroborated
    assert result.held_out_rate > 0.9
    assert result.best_other_rate < 0.5
    assert spent > 0


def test_an_overfitted_perturbation_is_not_corroborated() -> None:
    model, images, labels = image_specific_keys()
    assert (as_classifier(model).predictions(images) == labels).all()
    result, _ = run(model, images, labels, 2)
    assert not result.corroborated
    assert result.held_out_rate == 0.0


def test_a_suspect_that_is_not_found_on_a_half_is_not_corroborated() -> None:
    model, images, labels = planted_shortcut()
    result, _ = run(model, images, labels, 3, deadline=time.monotonic() - 1)
    assert not result.corroborated
    assert result.held_out_rate == 0.0


def test_halves_share_each_class_and_no_image() -> None:
    labels = np.array([0, 1, 0, 2, 0, 1, 0, 2, 2, 2])
    first, second = split_halves(labels)
    assert sorted([*first, *second]) == list(range(10))
    for k, size in ((0, 2), (1, 1), (2, 2)):
        assert np.sum(labels[first] == k) == np.sum(labels[second] == k) == size


def test_odd_classes_differ_by_one_image_and_the_halves_too() -> None:
    labels = np.repeat([0, 1, 2, 3], 3)
    first, second = split_halves(labels)
    assert len(first) == len(second) == 6
    for k in range(4):
        assert abs(np.sum(labels[first] == k) - np.sum(labels[second] == k)) == 1


def test_one_image_a_class_splits_the_classes() -> None:
    first, second = split_halves(np.arange(7))
    assert {len(first), len(second)} == {3, 4}
    assert not set(first) & set(second)


@pytest.fixture(scope="module")
def check() -> GroupMisclassification:
    """Held-out images of classes 1 and 2 for target class 0 of four."""
    images = np.full((4, 1, 4, 4), 0.5, np.float32)
    classifier = as_classifier(random_network(0, 4))
    return GroupMisclassification(classifier, images, np.array([1, 1, 2, 0]), [0], 16)


def test_held_out_images_are_judged_by_the_half_s_own_weights(
    check: GroupMisclassification,
) -> None:
    own, whole = np.array([0, 0.6, 0.2, 0.2]), np.array([0, 0.1, 0.1, 0.8])
    np.testing.assert_allclose(held_out_weights(own, whole, check), [0, 0.75, 0.25, 0])


def test_weights_of_all_images_serve_where_the_half_s_classes_are_not_held_out(
    check: GroupMisclassification,
) -> None:
    own, whole = np.array([0, 0.1, 0.1, 0.8]), np.array([0, 0.3, 0.1, 0.6])
    np.testing.assert_allclose(held_out_weights(own, whole, check), [0, 0.75, 0.25, 0])


def test_weights_are_uniform_where_neither_covers_the_held_out_classes(
    check: GroupMisclassification,
) -> None:
    only_absent = np.array([0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(held_out_weights(only_absent, only_absent, check), [0, 0.5, 0.5, 0])
