"""When is a score suspicious, and when is a whole folder?

Scores of clean images calibrate: s_1 .. s_n. Everything here takes scores of which *small* ones are
suspicious; negate the others.

    conformal p-value  p = (1 + #{i : s_i <= s}) / (n + 1)

If the image is as clean as the calibration's, p <= level has at most probability level, whatever
the scores' distribution (Vovk et al., Algorithmic Learning in a Random World, 2005). The paper's
threshold, mean - gamma * standard deviation, promises no such thing; it is reported beside it.

All images of a folder are compared with the same n scores, so the number flagged among N varies
more than a binomial would. With k = floor(level * (n + 1)) an image is flagged if its score is
below the k-th smallest clean one; the share of clean images below that is Beta(k, n + 1 - k)
distributed, so the number flagged among N clean images is beta-binomial. That is exact for scores
without ties and on the safe side with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]


def fewest_clean_images(level: float) -> int:
    """How many calibration images a level needs: below, no p-value is as small as it."""
    return max(1, math.ceil(1 / level - 1e-9) - 1)


def rank_of_level(level: float, clean: int) -> int:
    """k: an image is flagged if fewer than k clean scores are at most its own."""
    return math.floor(level * (clean + 1) + 1e-9)


def conformal_p_values(scores: Floats, clean: Floats) -> Floats:
    """(N,) p-values of (N,) scores against (n,) clean ones, in [1 / (n + 1), 1]; NaN stays NaN."""
    ordered = np.sort(clean)
    at_most = np.searchsorted(ordered, scores, side="right")
    p: Floats = (1 + at_most) / (len(clean) + 1)
    return np.where(np.isnan(scores), np.nan, p)


@dataclass(frozen=True)
class Threshold:
    """Two thresholds from clean scores; an image below is suspicious.

    Attributes:
        clean_images: n.
        mean, standard_deviation: of the clean scores (that of n - 1 degrees of freedom).
        by_gamma: mean - gamma * standard deviation (the paper's); None for a single image.
        by_level: the k-th smallest clean score; scores *below* it have p <= level.
        false_alarms_by_gamma: share of the clean scores at most `by_gamma`.
    """

    clean_images: int
    mean: float
    standard_deviation: float | None
    by_gamma: float | None
    by_level: float
    false_alarms_by_gamma: float | None


def threshold_of(clean: Floats, gamma: float, level: float) -> Threshold:
    """The thresholds of calibration scores.

    Raises:
        ValueError: fewer scores than the level needs (`fewest_clean_images`).
    """
    k = rank_of_level(level, len(clean))
    if k < 1:
        raise ValueError(f"{len(clean)} clean scores, {fewest_clean_images(level)} are needed")
    mean, deviation, by_gamma, alarms = float(clean.mean()), None, None, None
    if len(clean) > 1:
        deviation = float(clean.std(ddof=1))
        by_gamma = mean - gamma * deviation
        alarms = float((clean <= by_gamma).mean())
    by_level = float(np.sort(clean)[k - 1])
    return Threshold(len(clean), mean, deviation, by_gamma, by_level, alarms)


def excess_p_value(flagged: int, images: int, clean: int, level: float) -> float:
    """How probable so many flagged images are, or more, if all `images` are clean.

    Args:
        flagged: images with a conformal p-value of at most `level`.
        clean: n, the number of calibration images.
    """
    k = rank_of_level(level, clean)
    if flagged <= 0 or images <= 0:
        return 1.0
    if k < 1:
        return 1.0
    return float(min(1.0, stats.betabinom.sf(flagged - 1, images, k, clean + 1 - k)))


@dataclass(frozen=True)
class Rejections:
    """Benjamini and Hochberg's procedure over the folder (1995; valid for conformal p-values that
    share their calibration: Bates et al., Annals of Statistics 2023).

    Attributes:
        fewest: how many images must have the smallest attainable p-value, 1 / (n + 1), before any
            can be rejected: with few clean images and a large folder a single trigger cannot be.
        largest_p: images with a p-value of at most this are rejected; None if none is.
        images: how many are.
    """

    fewest: int
    largest_p: float | None
    images: int


def benjamini_hochberg(p_values: Floats, clean: int, level: float) -> Rejections | None:
    """Which images can be called triggered with a false discovery rate of at most `level`.

    Returns:
        None if no p-values that n clean images can give would lead to a rejection.
    """
    p = np.sort(p_values[~np.isnan(p_values)])
    fewest = math.ceil(len(p) / (level * (clean + 1)) - 1e-9)
    if len(p) == 0 or fewest > len(p):
        return None
    below = np.flatnonzero(p <= level * np.arange(1, len(p) + 1) / len(p) + 1e-15)
    if not len(below):
        return Rejections(fewest, None, 0)
    largest = float(p[below[-1]])
    return Rejections(fewest, largest, int((p <= largest).sum()))
