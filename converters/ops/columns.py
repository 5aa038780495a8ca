"""Windows of an image, laid out as columns, put together again."""

from __future__ import annotations

import math

import torch

from converters.ops._spatial import window
from converters.ops._values import Ints, affordable, beside, ints
from converters.registry import op


@op("Col2Im", since=18)
def col_2_im(
    x: torch.Tensor,
    image_shape: torch.Tensor,
    block_shape: torch.Tensor,
    *,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """Images (N, C, *image_shape) as sums of their windows x (N, C * block, positions)."""
    sizes, kernel = ints(image_shape), ints(block_shape)
    place = window(sizes, kernel, strides, dilations, pads, "NOTSET")
    positions, count = place.positions(sizes), math.prod(kernel)
    if x.ndim != 3 or x.shape[1] % count or x.shape[2] != math.prod(positions):
        raise ValueError(f"{list(x.shape)} for {math.prod(positions)} windows of {count}")
    n, c = x.shape[0], x.shape[1] // count
    total = math.prod(affordable([n, c, *sizes], x.dtype)[2:])
    # For each axis where each place of each window is: (kernel, positions).
    flat = torch.zeros((), dtype=torch.int64)
    inside = torch.ones((), dtype=torch.bool)
    rank = len(sizes)
    for axis, size in enumerate(sizes):
        at = torch.arange(kernel[axis]).reshape(-1, 1) * place.dilations[axis]
        at = at + torch.arange(positions[axis]) * place.strides[axis] - place.begins[axis]
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = at.shape
        at = at.reshape(shape)
        inside = inside & (at >= 0) & (at < size)
        flat = flat * size + at.clamp(0, size - 1)
    values = x.reshape(n, c, -1) * beside(inside.reshape(-1), x)
    at = beside(flat.reshape(-1), x).expand(n, c, -1)
    return x.new_zeros(n, c, total).scatter_add(2, at, values).reshape(n, c, *sizes)
