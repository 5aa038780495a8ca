"""The arms of a scan: each searches all target classes in its own way, for one statistic each.

Two of them end with a trigger. They share what is done with one: it is measured again by ONNX
Runtime, stored, and tried on images that it was not made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.config import ScanConfig
from scanner.detectors.l_red import estimate_patterns
from scanner.detectors.mask_pattern import estimate_masks
from scanner.detectors.maximum_margin import MarginEstimate, estimate_margins
from scanner.detectors.misclassification import GroupMisclassification
from scanner.remeasure import TriggerEstimate, class_result
from scanner.results import Arrays, ClassResult, DetectorResult
from scanner.triggers import (
    Embed,
    embed_additive,
    embed_mask_pattern,
    scale_additive,
    scale_mask_pattern,
)
from scanner.verdict import evaluate_statistics

L_RED, MASK_PATTERN, MAXIMUM_MARGIN = "l_red", "mask_pattern", "maximum_margin"

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


class Searched(NamedTuple):
    """One arm's result; `estimates` are its triggers, if it has any."""

    result: DetectorResult
    arrays: Mapping[int, Arrays]
    estimates: Sequence[TriggerEstimate]


@dataclass(frozen=True)
class TriggerArm:
    """An arm that ends with a trigger for each class.

    Attributes:
        embed: how its triggers are embedded.
        scale: (trigger, factor) -> the trigger at so many times its size.
        estimate: searches all target classes of an objective.
        settings: its own part of the configuration.
        images_per_class: how many clean images of each class it searches with at most.
    """

    name: str
    embed: Embed
    scale: Callable[[torch.Tensor, float], torch.Tensor]
    estimate: Callable[
        [GroupMisclassification, ScanConfig, Progress | None], Sequence[TriggerEstimate]
    ]
    settings: Callable[[ScanConfig], dict[str, Any]]
    images_per_class: Callable[[ScanConfig], int]

    def search(self, ready: Ready, config: ScanConfig, progress: Progress | None) -> Searched:
        """Search every target class."""
        begun = time.monotonic()
        some = first_of_each_class(ready.labels, self.images_per_class(config))
        images, labels = ready.images[some], ready.labels[some]
        objective = GroupMisclassification(
            ready.classifier,
            images,
            labels,
            ready.targets,
            ready.batch_images,
            ready.deadline,
            self.embed,
        )
        estimates = self.estimate(objective, config, progress)
        classes = [
            class_result(ready.classifier, images, labels, e, ready.batch_images, self.embed)
            for e in estimates
        ]
        settings, spent = self.settings(config), objective.image_gradients
        result = _result(self.name, settings, classes, config, spent, time.monotonic() - begun)
        return Searched(
            result, {e.target_class: _arrays(e) for e in estimates if e.size}, estimates
        )


TRIGGER_ARMS = {
    L_RED: TriggerArm(
        name=L_RED,
        embed=embed_additive,
        scale=scale_additive,
        estimate=lambda objective, config, progress: estimate_patterns(
            objective, config.l_red, progress
        ),
        settings=lambda config: asdict(config.l_red),
        images_per_class=lambda config: config.images_per_class,
    ),
    MASK_PATTERN: TriggerArm(
        name=MASK_PATTERN,
        embed=embed_mask_pattern,
        scale=scale_mask_pattern,
        estimate=lambda objective, config, progress: estimate_masks(
            objective, config.mask_pattern, progress
        ),
        settings=lambda config: asdict(config.mask_pattern),
        images_per_class=lambda config: config.mask_pattern.images_per_class,
    ),
}


def search_margins(ready: Ready, config: ScanConfig, progress: Progress | None) -> Searched:
    """Search the largest margin of every target class; needs no images."""
    begun = time.monotonic()
    settings = config.maximum_margin
    estimates = estimate_margins(
        ready.classifier,
        ready.targets,
        settings,
        config.seed,
        ready.batch_images,
        ready.deadline,
        progress,
    )
    classes = [_margin_result(e) for e in estimates]
    spent = sum(e.gradient_evaluations for e in estimates)
    seconds = time.monotonic() - begun
    result = _result(MAXIMUM_MARGIN, asdict(settings), classes, config, spent, seconds)
    arrays = {e.target_class: Arrays(trace=e.trace, image=e.image) for e in estimates}
    return Searched(result, arrays, ())


def search(
    name: str, ready: Ready, config: ScanConfig, progress: Progress | None = None
) -> Searched:
    """Run the arm of that name."""
    if name in TRIGGER_ARMS:
        return TRIGGER_ARMS[name].search(ready, config, progress)
    return search_margins(ready, config, progress)


def first_of_each_class(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Indices of the first `count` images of each class, in order."""
    chosen = [np.flatnonzero(labels == k)[:count] for k in np.unique(labels)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def _result(
    name: str,
    settings: Mapping[str, Any],
    classes: Sequence[ClassResult],
    config: ScanConfig,
    image_gradients: int,
    seconds: float,
) -> DetectorResult:
    return DetectorResult(
        name=name,
        settings=settings,
        classes=tuple(classes),
        statistics=evaluate_statistics(classes, config.verdict, len(config.detectors)),
        corroboration=None,
        image_gradients=image_gradients,
        seconds=round(seconds, 3),
    )


def _margin_result(estimate: MarginEstimate) -> ClassResult:
    """A class whose margin never turns positive has no statistic: the model never predicts it."""
    alive = estimate.margin > 0
    return ClassResult(
        target_class=estimate.target_class,
        status="found" if alive else "censored",
        stop_reason=estimate.stop_reason,
        norm=None,
        statistic=estimate.margin if alive else None,
        gradient_evaluations=estimate.gradient_evaluations,
    )


def _arrays(estimate: TriggerEstimate) -> Arrays:
    kinds = ("perturbation", "mask", "pattern")
    own = {kind: getattr(estimate, kind) for kind in kinds if hasattr(estimate, kind)}
    return Arrays(estimate.trace, estimate.source_weights, **own)
