from __future__ import annotations

import random

import numpy as np
import onnx
import pytest
from onnx import helper

from converters import ModelFormatError, NotAnImageClassifierError
from converters.rewrite import (
    clamp_ir_version,
    drop_initializers_from_inputs,
    find_logits,
    graph_inputs,
    keep_output,
    set_input_shape,
    set_outputs,
    sort_nodes,
)
from tests.converters.onnx_models import build, images, run_ort, small_net


def order(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("seed", range(5))
def test_sort_puts_nodes_after_what_they_read(seed: int) -> None:
    model = small_net()
    sorted_already, x = order(model), images(2, 1, 8, 8)
    expected = run_ort(model, x)[0]
    nodes = list(model.graph.node)
    random.Random(seed).shuffle(nodes)
    shuffled = build(nodes, {"x": ["N", 1, 8, 8]}, ["logits"])
    shuffled.graph.initializer.extend(model.graph.initializer)
    sort_nodes(shuffled)
    assert order(shuffled) == sorted_already
    np.testing.assert_array_equal(run_ort(shuffled, x)[0], expected)


def test_sorted_nodes_stay_as_they_are() -> None:
    nodes = [helper.make_node(op, ["x"], [op]) for op in ("Tanh", "Abs", "Relu", "Neg")]
    model = build(nodes, {"x": [1]}, ["Abs"])
    before = model.SerializeToString(deterministic=True)
    sort_nodes(model)
    assert model.SerializeToString(deterministic=True) == before


def test_cycles_are_refused() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Add", ["a", "c"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
    ]
    with pytest.raises(ModelFormatError, match="'b' is part of a cycle"):
        sort_nodes(build(nodes, {"x": [1]}, ["c"]))
    with pytest.raises(ModelFormatError, match="'s' is part of a cycle"):
        sort_nodes(build([helper.make_node("Neg", ["s"], ["s"])], {"x": [1]}, ["s"]))


@pytest.mark.parametrize(("read", "output"), [("nowhere", "y"), ("x", "nowhere")])
def test_tensors_that_nothing_computes_are_refused(read: str, output: str) -> None:
    model = build([helper.make_node("Relu", [read], ["y"])], {"x": [1]}, [output])
    with pytest.raises(ModelFormatError, match="nothing computes tensor 'nowhere'"):
        sort_nodes(model)


def test_initializers_among_the_inputs() -> None:
    """IR version 3 lists all of them; without them there, ONNX Runtime wants a newer label."""
    model = small_net()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    x = images(2, 1, 8, 8)
    expected = run_ort(model, x)[0]
    assert [value.name for value in graph_inputs(model)] == ["x"]
    drop_initializers_from_inputs(model)
    assert [value.name for value in model.graph.input] == ["x"]
    np.testing.assert_array_equal(run_ort(model, x)[0], expected)


@pytest.mark.parametrize(("version", "label"), [(3, 3), (13, 13), (14, 13)])
def test_ir_version_is_clamped(version: int, label: int) -> None:
    model = small_net()
    model.ir_version = version
    clamp_ir_version(model)
    assert model.ir_version == label


def test_keep_output_drops_what_only_others_need() -> None:
    model = small_net(
        helper.make_node("Softmax", ["logits"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["winner"], axis=1),
    )
    model.graph.output.add(name="winner")
    keep_output(model, "logits")
    assert [value.name for value in model.graph.output] == ["logits"]
    assert order(model) == order(small_net())
    with pytest.raises(NotAnImageClassifierError, match="no output 'p'; the graph has: logits"):
        keep_output(model, "p")


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ([], ("logits", "none")),
        (["Softmax"], ("logits", "softmax")),
        (["Sigmoid"], ("logits", "sigmoid")),
        (["LogSoftmax"], ("t0", "none")),
        (["Softmax", "Flatten"], ("logits", "softmax")),
        (["Softmax", "Identity", "Identity"], ("logits", "softmax")),
        (["Identity", "Softmax"], ("t0", "softmax")),
        (["Softmax", "Neg"], ("t1", "none")),
        (["Softmax", "Softmax"], ("t0", "softmax")),
    ],
)
def test_find_logits(operators: list[str], expected: tuple[str, str]) -> None:
    names = ["logits", *(f"t{i}" for i in range(len(operators)))]
    tail = [
        helper.make_node(op, [source], [result])
        for op, source, result in zip(operators, names, names[1:], strict=False)
    ]
    model = small_net(*tail, output=names[-1])
    assert find_logits(model, names[-1]) == expected


def test_find_logits_of_an_operator_without_inputs() -> None:
    model = build([helper.make_node("Softmax", [], ["y"])], {"x": [1]}, ["y"])
    assert find_logits(model, "y") == ("y", "none")


def test_outputs_and_input_shape() -> None:
    model = small_net(shape=(1, 1, 8, 8))
    set_outputs(model, ("flat", "logits", "flat"))
    assert [value.name for value in model.graph.output] == ["flat", "logits"]
    set_input_shape(model, ("N", 1, 8, 8))
    assert [result.shape for result in run_ort(model, images(3, 1, 8, 8))] == [(3, 4), (3, 5)]
