from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

from converters import ModelFormatError, TorchGraph, UnsupportedModelError, kernels, to_torch
from converters.collector import collector_off
from converters.convert import graph_of
from converters.ops import linear
from tests.converters.onnx_models import (
    TinyTransformer,
    build,
    exported,
    images,
    run_ort,
    small_net,
)


@functools.cache
def free_batch_transformer() -> onnx.ModelProto:
    axes = {"x": {0: "N"}}
    return exported(TinyTransformer(), torch.rand(2, 1, 8, 8), input_names=["x"], dynamic_axes=axes)


@pytest.mark.parametrize("make", [small_net, free_batch_transformer])
def test_every_tensor_is_onnx_runtimes(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    graph = to_torch(model)
    x = images(3, 1, 8, 8)
    names = [name for node in model.graph.node for name in node.output if name]
    constants = [name for name in names if name in graph.constant_names]
    computed = [name for name in names if name not in graph.constant_names]
    assert len(computed) >= 6
    for name, expected in zip(computed, run_ort(model, x, computed), strict=True):
        got = graph.features(name, torch.from_numpy(x)).numpy()
        assert got.shape == expected.shape, name
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=name)
    for name in constants:
        np.testing.assert_array_equal(
            graph.features(name, torch.from_numpy(x)).numpy(), run_ort(model, x, [name])[0]
        )


def test_features_of_inputs_weights_and_unknown_names() -> None:
    graph = to_torch(small_net())
    x = torch.rand(2, 1, 8, 8)
    assert graph.features("x", x) is x
    assert graph.features("w", x).shape == (4, 1, 3, 3)
    with pytest.raises(KeyError, match="no tensor named 'nothing'"):
        graph.features("nothing", x)


def test_features_run_only_what_they_need() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["x", "impossible"], ["b"]),
    ]
    weights = {"impossible": np.array([7, 7])}
    graph = to_torch(build(nodes, {"x": ["N", 4]}, ["a", "b"], weights))
    assert graph.features("a", torch.ones(2, 4)).shape == (2, 4)
    with pytest.raises(UnsupportedModelError, match=r"node 'b' \(Reshape\) failed"):
        graph(torch.ones(2, 4))


def test_outputs_in_order_also_inputs_and_constants() -> None:
    nodes = [helper.make_node("Add", ["x", "one"], ["sum"])]
    graph = to_torch(build(nodes, {"x": [2]}, ["one", "sum", "x"], {"one": np.float32([1, 1])}))
    one, total, same = graph(torch.tensor([1.0, 2.0]))
    assert (one.tolist(), total.tolist(), same.tolist()) == ([1, 1], [2, 3], [1, 2])


def test_wrong_number_of_inputs() -> None:
    with pytest.raises(ValueError, match="expected 1 inputs, got 2"):
        to_torch(small_net())(torch.zeros(1, 1, 8, 8), torch.zeros(1))


def test_all_unsupported_operators_at_once() -> None:
    nodes = [
        helper.make_node("StringSplit", ["x"], ["a"]),
        helper.make_node("TfIdfVectorizer", ["x"], ["b"]),
        helper.make_node("TfIdfVectorizer", ["x"], ["c"]),
        helper.make_node("Relu", ["x"], ["d"]),
        helper.make_node("ZipMap", ["x"], ["e"], domain="ai.onnx.ml"),
        helper.make_node("Quant", ["x"], ["f"], domain="some.vendor"),
    ]
    model = build(nodes, {"x": [1]}, ["a"], imports={"ai.onnx.ml": 2})
    with pytest.raises(UnsupportedModelError) as caught:
        to_torch(model)
    assert caught.value.operators == (
        "StringSplit-17 (1)",
        "TfIdfVectorizer-17 (2)",
        "ai.onnx.ml.ZipMap-2 (1)",
        "some.vendor.Quant-? (1)",
    )
    assert all(line in str(caught.value) for line in caught.value.operators)


def test_operator_newer_than_the_models_operator_set() -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "x"], ["y"])]
    to_torch(build(nodes, {"x": [1]}, ["y"], opset=17))
    with pytest.raises(UnsupportedModelError, match=r"LayerNormalization-16 \(1\)"):
        to_torch(build(nodes, {"x": [1]}, ["y"], opset=16))


def test_operators_in_subgraphs_are_named_as_unsupported() -> None:
    inner = helper.make_graph([helper.make_node("StringSplit", ["x"], ["i"])], "inner", [], [])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    with pytest.raises(UnsupportedModelError, match=r"StringSplit-17 \(2\)"):
        to_torch(build(nodes, {"x": [1], "c": []}, ["y"]))


def test_a_files_own_function_never_passes_for_the_standard_operator() -> None:
    model = small_net()
    body = [helper.make_node("Neg", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, opsets))
    with pytest.raises(UnsupportedModelError, match=r"Relu-17 \(1\)"):
        to_torch(model)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"alpha": 0.1, "surprise": 1}, "unknown attribute surprise"),
        ({"alpha": "much"}, "failed"),
    ],
)
def test_nonsense_attributes(attributes: dict[str, object], message: str) -> None:
    node = helper.make_node("LeakyRelu", ["x"], ["y"], name="leak", **attributes)
    with pytest.raises(UnsupportedModelError, match=rf"'leak' \(LeakyRelu\).*{message}"):
        to_torch(build([node], {"x": [1]}, ["y"]))(torch.zeros(1))


def test_attribute_without_a_type() -> None:
    model = small_net()
    model.graph.node[5].attribute[0].type = onnx.AttributeProto.UNDEFINED
    with pytest.raises(UnsupportedModelError, match="transB has no type"):
        to_torch(model)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Conv", [], ["y"], name="bad"),
        helper.make_node("Conv", ["x", "", "x", "x", "x"], ["y"], name="bad"),
        helper.make_node("Relu", [""], ["y"], name="bad"),
        helper.make_node("Relu", ["x"], ["z", "y"], name="bad"),
        helper.make_node("Concat", ["x", "x"], ["y"], name="bad", axis=9),
    ],
)
def test_nonsense_inputs_and_outputs_name_the_node(node: onnx.NodeProto) -> None:
    with pytest.raises(UnsupportedModelError, match="node 'bad'"):
        to_torch(build([node], {"x": ["N", 1, 8, 8]}, ["y"]))(torch.zeros(1, 1, 8, 8))


def test_numbers_that_torch_can_not_hold() -> None:
    model = small_net()
    model.graph.initializer.append(
        TensorProto(name="coarse", data_type=TensorProto.FLOAT8E5M2, dims=[1], raw_data=b"0")
    )
    with pytest.raises(ModelFormatError, match="'coarse' can't be read"):
        to_torch(model)


def test_bfloat16_weights_are_read() -> None:
    model = build([helper.make_node("Identity", ["v"], ["y"])], {"x": [1]}, ["y"])
    model.graph.initializer.append(helper.make_tensor("v", TensorProto.BFLOAT16, [2], [1.5, -2]))
    (y,) = to_torch(model)(torch.zeros(1))
    assert y.dtype == torch.bfloat16
    assert y.tolist() == [1.5, -2]


def test_no_gradient_for_weights() -> None:
    graph = to_torch(small_net())
    assert list(graph.parameters()) == []
    assert not any(buffer.requires_grad for buffer in graph.buffers())
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    graph(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(buffer.grad is None for buffer in graph.buffers())


@pytest.mark.parametrize("make", [small_net, free_batch_transformer])
def test_gradient_is_the_finite_difference(make: Callable[[], onnx.ModelProto]) -> None:
    graph = to_torch(make()).double()
    torch.manual_seed(1)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: graph(t)[0], (x,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_compute_the_same_and_share_nothing(how: str) -> None:
    graph = to_torch(small_net())
    x = torch.rand(2, 1, 8, 8)
    expected = graph(x)[0]
    other: TorchGraph = (
        copy.deepcopy(graph) if how == "deepcopy" else pickle.loads(pickle.dumps(graph))
    )
    for buffer in graph.buffers():
        buffer.zero_()
    torch.testing.assert_close(other(x)[0], expected, rtol=0, atol=0)


def test_graphs_are_freed() -> None:
    graph = to_torch(small_net())
    graph(torch.rand(1, 1, 8, 8))
    trace = weakref.ref(graph)
    del graph
    gc.collect()
    assert trace() is None


def test_tensor_types() -> None:
    types = to_torch(free_batch_transformer()).tensor_types(torch.rand(2, 1, 8, 8))
    assert types["x"] == ((2, 1, 8, 8), torch.float32)
    assert any(kind.dtype == torch.int64 for kind in types.values())


def test_long_graphs_load_in_linear_time() -> None:
    count = 5_000
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    model = build(nodes[::-1], {"t0": [1]}, [f"t{count}"])
    assert to_torch(model)(torch.tensor([3.0]))[0].item() == 3


def test_constants_stay_with_their_type() -> None:
    weights = {"half": np.float16([1, 2]), "whole": np.int64([3, 4])}
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["h", "half"], ["y"]),
        helper.make_node("Identity", ["whole"], ["z"]),
    ]
    y, z = to_torch(build(nodes, {"x": [2]}, ["y", "z"], weights))(torch.zeros(2))
    assert (y.dtype, z.dtype) == (torch.float16, torch.int64)
    assert (y.tolist(), z.tolist()) == ([1, 2], [3, 4])


def test_building_leaves_the_model_alone() -> None:
    model = small_net()
    before = model.SerializeToString(deterministic=True)
    graph_of(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_result_takes_the_place_of_nothing_that_is_read_again() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),  # a is read again
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),  # c is an output
        helper.make_node("Conv", ["d", "w"], ["e"]),
        helper.make_node("Add", ["e", "d"], ["f"]),  # into e
        helper.make_node("Clip", ["f", "low", "high"], ["g"]),  # into f
        helper.make_node("Add", ["g", "wide"], ["y"]),  # of another shape
    ]
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(3, 3, 1, 1)).astype(np.float32),
        "wide": rng.normal(size=(2, 1, 3, 4, 4)).astype(np.float32),
        "low": np.float32(-0.5),
        "high": np.float32(0.5),
    }
    model = build(nodes, {"x": ["N", 3, 4, 4]}, ["y", "c"], weights)
    graph = to_torch(model)
    x = images(2, 3, 4, 4) - np.float32(0.5)
    kept = torch.from_numpy(x.copy())
    for got, expected in zip(graph(kept), run_ort(model, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept.numpy(), x)
    for name in "abcdefg":
        got = graph.features(name, kept).numpy()
        np.testing.assert_allclose(got, run_ort(model, x, [name])[0], rtol=1e-5, atol=1e-6)
    double = graph.double()
    point = torch.from_numpy(x[:1]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: double(t)[0], (point,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("op_type", ["Relu", "Clip", "Add"])
def test_no_operator_runs_on_an_input_that_a_kernel_has_spoiled(
    op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_half_way(x: torch.Tensor, *_: object) -> torch.Tensor:
        x.zero_()
        raise RuntimeError("out of luck")

    for owner, name in ((torch, "relu_"), (F, "hardtanh_"), (torch.Tensor, "add_")):
        monkeypatch.setattr(owner, name, fails_half_way)
    more = {"Relu": [], "Clip": ["low", "high"], "Add": ["x"]}[op_type]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node(op_type, ["a", *more], ["y"], name="last"),
    ]
    weights = {"w": np.ones((1, 1, 1, 1)), "low": np.array(-1), "high": np.array(1)}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    graph = to_torch(build(nodes, {"x": ["N", 1, 2, 2]}, ["y"], weights))
    message = rf"'last' \({op_type}\) failed: failed while it overwrote its input: out of luck"
    with pytest.raises(UnsupportedModelError, match=message):
        graph(torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("op_type", ["Relu", "Clip", "Add"])
def test_integers_where_kernels_want_floats(op_type: str) -> None:
    more = {"Relu": [], "Clip": ["low", "high"], "Add": ["x"]}[op_type]
    nodes = [
        helper.make_node("Add", ["x", "low"], ["a"]),
        helper.make_node(op_type, ["a", *more], ["y"]),
    ]
    weights = {"low": np.int32(-1), "high": np.int32(5)}
    model = build(nodes, {"x": [4]}, ["y"], weights, elem_type=TensorProto.INT32)
    x = np.int32([-7, 0, 3, 9])
    np.testing.assert_array_equal(to_torch(model)(torch.from_numpy(x))[0], run_ort(model, x)[0])


@pytest.mark.parametrize("pads", [[2**20] * 4, [2**20, 2**20, 2**20, 2**20 + 1], [2**14] * 4])
def test_no_convolution_begins_whose_result_is_too_large(
    pads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> torch.Tensor:
        pytest.fail("it was begun")

    monkeypatch.setitem(kernels._CONV, 4, forbidden)
    monkeypatch.setitem(linear._CONV, 2, forbidden)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="wide", pads=pads)]
    model = build(nodes, {"x": ["N", 1, 8, 8]}, ["y"], {"w": np.ones((3, 1, 3, 3), np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"'wide' .* the limit is") as caught:
        to_torch(model)(torch.ones(1, 1, 8, 8))
    assert caught.value.reason == "result_too_large"


@pytest.mark.parametrize("fixed", [True, False])
def test_clip_with_known_and_with_computed_bounds(fixed: bool) -> None:
    bounds = [helper.make_node("Abs", ["zero" if fixed else "x"], ["unused"])]
    if not fixed:
        bounds = [
            helper.make_node("ReduceMin", ["x"], ["low"], keepdims=0),
            helper.make_node("Abs", ["low"], ["high"]),
        ]
    clip = helper.make_node("Clip", ["x", "low", "high"], ["y"])
    weights = {"zero": np.float32(0)}
    weights |= {"low": np.float32(-1), "high": np.float32(2)} if fixed else {}
    model = build([*bounds, clip], {"x": [7]}, ["y"], weights)
    x = np.float32([-3, -1, 0, 1.5, 2, 4, np.nan])
    if not fixed:
        x[-1] = 0.5
    (got,) = to_torch(model)(torch.from_numpy(x))
    np.testing.assert_array_equal(got.numpy(), run_ort(model, x)[0])


def test_images_of_the_wrong_rank_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"node 'conv' \(Conv\) failed: .*rank 3"):
        to_torch(small_net())(torch.zeros(1, 8, 8))


def two_convolutions() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["c", "v"], ["d"], group=2),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Gemm", ["e", "fc"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 1, 3, 3), "v": (6, 2, 1, 1), "fc": (54, 5)}
    weights = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    weights["shape"] = np.array([0, -1])
    return build(nodes, {"x": ["N", 1, 6, 6]}, ["y"], weights)


def test_channels_last_changes_no_result() -> None:
    model = two_convolutions()
    graph = to_torch(model)
    assert graph.constant("w").stride() == (9, 1, 3, 1)
    x = images(3, 1, 6, 6)
    for name in "abcdey":
        got = graph.features(name, torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, run_ort(model, x, [name])[0], rtol=1e-4, atol=1e-5)
    assert graph.features("a", torch.from_numpy(x)).is_contiguous(memory_format=torch.channels_last)
    again: TorchGraph = pickle.loads(pickle.dumps(graph))
    for other in (again, copy.deepcopy(graph), graph.to(torch.float64)):
        assert other.constant("w").stride() == (9, 1, 3, 1)


def test_one_convolution_keeps_its_layout() -> None:
    assert to_torch(small_net()).constant("w").is_contiguous()


def test_types_of_tensors_that_are_copies() -> None:
    nodes = [
        helper.make_node("Dropout", ["x"], ["same"]),
        helper.make_node("Relu", ["same"], ["y"]),
    ]
    graph = to_torch(build(nodes, {"x": [2, 3]}, ["y"]))
    assert [i.op_type for i in graph.fast_instructions] == ["Relu"]
    assert graph.tensor_types(torch.zeros(2, 3))["same"] == ((2, 3), torch.float32)
    assert graph.features("same", torch.ones(2, 3)).sum() == 6


def test_torch_compile_can_follow_the_whole_graph() -> None:
    graph = to_torch(two_convolutions())
    compiled = graph.compiled(backend="eager")  # traces all, and needs no compiler
    x = torch.rand(2, 1, 6, 6, requires_grad=True)
    results = [run(x)[0] for run in (compiled, graph)]
    assert compiled.in_use
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)
    with pytest.raises(UnsupportedModelError, match="Conv"):
        compiled(torch.zeros(2, 2, 6, 6))
    assert compiled.in_use  # it was the input that was wrong


def test_runs_uncompiled_where_compiling_fails() -> None:
    def no_compiler(*_: object) -> None:
        raise RuntimeError("no working C++ compiler found")

    graph = to_torch(two_convolutions())
    compiled = graph.compiled(backend=no_compiler)
    x = torch.rand(2, 1, 6, 6)
    with pytest.warns(RuntimeWarning, match="runs uncompiled: .*no working C"):
        (y,) = compiled(x)
    torch.testing.assert_close(y, graph(x)[0])
    assert not compiled.in_use
    torch.testing.assert_close(compiled(x)[0], y)


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_as_it_was(was_on: bool) -> None:
    @collector_off()
    def fail() -> None:
        assert not gc.isenabled()
        raise ZeroDivisionError

    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ZeroDivisionError):
            fail()
        assert gc.isenabled() == was_on
    finally:
        gc.enable()


def test_an_attribute_of_a_wrong_type_is_refused_by_name() -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="odd")
    wrong = helper.make_attribute("kernel_shape", onnx.TypeProto())
    conv.attribute.append(wrong)
    model = build([conv], {"x": ["N", 1, 2, 2]}, ["y"], {"w": np.ones((1, 1, 1, 1), np.float32)})
    with pytest.raises(UnsupportedModelError, match="odd"):
        to_torch(model)(torch.ones(1, 1, 2, 2))


def test_complex_numbers_are_no_shape() -> None:
    reshape = helper.make_node("Reshape", ["x", "shape"], ["y"], name="odd")
    model = build([reshape], {"x": ["N", 4]}, ["y"], {"shape": np.array([2, 2], np.complex64)})
    with pytest.raises(UnsupportedModelError, match="odd"):
        to_torch(model)(torch.ones(1, 4))
