"""Slices, gathers and what else picks numbers by index (see `scatter` for what puts them)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from converters.ops._values import Ints, affordable, all_axes, beside, ints, one_axis, together
from converters.registry import op


def _slice(
    x: torch.Tensor, starts: Sequence[int], ends: Sequence[int], axes: Ints, steps: Ints
) -> torch.Tensor:
    chosen = all_axes(range(len(starts)) if axes is None else axes, x.ndim)
    steps = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(chosen, starts, ends, steps, strict=True):
        picked = _places(start, end, step, x.shape[axis])
        low, high = (min(picked), max(picked) + 1) if picked else (0, 0)
        x = x[(slice(None),) * axis + (slice(low, high, abs(step)),)]
        x = x.flip(axis) if step < 0 else x
    return x


def _places(start: int, end: int, step: int, size: int) -> range:
    """The indices that a slice of an axis of this size consists of.

    Python's own slices differ: with a negative step they are empty if `start` is before the axis.
    """
    start, end = (n + size if n < 0 else n for n in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


@op("Slice", since=1)
def slice_1(
    x: torch.Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Ints = None
) -> torch.Tensor:
    """x[start:end] along each of the axes, by default the first ones."""
    return _slice(x, starts, ends, axes, None)


@op("Slice", since=10)
def slice_10(
    x: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    axes: torch.Tensor | None = None,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    """x[start:end:step] along each of the axes, by default the first ones."""
    return _slice(
        x,
        ints(starts),
        ints(ends),
        None if axes is None else ints(axes),
        None if steps is None else ints(steps),
    )


def positive(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Indices as int64 with negative ones counted from the end.

    Raises:
        IndexError: an index is out of range. On a GPU that would end the whole process, so it is
            looked for here; indices are on the CPU as a rule, so it costs no waiting.
    """
    indices = indices.long()
    looked_at = indices.device.type == "cpu" and indices.numel()
    if looked_at and (int(indices.min()) < -size or int(indices.max()) >= size):
        raise IndexError(f"an index is out of range for size {size}")
    return torch.where(indices < 0, indices + size, indices)


@op("Gather")
def gather(x: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    """The slices of x at these indices of one axis, in the shape of the indices."""
    axis = one_axis(axis, x.ndim)
    at = positive(indices, x.shape[axis])
    if at.ndim == 0 and at.device.type == "cpu":
        return x.select(axis, int(at))
    picked = x.index_select(axis, beside(at.reshape(-1), x))
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@op("GatherElements")
def gather_elements(x: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    """For each place of `indices` the number of x there, but at that index of one axis."""
    axis = one_axis(axis, x.ndim)
    return torch.gather(x, axis, beside(positive(indices, x.shape[axis]), x))


@op("GatherND")
def gather_nd(x: torch.Tensor, indices: torch.Tensor, *, batch_dims: int = 0) -> torch.Tensor:
    """The slices of x at the index tuples in the last dimension of `indices`."""
    depth = indices.shape[-1]
    parts = [beside(positive(indices[..., i], x.shape[batch_dims + i]), x) for i in range(depth)]
    rank = indices.ndim - 1
    batch = [
        torch.arange(x.shape[i], device=x.device).reshape(
            [-1 if i == d else 1 for d in range(rank)]
        )
        for i in range(batch_dims)
    ]
    return x[tuple(batch + parts)]


@op("OneHot")
def one_hot(
    indices: torch.Tensor, depth: torch.Tensor, values: torch.Tensor, *, axis: int = -1
) -> torch.Tensor:
    """A new axis of size `depth`: values[1] at the index, values[0] elsewhere and out of range."""
    size, rank = ints(depth)[0], indices.ndim + 1
    axis = one_axis(axis, rank)
    affordable([*indices.shape, size], values.dtype)
    at = indices.long()
    at = torch.where(at < 0, at + size, at).unsqueeze(axis)
    places = torch.arange(size, device=at.device)
    hit = at == places.reshape([-1 if i == axis else 1 for i in range(rank)])
    hit, values = together(hit, values)
    return torch.where(hit, values[1], values[0])


@op("Trilu")
def trilu(x: torch.Tensor, k: torch.Tensor | None = None, *, upper: int = 1) -> torch.Tensor:
    """The upper or lower triangle of the last two dimensions from the k-th diagonal on."""
    diagonal = 0 if k is None else ints(k)[0]
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)
