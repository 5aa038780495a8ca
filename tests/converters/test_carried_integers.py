"""Integers carried by float tensors, and where they become integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from converters import UnsupportedModelError, to_torch
from tests.converters.onnx_models import build, node, run_ort

WEIGHTS = {
    "scale": np.float32(0.5),
    "zero": np.uint8(100),
    "two": np.int32(2),
    "one": np.uint8([1]),
    "shape": np.int64([-1]),
    "table": np.arange(300, dtype=np.float32),
}
QUANTISE = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
DEQUANTISE = helper.make_node("DequantizeLinear", ["moved", "scale", "zero"], ["y"])
X = np.float32([[-3.2, 0.6, 40.0, 1.1]])


def graph(*nodes: object, output: str = "y", opset: int = 17) -> object:
    return build(nodes, {"x": ("N", 4)}, [output], WEIGHTS, opset=opset)


@pytest.mark.parametrize(
    "middle",
    [
        helper.make_node("Identity", ["q"], ["moved"]),
        helper.make_node("Reshape", ["q", "shape"], ["moved"]),
        helper.make_node("Concat", ["q", "q"], ["moved"], axis=1),
        helper.make_node("Clip", ["q", "zero"], ["moved"]),
        helper.make_node("Max", ["q", "one"], ["moved"]),
        helper.make_node("Transpose", ["q"], ["moved"]),
    ],
    ids=lambda middle: middle.op_type,
)
def test_what_only_moves_numbers_keeps_the_gradient(middle: object) -> None:
    model = graph(QUANTISE, middle, DEQUANTISE)
    x = torch.from_numpy(X).requires_grad_()
    y = to_torch(model)(x)[0]
    np.testing.assert_array_equal(y.detach(), run_ort(model, X)[0])
    y.sum().backward()
    assert bool((x.grad[0, 1:] > 0).all())


def test_both_parts_of_a_split_keep_the_gradient() -> None:
    split = helper.make_node("Split", ["q"], ["a", "moved"], axis=1)
    model = graph(QUANTISE, split, DEQUANTISE)
    x = torch.from_numpy(X).requires_grad_()
    to_torch(model)(x)[0].sum().backward()
    assert x.grad.tolist() == [[0, 0, 1, 1]]


INTEGERS = {
    "quotient": [node("Cast", "q", "i", to=TensorProto.INT32), ("Div", ["i", "two"], "y")],
    "indices": [node("Cast", "q", "i", to=TensorProto.INT64), ("Gather", ["table", "i"], "y")],
}


@pytest.mark.parametrize("name", INTEGERS)
def test_operators_that_need_integers_get_them(name: str) -> None:
    nodes = [
        n if not isinstance(n, tuple) else helper.make_node(n[0], n[1], [n[2]])
        for n in INTEGERS[name]
    ]
    model = graph(QUANTISE, *nodes)
    got, expected = to_torch(model)(torch.from_numpy(X))[0].numpy(), run_ort(model, X)[0]
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_sums_of_integers_are_divided_as_integers() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("Transpose", ["q"], ["t"]),
        helper.make_node("MatMulInteger", ["q", "t", "z"], ["sums"]),
        helper.make_node("Div", ["sums", "two"], ["y"]),
    ]
    model = graph(*nodes)
    got, expected = to_torch(model)(torch.from_numpy(X))[0].numpy(), run_ort(model, X)[0]
    assert got.dtype == expected.dtype == np.int32
    np.testing.assert_array_equal(got, expected)


def test_outputs_have_the_declared_type_and_inner_readers_the_gradient() -> None:
    model = graph(QUANTISE, node("Identity", "q", "moved"), DEQUANTISE)
    model.graph.output.add(name="q")
    x = torch.from_numpy(X).requires_grad_()
    y, q = to_torch(model)(x)
    assert q.dtype == torch.uint8
    assert q.tolist() == run_ort(model, X, ["q"])[0].tolist()
    y.sum().backward()
    assert bool((x.grad > 0).all())


@pytest.mark.parametrize("origin", ["Constant", "Cast"])
def test_type_of_a_computed_zero_point(origin: str) -> None:
    made = (
        helper.make_node("Constant", [], ["made"], value=helper.make_tensor("t", 3, [], [5]))
        if origin == "Constant"
        else node("Cast", "two", "made", to=TensorProto.INT8)
    )
    quantise = helper.make_node("QuantizeLinear", ["x", "scale", "made"], ["y"])
    assert to_torch(graph(made, quantise))(torch.from_numpy(X))[0].dtype == torch.int8


def test_unknown_type_is_refused_where_integers_are_needed() -> None:
    nodes = [
        helper.make_node("Neg", ["two"], ["negative"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "negative"], ["y"]),
    ]
    with pytest.raises(
        UnsupportedModelError,
        match=r"'y' \(QuantizeLinear\): the integer type of tensor 'y' can't be told",
    ):
        to_torch(graph(*nodes))


def test_integer_weights_of_quantised_operators_become_floats_once() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.integers(0, 9, (4, 3)).astype(np.uint8), "shared": np.uint8([[3] * 4])}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("Concat", ["q", "shared"], ["both"], axis=0),
        helper.make_node("MatMulInteger", ["both", "w", "z"], ["y"]),
    ]
    model = build(nodes, {"x": ("N", 4)}, ["y"], weights)
    converted = to_torch(model)
    assert converted.constant("w").dtype == torch.float32
    assert converted.constant("shared").dtype == torch.uint8
    np.testing.assert_array_equal(converted(torch.from_numpy(X))[0], run_ort(model, X)[0])


@pytest.mark.parametrize("zero", [np.uint8(100), np.int8(0)])
def test_gradient_of_quantised_products(zero: np.integer) -> None:
    """Integers reach MatMulIntegerToFloat as the floats that carry them; DynamicQuantizeMatMul
    computes its own, and only its weights are carried."""
    rng = np.random.default_rng(0)
    first = rng.integers(-9, 9, (4, 4)).astype(np.int8)
    second = rng.integers(-9, 9, (4, 3)).astype(np.int8)
    weights = {"a": first, "b": second, "sb": np.float32(0.1), "zb": np.int8(2)}
    weights |= {"scale": np.float32(0.5), "zero": zero}
    nodes = [
        helper.make_node(
            "DynamicQuantizeMatMul", ["x", "a", "sb", "zb"], ["h"], domain="com.microsoft"
        ),
        helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["q"]),
        helper.make_node("Identity", ["q"], ["moved"]),
        helper.make_node(
            "MatMulIntegerToFloat",
            ["moved", "b", "scale", "sb", "zero", "zb"],
            ["y"],
            domain="com.microsoft",
        ),
    ]
    model = build(nodes, {"x": ("N", 4)}, ["y"], weights, imports={"com.microsoft": 1})
    converted = to_torch(model)
    assert converted.constant("a").dtype == converted.constant("b").dtype == torch.float32
    x = torch.from_numpy(X).requires_grad_()
    y = converted(x)[0]
    np.testing.assert_allclose(y.detach(), run_ort(model, X)[0], rtol=1e-4, atol=1e-4)
    y.sum().backward()
    products = [np.float32(0.1) * (w.astype(np.float32) - 2) for w in (first, second)]
    # As if nothing were rounded; the least and the greatest of x decide about the scale too.
    expected = products[0] @ products[1].sum(1)
    np.testing.assert_allclose(x.grad[0, 1], expected[1], rtol=1e-3)
    np.testing.assert_allclose(x.grad[0, 3], expected[3], rtol=1e-3)
