"""How a trigger is embedded into clean images."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

# (images (N, C, H, W) in [0, 1], triggers (N, ...)) -> triggered images (N, C, H, W) in [0, 1]
Embed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def embed_additive(images: torch.Tensor, perturbation: torch.Tensor) -> torch.Tensor:
    """m(x; v) = [x + v]_c, L-RED eq. (1): add, then clip to [0, 1].

    Args:
        images: (N, C, H, W) in [0, 1].
        perturbation: (C, H, W), or (N, C, H, W) with one for each image.

    Returns:
        (N, C, H, W) in [0, 1]; no gradient flows through clipped pixels.
    """
    return (images + perturbation).clamp(0.0, 1.0)


def embed_mask_pattern(images: torch.Tensor, mask_and_pattern: torch.Tensor) -> torch.Tensor:
    """(1 - m) x + m p, L-RED eq. (12): the pattern replaces what the mask covers.

    Args:
        images: (N, C, H, W) in [0, 1].
        mask_and_pattern: (1 + C, H, W), or (N, 1 + C, H, W): the mask m, then the pattern p, both
            in [0, 1].

    Returns:
        (N, C, H, W) in [0, 1].
    """
    mask, pattern = mask_and_pattern[..., :1, :, :], mask_and_pattern[..., 1:, :, :]
    return images + mask * (pattern - images)


LOW_FREQUENCIES = 6  # of the discrete cosine transform, along each axis


def embed_low_frequency(images: torch.Tensor, perturbation: torch.Tensor) -> torch.Tensor:
    """`embed_additive` of a perturbation's smooth part: its lowest frequencies.

    What is left are the `LOW_FREQUENCIES` lowest of the orthonormal DCT-II along each axis. A
    smooth trigger keeps its norm; the small perturbations that flip any image need high
    frequencies.

    Args:
        images: (N, C, H, W) in [0, 1].
        perturbation: (C, H, W), or (N, C, H, W) with one for each image.
    """
    return embed_additive(images, smooth_part(perturbation))


def smooth_part(perturbation: torch.Tensor) -> torch.Tensor:
    """(..., H, W) projected on the lowest frequencies; an orthogonal projection."""
    height, width = perturbation.shape[-2:]
    return _projection(height).to(perturbation) @ perturbation @ _projection(width).to(perturbation)


@functools.lru_cache(maxsize=8)
def _projection(size: int) -> torch.Tensor:
    """(size, size), the projection on the first cosines."""
    place, frequency = torch.arange(size)[:, None], torch.arange(min(size, LOW_FREQUENCIES))[None]
    cosines = torch.cos(torch.pi * (place + 0.5) * frequency / size)
    cosines = cosines / cosines.norm(dim=0)
    projection: torch.Tensor = cosines @ cosines.T
    return projection


def scale_additive(perturbation: torch.Tensor, factor: float) -> torch.Tensor:
    """A perturbation of so many times the norm."""
    return perturbation * factor


def scale_mask_pattern(mask_and_pattern: torch.Tensor, factor: float) -> torch.Tensor:
    """The same pattern under a mask of so many times the size, as far as masks go (1 at most)."""
    scaled = mask_and_pattern.clone()
    scaled[..., :1, :, :] = (mask_and_pattern[..., :1, :, :] * factor).clamp(max=1.0)
    return scaled
