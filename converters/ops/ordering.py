"""What orders, counts or runs along an axis."""

from __future__ import annotations

import torch

from converters.ops._values import beside, ints, one_axis
from converters.registry import op


def _top_k(x: torch.Tensor, k: int, axis: int, largest: int) -> tuple[torch.Tensor, torch.Tensor]:
    # A stable sort: of equal numbers the first comes first, which torch.topk doesn't promise.
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    if k > x.shape[axis]:
        raise ValueError(f"k is {k}, the axis has size {x.shape[axis]}")
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


@op("TopK", since=1)
def top_k_1(x: torch.Tensor, *, k: int, axis: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """The k greatest numbers along an axis and their indices."""
    return _top_k(x, k, axis, 1)


@op("TopK", since=10)
def top_k(
    x: torch.Tensor, k: torch.Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k greatest or smallest numbers along an axis and their indices, always sorted."""
    return _top_k(x, ints(k)[0], axis, largest)


@op("NonZero")
def non_zero(x: torch.Tensor) -> torch.Tensor:
    """The indices of what is not 0, (rank, count)."""
    return torch.nonzero(x).t()


@op("CumSum")
def cum_sum(
    x: torch.Tensor, axis: torch.Tensor, *, exclusive: int = 0, reverse: int = 0
) -> torch.Tensor:
    """Running sums along an axis, maybe from its end, maybe each without its own number."""
    along = one_axis(ints(axis)[0], x.ndim)
    source = x.flip(along) if reverse else x
    total = torch.cumsum(source, dim=along, dtype=x.dtype)
    total = total - source if exclusive else total
    return total.flip(along) if reverse else total


@op("CumProd", since=26)
def cum_prod(
    x: torch.Tensor, axis: torch.Tensor, *, exclusive: int = 0, reverse: int = 0
) -> torch.Tensor:
    """Running products along an axis, maybe from its end, maybe each without its own number."""
    along = one_axis(ints(axis)[0], x.ndim)
    source = x.flip(along) if reverse else x
    if exclusive:
        first = torch.ones_like(source.narrow(along, 0, min(1, source.shape[along])))
        source = torch.cat((first, source.narrow(along, 0, max(source.shape[along] - 1, 0))), along)
    total = torch.cumprod(source, dim=along, dtype=x.dtype)
    return total.flip(along) if reverse else total


@op("Compress")
def compress(x: torch.Tensor, condition: torch.Tensor, *, axis: int | None = None) -> torch.Tensor:
    """The slices along an axis, or the numbers of all, at which the condition (1-D) holds.

    The condition may end before they do; what is beyond it is left out.
    """
    source, along = (x.reshape(-1), 0) if axis is None else (x, one_axis(axis, x.ndim))
    chosen = torch.nonzero(condition.reshape(-1)).reshape(-1)
    return source.index_select(along, beside(chosen, x))


@op("ReverseSequence")
def reverse_sequence(
    x: torch.Tensor, sequence_lens: torch.Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> torch.Tensor:
    """The first `sequence_lens` steps of each example in reverse order."""
    if sorted((batch_axis, time_axis)) != [0, 1] or x.ndim < 2:
        raise ValueError("batch_axis and time_axis must be 0 and 1")
    steps = x.shape[time_axis]
    lengths = sequence_lens.cpu().long().reshape(-1, 1)
    if len(lengths) != x.shape[batch_axis] or bool(((lengths < 0) | (lengths > steps)).any()):
        raise ValueError(f"sequence_lens {lengths.reshape(-1).tolist()} for {steps} steps")
    places = torch.arange(steps).expand(len(lengths), -1)
    at = torch.where(places < lengths, lengths - 1 - places, places)
    at = beside(at if batch_axis == 0 else at.t(), x)
    return x.gather(time_axis, at.reshape(*at.shape, *[1] * (x.ndim - 2)).expand(x.shape))


@op("Unique", since=11)
def unique(
    x: torch.Tensor, *, axis: int | None = None, sorted: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The different numbers, or slices along an axis, once each.

    Returns:
        them in order or, without `sorted`, as they first occur; where each first occurs; which one
        each number is; how often each occurs.

    Raises:
        NotImplementedError: there are NaNs, of which none equals another.
    """
    if x.is_floating_point() and bool(torch.isnan(x).any()):
        raise NotImplementedError("NaN among the numbers")
    source, along = (x.reshape(-1), 0) if axis is None else (x, one_axis(axis, x.ndim))
    _, inverse, counts = torch.unique(source, return_inverse=True, return_counts=True, dim=along)
    places = torch.arange(len(inverse), device=x.device)
    first = torch.full_like(counts, len(inverse)).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = torch.argsort(first)
        first, counts = first[order], counts[order]
        inverse = torch.argsort(order)[inverse]
    return source.index_select(along, first), first, inverse, counts
