"""Graphs with a fixed batch size baked into their numbers, wherever exporters put it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, helper, numpy_helper

from converters import load_classifier, prepare_classifier, read_model
from tests.converters.onnx_models import (
    assert_logits,
    build,
    images,
    node,
    run_ort,
    small_net,
    small_nodes,
    small_weights,
)


def constant(name: str, *numbers: float, dtype: type = np.int64) -> NodeProto:
    value = numpy_helper.from_array(np.array(numbers, dtype=dtype), name)
    return helper.make_node("Constant", [], [name], value=value)


def baked(how: str, batch: int) -> list[NodeProto]:
    """From `act`, (batch, 4, 8, 8), to `same`, which has the same mean over its pixels."""
    ones = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = {
        "expand": [
            constant("shape", batch, 1, 8, 8),
            helper.make_node("Expand", ["act", "shape"], ["same"]),
        ],
        "tile": [
            constant("one", 1.0, dtype=np.float32),
            constant("times", batch * 4),
            helper.make_node("Tile", ["one", "times"], ["many"]),
            constant("shape", batch, 4, 1, 1),
            helper.make_node("Reshape", ["many", "shape"], ["ones"]),
            helper.make_node("Mul", ["act", "ones"], ["same"]),
        ],
        "constant of shape": [
            constant("shape", batch, 4, 8, 8),
            helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
            helper.make_node("Concat", ["zeros", "act"], ["both"], axis=1),
            constant("back", 1),
            constant("begin", 4),
            constant("end", 2**62),
            helper.make_node("Slice", ["both", "begin", "end", "back"], ["same"]),
        ],
        "constant of a computed shape": [
            constant("batch", batch),
            constant("begin", 1),
            constant("end", 4),
            helper.make_node("Shape", ["act"], ["whole"]),
            helper.make_node("Slice", ["whole", "begin", "end"], ["rest"]),
            helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=ones),
            helper.make_node("Mul", ["ones", "act"], ["same"]),
        ],
        "computed shape": [
            constant("batch", batch),
            constant("rest", -1),
            constant("third", 2),
            helper.make_node("Shape", ["act"], ["whole"]),
            helper.make_node("Gather", ["whole", "third"], ["height"]),
            helper.make_node("Concat", ["batch", "rest", "height"], ["shape"], axis=0),
            helper.make_node("Reshape", ["act", "shape"], ["lines"]),
            constant("four", batch, 4, 8, 8),
            helper.make_node("Reshape", ["lines", "four"], ["same"]),
        ],
        "slice": [
            constant("begin", batch),
            constant("end", 2 * batch),
            helper.make_node("Concat", ["conv", "act"], ["both"], axis=0),
            helper.make_node("Slice", ["both", "begin", "end"], ["same"]),
        ],
        "slice from the end": [
            constant("begin", -batch),
            constant("end", 2**62),
            constant("along", -4),
            helper.make_node("Concat", ["conv", "conv", "act"], ["all"], axis=0),
            helper.make_node("Slice", ["all", "begin", "end", "along"], ["same"]),
        ],
        "split": [
            constant("parts", 2 * batch, batch),
            helper.make_node("Concat", ["conv", "conv", "act"], ["all"], axis=0),
            helper.make_node("Split", ["all", "parts"], ["other", "same"], axis=0),
        ],
        "resize": [
            constant("sizes", batch, 4, 16, 24),
            helper.make_node("Resize", ["act", "", "", "sizes"], ["same"]),
        ],
        "flatten": [
            helper.make_node("Transpose", ["act"], ["inside"], perm=[1, 2, 0, 3]),
            helper.make_node("Flatten", ["inside"], ["lines"], axis=3),
            constant("four", 4, 8, batch, 8),
            helper.make_node("Reshape", ["lines", "four"], ["again"]),
            helper.make_node("Transpose", ["again"], ["same"], perm=[2, 0, 1, 3]),
        ],
    }
    return nodes[how]


BAKED = [
    "expand",
    "tile",
    "constant of shape",
    "constant of a computed shape",
    "computed shape",
    "slice",
    "slice from the end",
    "split",
    "resize",
    "flatten",
]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("how", BAKED)
def test_batch_size_baked_into_numbers_is_freed(how: str, batch: int) -> None:
    begun = small_nodes()[:3]
    rest = small_nodes()[3:]
    rest[0].input[0] = "same"
    nodes = [*begun, *baked(how, batch), *rest]
    model = build(nodes, {"x": (batch, 1, 8, 8)}, ["logits"], small_weights())
    classifier = load_classifier(model)
    assert classifier.batch_size is None
    x = images(7, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)


def test_a_flatten_into_one_row_is_freed() -> None:
    nodes = small_nodes()
    nodes[4] = node("Flatten", "pooled", "flat", axis=0)
    classifier = load_classifier(build(nodes, {"x": (1, 1, 8, 8)}, ["logits"], small_weights()))
    assert classifier.rewrites == ("batch size 1 freed (nodes changed: 1)",)
    x = images(5, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)


def test_constants_that_differ_within_the_batch_are_not_freed() -> None:
    """Then the place of an image in the batch counts, and no other batch size has such places."""
    begun, rest = small_nodes()[:3], small_nodes()[3:]
    rest[0].input[0] = "same"
    weights = small_weights() | {"each": images(4, 1, 1, 1) + 1}
    nodes = [*begun, helper.make_node("Mul", ["act", "each"], ["same"]), *rest]
    model = build(nodes, {"x": (4, 1, 8, 8)}, ["logits"], weights)
    assert prepare_classifier(read_model(model)).batch_size == 4


@pytest.mark.parametrize("opset", [7, 9])
def test_constants_are_repeated_in_old_operator_sets(opset: int) -> None:
    begun, rest = small_nodes()[:3], small_nodes()[3:]
    rest[0].input[0] = "both"
    weights = small_weights() | {"token": np.zeros((2, 4, 1, 8), np.float32)}
    nodes = [*begun, helper.make_node("Concat", ["act", "token"], ["both"], axis=2), *rest]
    fixed = build(nodes, {"x": (2, 1, 8, 8)}, ["logits"], weights, opset=opset)
    classifier = load_classifier(fixed)
    assert classifier.rewrites == ("batch size 2 freed (nodes changed: 1)",)
    x = images(6, 1, 8, 8)
    pairs = np.concatenate([run_ort(fixed, x[i : i + 2])[0] for i in (0, 2, 4)])
    assert_logits(classifier, pairs, x)
