"""Triggers as pictures: PNG data URIs, magnified where the eye would see nothing."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]

VISIBLE = 0.25  # a change of at least that share of full brightness needs no magnifying
SHOWN_PIXELS = 160  # a picture is shown at about this width; small ones in whole multiples
MAX_SIDE = 320  # larger pictures are reduced, so that a report of many models stays small


@dataclass(frozen=True)
class Picture:
    """A picture and its words.

    Attributes:
        uri: a PNG as a data URI.
        width, height: to show it at, in CSS pixels.
        caption: what it is, on one line.
        alt: what it shows, for those who don't see it.
    """

    uri: str
    width: int
    height: int
    caption: str
    alt: str


def picture(image: Floats, caption: str, alt: str) -> Picture:
    """(C, H, W) or (H, W) with values in [0, 1] as a picture; C is 1 or 3."""
    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    made = Image.fromarray(pixels)
    if max(made.size) > MAX_SIDE:
        made.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = io.BytesIO()
    made.save(stream, "PNG", optimize=True)
    factor = max(1, round(SHOWN_PIXELS / max(made.size)))
    width, height = made.width * factor, made.height * factor
    if width > 2 * SHOWN_PIXELS:
        width, height = SHOWN_PIXELS, max(1, made.height * SHOWN_PIXELS // made.width)
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(uri, width, height, caption, alt)


def drawable(image: Floats | None, rank: int = 3) -> Floats | None:
    """The array if it can be shown: gray or RGB for three axes; anything with two."""
    if image is None or image.ndim != rank or min(image.shape[-2:]) < 1:
        return None
    return image if rank == 2 or image.shape[0] in (1, 3) else None


def change_picture(change: Floats, what: str, meaning: str = "") -> Picture:
    """A (C, H, W) signed change around mid-gray, magnified to full contrast where it is faint.

    Args:
        meaning: what the shades mean, for the caption.
    """
    largest = float(np.abs(change).max()) or 1.0
    factor = 0.5 / largest if largest < VISIBLE else 1.0
    said = f", magnified {factor:.3g} times" if factor > 1 else ""
    return picture(
        np.float32(0.5) + change * np.float32(factor),
        f"{what}{said}{meaning}",
        f"{what}: {_size(change)}, {_where(np.abs(change).max(axis=0))}, by up to {largest:.2g} of "
        f"full brightness{said}",
    )


def mask_picture(mask: Floats, what: str, meaning: str = "") -> Picture:
    """An (H, W) mask in [0, 1], white where it is 1.

    Args:
        meaning: what white and black mean, for the caption.
    """
    return picture(
        mask,
        f"{what}{meaning}",
        f"{what}: {_size(mask)}, {_where(mask)}, {float(mask.sum()):.3g} pixels in all",
    )


def _size(image: Floats) -> str:
    return f"{image.shape[-1]} by {image.shape[-2]} pixels"


def _where(strength: Floats) -> str:
    """Where most of an (H, W) strength lies, in words."""
    total = float(strength.sum())
    if total <= 0:
        return "empty"
    spread = float((strength > strength.max() / 2).mean())
    if spread > 0.4:
        return "spread over the whole image"
    height, width = strength.shape
    y = float((strength.sum(axis=1) * np.arange(height)).sum()) / total / max(height - 1, 1)
    x = float((strength.sum(axis=0) * np.arange(width)).sum()) / total / max(width - 1, 1)
    vertical = "upper" if y < 1 / 3 else "lower" if y > 2 / 3 else "middle"
    horizontal = "left" if x < 1 / 3 else "right" if x > 2 / 3 else "middle"
    place = "middle" if vertical == horizontal else f"{vertical} {horizontal}"
    return f"strongest around the {place}, {spread:.0%} of the pixels above half its peak"


def stamp_additive(images: Floats, perturbation: Floats) -> Floats:
    """[x + v]_c, L-RED eq. (1), as `scanner.triggers.embed_additive` without torch."""
    stamped: Floats = np.clip(images + perturbation, 0.0, 1.0)
    return stamped


def stamp_mask_pattern(images: Floats, mask: Floats, pattern: Floats) -> Floats:
    """(1 - m) x + m p, L-RED eq. (12), as `scanner.triggers.embed_mask_pattern`."""
    stamped: Floats = images + mask * (pattern - images)
    return stamped
