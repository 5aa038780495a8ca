"""Operators of ONNX Runtime's own (com.microsoft) that its optimiser makes of quantised graphs."""

from __future__ import annotations

import torch

from converters.ops._values import beside
from converters.ops.quantized import (
    MICROSOFT,
    dynamic_quantize_linear,
    mat_mul_integer,
    one_number,
)
from converters.registry import op


@op("MatMulIntegerToFloat", domain=MICROSOFT)
def mat_mul_integer_to_float(
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    a_zero_point: torch.Tensor | None = None,
    b_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Matrix product of quantised numbers as real ones; B may have a scale for each column."""
    one_number(a_scale, "a_scale")
    one_number(a_zero_point, "a_zero_point")
    sums = mat_mul_integer(a, b, a_zero_point, b_zero_point)
    real = sums * beside(a_scale, sums).reshape(()) * beside(b_scale, sums)
    return (real if bias is None else real + beside(bias, sums)).to(a_scale.dtype)


@op("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_mat_mul(
    a: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero_point: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Matrix product with A quantised on the range of its own numbers, see DynamicQuantizeLinear.

    The result has a gradient as if A had not been quantised.
    """
    numbers, scale, zero_point = dynamic_quantize_linear(a)
    return mat_mul_integer_to_float(numbers, b, scale, b_scale, zero_point, b_zero_point, bias)
