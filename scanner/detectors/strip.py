"""STRIP: does the prediction survive when other images are laid over the image?

Y. Gao, C. Xu, D. Wang, S. Chen, D. C. Ranasinghe, S. Nepal, "STRIP: A Defence Against Trojan
Attacks on Deep Neural Networks", ACSAC 2019. A suspect image x is blended with N clean images; with
y_n the softmax of the n-th blend,

    H = 1/N sum_n  - sum_i y_ni log2 y_ni                                    (eqs. 3 and 4)

A clean image's prediction changes with every overlay, so H is large; a strong trigger dominates all
blends, so H is small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from scanner.classifier import Images, Logits
from scanner.detectors.softmax_confidence import probabilities

Floats = npt.NDArray[np.float64]
Superposition = Literal["add", "mean"]

OVERLAYS = 100
"""N of the paper."""

_BLENDED_NUMBERS = 2**22  # pixels held at a time: 16 MiB, or one image with its overlays


def draw_overlays(count: int, seed: int, overlays: int = OVERLAYS) -> npt.NDArray[np.int64]:
    """Which of `count` clean images serve as overlays: distinct indices, sorted.

    All suspect images get the same overlays, so a score depends neither on the order of the images
    nor on their batch. An image among its own overlays scores a little lower: calibrate on the
    clean images that were not drawn, where there are enough.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.choice(count, size=min(overlays, count), replace=False)
    return np.sort(drawn).astype(np.int64)


def strip_entropy(
    logits_of: Callable[[Images], Logits],
    images: Images,
    overlays: Images,
    superposition: Superposition = "add",
) -> Floats:
    """STRIP's mean entropy of each image. Small is suspicious.

    Args:
        logits_of: (M, C, H, W) images in [0, 1] -> (M, K) logits; `Classifier.logits`.
        images: (N, C, H, W) in [0, 1].
        overlays: (M, C, H, W) clean images in [0, 1]; each image costs M forward passes.
        superposition: "add": both at full strength, clipped to [0, 1], as in the authors' code;
            "mean": half of each.

    Returns:
        (N,) bits, in [0, log2 K].

    Raises:
        ValueError: no overlay.
    """
    if len(overlays) == 0:
        raise ValueError("STRIP needs at least one clean image to lay over the others")
    step = max(1, _BLENDED_NUMBERS // overlays.size)
    parts = [
        _entropies(logits_of, images[start : start + step], overlays, superposition)
        for start in range(0, len(images), step)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def _entropies(
    logits_of: Callable[[Images], Logits],
    images: Images,
    overlays: Images,
    superposition: Superposition,
) -> Floats:
    blends = images[:, np.newaxis] + overlays[np.newaxis]
    blends = np.minimum(blends, 1) if superposition == "add" else blends / 2
    logits = logits_of(blends.reshape(-1, *images.shape[1:]).astype(np.float32, copy=False))
    entropies = entr(probabilities(logits)).sum(1) / np.log(2)
    means: Floats = entropies.reshape(len(images), len(overlays)).mean(1)
    return means
