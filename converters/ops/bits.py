"""Operators on the bits of integers."""

from __future__ import annotations

import torch

from converters.ops._values import together
from converters.ops.constant import torch_type
from converters.registry import op

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@op("BitShift", since=11)
def bit_shift(x: torch.Tensor, y: torch.Tensor, *, direction: str) -> torch.Tensor:
    """x with its bits moved by y places; what moves over the end is lost.

    Shifts by no or by all bits' number and more give 0, or -1 for a negative x to the right.

    Raises:
        ValueError: a direction that is neither LEFT nor RIGHT.
    """
    x, y = together(x, y)
    bits, unsigned = x.dtype.itemsize * 8, x.dtype in (torch.uint8, *_SIGNED)
    # As int64: no bit of a result depends on the sign, but for shifts of uint64 to the right.
    places, value = y.to(torch.int64), x.to(torch.int64)
    inside = (places >= 0) & (places < bits)
    places = torch.where(inside, places, 0)
    if direction == "LEFT":
        moved, beyond = value << places, torch.zeros_like(value)
    elif direction == "RIGHT":
        moved = value >> places
        if x.dtype == torch.uint64:
            kept = torch.where(places > 0, (1 << (64 - places).clamp(max=62)) - 1, -1)
            kept = torch.where(places == 1, torch.iinfo(torch.int64).max, kept)
            moved = moved & kept
        beyond = torch.where((value < 0) & (not unsigned), -1, 0)
    else:
        raise ValueError(f"unknown direction {direction!r}")
    return torch.where(inside, moved, beyond).to(x.dtype)


@op("BitCast", since=26)
def bit_cast(x: torch.Tensor, *, to: int) -> torch.Tensor:
    """The same bits as numbers of another type of the same size.

    Raises:
        ValueError: a type of another size.
    """
    kind = torch_type(to)
    if kind.itemsize != x.dtype.itemsize:
        raise ValueError(f"{x.dtype} and {kind} have different sizes".replace("torch.", ""))
    return x.view(kind)
