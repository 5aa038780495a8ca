"""Helpers shared by the operator families."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from converters.budget import active_budget
from converters.errors import ModelFormatError

Ints = Sequence[int] | None
"""An optional list attribute."""

MAX_RESULT_BYTES = 2**32
"""What a result may take whose size the file's numbers decide, in bytes, at any time.

While a model is prepared much less is allowed, see `converters.budget`; later, a whole batch of
images may take that much.
"""


def affordable(shape: Sequence[int], dtype: torch.dtype) -> list[int]:
    """The shape itself, if a tensor of it may be made.

    A file of a few bytes can ask for a tensor that fills any memory.

    Raises:
        ModelFormatError: it would take more than `MAX_RESULT_BYTES`.
    """
    size = math.prod(shape) * dtype.itemsize
    # torch.compile follows no context variables; what it compiles was prepared before.
    budget = None if torch.compiler.is_compiling() else active_budget()
    if budget is not None:
        budget.check(size)
    if size > MAX_RESULT_BYTES:
        raise ModelFormatError(
            f"a result of shape {list(shape)} takes {size} bytes; the limit is {MAX_RESULT_BYTES}",
            "result_too_large",
        )
    return list(shape)


def ints(value: torch.Tensor | Sequence[int] | int) -> list[int]:
    """Shape-like numbers (axes, sizes, pads), given as attribute or as tensor, as Python ints."""
    if isinstance(value, torch.Tensor):
        return [int(v) for v in value.reshape(-1).tolist()]
    return [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]


def beside(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """`value` on the device of `other` (integers live on the CPU, see `torch_graph`)."""
    return value if value.device == other.device else value.to(other.device)


def together(*values: torch.Tensor) -> list[torch.Tensor]:
    """All tensors on one device: that of the first one that is not on the CPU, if there is one."""
    device = next((v.device for v in values if v.device.type != "cpu"), torch.device("cpu"))
    return [v if v.device == device else v.to(device) for v in values]


def broadcast_shape(*shapes: Sequence[int]) -> torch.Size:
    """The shape that tensors of these shapes broadcast to.

    Raises:
        ValueError: they don't.
    """
    try:
        return torch.Size(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        names = " and ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"shapes {names} do not broadcast") from error


def one_axis(axis: int, rank: int) -> int:
    """A possibly negative axis as one in [0, rank).

    Raises:
        ValueError: the axis is out of range.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is out of range for a tensor of rank {rank}")
    return axis % rank


def all_axes(axes: torch.Tensor | Sequence[int], rank: int) -> list[int]:
    """Possibly negative axes as axes in [0, rank), in the given order.

    Raises:
        ValueError: an axis is out of range or named twice.
    """
    found = [one_axis(axis, rank) for axis in ints(axes)]
    if len(set(found)) != len(found):
        raise ValueError(f"an axis is named twice: {found}")
    return found


def widened(value: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32, for sums that those types are too coarse for."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
