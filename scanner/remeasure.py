"""Each trigger that torch found is measured again by ONNX Runtime, the engine that will run it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.results import ClassResult
from scanner.triggers import Embed, embed_additive

Floats = npt.NDArray[np.float64]


class TriggerEstimate(Protocol):
    """What every search for triggers says of one target class; see `PatternEstimate`."""

    @property
    def target_class(self) -> int: ...
    @property
    def trigger(self) -> npt.NDArray[np.float32]:
        """As the arm's `Embed` takes it."""

    @property
    def size(self) -> float | None:
        """What the search made small; None where nothing is known."""

    @property
    def found(self) -> bool: ...
    @property
    def stop_reason(self) -> str: ...
    @property
    def misclassification(self) -> float: ...
    @property
    def source_weights(self) -> Floats: ...
    @property
    def source_fractions(self) -> Floats: ...
    @property
    def gradient_evaluations(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def trace(self) -> Floats: ...


def class_result(
    classifier: Classifier,
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    estimate: TriggerEstimate,
    batch_images: int,
    embed: Embed = embed_additive,
) -> ClassResult:
    """One target class's result, with the number of images on which the engines disagree.

    Args:
        images, labels: what the search used: (N, C, H, W) in [0, 1] and (N,).
        batch_images: how many images one pass of torch may hold.
        embed: how the trigger is embedded.
    """
    target, v = estimate.target_class, torch.from_numpy(estimate.trigger)
    difference = None
    if estimate.found:
        triggered = embed(torch.from_numpy(images[labels != target]), v)
        by_runtime = classifier.predictions(triggered.numpy()) == target
        by_torch = _torch_predictions(classifier, triggered, batch_images) == target
        difference = int((by_runtime != by_torch).sum())
    additive = embed is embed_additive
    return ClassResult(
        target_class=target,
        status="found" if estimate.found else "censored",
        stop_reason=estimate.stop_reason,
        norm=estimate.size,
        statistic=1 / estimate.size if estimate.size else None,
        misclassification=estimate.misclassification,
        runtime_difference=difference,
        source_weights=tuple(estimate.source_weights.tolist()),
        source_fractions=tuple(estimate.source_fractions.tolist()),
        gradient_evaluations=estimate.gradient_evaluations,
        images=estimate.images,
        clipped_share=_clipped_share(images, v) if additive and estimate.size else None,
    )


@torch.no_grad()
def _torch_predictions(
    classifier: Classifier, images: torch.Tensor, batch_images: int
) -> npt.NDArray[np.int64]:
    parts = torch.split(images.to(classifier.device), batch_images)
    classes = [classifier.differentiable_logits(part).argmax(1).cpu() for part in parts]
    predictions: npt.NDArray[np.int64] = torch.cat(classes).numpy()
    return predictions


def _clipped_share(images: npt.NDArray[np.float32], v: torch.Tensor) -> float:
    """Share of perturbed pixels, over all images, that clipping to [0, 1] cut."""
    clean = torch.from_numpy(images)
    cut = (embed_additive(clean, v) - clean - v).abs() > 1e-6
    touched = v != 0
    return float(cut[:, touched].float().mean())
