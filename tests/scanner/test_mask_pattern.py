"""The smallest mask and pattern of models where it is known."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
import torch

from scanner.classifier import Classifier
from scanner.config import MaskPatternConfig
from scanner.detectors.mask_pattern import NO_IMAGES, TIME_LIMIT, MaskEstimate, estimate_masks
from scanner.detectors.misclassification import GroupMisclassification
from scanner.triggers import embed_mask_pattern
from tests.models import as_classifier, linear_model, random_network, template_images

PIXEL = 5  # of 16
Floats = npt.NDArray[np.float32]


def one_pixel_classifier(strength: float = 4.0, threshold: float = 2.0) -> Classifier:
    """Class 1 wins where strength * x[PIXEL] + .1 * (the other pixels) > threshold."""
    w = np.zeros((2, 16))
    w[1] = 0.1
    w[1, PIXEL] = strength
    return as_classifier(linear_model(w, np.array([threshold, 0.0])))


def search(
    classifier: Classifier,
    images: Floats,
    labels: npt.NDArray[np.int64],
    targets: list[int],
    config: MaskPatternConfig | None = None,
    deadline: float | None = None,
    batch_images: int = 64,
) -> list[MaskEstimate]:
    objective = GroupMisclassification(
        classifier, images, labels, targets, batch_images, deadline, embed_mask_pattern
    )
    return estimate_masks(objective, config or MaskPatternConfig())


def black(count: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    return np.zeros((count, 1, 4, 4), np.float32), np.zeros(count, np.int64)


@pytest.mark.parametrize(("strength", "threshold"), [(4.0, 2.0), (8.0, 2.0), (4.0, 3.0)])
def test_one_pixel_is_found_at_its_smallest_mask(strength: float, threshold: float) -> None:
    """On black images m * u must exceed threshold / strength at that pixel: u = 1 is cheapest."""
    found = search(one_pixel_classifier(strength, threshold), *black(4), [1])[0]
    smallest = threshold / strength
    assert found.found
    assert smallest <= found.size <= 1.2 * smallest
    assert found.mask.reshape(-1)[PIXEL] > 0.9 * found.size
    assert found.pattern.reshape(-1)[PIXEL] > 0.9


def test_the_trigger_does_what_is_told_of_it() -> None:
    classifier = as_classifier(random_network(4, 4))
    images, labels = template_images(4, 5)
    for found in search(classifier, images, labels, [0, 1, 2, 3]):
        assert found.found
        trigger = torch.from_numpy(np.concatenate([found.mask[None], found.pattern]))
        triggered = embed_mask_pattern(torch.from_numpy(images), trigger).numpy()
        hit = classifier.predictions(triggered) == found.target_class
        shares = [hit[labels == s].mean() for s in range(4)]
        others = [s for s in range(4) if s != found.target_class]
        np.testing.assert_allclose(found.source_fractions[others], np.array(shares)[others])
        assert found.misclassification == pytest.approx(np.mean([shares[s] for s in others]))
        assert found.misclassification >= 0.9
        assert found.size == pytest.approx(found.mask.sum(), rel=1e-5)
        assert 0 <= found.mask.min() <= found.mask.max() <= 1
        reached = found.trace[:, 1] >= 0.9
        assert found.size == pytest.approx(found.trace[reached, 0].min(), rel=1e-5)


def test_classes_are_searched_independently() -> None:
    classifier = as_classifier(random_network(4, 4))
    images, labels = template_images(4, 5)
    config = MaskPatternConfig(steps=30)
    together = search(classifier, images, labels, [0, 1, 2, 3], config, batch_images=7)
    for target in range(4):
        alone = search(classifier, images, labels, [target], config)[0]
        np.testing.assert_allclose(together[target].trace, alone.trace, rtol=1e-3)


def test_an_unreachable_class_is_not_found() -> None:
    w = np.zeros((3, 16))
    unreachable = as_classifier(linear_model(w, np.array([1.0, 0.5, 0.0])))
    found = search(unreachable, *black(3), [2], MaskPatternConfig(steps=10))[0]
    assert not found.found
    assert found.misclassification == 0
    assert found.gradient_evaluations == 10


def test_a_class_without_other_images_is_said_so() -> None:
    found = search(one_pixel_classifier(), *black(3), [0, 1], MaskPatternConfig(steps=5))
    assert [e.stop_reason for e in found] == [NO_IMAGES, "steps_done"]
    assert found[0].gradient_evaluations == 0


def test_a_passed_deadline_stops_the_search() -> None:
    found = search(one_pixel_classifier(), *black(3), [1], deadline=time.monotonic() - 1)[0]
    assert found.stop_reason == TIME_LIMIT
    assert not found.found
