"""Sequences, what is optional, and text: against ONNX Runtime, torch and plain formulas."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from converters import UnsupportedModelError, load_classifier, to_torch
from converters.ops import control_flow
from converters.ops.sequence import MAX_ENTRIES
from converters.values import size_of
from tests.converters.onnx_models import build, images, run_ort, small_nodes, small_weights

make = helper.make_node
FLOATS = TensorProto.FLOAT
X = images(7, 3)


def whole(*values: int) -> np.ndarray:
    return np.int64(values)


WEIGHTS = {"two": np.int64(2), "sizes": whole(1, 4, 2), "last": np.int64(-1), "one": np.int64(1)}
SPLIT = make("SplitToSequence", ["x", "two"], ["s"])
AT = make("SequenceAt", ["s", "last"], ["y"])
SEQUENCE = helper.make_tensor_sequence_value_info("s", FLOATS, None)


def model(*nodes: NodeProto, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    return build(nodes, {"x": ("N", 3)}, outputs, WEIGHTS)


def assert_same(proto: onnx.ModelProto, x: np.ndarray = X) -> None:
    got = to_torch(proto)(torch.from_numpy(x))
    for one, other in zip(got, run_ort(proto, x), strict=True):
        parts = zip([one], [other], strict=True) if isinstance(one, torch.Tensor) else (
            zip(one, other, strict=True))  # fmt: skip
        for part, expected in parts:
            assert part.numpy().dtype == expected.dtype
            np.testing.assert_array_equal(part.numpy(), expected)


@pytest.mark.parametrize(
    "split",
    [
        make("SplitToSequence", ["x"], ["s"]),
        make("SplitToSequence", ["x"], ["s"], keepdims=0),
        make("SplitToSequence", ["x", "two"], ["s"]),
        make("SplitToSequence", ["x", "sizes"], ["s"]),
        make("SplitToSequence", ["x"], ["s"], axis=-1, keepdims=0),
        make("SplitToSequence", ["x", "two"], ["s"], axis=1),
    ],
)
def test_split(split: NodeProto) -> None:
    assert_same(model(split, make("SequenceLength", ["s"], ["y"]), AT_Z, outputs=["y", "z", "s"]))


AT_Z = make("SequenceAt", ["s", "last"], ["z"])


def test_parts_of_a_given_size_keep_the_axis() -> None:
    # The specification says so; ONNX Runtime fails.
    split = make("SplitToSequence", ["x", "two"], ["y"], keepdims=0)
    (parts,) = to_torch(model(split))(torch.from_numpy(X))
    assert [tuple(part.shape) for part in parts] == [(2, 3), (2, 3), (2, 3), (1, 3)]


@pytest.mark.parametrize(
    "nodes",
    [
        [make("SequenceErase", ["s"], ["t"])],
        [make("SequenceErase", ["s", "one"], ["t"])],
        [make("SequenceInsert", ["s", "x"], ["t"])],
        [make("SequenceInsert", ["s", "x", "last"], ["t"])],
        [make("SequenceInsert", ["s", "x", "one"], ["t"])],
        [make("SequenceConstruct", ["x", "x"], ["c"]), make("Identity", ["c"], ["t"])],
        [make("SequenceEmpty", [], ["e"]), make("SequenceInsert", ["e", "x"], ["t"])],
    ],
)
def test_changes(nodes: list[NodeProto]) -> None:
    assert_same(model(SPLIT, *nodes, make("SequenceLength", ["t"], ["y"]), outputs=["y", "t"]))


@pytest.mark.parametrize("attributes", [{"axis": 0}, {"axis": 1}, {"axis": -1, "new_axis": 1}])
def test_concat(attributes: dict[str, int]) -> None:
    split = make("SplitToSequence", ["x"], ["s"], axis=1)
    assert_same(model(split, make("ConcatFromSequence", ["s"], ["y"], **attributes)))


def test_gradient_and_copies() -> None:
    tanh = make("Tanh", ["z"], ["t"])
    insert = make("SequenceInsert", ["s", "t"], ["more"])
    proto = model(SPLIT, AT_Z, tanh, insert, make("ConcatFromSequence", ["more"], ["y"], axis=0))
    given = torch.from_numpy(X).double().requires_grad_()
    graph = pickle.loads(pickle.dumps(to_torch(proto))).double()
    assert torch.autograd.gradcheck(lambda x: graph(x)[0], (given,))


def test_graph_inputs_and_features() -> None:
    total = make("ConcatFromSequence", ["s"], ["y"], axis=0)
    proto = model(total, SPLIT_T, outputs=["y", "t"])
    proto.graph.input.append(SEQUENCE)
    graph = to_torch(proto)
    x = torch.from_numpy(X)
    y, t = graph(x, (x, 2 * x))
    torch.testing.assert_close(y, torch.cat([x, 2 * x]))
    assert [part.shape for part in t] == [(1, 3)] * 7
    assert graph.features("y", x, (x,)).shape == (7, 3)
    with pytest.raises(TypeError, match="'t' is no tensor"):
        graph.features("t", x, (x,))
    assert "t" not in graph.tensor_types(x, (x,))


SPLIT_T = make("SplitToSequence", ["x"], ["t"])


def test_constant_sequences_are_folded_away() -> None:
    nodes = [
        make("SequenceConstruct", ["two", "one"], ["s"]),
        make("SequenceAt", ["s", "last"], ["axis"]),
        make("Unsqueeze", ["x", "axis"], ["y"]),
    ]
    graph = to_torch(model(*nodes))
    assert graph.constant("axis").item() == 1
    assert graph(torch.from_numpy(X))[0].shape == (7, 1, 3)
    (again, *_) = to_torch(model(*nodes, outputs=["s"]))(torch.from_numpy(X))
    assert [part.item() for part in again] == [2, 1]


def sequence_graph(nodes: Sequence[NodeProto], result: str, *inputs: ValueInfoProto) -> GraphProto:
    outputs = [helper.make_tensor_sequence_value_info(result, FLOATS, None)]
    if inputs:
        outputs = [helper.make_tensor_value_info("go", TensorProto.BOOL, []), *outputs]
    return helper.make_graph(nodes, "body", inputs, outputs)


def looping(count: int, *inside: NodeProto) -> onnx.ModelProto:
    """A loop whose state is a sequence, from an empty one."""
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_sequence_value_info("s", FLOATS, None),
    ]
    body = sequence_graph([make("Identity", ["c"], ["go"]), *inside], "n", *inputs)
    nodes = [
        make("SequenceEmpty", [], ["e"]),
        make("Loop", ["count", "", "e"], ["r"], body=body),
        make("ConcatFromSequence", ["r"], ["y"], axis=0),
    ]
    proto = model(*nodes)
    proto.graph.initializer.append(numpy_helper.from_array(np.int64(count), "count"))
    return proto


INSERT = make("SequenceInsert", ["s", "x"], ["n"])


def test_loops_and_branches_carry_sequences() -> None:
    assert_same(looping(4, INSERT))
    then = sequence_graph([make("SplitToSequence", ["x", "two"], ["a"])], "a")
    other = sequence_graph([make("SequenceConstruct", ["x"], ["b"])], "b")
    nodes = [
        make("ReduceSum", ["x"], ["sum"], keepdims=0),
        make("Cast", ["sum"], ["p"], to=TensorProto.BOOL),
        make("If", ["p"], ["s"], then_branch=then, else_branch=other),
        make("SequenceLength", ["s"], ["y"]),
    ]
    assert_same(model(*nodes))
    assert_same(model(*nodes), np.zeros_like(X))


def test_a_growing_sequence_counts_against_the_loops_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_flow, "MAX_GROWTH_BYTES", 100)
    with pytest.raises(UnsupportedModelError, match="too large after 11 trips"):
        to_torch(looping(100, INSERT))(torch.from_numpy(X))


def test_sizes() -> None:
    x = torch.from_numpy(X)
    assert size_of(x) == 84
    assert size_of((x, x)) > 2 * 84
    assert size_of(None) == 0
    assert size_of(np.array(["abc"], dtype=object)) > size_of(np.array([""], dtype=object)) > 0


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([make("SequenceAt", ["x", "one"], ["y"])], r"\(SequenceAt\) failed: .*must be a sequence"),
        ([SPLIT, make("SequenceAt", ["s", "far"], ["y"])], "position 9 is out of range for 4"),
        ([SPLIT, make("SequenceInsert", ["s", "x", "far"], ["y"])], "position 9 is out of range"),
        ([SPLIT, make("SequenceErase", ["s", "far"], ["y"])], "position 9 is out of range"),
        ([SPLIT, make("SequenceInsert", ["s", "s"], ["y"])], "no tensor"),
        ([make("SplitToSequence", ["x", "nil"], ["y"])], "into parts of 0"),
        ([make("SplitToSequence", ["x", "wrong"], ["y"])], "can't split 7"),
        ([make("SplitToSequence", ["wide"], ["y"])], f"{MAX_ENTRIES} at most"),
        ([make("SequenceEmpty", [], ["e"]), make("ConcatFromSequence", ["e"], ["y"], axis=0)],
         "without entries"),
        ([SPLIT, make("Relu", ["s"], ["y"])], r"\(Relu\) failed"),
        ([make("OptionalGetElement", [""], ["y"])], "not there"),
    ],
)  # fmt: skip
def test_refused(nodes: list[NodeProto], message: str) -> None:
    more = {"far": np.int64(9), "nil": np.int64(0), "wrong": whole(3, 3), "wide": np.zeros(2000)}
    proto = build(nodes, {"x": ("N", 3)}, ["y"], {**WEIGHTS, **more}, opset=18)
    with pytest.raises(UnsupportedModelError, match=message):
        to_torch(proto)(torch.from_numpy(X))


def test_a_sequence_of_one_large_tensor_is_not_copied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.ops._values.MAX_RESULT_BYTES", 200)
    nodes = [make("SequenceConstruct", ["x"] * 3, ["s"])]
    for attributes in ({"axis": 0}, {"axis": 0, "new_axis": 1}):
        proto = model(*nodes, make("ConcatFromSequence", ["s"], ["y"], **attributes))
        with pytest.raises(UnsupportedModelError, match="the limit is 200"):
            to_torch(proto)(torch.from_numpy(X))


def test_optional() -> None:
    kind = helper.make_tensor_type_proto(FLOATS, None)
    nodes = [
        make("Optional", ["x"], ["some"]),
        make("Optional", [], ["none"], type=kind),
        make("OptionalHasElement", ["some"], ["a"]),
        make("OptionalHasElement", ["none"], ["b"]),
        make("OptionalGetElement", ["some"], ["y"]),
    ]
    proto = build(nodes, {"x": ("N", 3)}, ["y", "a", "b"], opset=18)
    y, a, b = pickle.loads(pickle.dumps(to_torch(proto)))(torch.from_numpy(X))
    np.testing.assert_array_equal(y.numpy(), X)
    assert (a.item(), b.item()) == (True, False)


@pytest.mark.parametrize("declared", [1, "N"])
def test_a_classifier_that_splits_its_channels(declared: int | str) -> None:
    nodes = small_nodes()
    nodes[4:5] = [
        make("SplitToSequence", ["pooled", "two"], ["parts"], axis=1),
        make("SequenceAt", ["parts", "nil"], ["left"]),
        make("SequenceAt", ["parts", "one"], ["right"]),
        make("Add", ["left", "right"], ["sum"]),
        make("Concat", ["sum", "right"], ["joined"], axis=1),
        make("Flatten" if declared == "N" else "Reshape",
             ["joined"] if declared == "N" else ["joined", "shape"], ["flat"]),
    ]  # fmt: skip
    weights = small_weights() | {"two": np.int64(2), "nil": np.int64(0), "one": np.int64(1)}
    weights |= {"shape": whole(1, 4)}
    proto = build(nodes, {"x": (declared, 1, 8, 8)}, ["logits"], weights)
    classifier = load_classifier(proto)
    assert classifier.differentiable
    assert classifier.batch_size is None
    x = images(3, 1, 8, 8)
    expected = np.concatenate([run_ort(proto, image[None])[0] for image in x])
    got = classifier.logits(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_an_output_that_is_a_sequence_must_be_left_out() -> None:
    nodes = [*small_nodes(), make("SplitToSequence", ["logits"], ["s"], axis=1)]
    proto = build(nodes, {"x": ("N", 1, 8, 8)}, ["logits", "s"], small_weights())
    proto.graph.output[1].CopyFrom(SEQUENCE)
    with pytest.raises(UnsupportedModelError, match="output 's' is of type sequence"):
        load_classifier(proto)
    assert load_classifier(proto, output="logits").class_count == 5


TEXTS = np.array(["monday", "Tuesday", "FRIDAY"], dtype=object)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, ["monday", "Tuesday", "FRIDAY"]),
        ({"case_change_action": "UPPER"}, ["MONDAY", "TUESDAY", "FRIDAY"]),
        ({"case_change_action": "LOWER"}, ["monday", "tuesday", "friday"]),
        ({"stopwords": ["MONDAY", "friday"]}, ["Tuesday"]),
        ({"stopwords": ["MONDAY", "FRIDAY"], "is_case_sensitive": 1}, ["monday", "Tuesday"]),
        ({"stopwords": ["monday", "tuesday", "friday"], "case_change_action": "UPPER"}, [""]),
    ],
)
@pytest.mark.parametrize("rank", [1, 2])
def test_text(how: dict[str, object], expected: list[str], rank: int) -> None:
    nodes = [make("StringNormalizer", ["x"], ["y"], **how)]
    proto = build(nodes, {"x": [None] * rank}, ["y"], elem_type=TensorProto.STRING)
    (got,) = to_torch(proto)(TEXTS if rank == 1 else TEXTS[None])
    assert got.tolist() == (expected if rank == 1 else [expected])


@pytest.mark.parametrize("case", ["upper", "TITLE"])
def test_unknown_case(case: str) -> None:
    nodes = [make("StringNormalizer", ["x"], ["y"], case_change_action=case)]
    proto = build(nodes, {"x": [3]}, ["y"], elem_type=TensorProto.STRING)
    with pytest.raises(UnsupportedModelError, match="case_change_action"):
        to_torch(proto)(TEXTS)


def test_constant_text() -> None:
    nodes = [
        make("Constant", [], ["words"], value_strings=["a", "b"]),
        make("Constant", [], ["word"], value_string="c"),
        make("StringNormalizer", ["held"], ["loud"], case_change_action="UPPER"),
        make("Relu", ["x"], ["y"]),
    ]
    proto = build(nodes, {"x": ("N", 3)}, ["words", "word", "loud", "y"])
    held = helper.make_tensor("held", TensorProto.STRING, [1], [b"d"])
    proto.graph.initializer.append(held)
    words, word, loud, y = to_torch(proto)(torch.from_numpy(X))
    assert (words.tolist(), word.item(), loud.tolist()) == (["a", "b"], "c", ["D"])
    np.testing.assert_array_equal(y.numpy(), X)
