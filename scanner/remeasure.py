"""Each trigger that torch found is measured again by ONNX Runtime, the engine that will run it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.detectors.l_red import PatternEstimate
from scanner.results import ClassResult
from scanner.triggers import embed_additive


def class_result(
    classifier: Classifier,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    estimate: PatternEstimate,
) -> ClassResult:
    """One target class's result, with the number of images on which the engines disagree.

    Args:
        images, labels: what the search used: (N, C, H, W) in [0, 1] and (N,).
    """
    target, v = estimate.target_class, torch.from_numpy(estimate.perturbation)
    rows = np.flatnonzero(labels != target)
    difference = None
    if estimate.found:
        triggered = embed_additive(torch.from_numpy(images[rows]), v)
        hits = classifier.predictions(triggered.numpy()) == target
        by_runtime = np.bincount(labels[rows][hits], minlength=classifier.class_count)
        counts = np.bincount(labels[rows], minlength=classifier.class_count)
        by_torch = np.rint(estimate.source_fractions * counts)
        difference = int(np.abs(by_runtime - by_torch).sum())
    return ClassResult(
        target_class=target,
        status="found" if estimate.found else "censored",
        stop_reason=estimate.stop_reason,
        norm=estimate.norm,
        statistic=1 / estimate.norm if estimate.norm > 0 else None,
        misclassification=estimate.misclassification,
        runtime_difference=difference,
        source_weights=tuple(estimate.source_weights.tolist()),
        source_fractions=tuple(estimate.source_fractions.tolist()),
        gradient_evaluations=estimate.gradient_evaluations,
        images=estimate.images,
        clipped_share=_clipped_share(images, v) if estimate.norm > 0 else 0.0,
    )


def _clipped_share(images: npt.NDArray[np.float32], v: torch.Tensor) -> float:
    """Share of perturbed pixels, over all images, that clipping to [0, 1] cut."""
    clean = torch.from_numpy(images)
    cut = (embed_additive(clean, v) - clean - v).abs() > 1e-6
    touched = v != 0
    return float(cut[:, touched].float().mean())
