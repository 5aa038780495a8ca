"""Shapes: what changes or reads the shape of a tensor but not its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from converters.ops._values import (
    Ints,
    affordable,
    all_axes,
    broadcast_shape,
    ints,
    one_axis,
    together,
)
from converters.registry import op


@op("Shape")
def shape(x: torch.Tensor, *, start: int = 0, end: int | None = None) -> torch.Tensor:
    """The shape as int64 numbers on the CPU, or its part [start, end)."""
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@op("Size")
def size(x: torch.Tensor) -> torch.Tensor:
    """How many numbers there are, as an int64 scalar on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@op("Reshape", since=1)
def reshape_1(
    x: torch.Tensor, *, shape: Sequence[int], consumed_inputs: Sequence[int] = ()
) -> torch.Tensor:
    """As version 14, the shape being an attribute."""
    return reshape(x, torch.tensor(shape))


@op("Reshape", since=5)
def reshape(x: torch.Tensor, shape: torch.Tensor, *, allowzero: int = 0) -> torch.Tensor:
    """x in a new shape, in which 0 keeps a size (without `allowzero`) and one -1 is the rest."""
    sizes = ints(shape)
    if not allowzero:
        if any(n == 0 for n in sizes[x.ndim :]):
            raise ValueError(f"shape {sizes} keeps a dimension that the input does not have")
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if -1 in sizes and x.numel() == 0:
        rest = math.prod(n for n in sizes if n != -1)
        sizes = [0 if n == -1 and rest else n for n in sizes]
    return x.reshape(sizes)


@op("Flatten")
def flatten(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """A matrix: the dimensions before `axis` are its rows, the others its columns."""
    first = axis if axis == x.ndim else one_axis(axis, x.ndim)
    return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:]))


@op("Transpose")
def transpose(x: torch.Tensor, *, perm: Ints = None) -> torch.Tensor:
    """The dimensions in another order, by default reversed."""
    return x.permute(list(reversed(range(x.ndim))) if perm is None else list(perm))


@op("Squeeze", since=1)
def squeeze_1(x: torch.Tensor, *, axes: Ints = None) -> torch.Tensor:
    """x without the given dimensions, which have size 1, or without all that have."""
    if axes is None:
        return x.squeeze()
    gone = all_axes(axes, x.ndim)
    if any(x.shape[axis] != 1 for axis in gone):
        raise ValueError(f"can't squeeze axes {gone} of shape {list(x.shape)}")
    return x.squeeze(gone)


@op("Squeeze", since=13)
def squeeze(x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    """As version 1, the axes being an input."""
    return squeeze_1(x, axes=None if axes is None else ints(axes))


@op("Unsqueeze", since=1)
def unsqueeze_1(x: torch.Tensor, *, axes: Sequence[int]) -> torch.Tensor:
    """x with dimensions of size 1 put in so that they are at `axes` of the result."""
    rank = x.ndim + len(axes)
    sizes = list(x.shape)
    for axis in sorted(all_axes(axes, rank)):
        sizes.insert(axis, 1)
    return x.reshape(sizes)


@op("Unsqueeze", since=13)
def unsqueeze(x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """As version 1, the axes being an input."""
    return unsqueeze_1(x, axes=ints(axes))


@op("Concat", since=1)
def concat_1(*values: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """All inputs one after the other along `axis`."""
    return concat(*values, axis=axis)


@op("Concat", since=4)
def concat(*values: torch.Tensor, axis: int) -> torch.Tensor:
    """All inputs one after the other along `axis`, which has no default."""
    return torch.cat(together(*values), dim=one_axis(axis, values[0].ndim))


def _split(x: torch.Tensor, axis: int, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    axis = one_axis(axis, x.ndim)
    if sum(sizes) != x.shape[axis] or min(sizes) < 0:
        raise ValueError(f"can't split {x.shape[axis]} into {list(sizes)}")
    return torch.split(x, list(sizes), dim=axis)


def _equal_parts(total: int, parts: int) -> list[int]:
    if total % parts:
        raise ValueError(f"can't split {total} into {parts} equal parts")
    return [total // parts] * parts


@op("Split", since=1)
def split_1(
    x: torch.Tensor,
    sizes: torch.Tensor | None = None,
    *,
    axis: int = 0,
    split: Ints = None,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """x cut along `axis` into parts of the sizes in `split`, or equal ones."""
    given = split if sizes is None else ints(sizes)
    return _split(x, axis, given or _equal_parts(x.shape[axis], n_outputs))


@op("Split", since=13)
def split_13(
    x: torch.Tensor, split: torch.Tensor | None = None, *, axis: int = 0, n_outputs: int = 1
) -> tuple[torch.Tensor, ...]:
    """As version 1, the sizes being an input."""
    sizes = _equal_parts(x.shape[axis], n_outputs) if split is None else ints(split)
    return _split(x, axis, sizes)


@op("Split", since=18)
def split(
    x: torch.Tensor,
    split: torch.Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """As version 13; without sizes the last of `num_outputs` parts may be smaller."""
    if split is not None:
        return _split(x, axis, ints(split))
    if num_outputs is not None and num_outputs != n_outputs:
        raise ValueError(f"num_outputs is {num_outputs}, the node has {n_outputs}")
    total, parts = x.shape[axis], n_outputs
    most = -(-total // parts)
    return _split(x, axis, [most] * (parts - 1) + [total - most * (parts - 1)])


@op("Expand")
def expand(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """x broadcast with a shape; both may have the greater size."""
    return x.expand(affordable(broadcast_shape(x.shape, ints(shape)), x.dtype))


@op("Tile", since=1)
def tile_1(x: torch.Tensor, tiles: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """x repeated `tiles` times along one axis."""
    times = [1] * x.ndim
    times[one_axis(ints(axis)[0], x.ndim)] = ints(tiles)[0]
    return tile(x, torch.tensor(times))


@op("Tile", since=6)
def tile(x: torch.Tensor, repeats: torch.Tensor) -> torch.Tensor:
    """x repeated along every axis, as often as `repeats` says."""
    times = ints(repeats)
    if len(times) != x.ndim:
        raise ValueError(f"{len(times)} repeats for a tensor of rank {x.ndim}")
    affordable([size * count for size, count in zip(x.shape, times, strict=True)], x.dtype)
    return torch.tile(x, times)


@op("DepthToSpace")
def depth_to_space(x: torch.Tensor, *, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """(N, C * b * b, H, W) to (N, C, H * b, W * b); DCR: blocks are the outer part of depth."""
    n, depth, h, w = x.shape
    b, c = blocksize, depth // blocksize**2
    if mode == "DCR":
        parts = x.reshape(n, b, b, c, h, w).permute(0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        parts = x.reshape(n, c, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    else:
        raise ValueError(f"unknown mode {mode!r}")
    return parts.reshape(n, c, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: torch.Tensor, *, blocksize: int, mode: str = "DCR") -> torch.Tensor:
    """(N, C, H * b, W * b) to (N, b * b * C, H, W); DCR: blocks are the outer part of depth."""
    n, c, height, width = x.shape
    b, h, w = blocksize, height // blocksize, width // blocksize
    parts = x.reshape(n, c, h, b, w, b)
    if mode == "DCR":
        parts = parts.permute(0, 3, 5, 1, 2, 4)
    elif mode == "CRD":
        parts = parts.permute(0, 1, 3, 5, 2, 4)
    else:
        raise ValueError(f"unknown mode {mode!r}")
    return parts.reshape(n, b * b * c, h, w)
