"""How a trigger is embedded into clean images."""

from __future__ import annotations

import torch


def embed_additive(images: torch.Tensor, perturbation: torch.Tensor) -> torch.Tensor:
    """m(x; v) = [x + v]_c, L-RED eq. (1): add, then clip to [0, 1].

    Args:
        images: (N, C, H, W) in [0, 1].
        perturbation: (C, H, W), or (N, C, H, W) with one for each image.

    Returns:
        (N, C, H, W) in [0, 1]; no gradient flows through clipped pixels.
    """
    return (images + perturbation).clamp(0.0, 1.0)
