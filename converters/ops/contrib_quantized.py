"""Quantised operators of ONNX Runtime's own (com.microsoft): the float operator in between.

Its quantiser writes them in the "QOperator" format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from converters.ops._quantization import (
    as_float,
    dequantized,
    quantized,
    requantized,
    result_type,
    without_zero_point,
)
from converters.ops._values import Ints, beside, one_axis, together
from converters.ops.activation import leaky_relu, softmax, softmax_1
from converters.ops.pool import average_pool
from converters.ops.quantized import MICROSOFT, one_number
from converters.registry import op


def _between(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None,
) -> torch.Tensor:
    """`function` on real numbers, for quantised numbers in and out, each with one scale.

    Raises:
        NotImplementedError: no zero point; ONNX Runtime 1.31 crashes on some such nodes.
    """
    if x_zero_point is None or y_zero_point is None:
        raise NotImplementedError("quantised numbers without a zero point")
    for parameter in (x_scale, x_zero_point, y_scale, y_zero_point):
        one_number(parameter, "a scale or zero point")
    y = function(dequantized(x, x_scale, x_zero_point))
    return quantized(y, y_scale, y_zero_point, result_type(y_zero_point))


def _binary(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Callable[..., torch.Tensor]:
    def operator(
        a: torch.Tensor,
        a_scale: torch.Tensor,
        a_zero_point: torch.Tensor | None,
        b: torch.Tensor,
        b_scale: torch.Tensor,
        b_zero_point: torch.Tensor | None,
        c_scale: torch.Tensor,
        c_zero_point: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if b_zero_point is None:
            raise NotImplementedError("quantised numbers without a zero point")
        for parameter in (b_scale, b_zero_point):
            one_number(parameter, "a scale or zero point")
        other = dequantized(b, b_scale, b_zero_point)

        def with_other(real: torch.Tensor) -> torch.Tensor:
            return function(*together(real, other))

        return _between(with_other, a, a_scale, a_zero_point, c_scale, c_zero_point)

    return operator


op("QLinearAdd", domain=MICROSOFT)(_binary(torch.add))
op("QLinearMul", domain=MICROSOFT)(_binary(torch.mul))


@op("QLinearSigmoid", domain=MICROSOFT)
def q_linear_sigmoid(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sigmoid of quantised numbers."""
    return _between(torch.sigmoid, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearLeakyRelu", domain=MICROSOFT)
def q_linear_leaky_relu(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> torch.Tensor:
    """LeakyRelu of quantised numbers."""

    def real(numbers: torch.Tensor) -> torch.Tensor:
        return leaky_relu(numbers, alpha=alpha)

    return _between(real, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearSoftmax", domain=MICROSOFT)
def q_linear_softmax(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    *,
    opset: int,
    axis: int = -1,
) -> torch.Tensor:
    """Softmax of quantised numbers, as the standard's Softmax of version `opset` defines it."""
    function = softmax if opset >= 13 else softmax_1

    def real(numbers: torch.Tensor) -> torch.Tensor:
        return function(numbers, axis=axis)

    return _between(real, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearGlobalAveragePool", domain=MICROSOFT)
def q_linear_global_average_pool(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor,
    *,
    channels_last: int = 0,
) -> torch.Tensor:
    """The mean over all spatial dimensions, which stay with size 1, of quantised numbers."""
    spatial = range(1, x.ndim - 1) if channels_last else range(2, x.ndim)

    def real(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.mean(dim=tuple(spatial), keepdim=True)

    return _between(real, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearAveragePool", domain=MICROSOFT)
def q_linear_average_pool(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero_point: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero_point: torch.Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """AveragePool of quantised numbers, the channels being dimension 1 or the last one.

    Raises:
        NotImplementedError: `ceil_mode` with `count_include_pad`: ONNX Runtime counts what a window
            reaches over too, against the specification.
    """
    if ceil_mode and count_include_pad:
        raise NotImplementedError("ceil_mode with count_include_pad")

    def real(numbers: torch.Tensor) -> torch.Tensor:
        y = average_pool(
            numbers.movedim(-1, 1) if channels_last else numbers,
            kernel_shape=kernel_shape,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            pads=pads,
            strides=strides,
        )
        return y.movedim(1, -1) if channels_last else y

    return _between(real, x, x_scale, x_zero_point, y_scale, y_zero_point)


@op("QLinearConcat", domain=MICROSOFT)
def q_linear_concat(
    y_scale: torch.Tensor, y_zero_point: torch.Tensor, *inputs: torch.Tensor, axis: int
) -> torch.Tensor:
    """Tensors, each with its scale and zero point, one after the other along `axis`."""
    if not inputs or len(inputs) % 3:
        raise ValueError(f"{len(inputs)} inputs are no tensors with scale and zero point")
    for parameter in (y_scale, y_zero_point, *inputs[1::3], *inputs[2::3]):
        one_number(parameter, "a scale or zero point")
    triples = zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
    parts = [dequantized(x, scale, zero_point) for x, scale, zero_point in triples]
    y = torch.cat(together(*parts), dim=one_axis(axis, parts[0].ndim))
    return quantized(y, y_scale, y_zero_point, result_type(y_zero_point))


@op("QGemm", domain=MICROSOFT)
def q_gemm(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero_point: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None,
    c: torch.Tensor | None = None,
    y_scale: torch.Tensor | None = None,
    y_zero_point: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """alpha * A @ B + C, quantised again if there is a scale for it; B may have one per column.

    C counts in steps of alpha * a_scale * b_scale.
    """
    for parameter in (a_scale, a_zero_point, y_scale, y_zero_point):
        one_number(parameter, "the scale or zero point of A or Y")
    columns = 0 if transB else 1
    left = without_zero_point(a, a_zero_point)
    right = beside(without_zero_point(b, b_zero_point, columns), left)
    sums = torch.matmul(left.t() if transA else left, right.t() if transB else right)
    if c is not None:
        sums = sums + as_float(beside(c, sums))
    y = sums * (alpha * beside(a_scale, sums).reshape(()) * beside(b_scale, sums))
    if y_scale is None or y_zero_point is None:
        if y_scale is not None or y_zero_point is not None:
            raise ValueError("y_scale and y_zero_point go together")
        return y
    factor = beside(y_scale, sums).reshape(())
    return requantized(y / factor, y_zero_point, result_type(y_zero_point))
