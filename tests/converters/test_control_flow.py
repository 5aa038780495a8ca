"""If, Loop and Scan against ONNX Runtime, finite differences and plain formulas."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from converters import ModelFormatError, UnsupportedModelError, load_classifier, to_torch
from converters.batch_axis import free_batch
from converters.constant_branches import inline_constant_branches
from converters.convert import graph_of
from converters.functions import inline_functions
from converters.image_input import find_image_input
from converters.rewrite import graph_inputs, keep_output, sort_nodes
from converters.validation import Limits
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

make = helper.make_node
X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def value(name: str, kind: int = TensorProto.FLOAT, shape: object = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def graph(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    weights: Mapping[str, np.ndarray] | None = None,
) -> GraphProto:
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    return helper.make_graph(list(nodes), "inner", list(inputs), list(outputs), constants)


def branch(*nodes: NodeProto, weights: Mapping[str, np.ndarray] | None = None) -> GraphProto:
    """A branch whose result is what its last node computes."""
    return graph(nodes, outputs=[value(nodes[-1].output[0])], weights=weights)


def choose(condition: str, then: GraphProto, otherwise: GraphProto, result: str = "y") -> NodeProto:
    return make("If", [condition], [result], then_branch=then, else_branch=otherwise)


def body(
    nodes: Sequence[NodeProto],
    results: Sequence[str],
    state: Sequence[str] = ("s",),
    weights: Mapping[str, np.ndarray] | None = None,
    shape: object = None,
) -> GraphProto:
    """A Loop's body with inputs i, c and the state; its first output is `results[0]`."""
    inputs = [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, [])]
    inputs += [value(name) for name in state]
    outputs = [value(results[0], TensorProto.BOOL, [])]
    outputs += [value(name, shape=shape) for name in results[1:]]
    return graph([node("Identity", "c", "go"), *nodes], inputs, outputs, weights)


def model(
    *nodes: NodeProto,
    weights: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    elem_type: int = TensorProto.FLOAT,
    shape: Sequence[int | str] = ("N", 3),
) -> onnx.ModelProto:
    constants = {"true": np.array(True), "three": np.int64(3), "zero": np.float32(0)}
    used = {name: np.asarray(a) for name, a in (constants | dict(weights or {})).items()}
    return build(nodes, {"x": shape}, outputs, used, opset=opset, elem_type=elem_type)


def assert_same(proto: onnx.ModelProto, *arrays: np.ndarray) -> None:
    converted = to_torch(proto)
    for array in arrays or (X,):
        expected = run_ort(proto, array)
        got = converted(torch.from_numpy(array))
        for one, other in zip(got, expected, strict=True):
            assert one.numpy().dtype == other.dtype
            np.testing.assert_allclose(one.numpy(), other, rtol=1e-5, atol=1e-6)
            assert one.shape == other.shape


def assert_gradient(proto: onnx.ModelProto, x: np.ndarray) -> None:
    """The gradient of a float64 model's first output against central differences."""
    given = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: to_torch(proto)(t)[0], (given,), eps=1e-6, atol=1e-6)


POSITIVE = [make("ReduceSum", ["x"], ["sum"], keepdims=0), make("Greater", ["sum", "zero"], ["p"])]
DOUBLE = branch(make("Add", ["x", "x"], ["twice"]))
SQUARE = branch(make("Mul", ["x", "x"], ["square"]))


def test_only_the_branch_taken_is_run() -> None:
    wrong = branch(make("Reshape", ["x", "three"], ["r"]))  # no such shape
    proto = model(*POSITIVE, choose("p", DOUBLE, wrong))
    converted = to_torch(proto)
    np.testing.assert_array_equal(converted(torch.from_numpy(abs(X)))[0], 2 * abs(X))
    with pytest.raises(UnsupportedModelError, match=r"\(If\) failed: .*\(Reshape\) failed"):
        converted(torch.from_numpy(-abs(X)))


@pytest.mark.parametrize("opset", [11, 13, 16, 19, 21, 25])
def test_if_on_numbers_and_its_gradient(opset: int) -> None:
    keepdims = [make("ReduceMean", ["x"], ["sum"], keepdims=0), POSITIVE[1]]
    proto = model(*keepdims, choose("p", DOUBLE, SQUARE), opset=opset)
    assert_same(proto, X + 5, X - 5)
    for x, expected in ((X + 5, np.full_like(X, 2)), (X - 5, 2 * (X - 5))):
        given = torch.from_numpy(x).requires_grad_()
        to_torch(proto)(given)[0].sum().backward()
        np.testing.assert_array_equal(given.grad, expected)


def test_if_on_the_batch_size() -> None:
    nodes = [
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "first"], ["count"]),
        make("Equal", ["count", "one"], ["single"]),
        choose("single", DOUBLE, SQUARE),
    ]
    proto = model(*nodes, weights={"first": np.int64(0), "one": np.int64(1)})
    assert_same(proto, X, X[:1])


def test_captured_weights_and_weights_of_each_branch() -> None:
    """Both branches call their own weight alike, and share one of the graph."""
    then = branch(
        make("Mul", ["x", "k"], ["a"]),
        make("Add", ["a", "shared"], ["t"]),
        weights={"k": 2.5 * X[0]},
    )
    constant = make("Constant", [], ["k"], value=numpy_helper.from_array(X[1]))
    other = branch(constant, make("Sub", ["shared", "k"], ["a"]), make("Mul", ["a", "x"], ["t"]))
    proto = model(*POSITIVE, choose("p", then, other), weights={"shared": X[1] + 7})
    assert_same(proto, X + 5, X - 5)
    converted = to_torch(proto)
    assert {tuple(b.shape) for b in converted.buffers()} == {(), (3,)}
    again = pickle.loads(pickle.dumps(copy.deepcopy(converted)))
    torch.testing.assert_close(again(torch.from_numpy(X)), converted(torch.from_numpy(X)))
    doubled = converted.double()(torch.from_numpy(X.astype(np.float64)))[0]
    assert doubled.dtype == torch.float64


def test_if_as_an_exporter_writes_squeeze() -> None:
    """torch.jit: squeeze axis 1 if it has size 1, else give the tensor as it is."""
    then = branch(make("Squeeze", ["pooled", "axis"], ["q"]))
    other = branch(make("Identity", ["pooled"], ["q"]))
    nodes = [
        make("ReduceMean", ["x"], ["pooled"], axes=[1], keepdims=1),
        make("Shape", ["pooled"], ["shape"]),
        make("Gather", ["shape", "axis"], ["size"]),
        make("Equal", ["size", "axis"], ["one"]),
        make("Squeeze", ["one"], ["scalar"]),
        choose("scalar", then, other),
    ]
    assert_same(model(*nodes, weights={"axis": np.int64([1])}))


class Scripted(torch.nn.Module):
    """A network that torch's exporter writes with an If and a Loop."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.fc = torch.nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x)).mean([2, 3])
        for _ in range(int(x.shape[2]) - 5):
            y = y + torch.tanh(y)
        if x.shape[0] == 1:
            return self.fc(y)
        return self.fc(y * 1.0)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_network() -> None:
    buffer, module = io.BytesIO(), torch.jit.script(Scripted().eval())
    torch.onnx.export(
        module,
        (torch.zeros(2, 1, 8, 8),),
        buffer,
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        dynamic_axes={"x": {0: "N"}},
    )
    proto = onnx.ModelProto.FromString(buffer.getvalue())
    assert {"If", "Loop"} <= {n.op_type for n in proto.graph.node}
    classifier = load_classifier(proto)
    x = images(4, 1, 8, 8)
    assert_logits(classifier, module(torch.from_numpy(x)).detach().numpy(), x)
    given = torch.from_numpy(x).requires_grad_()
    classifier.logits(given).square().sum().backward()
    assert_same_gradient(lambda t: module(t).square().sum(), given)


def assert_same_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
) -> None:
    other = given.detach().clone().requires_grad_()
    function(other).backward()
    torch.testing.assert_close(given.grad, other.grad, rtol=1e-3, atol=1e-5)


ACCUMULATE = body(
    [make("Mul", ["s", "x"], ["a"]), make("Add", ["a", "k"], ["n"]), node("Tanh", "n", "seen")],
    ["go", "n", "seen"],
)


@pytest.mark.parametrize("opset", [8, 11, 13, 17, 21, 25])
def test_loop_that_accumulates(opset: int) -> None:
    loop = make("Loop", ["three", "true", "x"], ["y", "all"], body=ACCUMULATE)
    proto = model(loop, weights={"k": np.float32(0.5)}, outputs=["y", "all"], opset=opset)
    assert_same(proto)


def test_gradient_of_a_loop() -> None:
    loop = make("Loop", ["three", "true", "x"], ["last", "all"], body=ACCUMULATE)
    proto = model(
        loop, make("Add", ["all", "last"], ["y"]), weights={"k": np.float64(0.5)}, elem_type=11
    )
    assert_gradient(proto, X / 3)


COUNTING = body(
    [make("Less", ["i", "two"], ["more"]), make("Add", ["s", "x"], ["n"])], ["more", "n"]
)


@pytest.mark.parametrize(
    ("count", "condition", "trips"),
    [
        ("three", "", 3),
        ("many", "true", 3),
        ("", "true", 3),
        ("three", "false", 0),
        ("none", "", 0),
    ],
)
def test_what_ends_a_loop(count: str, condition: str, trips: int) -> None:
    plain = body([make("Add", ["s", "x"], ["n"])], ["go", "n"])
    inside = COUNTING if count in ("many", "") else plain
    loop = make("Loop", [count, condition, "x"], ["y"], body=inside)
    weights = {"two": np.int64(2), "many": np.int64(2**62), "none": np.int64(-1)}
    proto = model(loop, weights={**weights, "false": np.array(False)})
    np.testing.assert_array_equal(to_torch(proto)(torch.from_numpy(X))[0], X * (1 + trips))
    assert_same(proto)


def test_engines_differ_on_a_body_that_ends_a_loop_without_condition() -> None:
    loop = make("Loop", ["many", "", "x"], ["y"], body=COUNTING)
    proto = model(loop, weights={"two": np.int64(2), "many": np.int64(9)})
    with pytest.raises(UnsupportedModelError, match="engines differ"):
        to_torch(proto)(torch.from_numpy(X))


@pytest.mark.parametrize("shape", [[2, 3], [], None, ["N", 3]])
def test_no_trips(shape: object) -> None:
    inside = body(
        [make("Add", ["s", "x"], ["n"]), node("Neg", "n", "o")], ["go", "n", "o"], shape=shape
    )
    nodes = [
        make("ReduceSum", ["x"], ["total"], keepdims=0),
        make("Cast", ["total"], ["count"], to=TensorProto.INT64),
        make("Loop", ["count", "true", "x"], ["y", "ys"], body=inside),
    ]
    proto = model(*nodes, outputs=["y", "ys"])
    if shape is None or "N" in shape:
        with pytest.raises(UnsupportedModelError, match="not declared in full"):
            to_torch(proto)(torch.from_numpy(0 * X))
    else:
        assert_same(proto, 0 * X)


def test_an_if_in_a_loop_that_reads_the_outermost_graph() -> None:
    inner = choose(
        "even",
        branch(
            make("Add", ["s", "x"], ["a"]),
            make("Mul", ["a", "k"], ["b"]),
            weights={"k": np.float32(2)},
        ),
        branch(make("Sub", ["s", "w"], ["b"])),
        "n",
    )
    nodes = [make("Mod", ["i", "two"], ["m"]), make("Equal", ["m", "nil"], ["even"]), inner]
    inside = body(nodes, ["go", "n"], weights={"two": np.int64(2), "nil": np.int64(0)})
    loop = make("Loop", ["three", "true", "x"], ["y"], body=inside)
    proto = model(loop, weights={"w": X[0]})
    assert_same(proto)
    x = X.astype(np.float64)
    expected = 2 * (2 * (x + x) - X[0] + x)
    got = to_torch(proto).double()(torch.from_numpy(x))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_nodes_in_any_order() -> None:
    """The If comes before what only its branch reads; ONNX Runtime sorts the outer graph."""
    nodes = [choose("p", branch(make("Add", ["late", "x"], ["t"])), SQUARE), *POSITIVE]
    proto = model(*nodes, node("Neg", "x", "late"))
    assert_same(proto, X + 5, X - 5)
    sort_nodes(proto)
    assert [n.op_type for n in proto.graph.node] == ["ReduceSum", "Greater", "Neg", "If"]
    unsorted = branch(node("Abs", "q", "r"), node("Neg", "x", "q"))
    unsorted.output[0].name = "r"
    proto = model(*POSITIVE, choose("p", unsorted, SQUARE))
    np.testing.assert_array_equal(to_torch(proto)(torch.from_numpy(X + 5))[0], X + 5)


def test_a_tensor_that_nothing_computes_is_refused() -> None:
    proto = model(*POSITIVE, choose("p", branch(node("Abs", "nowhere", "r")), SQUARE))
    with pytest.raises(ModelFormatError, match="nothing computes tensor 'nowhere'"):
        sort_nodes(proto)


def test_what_a_subgraph_reads_is_kept() -> None:
    nodes = [node("Neg", "x", "late"), node("Abs", "x", "unused"), *POSITIVE]
    proto = model(
        *nodes,
        choose("p", branch(make("Add", ["late", "x"], ["t"])), SQUARE),
        outputs=["y", "unused"],
    )
    keep_output(proto, "y")
    assert [n.op_type for n in proto.graph.node] == ["Neg", "ReduceSum", "Greater", "If"]
    converted = to_torch(proto)
    np.testing.assert_array_equal(converted.features("late", torch.from_numpy(X)), -X)


def step(*extra: NodeProto, results: Sequence[str] = ("n", "seen")) -> GraphProto:
    nodes = [make("Add", ["s", "a"], ["n"]), make("Mul", ["n", "n"], ["seen"]), *extra]
    return graph(nodes, [value("s"), value("a")], [value(name) for name in results])


@pytest.mark.parametrize("opset", [9, 11, 17, 21, 25])
@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_is_a_cumulative_sum(opset: int, backwards: int) -> None:
    scan = make(
        "Scan",
        ["start", "x"],
        ["last", "y"],
        body=step(),
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_input_directions=[backwards],
        scan_output_axes=[-1],
        scan_output_directions=[1 - backwards],
    )
    proto = model(scan, weights={"start": np.float32([1, 2])}, outputs=["last", "y"], opset=opset)
    assert_same(proto)
    order = slice(None, None, -1) if backwards else slice(None)
    sums = X[:, order].cumsum(1) + np.float32([[1], [2]])
    got = to_torch(proto)(torch.from_numpy(X))
    np.testing.assert_array_equal(got[0], sums[:, -1])
    np.testing.assert_array_equal(
        got[1], sums[:, slice(None) if backwards else slice(None, None, -1)] ** 2
    )


@pytest.mark.parametrize("lengths", ["", "lengths"])
@pytest.mark.parametrize("backwards", [0, 1])
def test_scan_over_a_batch(lengths: str, backwards: int) -> None:
    scan = make(
        "Scan",
        [lengths, "start", "x"],
        ["last", "y"],
        body=step(),
        num_scan_inputs=1,
        directions=[backwards],
    )
    weights = {"start": np.float32([[1], [2]]), "lengths": np.int64([2, 3])}
    proto = model(scan, weights=weights, outputs=["last", "y"], opset=8, shape=(2, 3, 1))
    assert_same(proto, X[:, :, None])


def test_gradient_of_a_scan() -> None:
    scan = make("Scan", ["start", "x"], ["last", "y"], body=step(), num_scan_inputs=1)
    proto = model(scan, weights={"start": np.float64([1, 2, 3])}, outputs=["y"], elem_type=11)
    assert_gradient(proto, X)


def classifier_with(
    *nodes: NodeProto, shape: Sequence[int | str] = ("N", 1, 8, 8), **weights: np.ndarray
) -> onnx.ModelProto:
    """`small_net` with nodes from `norm` to `act` in place of its Relu."""
    layers = small_nodes()
    layers[2:3] = nodes
    return build(layers, {"x": shape}, ["logits"], small_weights() | weights)


def test_a_classifier_with_branches_and_loops() -> None:
    nodes = [
        make("ReduceMax", ["norm"], ["top"], keepdims=0),
        make("Greater", ["top", "limit"], ["p"]),
        choose("p", branch(node("Relu", "norm", "r")), branch(node("Exp", "norm", "r")), "z"),
        make(
            "Loop",
            ["two", "", "z"],
            ["act"],
            body=body([make("Mul", ["s", "half"], ["n"])], ["go", "n"]),
        ),
    ]
    weights = {"limit": np.float32(0.1), "half": np.float32(0.5), "two": np.int64(2)}
    proto = classifier_with(*nodes, **weights)
    classifier = load_classifier(proto)
    x = images(4, 1, 8, 8)
    if classifier.batch_size is None:
        assert_logits(classifier, run_ort(proto, x)[0], x)
    else:
        singly = np.concatenate([run_ort(proto, one[None])[0] for one in x])
        assert_logits(classifier, singly, x)


FREE = {"flags": np.array([False])}


def always(then: GraphProto, otherwise: GraphProto, result: str) -> list[NodeProto]:
    """An If whose condition is computed from constants only, and holds."""
    return [
        make("Not", ["flags"], ["yes"]),
        make("Squeeze", ["yes"], ["one"]),
        choose("one", then, otherwise, result),
    ]


def test_a_constant_condition_leaves_no_trace() -> None:
    """The batch axis is freed and BatchNormalization is merged as if the If were not there."""
    reshape = branch(
        node("GlobalAveragePool", "act", "p"),
        make("Reshape", ["p", "shape"], ["r"]),
        weights={"shape": np.int64([1, 4])},
    )
    nested = always(reshape, branch(node("Neg", "act", "r")), "inner")[2]
    layers = small_nodes()
    norm = branch(make("BatchNormalization", ["conv", "gamma", "beta", "mean", "var"], ["norm"]))
    layers[1:2] = always(norm, branch(node("Neg", "conv", "norm")), "norm")
    layers[5:7] = [choose("one", branch(nested), branch(node("Exp", "act", "inner")), "flat")]
    proto = build(layers, {"x": (1, 1, 8, 8)}, ["logits"], small_weights() | FREE)
    inline_constant_branches(proto)
    assert "If" not in {n.op_type for n in proto.graph.node}
    image_input = find_image_input(graph_inputs(proto))
    converted, batch_size, _ = free_batch(proto, graph_of(proto), image_input)
    assert batch_size is None
    assert "BatchNormalization" not in {i.op_type for i in converted.fast_instructions}
    x = images(4, 1, 8, 8)
    expected = run_ort(small_net(), x)[0]
    np.testing.assert_allclose(converted(torch.from_numpy(x))[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run_ort(proto, x)[0], expected, rtol=1e-4, atol=1e-5)
    assert_logits(load_classifier(proto), expected, x)


def test_names_in_an_inlined_branch() -> None:
    """The same names in both branches, in a loop inside, and outside after the If."""
    inside = body([make("Add", ["s", "t"], ["n"])], ["go", "n"])
    then = branch(node("Neg", "x", "t"), make("Loop", ["three", "", "x"], ["r"], body=inside))
    nodes = [*always(then, branch(node("Abs", "x", "t")), "first"), node("Exp", "first", "t")]
    proto = model(*nodes, make("Add", ["first", "t"], ["y"]), weights=FREE)
    converted = to_torch(proto)
    assert "If" not in {i.op_type for i in converted.instructions}
    expected = X - 3 * X + np.exp(X - 3 * X)
    np.testing.assert_allclose(converted(torch.from_numpy(X))[0], expected, rtol=1e-6)
    unchanged = graph_of(sorted_copy(proto))(torch.from_numpy(X))[0]
    np.testing.assert_allclose(unchanged, expected, rtol=1e-6)


def sorted_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    sort_nodes(result)
    inline_functions(result)
    return result


def test_a_condition_that_is_an_output_of_a_branch_returned_as_it_is() -> None:
    """A branch without nodes that gives an outer tensor or its own weight."""
    outer = graph([], outputs=[value("n")])
    weight = graph([], outputs=[value("w")], weights={"w": X})
    proto = model(node("Neg", "x", "n"), *POSITIVE, choose("p", outer, weight))
    converted = to_torch(proto)
    np.testing.assert_array_equal(converted(torch.from_numpy(X + 5))[0], -X - 5)
    np.testing.assert_array_equal(converted(torch.from_numpy(X - 5))[0], X)


def test_quantised_numbers_keep_their_gradient_within_a_branch() -> None:
    quantise = make("QuantizeLinear", ["x", "scale", "zp"], ["q"])
    then = branch(make("DequantizeLinear", ["q", "scale", "zp"], ["d"]))
    other = branch(
        make("Cast", ["q"], ["i"], to=TensorProto.INT32),
        make("Div", ["i", "two"], ["h"]),
        make("Cast", ["h"], ["d"], to=1),
    )
    weights = {"scale": np.float32(0.5), "zp": np.uint8(100), "two": np.int32(2)}
    proto = model(quantise, *POSITIVE, choose("p", then, other), weights=weights)
    assert_same(proto, X + 5, X - 5.3)
    given = torch.from_numpy(X + 5).requires_grad_()
    to_torch(proto)(given)[0].sum().backward()
    assert bool((given.grad == 1).all())


def test_functions_with_branches_are_inlined() -> None:
    nodes = [
        make("ReduceSum", ["a"], ["t"], keepdims=0),
        make("Constant", [], ["nil"], value_float=0.0),
    ]
    nodes += [make("Greater", ["t", "nil"], ["p"])]
    nodes += [choose("p", branch(node("Neg", "a", "r")), branch(node("Exp", "a", "r")), "b")]
    opsets = [helper.make_opsetid("", 17)]
    proto = build(
        [make("F", ["x"], ["y"], domain="own")], {"x": ("N", 3)}, ["y"], imports={"own": 1}
    )
    proto.functions.append(helper.make_function("own", "F", ["a"], ["b"], nodes, opsets))
    assert_same(proto, X + 5, X - 5)


def test_unsupported_operators_in_subgraphs_are_named_with_the_others() -> None:
    deep = choose("p", branch(node("Unheard", "x", "u")), SQUARE, "v")
    proto = model(
        *POSITIVE,
        node("Unheard", "x", "n"),
        choose("p", branch(deep, node("StringSplit", "v", "w")), SQUARE),
    )
    with pytest.raises(UnsupportedModelError) as caught:
        to_torch(proto)
    assert caught.value.operators == ("StringSplit-17 (1)", "Unheard-17 (2)")


def nest(depth: int) -> onnx.ModelProto:
    inner = DOUBLE
    for level in range(depth - 1):
        inner = branch(choose("p", inner, SQUARE, f"level{level}"))
    return model(*POSITIVE, choose("p", inner, SQUARE))


def test_depth() -> None:
    x = torch.from_numpy(X + 5)
    np.testing.assert_array_equal(to_torch(nest(Limits.depth))(x)[0], 2 * x)
    with pytest.raises(ModelFormatError, match="deep"):
        to_torch(nest(Limits.depth + 1))
    with pytest.raises(ModelFormatError, match="nested more than 16 deep"):
        sort_nodes(nest(Limits.depth + 1))


def endless(inside: GraphProto, **weights: np.ndarray) -> onnx.ModelProto:
    return model(
        make("Loop", ["many", "true", "x"], ["y"], body=inside),
        weights={"many": np.int64(2**62), **weights},
    )


TWICE = make(
    "Loop",
    ["many", "true", "s"],
    ["n"],
    body=body([node("Neg", "s2", "n2")], ["go2", "n2"], ["s2"]),
)
TWICE.attribute[0].g.node[0].output[0] = "go2"
TWICE.attribute[0].g.node[0].input[0] = "c2"
TWICE.attribute[0].g.input[0].name, TWICE.attribute[0].g.input[1].name = "i2", "c2"

HOSTILE = {
    "endless": (
        endless(body([node("Neg", "s", "n")], ["go", "n"])),
        f"more than {Limits.trips} trips",
    ),
    "doubling": (
        endless(body([make("Concat", ["s", "s"], ["n"], axis=0)], ["go", "n"])),
        "too large",
    ),
    "hoarding": (
        endless(
            body([node("Neg", "s", "n"), make("Expand", ["x", "size"], ["o"])], ["go", "n", "o"]),
            size=np.int64([40000, 1, 3]),
        ),
        "too large",
    ),
    "loop in loop": (
        endless(
            body(
                [make("Loop", ["mid", "true", "s"], ["n"], body=TWICE.attribute[0].g)], ["go", "n"]
            ),
            mid=np.int64(900),
        ),
        "too many operators",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_loops_are_refused(name: str) -> None:
    proto, message = HOSTILE[name]
    if name == "hoarding":
        proto.graph.node[0].output.append("ys")
    converted = to_torch(proto)
    with pytest.raises(UnsupportedModelError, match=message), torch.no_grad():
        converted(torch.from_numpy(X))


def test_all_loops_share_a_bound() -> None:
    """Fifty loops may run no more than one."""
    inside = body(
        [node("Neg", "s", "n0"), *(node("Neg", f"n{i}", f"n{i + 1}") for i in range(9))],
        ["go", "n9"],
    )
    loops = [
        make("Loop", ["count", "true", "x" if i == 0 else f"y{i - 1}"], [f"y{i}"], body=inside)
        for i in range(50)
    ]
    proto = model(*loops, outputs=["y49"], weights={"count": np.int64(500)})
    with pytest.raises(UnsupportedModelError, match="too many operators"):
        to_torch(proto)(torch.from_numpy(X))
    one = model(*loops[:1], outputs=["y0"], weights={"count": np.int64(500)})
    np.testing.assert_array_equal(to_torch(one)(torch.from_numpy(X))[0], X)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (make("If", ["p"], ["y"], then_branch=DOUBLE), "missing attribute else_branch"),
        (make("If", ["p"], ["y"], then_branch=DOUBLE, else_branch=1), "must be a graph"),
        (make("If", ["p"], ["y", "z"], then_branch=DOUBLE, else_branch=SQUARE), "only 1 outputs"),
        (choose("x", DOUBLE, SQUARE), "a condition of type torch.float32"),
        (make("Loop", ["x", "true", "x"], ["y"], body=COUNTING), "a trip count of type"),
        (make("Loop", ["three", "true"], ["y"], body=COUNTING), "is given 2"),
        (make("Loop", ["three", "true", "x", "x", "x"], ["y"], body=COUNTING), "outputs, expected"),
        (make("Scan", ["x", "x"], ["y"], body=step(), num_scan_inputs=3), "3 scan inputs among 2"),
        (
            make("Scan", ["x", "x"], ["y"], body=step(), num_scan_inputs=1, scan_input_axes=[0, 0]),
            "2 axes or directions for 1",
        ),
        (make("Scan", ["x", "start"], ["y"], body=step(), num_scan_inputs=2), "different lengths"),
        (make("Relu", ["x"], ["y"], body=DOUBLE), "unknown attribute body"),
    ],
)
def test_what_fits_together_nowhere_is_refused(bad: NodeProto, message: str) -> None:
    weights = {"start": np.float32([0]), "two": np.int64(2)}
    with pytest.raises(UnsupportedModelError, match=message):
        to_torch(model(*POSITIVE, bad, weights=weights))(torch.from_numpy(X + 5))


def test_other_limits_hold_at_every_run() -> None:
    inside = body([make("Add", ["s", "x"], ["n"])], ["go", "n"])
    loop = make("Loop", ["count", "true", "x"], ["y"], body=inside)
    proto = model(loop, weights={"count": np.int64(4)})
    converted = to_torch(proto, Limits(trips=3))
    with pytest.raises(UnsupportedModelError, match="more than 3 trips") as caught:
        converted(torch.from_numpy(X))
    assert caught.value.reason == "trip_count"
    many = model(loop, weights={"count": np.int64(Limits.trips + 5)})
    (y,) = to_torch(many, Limits(trips=2000))(torch.from_numpy(X))
    np.testing.assert_array_equal(y, X * (Limits.trips + 6))
    scan = make("Scan", ["start", "x"], ["t", "y"], body=step(), num_scan_inputs=1)
    rows = model(scan, weights={"start": np.float32([0, 0, 0])})
    with pytest.raises(UnsupportedModelError, match="more than 1 trips"):
        to_torch(rows, Limits(trips=1))(torch.from_numpy(X[:2]))


def test_other_limits_of_depth() -> None:
    x = torch.from_numpy(X + 5)
    np.testing.assert_array_equal(to_torch(nest(20), Limits(depth=20))(x)[0], 2 * x)
    with pytest.raises(ModelFormatError, match="deep"):
        to_torch(nest(4), Limits(depth=3))


def test_loops_are_not_compiled() -> None:
    inside = body([make("Add", ["s", "x"], ["n"])], ["go", "n"])
    loop = make("Loop", ["three", "true", "x"], ["y"], body=inside)
    graph = to_torch(model(loop))
    with pytest.warns(RuntimeWarning, match="runs uncompiled: it has branches or loops"):
        compiled = graph.compiled()
    assert not compiled.in_use
    np.testing.assert_array_equal(compiled(torch.from_numpy(X))[0], 4 * X)


@pytest.mark.parametrize("more", [0, 1])
def test_the_last_trip_allowed(more: int) -> None:
    inside = body([make("Add", ["s", "x"], ["n"])], ["go", "n"])
    loop = make("Loop", ["count", "true", "x"], ["y"], body=inside)
    converted = to_torch(model(loop, weights={"count": np.int64(Limits.trips + more)}))
    if more:
        with pytest.raises(UnsupportedModelError, match="more than 1000 trips"):
            converted(torch.from_numpy(X))
    else:
        np.testing.assert_array_equal(converted(torch.from_numpy(X))[0], X * (Limits.trips + 1))
