"""Padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from converters.ops._spatial import padded
from converters.ops._values import affordable, all_axes, ints
from converters.registry import op


def _pad(x: torch.Tensor, pads: Sequence[int], mode: str, value: float) -> torch.Tensor:
    """Pads: for all dimensions what comes before them, then what comes after them."""
    if len(pads) != 2 * x.ndim:
        raise ValueError(f"{len(pads)} pads for a tensor of rank {x.ndim}")
    begins, ends = pads[: x.ndim], pads[x.ndim :]
    sizes = [max(sum(parts), 0) for parts in zip(x.shape, begins, ends, strict=True)]
    affordable(sizes, x.dtype)
    if mode == "constant":
        return padded(x, begins, ends, value)
    if mode not in ("reflect", "edge", "wrap"):
        raise ValueError(f"unknown mode {mode!r}")
    # As in ONNX Runtime: first what negative pads cut off, then the padding of what is left.
    x = padded(x, [min(n, 0) for n in begins], [min(n, 0) for n in ends])
    begins, ends = [max(n, 0) for n in begins], [max(n, 0) for n in ends]
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if begin or end:
            x = x.index_select(axis, _sources(x.shape[axis], begin, end, mode).to(x.device))
    return x


def _sources(size: int, begin: int, end: int, mode: str) -> torch.Tensor:
    """The index in an axis of this size that each place of the padded axis shows."""
    places = torch.arange(-begin, size + end)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if max(begin, end) >= size:
        raise ValueError(f"can't reflect {max(begin, end)} places of an axis of size {size}")
    return size - 1 - (size - 1 - places.abs()).abs()


@op("Pad", since=1)
def pad_1(
    x: torch.Tensor, *, paddings: Sequence[int], mode: str = "constant", value: float = 0.0
) -> torch.Tensor:
    """As version 11, all being attributes."""
    return _pad(x, paddings, mode, value)


@op("Pad", since=2)
def pad_2(
    x: torch.Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0
) -> torch.Tensor:
    """As version 11, all being attributes."""
    return _pad(x, pads, mode, value)


@op("Pad", since=11)
def pad(
    x: torch.Tensor,
    pads: torch.Tensor,
    constant_value: torch.Tensor | None = None,
    axes: torch.Tensor | None = None,
    *,
    mode: str = "constant",
) -> torch.Tensor:
    """x with numbers put around it: a constant, or some of its own; negative pads cut off."""
    amounts = ints(pads)
    if axes is not None:
        chosen = all_axes(ints(axes), x.ndim)
        if len(amounts) != 2 * len(chosen):
            raise ValueError(f"{len(amounts)} pads for {len(chosen)} axes")
        full = [0] * (2 * x.ndim)
        for i, axis in enumerate(chosen):
            full[axis], full[x.ndim + axis] = amounts[i], amounts[len(chosen) + i]
        amounts = full
    value = 0.0 if constant_value is None or mode != "constant" else constant_value.item()
    return _pad(x, amounts, mode, value)
