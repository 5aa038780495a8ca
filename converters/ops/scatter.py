"""What puts numbers by index."""

from __future__ import annotations

import math

import torch

from converters.ops._values import beside, one_axis
from converters.ops.indexing import positive
from converters.registry import op

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements")
def scatter_elements(
    x: torch.Tensor,
    indices: torch.Tensor,
    updates: torch.Tensor,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> torch.Tensor:
    """x with `updates` put, added, ... at these indices of one axis."""
    axis = one_axis(axis, x.ndim)
    at = beside(positive(indices, x.shape[axis]), x)
    updates = beside(updates, x)
    if reduction == "none":
        return x.scatter(axis, at, updates)
    return _reduced(x, axis, at, updates, reduction)


@op("Scatter")
def scatter(
    x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, *, axis: int = 0
) -> torch.Tensor:
    """The old name of ScatterElements."""
    return scatter_elements(x, indices, updates, axis=axis)


@op("ScatterND")
def scatter_nd(
    x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, *, reduction: str = "none"
) -> torch.Tensor:
    """x with slices put, added, ... at the index tuples in the last dimension of `indices`."""
    depth = indices.shape[-1]
    parts = [beside(positive(indices[..., i], x.shape[i]), x) for i in range(depth)]
    updates = beside(updates, x)
    if reduction in ("none", "add") and depth:
        return x.index_put(tuple(parts), updates, accumulate=reduction == "add")
    # One row for each slice, so that the tuples become indices of rows.
    rows, width = math.prod(x.shape[:depth]), math.prod(x.shape[depth:])
    at = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for part, size in zip(parts, x.shape[:depth], strict=True):
        at = at * size + part
    flat, given = x.reshape(rows, width), updates.reshape(-1, width)
    at = at.reshape(-1, 1).expand(-1, width)
    if reduction == "none":
        return flat.scatter(0, at, given).reshape(x.shape)
    return _reduced(flat, 0, at, given, reduction).reshape(x.shape)


def _reduced(
    x: torch.Tensor, axis: int, at: torch.Tensor, updates: torch.Tensor, reduction: str
) -> torch.Tensor:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}")
    return x.scatter_reduce(axis, at, updates, _REDUCTIONS[reduction])


@op("TensorScatter", since=24)
def tensor_scatter(
    past_cache: torch.Tensor,
    update: torch.Tensor,
    write_indices: torch.Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> torch.Tensor:
    """A cache (N, ...) with new entries put along an axis, for each example from its index on.

    Raises:
        ValueError: they don't fit; with `mode` circular they go on at the start.
    """
    axis = one_axis(axis, past_cache.ndim)
    size, count = past_cache.shape[axis], update.shape[axis]
    starts = torch.zeros(len(past_cache), dtype=torch.int64)
    if write_indices is not None:
        starts = write_indices.cpu().long()
    places = starts.reshape(-1, 1) + torch.arange(count)
    if mode == "circular":
        places = places % size
    elif mode != "linear":
        raise ValueError(f"unknown mode {mode!r}")
    if places.numel() and (int(places.min()) < 0 or int(places.max()) >= size or axis == 0):
        raise ValueError("the update does not fit into the cache")
    shape = [1] * update.ndim
    shape[0], shape[axis] = len(places), count
    at = beside(places.reshape(shape), past_cache).expand(update.shape)
    return past_cache.scatter(axis, at, beside(update, past_cache))
