"""Quantised operators of the standard, see `_quantization` for their gradient.

Sums of products are added up in float32: exact as long as they stay below 2**24, else rounded as
the multiplication by a scale that follows rounds them too.
"""

from __future__ import annotations

import torch
from onnx import TensorProto

from converters.ops._quantization import (
    as_float,
    by_block,
    dequantized,
    known_type,
    quantized,
    requantized,
    result_type,
    without_zero_point,
)
from converters.ops._values import Ints, beside, widened
from converters.ops.constant import torch_type
from converters.ops.linear import conv, matmul
from converters.registry import op

MICROSOFT = "com.microsoft"


def one_number(parameter: torch.Tensor | None, what: str) -> None:
    """Refuse a scale or zero point that is no single number.

    Raises:
        ValueError: naming it.
    """
    if parameter is not None and parameter.numel() != 1:
        raise ValueError(f"{what} must be one number, not of shape {list(parameter.shape)}")


@op("QuantizeLinear", since=10)
def quantize_linear_10(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None
) -> torch.Tensor:
    """As version 13, with one scale for the whole tensor."""
    one_number(scale, "y_scale")
    return quantize_linear(x, scale, zero_point)


@op("QuantizeLinear", since=1, domain=MICROSOFT)
@op("QuantizeLinear", since=13)
def quantize_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> torch.Tensor:
    """x / scale + zero point, rounded half to even; `saturate` concerns types of 8-bit floats.

    With `block_size` there is one scale for each block of so many numbers along `axis`.

    Raises:
        NotImplementedError: a `precision` of the division other than float32, types of other than
            8 or 16 bits.
        ValueError: `output_dtype` contradicts the zero point.
    """
    if precision not in (TensorProto.UNDEFINED, TensorProto.FLOAT):
        raise NotImplementedError("a precision other than float32")
    kind = torch.uint8 if zero_point is None else zero_point.dtype
    if output_dtype and zero_point is None:
        kind = torch_type(output_dtype)
    elif output_dtype and torch_type(output_dtype) != kind:
        raise ValueError("output_dtype differs from the type of the zero point")
    scale, zero_point = _blocked(scale, zero_point, x, axis, block_size)
    return quantized(x, scale, zero_point, known_type(kind), axis)


@op("DequantizeLinear", since=10)
def dequantize_linear_10(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None
) -> torch.Tensor:
    """As version 13, with one scale for the whole tensor."""
    one_number(scale, "x_scale")
    return dequantize_linear(x, scale, zero_point)


@op("DequantizeLinear", since=1, domain=MICROSOFT)
@op("DequantizeLinear", since=13)
def dequantize_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> torch.Tensor:
    """(x - zero point) * scale, in the type of the scale or in `output_dtype`.

    With `block_size` there is one scale for each block of so many numbers along `axis`.
    """
    kind = torch_type(output_dtype) if output_dtype else scale.dtype
    scale, zero_point = _blocked(scale, zero_point, x, axis, block_size)
    return dequantized(x, scale, zero_point, axis).to(kind)


def _blocked(
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    x: torch.Tensor,
    axis: int,
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale and zero point in the shape of `x` where they are given by blocks."""
    if not block_size:
        if scale.ndim > 1:
            raise ValueError(f"scales of shape {list(scale.shape)} without a block_size")
        return scale, zero_point
    zeros = None if zero_point is None else by_block(zero_point, x, axis, block_size)
    return by_block(scale, x, axis, block_size), zeros


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x as uint8 on the range of its own numbers and 0; also the scale and the zero point.

    The range counts as given: neither the scale nor the zero point has a gradient. Multiplied by
    the scale again, the result then has a gradient of 1.
    """
    known = x.detach()
    low, high = known.amin().clamp(max=0), known.amax().clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, torch.ones_like(low))
    zero_point = torch.round((-low / scale).clamp(0, 255)).to(torch.uint8)
    return quantized(x, scale, zero_point, torch.uint8), scale, zero_point


@op("ConvInteger")
def conv_integer(
    x: torch.Tensor,
    w: torch.Tensor,
    x_zero_point: torch.Tensor | None = None,
    w_zero_point: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """Convolution of integers without their zero points; padding is the zero point."""
    one_number(x_zero_point, "x_zero_point")
    return conv(
        without_zero_point(x, x_zero_point),
        without_zero_point(w, w_zero_point, axis=0),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )


@op("QLinearConv")
def q_linear_conv(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """Convolution of quantised numbers; the weights may have a scale for each output channel."""
    for parameter, name in ((x_scale, "x_scale"), (y_scale, "y_scale"), (y_zero_point, "y zero")):
        one_number(parameter, name)
    sums = conv_integer(
        x,
        w,
        x_zero_point,
        w_zero_point,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    by_channel = (-1, *[1] * (sums.ndim - 2))
    if bias is not None:
        sums = sums + as_float(beside(bias, sums)).reshape(by_channel)
    factor = _step_ratio(x_scale, w_scale, y_scale, sums)
    kind = result_type(y_zero_point)
    return requantized(sums * factor.reshape(by_channel), y_zero_point, kind)


@op("MatMulInteger")
def mat_mul_integer(
    a: torch.Tensor,
    b: torch.Tensor,
    a_zero_point: torch.Tensor | None = None,
    b_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """Matrix product of integers without their zero points, one for each row of A, column of B."""
    rows = None if a_zero_point is None else _by_row(a_zero_point)
    return matmul(_shifted(a, rows), _shifted(b, b_zero_point))


@op("QLinearMatMul")
def q_linear_mat_mul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
) -> torch.Tensor:
    """Matrix product of quantised numbers; A may have a scale for each row, B for each column."""
    one_number(y_scale, "y_scale")
    one_number(y_zero_point, "y_zero_point")
    sums = mat_mul_integer(a, b, a_zero_point, b_zero_point)
    steps = sums * _step_ratio(_by_row(a_scale), b_scale, y_scale, sums)
    return requantized(steps, y_zero_point, result_type(y_zero_point))


def _by_row(parameter: torch.Tensor) -> torch.Tensor:
    """A vector of one number for each row, as a column; anything else as it is."""
    return parameter.unsqueeze(-1) if parameter.ndim == 1 else parameter


def _shifted(x: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
    carried = as_float(x)
    return carried if zero_point is None else carried - as_float(beside(zero_point, x))


def _step_ratio(
    first: torch.Tensor, second: torch.Tensor, result: torch.Tensor, x: torch.Tensor
) -> torch.Tensor:
    """How many steps of the result one step of a product is."""
    left, right, below = (widened(beside(scale, x)) for scale in (first, second, result))
    return left * right / below.reshape(())
