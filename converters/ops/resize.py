"""Resize and Upsample: interpolation along one axis after the other.

Each place of a resized axis is a weighted sum of a few places of the original ("taps"). Which ones
and with what weights follows from the mode; the sums are differentiable in the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from converters.ops._values import Ints, affordable, all_axes, ints
from converters.registry import op


@dataclass(frozen=True)
class Sampling:
    """How places are mapped and numbers mixed: the attributes of Resize under their own names."""

    mode: str
    coordinate_transformation_mode: str
    nearest_mode: str = "round_prefer_floor"
    cubic_coeff_a: float = -0.75
    exclude_outside: bool = False
    extrapolation_value: float = 0.0
    antialias: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis to be resized; `start` and `end` are its region of interest."""

    index: int
    size: int
    new_size: int
    scale: float
    start: float = 0.0
    end: float = 1.0


def _coordinates(axis: Axis, mode: str) -> torch.Tensor:
    """Where in the original axis each place of the resized one is.

    In float32 and in this order of operations, as in ONNX Runtime: nearest neighbours depend on it.
    """
    x = torch.arange(axis.new_size, dtype=torch.float32)
    scale = torch.tensor(axis.scale, dtype=torch.float32)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and axis.new_size > 1):
        return (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return torch.zeros_like(x)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        last = axis.new_size - 1
        return x * (axis.size - 1) / last if last else torch.zeros_like(x)
    if mode == "half_pixel_symmetric":
        return axis.size / 2 + (x + 0.5 - axis.new_size / 2) / scale - 0.5
    if mode == "tf_crop_and_resize":
        first, length = axis.start * (axis.size - 1), (axis.end - axis.start) * (axis.size - 1)
        if axis.new_size == 1:
            return torch.full_like(x, first + 0.5 * length)
        return first + x * length / (axis.new_size - 1)
    raise NotImplementedError(f"coordinate_transformation_mode {mode!r}")


def _nearest(x: torch.Tensor, mode: str, shrinks: bool) -> torch.Tensor:
    if mode == "round_prefer_floor":
        return torch.ceil(x - 0.5)
    if mode == "round_prefer_ceil":
        return torch.floor(x + 0.5)
    if mode == "floor" or (mode == "simple" and not shrinks):
        return torch.floor(x)
    if mode in ("ceil", "simple"):
        return torch.ceil(x)
    raise NotImplementedError(f"nearest_mode {mode!r}")


def _cubic(distance: torch.Tensor, a: float) -> torch.Tensor:
    """The cubic convolution kernel at these distances, 0 from distance 2 on."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _taps(axis: Axis, how: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Indices (taps, new_size) into the original axis, and their weights, None for all 1."""
    x = _coordinates(axis, how.coordinate_transformation_mode)
    last = axis.size - 1
    if how.mode == "nearest":
        if how.coordinate_transformation_mode == "half_pixel_symmetric":
            # Symmetric places often lie halfway, where ONNX Runtime's own rounding would decide.
            raise NotImplementedError("half_pixel_symmetric with mode 'nearest'")
        return _nearest(x, how.nearest_mode, axis.scale < 1)[None].long().clamp(0, last), None
    stretch = max(1.0 / axis.scale, 1.0) if how.antialias else 1.0
    if how.mode == "linear" and stretch == 1.0:
        x = x.clamp(0, last)
    reach = math.ceil((1 if how.mode == "linear" else 2) * stretch)
    offsets = torch.arange(1 - reach, reach + 1, dtype=torch.float32)
    places = torch.floor(x)[None] + offsets[:, None]
    distance = (places - x[None]) / stretch
    if how.mode == "linear":
        weights = (1 - distance.abs()).clamp(min=0)
    elif how.mode == "cubic":
        weights = _cubic(distance, how.cubic_coeff_a)
    else:
        raise NotImplementedError(f"mode {how.mode!r}")
    if how.exclude_outside:
        weights = torch.where((places < 0) | (places > last), 0.0, weights)
    if how.exclude_outside or stretch != 1.0:
        weights = weights / weights.sum(dim=0, keepdim=True)
    return places.long().clamp(0, last), weights


def _resize_axis(x: torch.Tensor, axis: Axis, how: Sampling) -> torch.Tensor:
    indices, weights = _taps(axis, how)
    shape = [-1 if i == axis.index else 1 for i in range(x.ndim)]
    y = x.index_select(axis.index, indices[0].to(x.device))
    if weights is not None:
        weights = weights.to(x)
        y = y * weights[0].reshape(shape)
        for i in range(1, len(weights)):
            tap = x.index_select(axis.index, indices[i].to(x.device))
            y = y + tap * weights[i].reshape(shape)
    if how.coordinate_transformation_mode == "tf_crop_and_resize":
        at = _coordinates(axis, how.coordinate_transformation_mode)
        outside = ((at < 0) | (at > axis.size - 1)).to(x.device).reshape(shape)
        y = torch.where(outside, torch.full((), how.extrapolation_value).to(y), y)
    return y


def _resize(x: torch.Tensor, axes: Sequence[Axis], how: Sampling) -> torch.Tensor:
    if any(axis.new_size < 1 or axis.size < 1 for axis in axes):
        raise ValueError("an empty image can't be resized")
    if not x.is_floating_point() and how.mode != "nearest":
        raise NotImplementedError(f"mode {how.mode!r} on integers")
    sizes = list(x.shape)
    for axis in axes:
        sizes[axis.index] = max(axis.size, axis.new_size)
    affordable(sizes, x.dtype)
    if all(axis.new_size == axis.size for axis in axes):
        return x  # as ONNX Runtime does, whatever the scales are
    for axis in axes:
        # As in ONNX Runtime, scale 1 leaves an axis alone, even if a region of it was asked for.
        # With `antialias` so does any scale that keeps its size.
        kept = axis.scale == 1 or (how.antialias and axis.new_size == axis.size)
        if not kept:
            x = _resize_axis(x, axis, how)
    return x


def _by_scales(x: torch.Tensor, scales: Sequence[float], how: Sampling) -> torch.Tensor:
    if len(scales) != x.ndim:
        raise ValueError(f"{len(scales)} scales for a tensor of rank {x.ndim}")
    axes = [
        Axis(i, size, math.floor(_float32(size * _float32(scale))), scale)
        for i, (size, scale) in enumerate(zip(x.shape, scales, strict=True))
    ]
    return _resize(x, axes, how)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def _old_sampling(mode: str) -> Sampling:
    """How Upsample and Resize-10 sample: ONNX Runtime rounds down, but up where it shrinks."""
    if mode not in ("nearest", "linear", "bilinear"):
        raise NotImplementedError(f"mode {mode!r}")
    return Sampling("nearest" if mode == "nearest" else "linear", "asymmetric", "simple")


@op("Upsample", since=1)
def upsample_1(
    x: torch.Tensor, *, height_scale: float, width_scale: float, mode: str = "nearest"
) -> torch.Tensor:
    """x (N, C, H, W) with its images scaled."""
    return _by_scales(x, [1.0, 1.0, height_scale, width_scale], _old_sampling(mode))


@op("Upsample", since=7)
def upsample_7(x: torch.Tensor, *, scales: Sequence[float], mode: str = "nearest") -> torch.Tensor:
    """x with every dimension scaled."""
    return _by_scales(x, scales, _old_sampling(mode))


@op("Upsample", since=9)
@op("Resize", since=10)
def upsample(x: torch.Tensor, scales: torch.Tensor, *, mode: str = "nearest") -> torch.Tensor:
    """x with every dimension scaled, the scales being an input."""
    return _by_scales(x, scales.tolist(), _old_sampling(mode))


@op("Resize", since=11)
def resize(
    x: torch.Tensor,
    roi: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    sizes: torch.Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Ints = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> torch.Tensor:
    """x with some dimensions resized by `scales` or to `sizes`, one of which is given."""
    chosen = list(range(x.ndim)) if axes is None else all_axes(axes, x.ndim)
    old = [x.shape[axis] for axis in chosen]
    if keep_aspect_ratio_policy != "stretch" and min(axes or [0]) < 0:
        # ONNX Runtime leaves the image as it is.
        raise NotImplementedError("keep_aspect_ratio_policy with negative axes")
    if sizes is not None and sizes.numel():
        new, factors = _sizes_and_scales(old, ints(sizes), keep_aspect_ratio_policy)
    elif scales is not None and scales.numel():
        factors = [float(scale) for scale in scales.tolist()]
        new = [math.floor(_float32(n * _float32(f))) for n, f in zip(old, factors, strict=True)]
    else:
        raise ValueError("neither sizes nor scales")
    region = [0.0] * len(chosen) + [1.0] * len(chosen)
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi is not None and roi.numel():
        region = [float(v) for v in roi.tolist()]
    count = len(chosen)
    regions = zip(region[:count], region[count:], strict=True)
    parts = zip(chosen, old, new, factors, regions, strict=True)
    how = Sampling(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(exclude_outside),
        extrapolation_value,
        bool(antialias),
    )
    return _resize(x, [Axis(i, o, n, f, *region) for i, o, n, f, region in parts], how)


def _sizes_and_scales(
    old: Sequence[int], wanted: Sequence[int], policy: str
) -> tuple[list[int], list[float]]:
    """The new sizes and the scales that lead to them, under a keep_aspect_ratio_policy."""
    scales = [n / o for n, o in zip(wanted, old, strict=True)]
    if policy == "stretch":
        return list(wanted), scales
    if policy not in ("not_larger", "not_smaller"):
        raise NotImplementedError(f"keep_aspect_ratio_policy {policy!r}")
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [math.floor(o * scale + 0.5) for o in old], [scale] * len(old)
