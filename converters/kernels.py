"""Shorter ways to call some operators, for arguments that are known before the run.

An operator's function checks and derives its arguments at each call, and must not touch its inputs.
Where the weights are constants, the checks can be made once; where nobody else reads an input, the
result may take its place (on a CPU most of the time of an activation goes into fresh memory). A
kernel takes the same arguments as the operator and gives the same numbers up to rounding. Where it
meets arguments that it does not suit it raises, and the operator itself is called (`program`).

So a kernel that overwrites an input looks first whether it suits, and overwrites last. If that
fails, the input may be spoiled: nothing may compute from it any more, and the error says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from converters.instructions import Instruction
from converters.ops._spatial import check_result, window
from converters.registry import OperatorFunction

Constants = Mapping[str, torch.Tensor]

MAKES_NEW_MEMORY = frozenset({"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm"})
"""Operators whose first result is no view of an input and which don't need it to go backward."""


class InputOverwrittenError(RuntimeError):
    """A kernel failed while it overwrote its input: the operator can't be run on that any more."""


_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_NUMBERS: dict[str, tuple[int, ...]] = {
    "Expand": (1,),
    "Pad": (1, 3),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in (
            *("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum"),
            "SumSquare",
        )
    },
}


def number_arguments(instruction: Instruction) -> tuple[int, ...]:
    """Positions of the inputs that the operator reads as Python ints: shapes, axes and the like.

    Constants there can be handed over as a tuple. Without tensors whose numbers decide about
    shapes, torch.compile can follow the whole graph.
    """
    return () if instruction.domain else _NUMBERS.get(instruction.op_type, ())


def has_kernel(instruction: Instruction) -> bool:
    """Whether there are kernels for the operator at all."""
    return instruction.op_type in _KERNELS and not instruction.domain


def kernel(
    instruction: Instruction, constants: Constants, spare: Sequence[bool]
) -> OperatorFunction | None:
    """A function to call instead of the operator's own, or None.

    Args:
        constants: tensors by name that never change.
        spare: for each input whether the result may take its memory.
    """
    make = None if instruction.domain else _KERNELS.get(instruction.op_type)
    try:
        return make(instruction, constants, spare) if make else None
    except (AttributeError, TypeError, ValueError):
        return None  # attributes or constants of another type: the operator says what is wrong


def _overwrite(
    function: Callable[..., torch.Tensor], target: torch.Tensor, *others: torch.Tensor | float
) -> torch.Tensor:
    """Let a function of torch write its result over `target`.

    Raises:
        InputOverwrittenError: it failed.
    """
    if not target.is_floating_point():
        raise TypeError("integers")  # before anything is written
    try:
        return function(target, *others)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InputOverwrittenError(f"failed while it overwrote its input: {error}") from error


def _relu(_: Instruction, __: Constants, spare: Sequence[bool]) -> OperatorFunction | None:
    return functools.partial(_overwrite, torch.relu_) if spare[0] else None


def _add(instruction: Instruction, _: Constants, spare: Sequence[bool]) -> OperatorFunction | None:
    if instruction.opset < 7 or len(spare) != 2 or not any(spare):
        return None
    into, operator = 0 if spare[0] else 1, instruction.function

    def add(a: torch.Tensor, b: torch.Tensor) -> Any:
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return operator(a, b)
        target, other = (b, a) if into else (a, b)
        return _overwrite(torch.Tensor.add_, target, other)

    return add


def _clip(
    instruction: Instruction, constants: Constants, spare: Sequence[bool]
) -> OperatorFunction | None:
    """Constant finite bounds: as hardtanh, whose backward pass is one operation and not four."""
    bounds = _clip_bounds(instruction, constants)
    if bounds is None or not -math.inf < bounds[0] < bounds[1] < math.inf:
        return None
    low, high = bounds
    overwrites = spare[0]

    def clip(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        if overwrites and not (x.requires_grad and torch.compiler.is_compiling()):
            function = _clip_in_place if x.requires_grad else F.hardtanh_
            return _overwrite(function, x, low, high)
        if not x.is_floating_point():
            raise TypeError("integers")
        return F.hardtanh(x, low, high)

    return clip


class _ClipInPlace(torch.autograd.Function):
    """hardtanh over its input, which torch's own would copy first to keep it for the gradient.

    The result will do: it lies within the bounds exactly where the input does.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.mark_dirty(x)
        ctx.bounds = low, high
        F.hardtanh_(x, low, high)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], y, *ctx.bounds), None, None


def _clip_in_place(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    clipped: torch.Tensor = _ClipInPlace.apply(x, low, high)  # type: ignore[no-untyped-call]
    return clipped


def _clip_bounds(instruction: Instruction, constants: Constants) -> tuple[float, float] | None:
    if instruction.opset < 11:
        given = instruction.attributes
        return float(given.get("min", -math.inf)), float(given.get("max", math.inf))
    tensors = [constants.get(name) for name in instruction.inputs[1:]]
    if len(tensors) != 2 or any(t is None or t.numel() != 1 for t in tensors):
        return None
    low, high = (float(t) for t in tensors if t is not None)
    return low, high


def _conv(
    instruction: Instruction, constants: Constants, _: Sequence[bool]
) -> OperatorFunction | None:
    """Constant weights and padding that does not depend on the size of the image."""
    attributes = instruction.attributes
    weight = constants.get(instruction.inputs[1]) if len(instruction.inputs) > 1 else None
    if weight is None or weight.ndim not in _CONV or len(instruction.inputs) > 3:
        return None
    kernel_shape = tuple(weight.shape[2:])
    if tuple(attributes.get("kernel_shape") or kernel_shape) != kernel_shape:
        return None
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        return None
    strides, dilations, pads = (attributes.get(n) for n in ("strides", "dilations", "pads"))
    try:
        sizes = (0,) * len(kernel_shape)
        place = window(sizes, kernel_shape, strides, dilations, pads, auto_pad)
    except (TypeError, ValueError):
        return None  # the operator will say what is wrong, if it is ever run
    if place.begins != place.ends:
        return None
    convolve, rank, filters = _CONV[weight.ndim], weight.ndim, len(weight)
    fixed = (place.strides, place.begins, place.dilations, attributes.get("group", 1))

    def conv(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        if x.ndim != rank:
            raise ValueError("rank")
        check_result(x, filters, place)
        return convolve(x, w, b, *fixed)

    return conv


def _gemm(
    instruction: Instruction, constants: Constants, _: Sequence[bool]
) -> OperatorFunction | None:
    """x @ B + C with constant B and one number of C for each column: a linear layer."""
    attributes = instruction.attributes
    plain = all(attributes.get(name, 1) == 1 for name in ("alpha", "beta"))
    if not plain or attributes.get("transA", 0) or len(instruction.inputs) not in (2, 3):
        return None
    weight, *bias = (constants.get(name) for name in instruction.inputs[1:] if name)
    if weight is None or weight.ndim != 2:
        return None
    transposed = bool(attributes.get("transB", 0))
    columns = weight.shape[0 if transposed else 1]
    if any(b is None or b.shape != (columns,) for b in bias):
        return None

    def gemm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        if x.ndim != 2:
            raise ValueError("rank")
        return F.linear(x, w if transposed else w.t(), b)

    return gemm


_KERNELS: dict[str, Callable[[Instruction, Constants, Sequence[bool]], OperatorFunction | None]] = {
    "Add": _add,
    "Clip": _clip,
    "Conv": _conv,
    "Gemm": _gemm,
    "Relu": _relu,
}
