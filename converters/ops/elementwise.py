"""Arithmetic, comparison and logic, one number at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch

from converters.ops._quantization import straight_through
from converters.ops._values import broadcast_shape, together
from converters.registry import op

Unary = Callable[[torch.Tensor], torch.Tensor]
Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Quotient; integers are divided as in C, towards zero."""
    if a.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def sign(x: torch.Tensor) -> torch.Tensor:
    """-1, 0 or 1. Its gradient is 1 where |x| <= 1 and 0 outside, as binarised networks are trained
    (Hubara et al. 2016, equation 4); its true one, 0, would end every search for a trigger.
    """
    if not x.is_floating_point():
        return torch.sign(x)
    return straight_through(torch.sign(x), torch.clamp(x, -1, 1))


def power(base: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """base ** exponent in the type of the base, whatever the type of the exponent."""
    if base.is_floating_point():
        return torch.pow(base, exponent).to(base.dtype)
    # As ONNX Runtime does, through double: 2 ** -1 is 0 among integers.
    return torch.pow(base.double(), exponent.double()).to(base.dtype)


def by_int64(function: Binary) -> Binary:
    """`function` for unsigned integers too that torch can't compute with, by way of int64.

    Raises (the function that is returned):
        NotImplementedError: uint64 numbers that int64 can't hold.
    """

    def operator(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype not in _UNSIGNED or a.dtype != b.dtype:
            return function(a, b)
        wide = [v.to(torch.int64) for v in (a, b)]
        if a.dtype == torch.uint64 and any(bool((v < 0).any()) for v in wide):
            raise NotImplementedError("uint64 numbers of 2**63 and more")
        result = function(*wide)
        # Back to the smaller type it wraps around, as unsigned arithmetic does.
        return result if result.dtype == torch.bool else result.to(a.dtype)

    return operator


def invert(x: torch.Tensor) -> torch.Tensor:
    """x with every bit changed."""
    if x.dtype in _UNSIGNED:
        return torch.bitwise_not(x.to(torch.int64)).to(x.dtype)
    return torch.bitwise_not(x)


UNARY: dict[str, Unary] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": invert,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,  # half to even, as ONNX wants
    "Sigmoid": torch.sigmoid,
    "Sign": sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

BINARY: dict[str, Binary] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

VARIADIC: dict[str, Binary] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}


def aligned(a: torch.Tensor, b: torch.Tensor, axis: int | None, broadcast: int) -> torch.Tensor:
    """`b` reshaped for broadcasting against `a` as operators did before opset 7.

    The shape of `b` must occur in that of `a`, from `axis` on, or at its end without `axis`.

    Raises:
        ValueError: it does not, or the shapes differ and `broadcast` is 0.
    """
    if not broadcast:
        if a.shape != b.shape:
            raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} differ, broadcast is 0")
        return b
    start = a.ndim - b.ndim if axis is None else axis + (a.ndim if axis < 0 else 0)
    reshaped = b.reshape([*b.shape, *[1] * (a.ndim - b.ndim - start)])
    if start < 0 or broadcast_shape(a.shape, reshaped.shape) != a.shape:
        raise ValueError(f"can't broadcast {list(b.shape)} to {list(a.shape)} at axis {axis}")
    return reshaped


def _unary(function: Unary) -> Unary:
    def operator(x: torch.Tensor, *, consumed_inputs: Sequence[int] = ()) -> torch.Tensor:
        return function(x)

    return operator


def _binary(function: Binary) -> Binary:
    def operator(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return function(*together(a, b))

    return operator


def _legacy_binary(function: Binary) -> Binary:
    def operator(
        a: torch.Tensor,
        b: torch.Tensor,
        *,
        axis: int | None = None,
        broadcast: int = 0,
        consumed_inputs: Sequence[int] = (),
    ) -> torch.Tensor:
        a, b = together(a, b)
        return function(a, aligned(a, b, axis, broadcast))

    return operator


def _variadic(function: Binary) -> Callable[..., torch.Tensor]:
    def operator(*values: torch.Tensor, consumed_inputs: Sequence[int] = ()) -> torch.Tensor:
        return reduce(function, together(*values))

    return operator


for _name, _unary_function in UNARY.items():
    op(_name)(_unary(_unary_function))
for _name, _binary_function in BINARY.items():
    op(_name, since=1)(_legacy_binary(_binary_function))
    op(_name, since=7)(_binary(by_int64(_binary_function)))
for _name, _variadic_function in VARIADIC.items():
    op(_name)(_variadic(by_int64(_variadic_function)))


@op("Mean")
def mean(*values: torch.Tensor, consumed_inputs: Sequence[int] = ()) -> torch.Tensor:
    """Elementwise mean of all inputs."""
    return reduce(torch.add, together(*values)) / len(values)


@op("Mod", since=10)
def mod_10(a: torch.Tensor, b: torch.Tensor, *, fmod: int = 0) -> torch.Tensor:
    """As version 28, but not for floating-point numbers without `fmod`.

    Raises:
        ValueError: such inputs.
    """
    if a.is_floating_point() and not fmod:
        raise ValueError("floating-point inputs need fmod=1")
    return mod(a, b, fmod=fmod)


@op("Mod", since=28)
def mod(a: torch.Tensor, b: torch.Tensor, *, fmod: int = 0) -> torch.Tensor:
    """Remainder with the sign of the divisor, or with that of the dividend where `fmod` is set."""
    a, b = together(a, b)
    return by_int64(torch.fmod if fmod else torch.remainder)(a, b)


@op("IsInf")
def is_inf(x: torch.Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> torch.Tensor:
    """Where `x` is infinite, by sign if so asked."""
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


@op("Where")
def where(condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x` where the condition holds, else `y`; all three broadcast."""
    condition, x, y = together(condition, x, y)
    return torch.where(condition, x, y)
