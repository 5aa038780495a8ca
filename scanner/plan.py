"""What a scan will cost, before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.config import ScanConfig
from scanner.detectors.misclassification import GroupMisclassification

ACTIVATION_BYTES = 1.5e9  # what one forward and backward pass may hold
MAX_BATCH = 2048
FAST_EVALUATIONS = 75  # gradient evaluations a class, from tests/benchmarks; at most 120


@dataclass(frozen=True)
class Plan:
    """The cost of a scan.

    Attributes:
        target_classes: how many are searched.
        images: clean images used.
        batch_images: images in one pass.
        image_gradients: expected number of image gradients; None for the `paper` schedule, whose
            cost is the norm divided by the step.
        seconds: expected seconds of the search, from one measured pass; None likewise.
    """

    target_classes: int
    images: int
    batch_images: int
    image_gradients: int | None
    seconds: float | None


def plan_scan(
    classifier: Classifier,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    targets: tuple[int, ...],
    config: ScanConfig,
) -> Plan:
    """Choose the batch size from the graph's memory, and time one gradient pass."""
    batch_images = batch_size(classifier)
    rows = sum(int((labels != target).sum()) for target in targets)
    if config.l_red.schedule == "paper":
        return Plan(len(targets), len(images), batch_images, None, None)
    sample = min(len(images), batch_images, 64)
    trial = GroupMisclassification(
        classifier, images[:sample], labels[:sample], targets[:1], batch_images
    )
    v = torch.zeros(1, *classifier.image_shape, device=trial.device)
    uniform = trial.uniform_weights
    seconds = math.inf
    for _ in range(2):  # the first pass pays for what is set up once
        begun = time.perf_counter()
        trial.evaluate([0], v, lambda positions, q: uniform[positions])
        seconds = min(seconds, time.perf_counter() - begun)
    gradients = rows * FAST_EVALUATIONS
    per_image = seconds / max(trial.image_count(0), 1)
    return Plan(len(targets), len(images), batch_images, gradients, gradients * per_image)


def batch_size(classifier: Classifier) -> int:
    """How many images one forward and backward pass may hold, from the size of all tensors."""
    numbers = max(classifier.onnx.numbers_per_image, 1)
    return max(1, min(MAX_BATCH, int(ACTIVATION_BYTES / (4 * 2 * numbers))))
