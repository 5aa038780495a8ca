"""q and the gradient of J against the definitions, image by image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from scanner.classifier import Classifier
from scanner.detectors.misclassification import GroupMisclassification
from scanner.triggers import embed_additive
from tests.models import as_classifier, random_network, template_images

CLASSES = 4
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return as_classifier(random_network(4, CLASSES))


@pytest.fixture(scope="module")
def data() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    images, labels = template_images(CLASSES, 5)
    return images[:-3], labels[:-3]  # unequal class sizes


def random_perturbations(count: int, scale: float = 0.4) -> torch.Tensor:
    generator = np.random.default_rng(1)
    return torch.from_numpy(generator.normal(scale=scale, size=(count, 1, 4, 4))).float()


def random_weights(count: int) -> Floats:
    w = np.random.default_rng(2).random((count, CLASSES))
    w[np.arange(count), np.arange(count)] = 0
    return w / w.sum(1, keepdims=True)


def fractions_by_hand(
    classifier: Classifier,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    target: int,
    v: torch.Tensor,
) -> Floats:
    hits, counts = np.zeros(CLASSES), np.zeros(CLASSES)
    for pixels, label in zip(images, labels, strict=True):
        if label == target:
            continue
        x = (torch.from_numpy(pixels) + v).clamp(0, 1)[None]
        counts[label] += 1
        hits[label] += int(classifier.differentiable_logits(x).argmax()) == target
    return hits / np.maximum(counts, 1)


@pytest.mark.parametrize("batch_images", [1000, 6, 1])
def test_fractions_are_the_shares_of_each_class(
    classifier: Classifier,
    data: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    batch_images: int,
) -> None:
    images, labels = data
    group = GroupMisclassification(classifier, images, labels, range(CLASSES), batch_images)
    v = random_perturbations(CLASSES)
    got = group.fractions(list(range(CLASSES)), v)
    expected = [fractions_by_hand(classifier, images, labels, t, v[t]) for t in range(CLASSES)]
    np.testing.assert_allclose(got, expected)
    assert 0 < np.mean(expected) < 1


@pytest.mark.parametrize("batch_images", [1000, 6, 1])
def test_gradient_is_that_of_the_weighted_mean_log_posterior(
    classifier: Classifier,
    data: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    batch_images: int,
) -> None:
    images, labels = data
    group = GroupMisclassification(classifier, images, labels, range(CLASSES), batch_images)
    v, w = random_perturbations(CLASSES), random_weights(CLASSES)
    told: list[tuple[int, Floats]] = []

    def weigh(positions: list[int], q: Floats) -> Floats:
        told.extend(zip(positions, q, strict=True))
        return w[positions]

    got = group.evaluate(list(range(CLASSES)), v, weigh)
    for t in range(CLASSES):
        leaf = v[t].clone().requires_grad_()
        objective = torch.zeros(())
        for pixels, label in zip(images, labels, strict=True):
            if label != t:
                x = (torch.from_numpy(pixels) + leaf).clamp(0, 1)[None]
                log_p = classifier.differentiable_logits(x).log_softmax(1)[0, t]
                objective = objective + w[t, label] / np.sum(labels == label) * log_p
        objective.backward()
        torch.testing.assert_close(got[t], leaf.grad, rtol=1e-4, atol=1e-6)
    assert sorted(position for position, _ in told) == list(range(CLASSES))
    for position, q in told:
        by_hand = fractions_by_hand(classifier, images, labels, position, v[position])
        np.testing.assert_allclose(q, by_hand)


def test_positions_are_indices_into_the_targets(
    classifier: Classifier, data: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
) -> None:
    images, labels = data
    group = GroupMisclassification(classifier, images, labels, [3, 1], 1000)
    v = random_perturbations(1)
    np.testing.assert_allclose(
        group.fractions([1], v)[0], fractions_by_hand(classifier, images, labels, 1, v[0])
    )
    assert group.image_count(0) == np.sum(labels != 3)


def test_clipped_pixels_have_no_gradient(classifier: Classifier) -> None:
    images = np.full((2, 1, 4, 4), 0.5, np.float32)
    images[:, 0, 0, :] = 0.95
    images[:, 0, 1, :] = 0.05
    v = torch.zeros(1, 1, 4, 4)
    v[0, 0, 0], v[0, 0, 1] = 0.2, -0.2
    group = GroupMisclassification(classifier, images, np.zeros(2, np.int64), [1], 10)
    gradient = group.evaluate([0], v, lambda positions, q: group.uniform_weights[positions])[0, 0]
    assert (gradient[:2] == 0).all()
    assert (gradient[2:] != 0).all()


def test_a_pixel_clipped_in_some_images_counts_only_in_the_others(classifier: Classifier) -> None:
    images = np.full((2, 1, 4, 4), 0.5, np.float32)
    images[1] = 0.99
    v = torch.full((1, 1, 4, 4), 0.1)
    both = GroupMisclassification(classifier, images, np.zeros(2, np.int64), [1], 10)
    first = GroupMisclassification(classifier, images[:1], np.zeros(1, np.int64), [1], 10)
    uniform = both.uniform_weights
    of_both = both.evaluate([0], v, lambda positions, q: uniform)
    of_first = first.evaluate([0], v, lambda positions, q: uniform)
    torch.testing.assert_close(of_both, of_first / 2)


def test_embedding_adds_and_clips() -> None:
    images = torch.tensor([0.1, 0.5, 0.9]).reshape(3, 1, 1, 1)
    result = embed_additive(images, torch.full((1, 1, 1), 0.3))
    torch.testing.assert_close(result.flatten(), torch.tensor([0.4, 0.8, 1.0]))
    result = embed_additive(images, torch.full((1, 1, 1), -0.3))
    torch.testing.assert_close(result.flatten(), torch.tensor([0.0, 0.2, 0.6]))


def test_uniform_weights_cover_the_classes_that_have_images(classifier: Classifier) -> None:
    images = np.full((3, 1, 4, 4), 0.5, np.float32)
    group = GroupMisclassification(classifier, images, np.array([0, 0, 2]), [0, 1, 2], 10)
    expected = [[0, 0, 1, 0], [0.5, 0, 0.5, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(group.uniform_weights, expected)


def test_image_gradients_are_counted(
    classifier: Classifier, data: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
) -> None:
    images, labels = data
    group = GroupMisclassification(classifier, images, labels, [0, 1], 1000)
    uniform = group.uniform_weights
    group.evaluate([0, 1], random_perturbations(2), lambda positions, q: uniform[positions])
    assert group.image_gradients == group.image_count(0) + group.image_count(1)
