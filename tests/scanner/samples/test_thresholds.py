"""Conformal p-values and the folder's test against simulation and enumeration."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from scanner.samples.thresholds import (
    benjamini_hochberg,
    conformal_p_values,
    excess_p_value,
    fewest_clean_images,
    threshold_of,
)


def test_p_values_by_hand() -> None:
    clean = np.array([3.0, 1.0, 2.0, 2.0])
    scores = np.array([0.5, 1.0, 2.0, 2.5, 9.0, np.nan])
    expected = [1 / 5, 2 / 5, 4 / 5, 4 / 5, 1, np.nan]
    np.testing.assert_allclose(conformal_p_values(scores, clean), expected)


@pytest.mark.parametrize(("level", "needed"), [(0.05, 19), (0.5, 1), (0.01, 99), (0.1, 9)])
def test_how_many_clean_images_a_level_needs(level: float, needed: int) -> None:
    assert fewest_clean_images(level) == needed
    smallest = conformal_p_values(np.array([-1.0]), np.arange(needed, dtype=float))[0]
    assert smallest <= level + 1e-12
    if needed > 1:
        fewer = conformal_p_values(np.array([-1.0]), np.arange(needed - 1, dtype=float))[0]
        assert fewer > level
        with pytest.raises(ValueError, match=str(needed)):
            threshold_of(np.arange(needed - 1, dtype=float), 1.0, level)


def test_thresholds_by_hand() -> None:
    clean = np.arange(1.0, 40.0)  # 39 scores: k = 2
    found = threshold_of(clean, gamma=1.0, level=0.05)
    assert found.mean == 20
    assert found.standard_deviation == pytest.approx(math.sqrt(39 * 40 / 12))
    assert found.by_gamma == pytest.approx(20 - math.sqrt(130))
    assert found.by_level == 2.0
    p = conformal_p_values(np.array([1.99, 2.0]), clean)
    assert p[0] <= 0.05 < p[1]
    assert found.false_alarms_by_gamma == pytest.approx(8 / 39)


@pytest.mark.parametrize(("clean", "images", "level"), [(3, 3, 0.25), (4, 2, 0.4), (5, 3, 0.34)])
def test_the_excess_is_that_of_all_orders(clean: int, images: int, level: float) -> None:
    # If all scores are alike, every order of clean and suspect ranks is equally probable.
    counts: dict[int, int] = {}
    whole = 0
    for places in itertools.combinations(range(clean + images), clean):
        reference = np.array(places, dtype=float)
        suspects = np.array([i for i in range(clean + images) if i not in places], dtype=float)
        flagged = int((conformal_p_values(suspects, reference) <= level + 1e-12).sum())
        counts[flagged] = counts.get(flagged, 0) + 1
        whole += 1
    for t in range(images + 1):
        exact = Fraction(sum(n for flagged, n in counts.items() if flagged >= t), whole)
        assert excess_p_value(t, images, clean, level) == pytest.approx(float(exact))


def test_a_clean_folder_is_rarely_a_finding() -> None:
    generator = np.random.default_rng(0)
    p_values, shares = [], []
    for _ in range(2000):
        clean, suspects = generator.gamma(2, size=60), generator.gamma(2, size=300)
        flagged = conformal_p_values(suspects, clean) <= 0.05
        shares.append(flagged.mean())
        p_values.append(excess_p_value(int(flagged.sum()), 300, 60, 0.05))
    assert np.mean(shares) == pytest.approx(3 / 61, abs=0.003)
    assert np.mean(np.array(p_values) <= 0.01) <= 0.016
    assert np.mean(np.array(p_values) <= 0.2) == pytest.approx(0.2, abs=0.04)


def test_many_triggered_images_are_a_finding() -> None:
    assert excess_p_value(40, 100, 200, 0.05) < 1e-6
    assert excess_p_value(0, 100, 200, 0.05) == 1.0
    assert excess_p_value(5, 0, 200, 0.05) == 1.0


def test_benjamini_hochberg_by_hand() -> None:
    p = np.array([0.01, 0.02, 0.03, 0.5, np.nan])
    found = benjamini_hochberg(p, clean=199, level=0.05)
    assert found is not None
    assert (found.images, found.largest_p) == (3, 0.03)  # .03 <= .05 * 3 / 4
    assert found.fewest == 1
    none = benjamini_hochberg(np.full(10, 0.2), clean=199, level=0.05)
    assert none is not None
    assert (none.images, none.largest_p) == (0, None)


def test_benjamini_hochberg_needs_clean_images() -> None:
    p = np.full(100, 1 / 40)
    coarse = benjamini_hochberg(p, clean=39, level=0.05)
    assert coarse is not None
    assert coarse.fewest == 50
    assert coarse.images == 100
    assert benjamini_hochberg(p, clean=9, level=0.05) is None
    assert benjamini_hochberg(np.array([np.nan]), clean=199, level=0.05) is None
