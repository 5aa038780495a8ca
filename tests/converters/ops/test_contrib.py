"""Operators of ONNX Runtime's own, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from converters import UnsupportedModelError, to_torch
from converters.registry import lookup

from .one_node import Arrays, one_node, run_ort, run_torch

RNG = np.random.default_rng(3)
MICROSOFT = "com.microsoft"


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def s8(*shape: int) -> np.ndarray:
    return RNG.integers(-128, 128, shape).astype(np.int8)


def scale(*values: float) -> np.ndarray:
    return np.array(values, np.float32) if len(values) > 1 else np.float32(values[0])


A, B = [u8(2, 3, 4), scale(0.03), np.uint8(120)], [u8(3, 1), scale(0.02), np.uint8(7)]
SIGNED = [s8(2, 3, 4), scale(0.03), np.int8(-5)]
TO_U8 = [scale(0.05), np.uint8(100)]
TO_S8 = [scale(0.05), np.int8(-20)]
IMAGE = [u8(2, 3, 6, 5), scale(0.02), np.uint8(110)]
GEMM = [u8(2, 5), scale(0.02), np.uint8(110), s8(4, 5), scale(0.01, 0.02, 0.03, 0.04)]
ZEROS = np.array([0, 1, -2, 3], np.int8)
COUNTS = np.array([100, -90, 5000, 0], np.int32)

QUANTISED: dict[str, tuple[str, Arrays, dict[str, Any]]] = {
    "add_u8": ("QLinearAdd", [*A, *B, *TO_U8], {}),
    "add_s8": ("QLinearAdd", [*SIGNED, s8(4), scale(0.1), np.int8(0), *TO_S8], {}),
    "mul": ("QLinearMul", [*A, *B, *TO_U8], {}),
    "sigmoid": ("QLinearSigmoid", [*A, scale(1 / 256), np.uint8(0)], {}),
    "leaky": ("QLinearLeakyRelu", [*SIGNED, *TO_S8], {"alpha": 0.2}),
    "softmax_13": ("QLinearSoftmax", [*A, scale(1 / 256), np.uint8(0)], {"version": 13, "axis": 1}),
    "softmax_12": ("QLinearSoftmax", [*A, scale(1 / 256), np.uint8(0)], {"version": 12, "axis": 1}),
    "global_pool": ("QLinearGlobalAveragePool", [*IMAGE, *TO_U8], {}),
    "global_pool_last": ("QLinearGlobalAveragePool", [*IMAGE, *TO_U8], {"channels_last": 1}),
    "pool": ("QLinearAveragePool", [*IMAGE, *TO_U8], {"kernel_shape": [3, 2], "strides": [2, 1]}),
    "pool_last": (
        "QLinearAveragePool",
        [*IMAGE, *TO_U8],
        {"kernel_shape": [2, 2], "channels_last": 1, "pads": [1, 0, 0, 1]},
    ),
    "concat": ("QLinearConcat", [*TO_U8, *A, u8(2, 1, 4), *B[1:]], {"axis": 1}),
    "gemm": ("QGemm", [*GEMM, ZEROS, COUNTS, *TO_U8], {"transB": 1}),
    "gemm_to_float": ("QGemm", [*GEMM, ZEROS, COUNTS], {"transB": 1, "alpha": 0.5}),
}

FLOAT: dict[str, tuple[str, Arrays, dict[str, Any]]] = {
    "gelu": ("Gelu", [real(2, 4)], {}),
    "bias_gelu": ("BiasGelu", [real(2, 4), real(4)], {}),
    "fast_gelu": ("FastGelu", [real(2, 4), real(4)], {}),
    "fast_gelu_plain": ("FastGelu", [real(2, 4)], {}),
    "quick_gelu": ("QuickGelu", [real(2, 4)], {"alpha": 1.5}),
    "skip_norm": ("SkipLayerNormalization", [real(2, 3, 4)] * 2 + [real(4) for _ in range(3)], {}),
    "skip_norm_plain": ("SkipLayerNormalization", [real(2, 3, 4), real(2, 3, 4), real(4)], {}),
    "mat_mul": ("FusedMatMul", [real(2, 3, 4), real(5, 4)], {"transB": 1, "alpha": 0.3}),
    "mat_mul_a": ("FusedMatMul", [real(2, 4, 3), real(2, 4, 5)], {"transA": 1}),
    "gemm": (
        "FusedGemm",
        [real(2, 3), real(3, 4), real(4)],
        {"activation": "LeakyRelu", "activation_alpha": 0.3},
    ),
    **{
        f"conv_{name or 'plain'}": (
            "FusedConv",
            [real(1, 2, 5, 5), real(3, 2, 3, 3), real(3), real(1, 3, 3, 3) if name else None],
            {"activation": name, **({"activation_params": list(given)} if given else {})},
        )
        for name, given in {
            "Relu": (),
            "Sigmoid": (),
            "Tanh": (),
            "LeakyRelu": (0.2,),
            "Clip": (-0.5, 1.0),
            "HardSigmoid": (0.3, 0.4),
        }.items()
    },
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised(name: str) -> None:
    """ONNX Runtime's kernels may round a tie the other way."""
    op_type, inputs, attributes = QUANTISED[name]
    model = one_node(op_type, inputs, 17, domain=MICROSOFT, **attributes)
    for attribute in model.graph.node[0].attribute:  # `opset` means something else to `one_node`
        attribute.name = {"version": "opset"}.get(attribute.name, attribute.name)
    expected, got = run_ort(model, inputs)[0], run_torch(model, inputs)[0]
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if expected.dtype == np.float32:
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    else:
        assert len(np.unique(expected)) > 2
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.1


@pytest.mark.parametrize("name", FLOAT)
def test_float(name: str) -> None:
    op_type, inputs, attributes = FLOAT[name]
    model = one_node(op_type, inputs, 17, domain=MICROSOFT, **attributes)
    expected = run_ort(model, inputs)[0]
    np.testing.assert_allclose(run_torch(model, inputs)[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in FLOAT if n != "conv_Clip"])
def test_float_gradient(name: str) -> None:
    op_type, inputs, attributes = FLOAT[name]
    given = [None if v is None else torch.from_numpy(v).double() for v in inputs]
    present = [v.requires_grad_() for v in given if v is not None]
    attributes = {"epsilon": 1e-5} if op_type == "SkipLayerNormalization" else attributes
    function = lookup(MICROSOFT, op_type, 1)

    def call(*values: torch.Tensor) -> Any:
        left = iter(values)
        result = function(*(None if v is None else next(left) for v in given), **attributes)
        return result[0] if isinstance(result, tuple) else result

    assert torch.autograd.gradcheck(call, present)


def test_further_outputs_of_skip_layer_normalization() -> None:
    x, skip, gamma = real(1, 2, 4), real(1, 2, 4), real(4)
    model = one_node("SkipLayerNormalization", [x, skip, gamma], 17, 4, domain=MICROSOFT)
    results = run_torch(model, [x, skip, gamma])
    np.testing.assert_allclose(results[3], x + skip)
    np.testing.assert_allclose(results[1], (x + skip).mean(-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(results[2], 1 / (x + skip).std(-1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "message"),
    [
        ("FusedMatMul", [real(2, 3), real(3, 2)], {"transBatchA": 1}, "transBatchA"),
        ("FusedGemm", [real(2, 3), real(3, 2)], {"activation": "Elu"}, "activation 'Elu'"),
        (
            "FusedGemm",
            [real(2, 3), real(3, 2)],
            {"activation": "LeakyRelu"},
            "LeakyRelu with 0 parameters",
        ),
        ("QLinearConcat", [*TO_U8, A[0]], {"axis": 1}, "no tensors with scale"),
        ("QLinearSigmoid", [*A[:2], None, *TO_U8], {}, "without a zero point"),
        ("QLinearSigmoid", [*A, TO_U8[0]], {}, "without a zero point"),
        ("QLinearAdd", [*A, *B[:2], None, *TO_U8], {}, "without a zero point"),
        ("QGemm", [*GEMM, ZEROS, COUNTS, TO_U8[0]], {"transB": 1}, "go together"),
        ("QLinearSigmoid", [A[0], scale(1, 2), A[2], *TO_U8], {}, "must be one number"),
        (
            "QLinearAveragePool",
            [*IMAGE, *TO_U8],
            {"kernel_shape": [2, 2], "ceil_mode": 1, "count_include_pad": 1},
            "ceil_mode with count_include_pad",
        ),
    ],
)
def test_refused(op_type: str, inputs: Arrays, attributes: dict[str, Any], message: str) -> None:
    model = one_node(op_type, inputs, 17, domain=MICROSOFT, **attributes)
    with pytest.raises(UnsupportedModelError, match=message):
        run_torch(model, inputs)


def test_contrib_operators_need_their_domain() -> None:
    with pytest.raises(UnsupportedModelError, match="QuickGelu"):
        to_torch(one_node("QuickGelu", [real(2)], 17))
