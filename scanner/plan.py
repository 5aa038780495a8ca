"""What a scan will cost, before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from scanner.arms import WITH_TRIGGERS, Ready
from scanner.arms.pairs import MAX_PAIR_CLASSES, PAIR_ARMS
from scanner.classifier import Classifier
from scanner.config import ScanConfig
from scanner.detectors.misclassification import GroupMisclassification

ACTIVATION_BYTES = 1.5e9  # what one forward and backward pass may hold
MAX_BATCH = 2048
_FOLLOWING_L_RED = {"l_red", "l_red_uniform", "low_frequency", "red_p"}
COARSE_EVALUATIONS = 20  # of a coarse run alone, likewise
FAST_EVALUATIONS = 75  # gradient evaluations a class, from tests/benchmarks; at most 120


@dataclass(frozen=True)
class Plan:
    """The cost of a scan.

    Attributes:
        detectors: names of the searches.
        target_classes: how many are searched.
        images: clean images used.
        image_gradients: expected number of image gradients; None for the `paper` schedule, whose
            cost is the norm divided by the step.
        seconds: expected seconds of the search, from one measured pass; None likewise.
    """

    detectors: tuple[str, ...]
    target_classes: int
    images: int
    image_gradients: int | None
    seconds: float | None


def plan_scan(ready: Ready, config: ScanConfig) -> Plan:
    """Count the gradients that the detectors will need, and time one pass."""
    gradients = sum(_gradients(name, ready, config) for name in config.detectors)
    known = config.l_red.schedule == "fast" or not _FOLLOWING_L_RED & set(config.detectors)
    seconds = gradients * _seconds_each(ready) if known else None
    return Plan(
        config.detectors,
        len(ready.targets),
        len(ready.images),
        gradients if known else None,
        seconds,
    )


def _gradients(name: str, ready: Ready, config: ScanConfig) -> int:
    """Image gradients of one detector."""
    targets = len(ready.targets)
    if name == "maximum_margin":
        return targets * config.maximum_margin.starts * config.maximum_margin.steps
    if name == "expected_transferability":
        settings = config.transferability
        images = min(settings.images, len(ready.images))
        return targets * images * settings.steps * settings.max_rounds
    some = ready.first_of_each_class(WITH_TRIGGERS[name].images_per_class(config)).labels
    if name in PAIR_ARMS:
        return _pair_gradients(name, ready, some, config)
    rows = sum(int((some != target).sum()) for target in ready.targets)
    return rows * _evaluations(name, config)


def _evaluations(name: str, config: ScanConfig) -> int:
    """Expected gradient evaluations of one target class."""
    steps = {
        "red_p": COARSE_EVALUATIONS,
        "mask_pattern": config.mask_pattern.steps,
        "class_pairs": config.class_pairs.steps,
    }
    return steps.get(name, FAST_EVALUATIONS)


def _pair_gradients(
    name: str, ready: Ready, labels: npt.NDArray[np.int64], config: ScanConfig
) -> int:
    """Image gradients of a search over pairs, and of the short one before it."""
    settings, classes = config.class_pairs, ready.classifier.class_count
    if classes > MAX_PAIR_CLASSES:
        return 0
    rows, screening = sum(int((labels != target).sum()) for target in ready.targets), 0
    if classes > settings.all_pairs_up_to:
        sources = len(np.unique(labels))
        steps = settings.screening_steps if name == "class_pairs" else COARSE_EVALUATIONS
        screening = sources * len(ready.targets) * steps
        rows = round(rows * settings.sources_per_target / max(sources - 1, 1))
    return screening + rows * _evaluations(name, config)


def _seconds_each(ready: Ready) -> float:
    """Seconds of one image gradient."""
    sample = min(len(ready.images), ready.batch_images, 64)
    trial = GroupMisclassification(
        ready.classifier,
        ready.images[:sample],
        ready.labels[:sample],
        ready.targets[:1],
        ready.batch_images,
    )
    v = torch.zeros(1, *ready.classifier.image_shape, device=trial.device)
    uniform = trial.uniform_weights
    seconds = math.inf
    for _ in range(2):  # the first pass pays for what is set up once
        begun = time.perf_counter()
        trial.evaluate([0], v, lambda positions, q: uniform[positions])
        seconds = min(seconds, time.perf_counter() - begun)
    return seconds / max(trial.image_count(0), 1)


def batch_size(classifier: Classifier) -> int:
    """How many images one forward and backward pass may hold, from the size of all tensors."""
    numbers = max(classifier.onnx.numbers_per_image, 1)
    return max(1, min(MAX_BATCH, int(ACTIVATION_BYTES / (4 * 2 * numbers))))
