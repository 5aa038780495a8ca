"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from converters.ops._values import Ints, all_axes, ints, one_axis
from converters.registry import op

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    # torch would widen small integers to int64.
    return torch.sum(x, dim=axes, keepdim=keep, dtype=x.dtype)


def _mean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if not all(x.shape[axis] for axis in axes):
        raise ValueError("the mean of nothing")
    if x.is_floating_point():
        return torch.mean(x, dim=axes, keepdim=keep)
    count = x.numel() // max(torch.sum(x, dim=axes).numel(), 1)
    return torch.div(_sum(x, axes, keep), count, rounding_mode="trunc")


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keep, dtype=x.dtype)
    return x


def _l2(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    # vector_norm has a gradient at 0, a square root has none.
    wide = x if x.is_floating_point() else x.double()
    norm: torch.Tensor = torch.linalg.vector_norm(wide, dim=axes, keepdim=keep)
    return norm.to(x.dtype)


def _log_sum_exp(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if not x.is_floating_point():
        # ONNX Runtime cuts every exponential down to an integer.
        raise NotImplementedError("of integers")
    return torch.logsumexp(x, dim=axes, keepdim=keep)


def _extreme(find: Callable[..., torch.Tensor], greatest: bool) -> Reduction:
    """The greatest or smallest number; of nothing, the one that every other one replaces."""

    def reduction(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
        if all(x.shape[axis] for axis in axes):
            return find(x, dim=axes, keepdim=keep)
        if x.is_floating_point():
            neutral = float("-inf") if greatest else float("inf")
        else:
            bounds = (0, 1) if x.dtype == torch.bool else _bounds(x.dtype)
            neutral = bounds[0 if greatest else 1]
        shape = torch.sum(x, dim=axes, keepdim=keep).shape
        return torch.full(shape, neutral, dtype=x.dtype, device=x.device)

    return reduction


def _bounds(kind: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(kind)
    return info.min, info.max


# Which reduction, and the version from which its axes are an input.
REDUCTIONS: dict[str, tuple[Reduction, int]] = {
    "ReduceL1": (lambda x, axes, keep: _sum(x.abs(), axes, keep), 18),
    "ReduceL2": (_l2, 18),
    "ReduceLogSum": (lambda x, axes, keep: _sum(x, axes, keep).log().to(x.dtype), 18),
    "ReduceLogSumExp": (_log_sum_exp, 18),
    "ReduceMax": (_extreme(torch.amax, True), 18),
    "ReduceMean": (_mean, 18),
    "ReduceMin": (_extreme(torch.amin, False), 18),
    "ReduceProd": (_product, 18),
    "ReduceSum": (_sum, 13),
    "ReduceSumSquare": (lambda x, axes, keep: _sum(x.square(), axes, keep), 18),
}


def _with_attribute(reduction: Reduction) -> Callable[..., torch.Tensor]:
    def operator(x: torch.Tensor, *, axes: Ints = None, keepdims: int = 1) -> torch.Tensor:
        chosen = all_axes(axes, x.ndim) if axes else list(range(x.ndim))
        return reduction(x, chosen, bool(keepdims))

    return operator


def _with_input(reduction: Reduction) -> Callable[..., torch.Tensor]:
    def operator(
        x: torch.Tensor,
        axes: torch.Tensor | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> torch.Tensor:
        chosen = [] if axes is None else all_axes(ints(axes), x.ndim)
        if not chosen and noop_with_empty_axes:
            # Nothing is reduced, but what goes with it (a square, a logarithm) is still done.
            return reduction(x.unsqueeze(-1), [x.ndim], False)
        return reduction(x, chosen or list(range(x.ndim)), bool(keepdims))

    return operator


for _name, (_reduction, _input_since) in REDUCTIONS.items():
    op(_name, since=1)(_with_attribute(_reduction))
    op(_name, since=_input_since)(_with_input(_reduction))


def _arg(
    x: torch.Tensor, find: Callable[..., torch.Tensor], axis: int, keepdims: int, last: int
) -> torch.Tensor:
    axis = one_axis(axis, x.ndim)
    if not last:
        return find(x, dim=axis, keepdim=bool(keepdims))
    return x.shape[axis] - 1 - find(x.flip(axis), dim=axis, keepdim=bool(keepdims))


@op("ArgMax")
def arg_max(
    x: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> torch.Tensor:
    """The index of the greatest number along an axis, the first or last of equal ones."""
    return _arg(x, torch.argmax, axis, keepdims, select_last_index)


@op("ArgMin")
def arg_min(
    x: torch.Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> torch.Tensor:
    """The index of the smallest number along an axis, the first or last of equal ones."""
    return _arg(x, torch.argmin, axis, keepdims, select_last_index)
