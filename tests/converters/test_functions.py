"""A file's own functions, and the bodies of standard operators."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import AttributeProto, FunctionProto, NodeProto, helper

from converters import (
    Limits,
    ModelFormatError,
    UnsupportedModelError,
    load_classifier,
    read_model,
    to_torch,
)
from tests.converters.onnx_models import build, images, node, run_ort, small_net, small_nodes
from tests.converters.onnx_models import small_weights as weights

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]


def function(name: str, nodes: Sequence[NodeProto], domain: str = "own") -> FunctionProto:
    return helper.make_function(domain, name, ["a"], ["b"], nodes, OPSETS)


def call(
    name: str, source: str, result: str, domain: str = "own", **attributes: object
) -> NodeProto:
    return helper.make_node(name, [source], [result], domain=domain, **attributes)


def with_functions(*functions: FunctionProto, name: str = "Act") -> onnx.ModelProto:
    """`small_net` with a call of function `name` in place of its Relu."""
    nodes = small_nodes()
    nodes[2] = call(name, "norm", "act")
    model = build(nodes, {"x": ("N", 1, 8, 8)}, ["logits"], weights(), imports={"own": 1})
    model.functions.extend(functions)
    return model


def test_functions_are_inlined() -> None:
    leaky = call("Leaky", "a", "t", alpha=0.2)
    inner = node("LeakyRelu", "a", "b")
    inner.attribute.append(AttributeProto(name="alpha", ref_attr_name="alpha", type=1))
    with_attribute = function("Leaky", [inner])
    with_attribute.attribute.append("alpha")
    model = with_functions(function("Act", [leaky, node("Neg", "t", "b")]), with_attribute)
    classifier = load_classifier(model)
    x = images(3, 1, 8, 8)
    logits = classifier.logits(torch.from_numpy(x))
    np.testing.assert_allclose(logits, run_ort(model, x)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_torch(model)(torch.from_numpy(x))[0], logits, rtol=1e-5)
    assert not classifier.model.functions


def test_default_attributes_of_functions_are_kept() -> None:
    inner = node("LeakyRelu", "a", "b")
    inner.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=1))
    leaky = function("Leaky", [inner])
    leaky.attribute_proto.append(helper.make_attribute("slope", 0.7))
    model = with_functions(function("Act", [call("Leaky", "a", "b")]), leaky)
    model.ir_version = 9
    x = images(3, 1, 8, 8)
    np.testing.assert_allclose(
        to_torch(model)(torch.from_numpy(x))[0], run_ort(model, x)[0], rtol=1e-4, atol=1e-5
    )


def test_functions_of_another_operator_set_are_refused() -> None:
    other = function("Act", [node("Relu", "a", "b")])
    other.opset_import[0].version = 18
    with pytest.raises(UnsupportedModelError, match=r"own\.Act-1 \(1\)"):
        load_classifier(with_functions(other))


@pytest.mark.parametrize(("domain", "name"), [("", "Relu"), ("ai.onnx", "NotThere")])
def test_a_function_never_stands_in_for_a_standard_operator(domain: str, name: str) -> None:
    model = small_net()
    model.functions.append(function(name, [node("Neg", "a", "b")], domain))
    with pytest.raises(UnsupportedModelError, match=f"name of an operator: {name}"):
        load_classifier(model)


def test_nor_for_one_of_onnx_runtime() -> None:
    model = with_functions(function("QuickGelu", [node("Neg", "a", "b")], "com.microsoft"))
    with pytest.raises(UnsupportedModelError, match=r"com\.microsoft\.QuickGelu"):
        load_classifier(model)


def chain(length: int, calls: int) -> list[FunctionProto]:
    """F0 is a Relu, each other function calls the one before it some times."""
    functions = [function("F0", [node("Relu", "a", "b")])]
    for i in range(1, length):
        names = ["a", *(f"t{k}" for k in range(calls - 1)), "b"]
        steps = pairwise(names)
        functions.append(function(f"F{i}", [call(f"F{i - 1}", s, r) for s, r in steps]))
    return functions


@pytest.mark.parametrize(
    ("functions", "name", "message"),
    [
        ([function("Act", [call("Act", "a", "b")])], "Act", "'Act' calls itself"),
        (
            [function("A", [call("B", "a", "b")]), function("B", [call("A", "a", "b")])],
            "A",
            "calls itself",
        ),
        (chain(30, 2), "F29", "nodes in functions; the limit is 1000"),
        (chain(100, 1)[::-1], "F99", "more than 64 deep"),
        ([function("Act", [node("Relu", "a", "b")])] * 2, "Act", "two functions"),
        (
            [function("Act", [node("Relu", "a", "b"), node("Neg", "a", "b")])],
            "Act",
            "assigned more than once",
        ),
    ],
)
def test_hostile_functions(functions: list[FunctionProto], name: str, message: str) -> None:
    model = with_functions(*functions, name=name)
    with pytest.raises(ModelFormatError, match=message):
        read_model(model, Limits(nodes=1000))


def test_tensors_in_functions_count_as_often_as_they_are_called() -> None:
    value = helper.make_tensor("t", 1, [1000], np.zeros(1000))
    body = [helper.make_node("Constant", [], ["c"], value=value)]
    body.append(helper.make_node("Add", ["a", "c"], ["b"]))
    functions = [function("F0", body), *chain(8, 2)[1:]]
    with pytest.raises(ModelFormatError, match="512000 bytes in functions"):
        read_model(with_functions(*functions, name="F7"), Limits(tensor_bytes=100_000))


def test_standard_operators_fall_back_to_their_bodies() -> None:
    nodes = small_nodes()
    nodes[1] = node("MeanVarianceNormalization", "conv", "norm", axes=[2, 3])
    model = build(nodes, {"x": ("N", 1, 8, 8)}, ["logits"], weights())
    classifier = load_classifier(model)
    x = images(3, 1, 8, 8)
    logits = classifier.logits(torch.from_numpy(x))
    np.testing.assert_allclose(logits, run_ort(model, x)[0], rtol=1e-3, atol=1e-4)


def test_standard_operators_within_branches_fall_back_to_their_bodies() -> None:
    def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        result = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)
        return helper.make_graph(nodes, "branch", [], [result])

    then = branch(node("MeanVarianceNormalization", "x", "b", axes=[2, 3]))
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Cast", "sum", "p", to=onnx.TensorProto.BOOL),
        helper.make_node(
            "If", ["p"], ["y"], then_branch=then, else_branch=branch(node("Relu", "x", "b"))
        ),
    ]
    x = images(2, 1, 4, 4)
    (got,) = to_torch(build(nodes, {"x": ("N", 1, 4, 4)}, ["y"]))(torch.from_numpy(x))
    centred = x - x.mean((2, 3), keepdims=True)
    expected = centred / np.sqrt((centred**2).mean((2, 3), keepdims=True))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_bodies_that_depend_on_types() -> None:
    nodes = [helper.make_node("Attention", ["x", "x", "x"], ["y"], q_num_heads=2, kv_num_heads=2)]
    model = build(nodes, {"x": ("N", 3, 8)}, ["y"], opset=23)
    x = images(2, 3, 8)
    given = torch.from_numpy(x).requires_grad_()
    y = to_torch(model)(given)[0]
    heads = given.reshape(2, 3, 2, 4).transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    torch.testing.assert_close(y, expected.transpose(1, 2).reshape(2, 3, 8))
    y.sum().backward()
    assert bool(given.grad.isfinite().all())


def test_bodies_of_operators_that_are_not_there_are_refused() -> None:
    model = build([node("Bernoulli", "x", "y")], {"x": ("N", 3)}, ["y"])
    with pytest.raises(UnsupportedModelError, match="RandomUniformLike"):
        to_torch(model)
