"""Arms that end with a trigger for each target class.

They share what is done with one: it is measured again by ONNX Runtime, stored, and tried on images
that it was not made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from scanner.arms.base import Progress, Ready, Searched, detector_result, trigger_arrays
from scanner.config import ScanConfig
from scanner.detectors.l_red import estimate_patterns
from scanner.detectors.mask_pattern import estimate_masks
from scanner.detectors.misclassification import GroupMisclassification
from scanner.detectors.neural_cleanse import neural_cleanse_masks
from scanner.published import published_test
from scanner.remeasure import TriggerEstimate, class_result
from scanner.triggers import (
    Embed,
    embed_additive,
    embed_low_frequency,
    embed_mask_pattern,
    scale_additive,
    scale_mask_pattern,
)

Scale = Callable[[torch.Tensor, float], torch.Tensor]
Estimate = Callable[
    [GroupMisclassification, ScanConfig, Progress | None], Sequence[TriggerEstimate]
]


@dataclass(frozen=True)
class TriggerArm:
    """An arm that ends with a trigger for each class.

    Attributes:
        embed: how its triggers are embedded.
        scale: (trigger, factor) -> the trigger at so many times its size.
        estimate: searches all target classes of an objective.
        settings: its own part of the configuration.
        images_per_class: how many clean images of each class it searches with at most; None: all.
    """

    name: str
    embed: Embed
    scale: Scale
    estimate: Estimate
    settings: Callable[[ScanConfig], dict[str, Any]]
    images_per_class: Callable[[ScanConfig], int | None]

    def search(self, ready: Ready, config: ScanConfig, progress: Progress | None) -> Searched:
        """Search every target class."""
        begun = time.monotonic()
        some = ready.first_of_each_class(self.images_per_class(config))
        objective = self.objective(some)
        estimates = self.estimate(objective, config, progress)
        classes = [
            class_result(
                ready.classifier, some.images, some.labels, e, ready.batch_images, self.embed
            )
            for e in estimates
        ]
        settings, spent = self.settings(config), objective.image_gradients
        result = detector_result(
            self.name, settings, classes, config, spent, time.monotonic() - begun
        )
        result = replace(result, published=published_test(self.name, classes, config.verdict))
        arrays = {e.target_class: trigger_arrays(e) for e in estimates if e.size}
        return Searched(result, arrays, estimates)

    def objective(
        self, ready: Ready, sources: Sequence[int] | None = None
    ) -> GroupMisclassification:
        """The objective of a search for all targets of `ready`, on its images."""
        return GroupMisclassification(
            ready.classifier,
            ready.images,
            ready.labels,
            ready.targets,
            ready.batch_images,
            ready.deadline,
            self.embed,
            sources,
        )

    def sources_of(self, estimate: TriggerEstimate) -> Sequence[int] | None:
        """The source class that an estimate is for; None: all but its target class."""
        return None


def _l_red(weights: str) -> Estimate:
    def estimate(
        objective: GroupMisclassification, config: ScanConfig, progress: Progress | None
    ) -> Sequence[TriggerEstimate]:
        return estimate_patterns(objective, replace(config.l_red, weights=weights), progress)

    return estimate


def _additive(name: str, weights: str, embed: Embed = embed_additive) -> TriggerArm:
    return TriggerArm(
        name=name,
        embed=embed,
        scale=scale_additive,
        estimate=_l_red(weights),
        settings=lambda config: asdict(replace(config.l_red, weights=weights)),
        images_per_class=lambda config: config.images_per_class,
    )


_ARMS = (
    _additive("l_red", "annealed"),
    _additive("l_red_uniform", "uniform"),
    _additive("low_frequency", "uniform", embed_low_frequency),
    TriggerArm(
        name="mask_pattern",
        embed=embed_mask_pattern,
        scale=scale_mask_pattern,
        estimate=lambda objective, config, progress: estimate_masks(
            objective, config.mask_pattern, progress
        ),
        settings=lambda config: asdict(config.mask_pattern),
        images_per_class=lambda config: config.mask_pattern.images_per_class,
    ),
    TriggerArm(
        name="neural_cleanse",
        embed=embed_mask_pattern,
        scale=scale_mask_pattern,
        estimate=lambda objective, config, progress: neural_cleanse_masks(
            objective, config.neural_cleanse, config.seed, progress
        ),
        settings=lambda config: asdict(config.neural_cleanse),
        images_per_class=lambda config: config.images_per_class,
    ),
)
TRIGGER_ARMS = {arm.name: arm for arm in _ARMS}
