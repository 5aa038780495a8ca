"""Activation Clustering on planted clusters; silhouettes against their definition."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from scipy.cluster.vq import kmeans2

from scanner.detectors import activation_clustering as module
from scanner.detectors.activation_clustering import (
    MIN_CLASS_IMAGES,
    activation_clustering,
    cluster_class,
    silhouettes,
    smaller_cluster_scores,
)
from scanner.principal_components import principal_components

Floats = npt.NDArray[np.float64]


def planted(count: int, poisoned: int, distance: float, seed: int = 0) -> Floats:
    """(count, 30) features; the last `poisoned` ones lie `distance` away along a random line."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 30))
    line = generator.normal(size=30)
    features[count - poisoned :] += distance * line / np.linalg.norm(line)
    return features


def silhouette_by_definition(points: Floats, second: npt.NDArray[np.bool_], i: int) -> float:
    own = [j for j in range(len(points)) if second[j] == second[i] and j != i]
    other = [j for j in range(len(points)) if second[j] != second[i]]
    if not own:
        return 0.0
    a, b = (np.mean([np.linalg.norm(points[i] - points[j]) for j in js]) for js in (own, other))
    return float((b - a) / max(a, b))


def test_a_planted_cluster_is_found_and_the_smaller_one_is_suspicious() -> None:
    clusters = cluster_class(planted(200, 30, distance=15))
    assert np.flatnonzero(clusters.smaller).tolist() == list(range(170, 200))
    scores = smaller_cluster_scores(planted(200, 30, distance=15), np.zeros(200))
    assert scores[170:].min() > 0 > scores[:170].max()


def test_each_class_is_split_on_its_own() -> None:
    features = np.concatenate([planted(200, 40, 15, seed=1), planted(200, 70, 15, seed=2) + 40])
    classes = np.repeat([4, 7], 200)
    order = np.random.default_rng(0).permutation(400)
    scores = np.zeros(400)
    scores[order] = smaller_cluster_scores(features[order], classes[order])
    assert np.flatnonzero(scores > 0).tolist() == [*range(160, 200), *range(330, 400)]


def test_a_poisoned_class_scores_higher_than_the_smaller_half_of_a_clean_one() -> None:
    features = np.concatenate([planted(150, 0, 0, seed=3), planted(150, 30, 15, seed=4)])
    scores = smaller_cluster_scores(features, np.repeat([0, 1], 150))
    half = scores[:150][scores[:150] > 0]
    assert scores[270:].mean() > 1.5 * half.mean() > 0


def test_two_means_finds_the_best_of_all_splits() -> None:
    points = planted(12, 4, distance=8, seed=5)[:, :3]
    splits = [np.array([*bits, 0], bool) for bits in itertools.product([0, 1], repeat=11)]

    def spread(second: npt.NDArray[np.bool_]) -> float:
        parts = [points[second], points[~second]]
        return sum(float(((p - p.mean(0)) ** 2).sum()) for p in parts if len(p))

    found = module._two_means(points)
    assert spread(found) == pytest.approx(min(map(spread, splits)))


def test_silhouettes_are_as_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(6)
    points, second = generator.normal(size=(25, 4)), np.arange(25) < 9
    expected = [silhouette_by_definition(points, second, i) for i in range(25)]
    np.testing.assert_allclose(silhouettes(points, second), expected)
    monkeypatch.setattr(module, "_DISTANCES", 60)  # in blocks of two rows
    np.testing.assert_allclose(silhouettes(points, second), expected)
    alone = np.arange(25) == 3
    assert silhouettes(points, alone)[3] == 0


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.33])
def test_two_means_is_as_good_as_many_random_restarts(share: float) -> None:
    projections, singular = principal_components(planted(600, round(share * 600), 8, seed=9), 10)
    points = projections[:, : len(singular)]
    second = module._two_means(points)
    generator = np.random.default_rng(0)
    restarts = (kmeans2(points, 2, 50, minit="++", seed=generator) for _ in range(20))
    least = min(float(((points - centres[owner]) ** 2).sum()) for centres, owner in restarts)
    parts = points[second], points[~second]
    assert sum(float(((p - p.mean(0)) ** 2).sum()) for p in parts) <= least * (1 + 1e-9)


def test_a_rotation_changes_no_silhouette() -> None:
    points = planted(80, 20, distance=6, seed=7)[:, :5]
    rotation = np.linalg.qr(np.random.default_rng(8).normal(size=(5, 5)))[0]
    second = np.arange(80) >= 60
    np.testing.assert_allclose(silhouettes(points, second), silhouettes(points @ rotation, second))


def test_the_score_is_the_silhouette_and_the_other_one_gives_it_a_sign() -> None:
    features, classes = planted(200, 30, distance=15), np.zeros(200)
    plain, signed = (f(features, classes) for f in (activation_clustering, smaller_cluster_scores))
    assert plain.min() > 0
    assert np.flatnonzero(signed > 0).tolist() == list(range(170, 200))
    np.testing.assert_array_equal(np.abs(signed), plain)


def test_the_score_does_not_mind_a_class_of_mostly_triggered_images() -> None:
    features = np.concatenate([planted(150, 0, 0, seed=3), planted(150, 100, 15, seed=4)])
    classes = np.repeat([0, 1], 150)
    assert activation_clustering(features, classes)[200:].min() > 0.2
    assert smaller_cluster_scores(features, classes)[200:].max() < 0


def test_it_is_deterministic() -> None:
    features, classes = planted(120, 9, 5), np.arange(120) % 2
    first, second = (activation_clustering(features, classes) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_small_classes_and_equal_images_know_nothing() -> None:
    few = MIN_CLASS_IMAGES - 1
    assert not activation_clustering(planted(few, 5, 20), np.zeros(few)).any()
    assert not activation_clustering(np.ones((50, 4)), np.zeros(50)).any()
    assert activation_clustering(np.zeros((0, 4)), []).shape == (0,)


def test_other_numbers_of_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match="for 2 classes"):
        activation_clustering(np.zeros((3, 4)), [0, 1])


def test_features_that_are_not_finite_spoil_no_other_score() -> None:
    features, classes = np.random.default_rng(4).normal(size=(60, 5)), np.arange(60) % 2
    expected = activation_clustering(features[2:], classes[2:])
    features[0, 3], features[1, 2] = np.inf, np.nan
    found = activation_clustering(features, classes)
    assert np.isnan(found[:2]).all()
    np.testing.assert_allclose(found[2:], expected, rtol=1e-9)
