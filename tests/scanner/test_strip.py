"""STRIP's entropies against the formula written out, and on models whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from scanner.detectors import strip
from scanner.detectors.softmax_confidence import probabilities, softmax_confidence
from scanner.detectors.strip import draw_overlays, strip_entropy
from tests.models import as_classifier, random_network, template_images, template_model

Floats = npt.NDArray[np.float32]


def entropy_of_one(
    model: npt.NDArray[np.float64], image: Floats, overlays: Floats, added: bool
) -> float:
    """H of one image for the linear model `model @ pixels`, one overlay and class after another."""
    total = 0.0
    for overlay in overlays:
        blend = [
            min(1.0, float(a) + float(b)) if added else (float(a) + float(b)) / 2
            for a, b in zip(image.ravel(), overlay.ravel(), strict=True)
        ]
        raw = [sum(w * p for w, p in zip(row, blend, strict=True)) for row in model]
        shares = [math.exp(z - max(raw)) for z in raw]
        total -= sum(s / sum(shares) * math.log2(s / sum(shares)) for s in shares)
    return total / len(overlays)


@pytest.mark.parametrize("superposition", ["add", "mean"])
def test_it_is_the_formula(superposition: strip.Superposition) -> None:
    generator = np.random.default_rng(0)
    model = generator.normal(size=(3, 8))
    images = generator.random((4, 2, 2, 2), dtype=np.float32)
    overlays = generator.random((5, 2, 2, 2), dtype=np.float32)

    def logits(blends: Floats) -> Floats:
        return (blends.reshape(len(blends), -1) @ model.T).astype(np.float32)

    expected = [entropy_of_one(model, i, overlays, superposition == "add") for i in images]
    found = strip_entropy(logits, images, overlays, superposition)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_model_that_knows_nothing_gives_all_bits_and_a_sure_one_none() -> None:
    images = np.zeros((2, 1, 2, 2), np.float32)
    known = np.array([[1000.0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(
        strip_entropy(lambda x: np.zeros((len(x), 8), np.float32), images, images), 3
    )
    found = strip_entropy(lambda x: known.repeat(len(x), 0), images, images)
    assert found.tolist() == [0, 0]  # p log p is 0 at p = 0, not NaN


def test_a_trigger_that_dominates_has_the_smallest_entropies() -> None:
    images, _ = template_images(4, 10)
    classifier = as_classifier(template_model(4))
    marked = images.copy()
    marked[:, 0, :2, :2] = 1

    def logits(x: Floats) -> Floats:
        found = classifier.logits(x)
        found[:, 2] += 100 * (x[:, 0, :2, :2].min((1, 2)) >= 1)  # the backdoor
        return found

    clean, triggered = (strip_entropy(logits, x, images[::4] * 0.9) for x in (images, marked))
    assert triggered.max() < clean.min()


def test_results_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = as_classifier(random_network(0, 5))
    images, _ = template_images(5, 6)
    whole = strip_entropy(classifier.logits, images, images[:7])
    monkeypatch.setattr(strip, "_BLENDED_NUMBERS", 1)
    one_by_one = strip_entropy(classifier.logits, images, images[:7])
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-5)


def test_overlays_are_distinct_seeded_and_no_more_than_there_are() -> None:
    drawn = draw_overlays(500, seed=1)
    assert len(set(drawn.tolist())) == 100
    assert 0 <= drawn.min() <= drawn.max() < 500
    np.testing.assert_array_equal(drawn, draw_overlays(500, seed=1))
    assert not np.array_equal(drawn, draw_overlays(500, seed=2))
    assert draw_overlays(30, seed=1).tolist() == list(range(30))


def test_without_an_overlay_it_is_an_error_and_without_an_image_there_is_no_score() -> None:
    classifier = as_classifier(random_network(0, 5))
    images, _ = template_images(5, 1)
    with pytest.raises(ValueError, match="at least one clean image"):
        strip_entropy(classifier.logits, images, images[:0])
    assert strip_entropy(classifier.logits, images[:0], images).shape == (0,)


def test_softmax_confidence_is_the_greatest_probability() -> None:
    logits = np.array([[0, math.log(3)], [2, 2], [0, 30], [0, 31]], np.float32)
    found = softmax_confidence(logits)
    np.testing.assert_allclose(found[:2], [0.75, 0.5], rtol=1e-6)
    assert found[2] < found[3] < 1  # in single precision both would be 1
    np.testing.assert_allclose(probabilities(logits).sum(1), 1)
