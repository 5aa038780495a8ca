"""What all arms share: what they work on, and what they give back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scanner.classifier import Classifier
from scanner.config import ScanConfig
from scanner.remeasure import TriggerEstimate
from scanner.results import Arrays, ClassResult, DetectorResult
from scanner.verdict import evaluate_statistics

Halves = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

MARGIN = 1.25
"""Triggers are tried on new images at this multiple of the size found, see `corroboration`."""

# (what is done, of how much, gradient evaluations so far)
Progress = Callable[[int, int, int], None]


class Ready(NamedTuple):
    """What the arms work on.

    Attributes:
        images, labels: (M, C, H, W) in [0, 1] and (M,), all classified as labelled, those of a
            class one after the other.
        targets: the putative target classes.
        batch_images: how many images one pass may hold.
        deadline: `time.monotonic()` after which no further pass is begun.
    """

    classifier: Classifier
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    targets: tuple[int, ...]
    batch_images: int
    deadline: float | None

    def first_of_each_class(self, count: int | None) -> Ready:
        """The same with at most `count` images of each class; None: all."""
        if count is None:
            return self
        some = first_of_each_class(self.labels, count)
        return self._replace(images=self.images[some], labels=self.labels[some])


class Searched(NamedTuple):
    """One arm's result; `estimates` are its triggers, one for each target class, if it has any."""

    result: DetectorResult
    arrays: Mapping[int, Arrays]
    estimates: Sequence[TriggerEstimate]


def first_of_each_class(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Indices of the first `count` images of each class, in order."""
    chosen = [np.flatnonzero(labels == k)[:count] for k in np.unique(labels)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def detector_result(
    name: str,
    settings: Mapping[str, Any],
    classes: Sequence[ClassResult],
    config: ScanConfig,
    image_gradients: int,
    seconds: float,
) -> DetectorResult:
    """An arm's result with the test of its largest statistic."""
    return DetectorResult(
        name=name,
        settings=settings,
        classes=tuple(classes),
        statistics=evaluate_statistics(classes, config.verdict, len(config.detectors)),
        corroboration=None,
        image_gradients=image_gradients,
        seconds=round(seconds, 3),
    )


def trigger_arrays(estimate: TriggerEstimate) -> Arrays:
    """An estimate's arrays for HDF5."""
    kinds = ("perturbation", "mask", "pattern")
    own = {kind: getattr(estimate, kind) for kind in kinds if hasattr(estimate, kind)}
    return Arrays(estimate.trace, estimate.source_weights, **own)


def split_halves(labels: npt.NDArray[np.int64]) -> Halves:
    """Indices of two halves: within each class, images go to them in turn.

    Which half begins alternates too, so that classes with one image are split between the halves.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    turn = 0
    for label in np.unique(labels):
        for index in np.flatnonzero(labels == label):
            halves[turn % 2].append(int(index))
            turn += 1
    return np.array(sorted(halves[0]), np.int64), np.array(sorted(halves[1]), np.int64)
