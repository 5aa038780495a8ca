"""Gradients and refusals of the quantised operators; their numbers are in the backend cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from converters import UnsupportedModelError
from converters.registry import lookup

from .one_node import Arrays, assert_as_ort, one_node, run_torch

U8 = torch.uint8


def scalar(value: float, kind: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(value, dtype=kind)


def test_sign_has_the_gradient_of_a_hard_tanh() -> None:
    x = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.5, 1.0, 1.1, torch.inf], requires_grad=True)
    y = lookup("", "Sign", 13)(x)
    assert torch.equal(y.detach(), torch.sign(x.detach()))
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.float32])
def test_sign_of_other_types(kind: type) -> None:
    assert_as_ort("Sign", [np.array([-3, 0, 7], kind)], 13)


def test_quantisation_rounds_to_even_and_lets_the_gradient_through_within_its_range() -> None:
    x = torch.tensor([-9.0, 0.25, 0.75, 1.3, 1e9], requires_grad=True)
    q = lookup("", "QuantizeLinear", 13)(x, scalar(0.5), scalar(3, U8))
    assert q.tolist() == [0, 3, 5, 6, 255]
    y = lookup("", "DequantizeLinear", 13)(q, scalar(0.5), scalar(3, U8))
    assert y.tolist() == [-1.5, 0, 1, 1.5, 126]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_quantisation_by_axis() -> None:
    x = torch.tensor([[1.0, -1.0], [3.0, 200.0]], requires_grad=True)
    scales, zeros = torch.tensor([1.0, 0.5]), torch.tensor([0, 10], dtype=torch.int8)
    q = lookup("", "QuantizeLinear", 13)(x, scales, zeros, axis=0)
    assert q.tolist() == [[1, -1], [16, 127]]
    q.sum().backward()
    assert x.grad.tolist() == [[1, 1], [2, 0]]


def test_quantisation_by_block() -> None:
    """A scale and zero point for every two numbers of an axis; the last block is smaller."""
    x = torch.tensor([[1.0, -1.0, 3.0], [4.0, 200.0, 0.5]], requires_grad=True)
    scales = torch.tensor([[1.0, 2.0], [0.5, 0.25]])
    zeros = torch.tensor([[0, 1], [10, 0]], dtype=torch.int8)
    block = {"axis": 1, "block_size": 2}
    q = lookup("", "QuantizeLinear", 21)(x, scales, zeros, **block)
    assert q.tolist() == [[1, -1, 3], [18, 127, 2]]
    y = lookup("", "DequantizeLinear", 21)(q, scales, zeros, **block)
    assert y.tolist() == [[1, -1, 4], [4, 58.5, 0.5]]
    y.sum().backward()
    assert x.grad.tolist() == [[1, 1, 1], [1, 0, 1]]


def test_dynamically_quantised_product_has_the_gradient_of_the_real_one() -> None:
    a = torch.linspace(-1, 2, 6).reshape(2, 3).requires_grad_()
    b, scale = torch.tensor([[3], [-5], [100]], dtype=torch.int8), scalar(0.1)
    lookup("com.microsoft", "DynamicQuantizeMatMul", 1)(a, b, scale).sum().backward()
    assert torch.allclose(a.grad, (b * 0.1).reshape(1, 3).expand(2, 3))


def test_dynamic_quantisation_is_undone_with_gradient_1() -> None:
    x = torch.linspace(-1, 2, 7, requires_grad=True)
    q, scale, zero_point = lookup("", "DynamicQuantizeLinear", 11)(x)
    y = lookup("", "DequantizeLinear", 13)(q, scale, zero_point)
    assert torch.allclose(y, x, atol=float(scale))
    y.sum().backward()
    assert torch.allclose(x.grad, torch.ones(7))


def test_dynamic_quantisation_of_zeros() -> None:
    assert_as_ort("DynamicQuantizeLinear", [np.zeros(4, np.float32)], 11, 3)


CONV = [
    np.random.default_rng(1).integers(0, 256, (2, 2, 5, 5)).astype(np.uint8),
    np.float32(0.02),
    np.uint8(128),
    np.random.default_rng(2).integers(-128, 128, (3, 2, 3, 3)).astype(np.int8),
    np.array([0.01, 0.02, 0.03], np.float32),
    np.zeros(3, np.int8),
    np.float32(0.1),
    np.uint8(20),
    np.array([100, -500, 2000], np.int32),
]


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("QLinearConv", CONV, {"pads": [1, 0, 0, 1], "strides": [2, 1]}),
        ("ConvInteger", [CONV[0], CONV[3].view(np.uint8), CONV[2]], {"auto_pad": "SAME_UPPER"}),
        ("MatMulInteger", [CONV[0], CONV[0], None, np.uint8(3)], {}),
        ("MatMulInteger", [CONV[0], CONV[0][0, 0], CONV[2], np.arange(5, dtype=np.uint8)], {}),
        ("DequantizeLinear", [np.int32([5, -70000]), np.float32(0.5)], {}),
        ("QuantizeLinear", [np.float32([-1, 0.5, 900]), np.float32(1.5)], {}),
    ],
)
def test_numbers(op_type: str, inputs: Arrays, attributes: dict[str, Any]) -> None:
    assert_as_ort(op_type, inputs, 13, **attributes)


X, SCALE = np.ones((2, 4), np.float32), np.float32(0.5)


@pytest.mark.parametrize(
    ("op_type", "inputs", "opset", "attributes", "message"),
    [
        ("QuantizeLinear", [X, np.ones((2, 2), np.float32)], 21, {"block_size": 4}, "blocks of 4"),
        ("QuantizeLinear", [X, np.ones((2, 4), np.float32)], 13, {}, "without a block_size"),
        ("QuantizeLinear", [X, np.ones(3, np.float32)], 13, {}, "3 scales"),
        ("QuantizeLinear", [X, np.ones(4, np.float32)], 10, {}, "must be one number"),
        ("QuantizeLinear", [X, SCALE, np.int32(0)], 21, {}, "of type int32"),
        ("QuantizeLinear", [X, SCALE], 23, {"precision": 10}, "precision"),
        ("QuantizeLinear", [X, SCALE, np.int8(0)], 21, {"output_dtype": 2}, "differs"),
        ("QuantizeLinear", [X, SCALE], 21, {"output_dtype": 17}, "FLOAT8E4M3FN"),
        ("DequantizeLinear", [CONV[0], np.ones(2, np.float32)], 10, {}, "must be one number"),
        ("DequantizeLinear", [X.astype(np.int8), SCALE], 21, {"block_size": 2}, "blocks of 2"),
    ],
)
def test_refused(
    op_type: str, inputs: Arrays, opset: int, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        run_torch(one_node(op_type, inputs, opset, **attributes), inputs)
