"""Spectral Signatures against the singular value decomposition and planted clusters."""

from __future__ import annotations

import numpy as np
import pytest

from scanner.detectors.spectral_signatures import spectral_signatures
from scanner.principal_components import principal_components


@pytest.mark.parametrize(("count", "numbers"), [(40, 6), (12, 30)])
def test_it_is_the_squared_projection_on_the_top_right_singular_vector(
    count: int, numbers: int
) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(2 * count, numbers)) * np.arange(1, numbers + 1)
    classes = np.tile([3, 8], count)
    found = spectral_signatures(features, classes)
    for label in (3, 8):
        rows = features[classes == label]
        centred = rows - rows.mean(0)
        top = np.linalg.svd(centred)[2][0]
        np.testing.assert_allclose(found[classes == label], (centred @ top) ** 2, rtol=1e-8)


def test_planted_poison_has_the_greatest_scores_of_its_class() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(300, 64))
    classes = np.repeat([0, 1, 2], 100)
    poison = np.arange(100, 110)
    features[poison, 5] += 12
    scores = spectral_signatures(features, classes)
    assert set(100 + np.argsort(scores[100:200])[-10:]) == set(poison)


def test_it_depends_neither_on_the_order_nor_on_an_offset() -> None:
    generator = np.random.default_rng(2)
    features, classes = generator.normal(size=(60, 9)), generator.integers(3, size=60)
    order = generator.permutation(60)
    expected = spectral_signatures(features, classes)[order]
    found = spectral_signatures(features[order] + 1000.0, classes[order])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_equal_images_and_a_class_of_one_score_nothing() -> None:
    features = np.array([[1.0, 2], [1, 2], [1, 2], [7, 7]])
    assert spectral_signatures(features, [0, 0, 0, 1]).tolist() == [0, 0, 0, 0]
    assert spectral_signatures(np.zeros((0, 4)), []).shape == (0,)


def test_other_numbers_of_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match="for 2 classes"):
        spectral_signatures(np.zeros((3, 4)), [0, 1])


@pytest.mark.parametrize(("count", "numbers"), [(50, 8), (8, 50)])
def test_principal_components_are_those_of_the_singular_value_decomposition(
    count: int, numbers: int
) -> None:
    rows = np.random.default_rng(3).normal(size=(count, numbers))
    projections, singular = principal_components(rows, 3)
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(singular, s[:3])
    np.testing.assert_allclose(np.abs(projections), np.abs(u[:, :3] * s[:3]), rtol=1e-6, atol=1e-9)


def test_there_are_no_more_components_than_the_rank() -> None:
    line = np.outer(np.arange(10.0), [1, 2, 3])
    projections, singular = principal_components(line, 3)
    assert projections.shape == (10, 1)
    assert singular.shape == (1,)


def test_features_that_are_not_finite_spoil_no_other_score() -> None:
    features, classes = np.random.default_rng(4).normal(size=(60, 5)), np.arange(60) % 2
    expected = spectral_signatures(features[2:], classes[2:])
    features[0, 3], features[1, 2] = np.inf, np.nan
    found = spectral_signatures(features, classes)
    assert np.isnan(found[:2]).all()
    np.testing.assert_allclose(found[2:], expected, rtol=1e-9)
