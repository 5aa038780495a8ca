"""Images read at places between their pixels: grids, deformed windows, regions of interest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from converters.ops._spatial import window
from converters.ops._values import Ints, affordable, beside, ints
from converters.registry import op

_MODES = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}


@op("GridSample", since=16)
def grid_sample(
    x: torch.Tensor,
    grid: torch.Tensor,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """x (N, C, *spatial) read at the places of `grid` (N, *positions, rank), each in [-1, 1].

    Raises:
        NotImplementedError: other than 2 or 3 spatial dimensions; cubic with 3.
    """
    if mode not in _MODES or x.ndim not in (4, 5) or (x.ndim == 5 and _MODES[mode] == "bicubic"):
        raise NotImplementedError(f"mode {mode!r} for a tensor of rank {x.ndim}")
    return F.grid_sample(x, beside(grid, x), _MODES[mode], padding_mode, bool(align_corners))


@op("AffineGrid", since=20)
def affine_grid(theta: torch.Tensor, size: torch.Tensor, *, align_corners: int = 0) -> torch.Tensor:
    """Where each place of an image of this size is before the affine transform `theta`."""
    sizes = affordable(ints(size), theta.dtype)
    if align_corners and 1 in sizes[2:]:
        raise NotImplementedError("align_corners with a dimension of size 1")
    return F.affine_grid(theta, sizes, bool(align_corners))


def bilinear(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """x (N, C, H, W) at the places (N, P), in pixels, as (N, C, P); 0 outside of the image."""
    height, width = x.shape[2:]
    flat = x.flatten(2)
    top, left = torch.floor(rows), torch.floor(columns)
    total = x.new_zeros(*x.shape[:2], rows.shape[1])
    for row in (top, top + 1):
        for column in (left, left + 1):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (1 - (rows - row).abs()) * (1 - (columns - column).abs()) * inside
            at = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            pixels = flat.gather(2, at.unsqueeze(1).expand(-1, x.shape[1], -1))
            total = total + pixels * weight.unsqueeze(1)
    return total


@op("DeformConv", since=19)
def deform_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    offset: torch.Tensor,
    b: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    *,
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    offset_group: int = 1,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """Convolution of images whose window's places are each moved by an offset (Dai et al. 2017).

    offset is (N, offset_group * kernel * 2, oH, oW), rows before columns; `mask` holds a factor for
    each place of the window.
    """
    if x.ndim != 4 or w.ndim != 4:
        raise NotImplementedError(f"deformed convolution of a tensor of rank {x.ndim}")
    kernel = tuple(w.shape[2:])
    if kernel_shape and tuple(kernel_shape) != kernel:
        raise ValueError(f"kernel_shape {list(kernel_shape)} differs from weights {list(kernel)}")
    place = window(x.shape[2:], kernel, strides, dilations, pads, "NOTSET")
    positions, count = place.positions(x.shape[2:]), math.prod(kernel)
    n, size = len(x), math.prod(positions)
    affordable([n, x.shape[1], count, size], x.dtype)
    moves = beside(offset, x).reshape(n * offset_group, count, 2, size)
    bases = [
        torch.arange(kernel[i]).reshape(-1, 1) * place.dilations[i]
        + torch.arange(positions[i]) * place.strides[i]
        - place.begins[i]
        for i in range(2)
    ]
    rows = bases[0][:, None, :, None].expand(*kernel, *positions).reshape(count, size)
    columns = bases[1][None, :, None, :].expand(*kernel, *positions).reshape(count, size)
    images = x.reshape(n * offset_group, -1, *x.shape[2:])
    seen = bilinear(
        images,
        (rows.to(moves) + moves[:, :, 0]).flatten(1),
        (columns.to(moves) + moves[:, :, 1]).flatten(1),
    ).reshape(n, offset_group, -1, count, size)
    if mask is not None:
        seen = seen * beside(mask, x).reshape(n, offset_group, 1, count, size)
    grouped = seen.reshape(n, group, -1, size)
    weights = beside(w, x).reshape(group, w.shape[0] // group, -1)
    y = torch.einsum("goc,ngcs->ngos", weights, grouped).reshape(n, w.shape[0], *positions)
    return y if b is None else y + beside(b, x).reshape(-1, 1, 1)


@op("RoiAlign", since=10)
def roi_align_10(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """As version 16, without the shift by half a pixel."""
    return roi_align(
        x,
        rois,
        batch_indices,
        coordinate_transformation_mode="output_half_pixel",
        mode=mode,
        output_height=output_height,
        output_width=output_width,
        sampling_ratio=sampling_ratio,
        spatial_scale=spatial_scale,
    )


@op("RoiAlign", since=16)
def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """Regions (x1, y1, x2, y2) of images, each pooled to one size (He et al. 2017).

    In mode `max`, as in the specification's reference and ONNX Runtime, the maximum is that of the
    pixels times their weights, not of the interpolated numbers.
    """
    if mode not in ("avg", "max"):
        raise ValueError(f"unknown mode {mode!r}")
    if coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise ValueError(f"unknown mode {coordinate_transformation_mode!r}")
    half = coordinate_transformation_mode == "half_pixel"
    affordable([len(rois), x.shape[1], output_height, output_width], x.dtype)
    batch = ints(batch_indices)
    regions = rois.detach().double().cpu() * spatial_scale - (0.5 if half else 0.0)
    pooled = []
    for image, region in zip(batch, regions.tolist(), strict=True):
        rows = _bins(region[1], region[3], output_height, sampling_ratio, half)
        columns = _bins(region[0], region[2], output_width, sampling_ratio, half)
        pooled.append(_pooled(x[image], rows, columns, mode))
    size = (x.shape[1], output_height, output_width)
    return torch.stack(pooled) if pooled else x.new_zeros(0, *size)


def _bins(start: float, end: float, count: int, ratio: int, half: bool) -> torch.Tensor:
    """The places (count, samples) along one axis at which the bins of a region are read."""
    length = end - start if half else max(end - start, 1.0)
    step = length / count
    samples = ratio if ratio > 0 else math.ceil(step)
    if samples < 1:
        raise NotImplementedError("a region without an extent")
    affordable([count, samples], torch.float64)
    inner = (torch.arange(samples, dtype=torch.float64) + 0.5) * step / samples
    return start + torch.arange(count, dtype=torch.float64).reshape(-1, 1) * step + inner


def _pooled(
    image: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, mode: str
) -> torch.Tensor:
    """The image (C, H, W) read at rows (h, samples) and columns (w, samples), as (C, h, w)."""
    low_r, high_r, part_r, in_r = _neighbours(rows.reshape(-1), image.shape[1], image)
    low_c, high_c, part_c, in_c = _neighbours(columns.reshape(-1), image.shape[2], image)
    affordable([len(image), rows.numel(), columns.numel()], image.dtype)
    inside = in_r.reshape(-1, 1) & in_c
    taps = [
        image.index_select(1, r).index_select(2, c) * (pr.reshape(-1, 1) * pc) * inside
        for r, pr in ((low_r, 1 - part_r), (high_r, part_r))
        for c, pc in ((low_c, 1 - part_c), (high_c, part_c))
    ]
    stacked = torch.stack(taps)
    mixed = stacked.amax(dim=0) if mode == "max" else stacked.sum(dim=0)
    bins = mixed.reshape(len(image), *rows.shape, *columns.shape)
    return bins.amax(dim=(2, 4)) if mode == "max" else bins.mean(dim=(2, 4))


def _neighbours(places: torch.Tensor, size: int, like: torch.Tensor) -> Sequence[torch.Tensor]:
    """The pixels before and after each place, the part of the second one, and what counts.

    Places up to one pixel outside of the image count as its edge, those beyond as 0.
    """
    inside = (places >= -1) & (places <= size)
    kept = places.clamp(0, size - 1)
    low = torch.floor(kept)
    found = low.long(), (low.long() + 1).clamp(max=size - 1), (kept - low).to(like.dtype), inside
    return [beside(part, like) for part in found]
