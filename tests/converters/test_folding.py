from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import NodeProto, TensorProto, helper, numpy_helper

from converters import TorchGraph, to_torch
from tests.converters.onnx_models import (
    build,
    images,
    run_ort,
    small_net,
    small_nodes,
    small_weights,
)


def operators(graph: TorchGraph) -> Counter[str]:
    """What a run over the graph's outputs calls."""
    return Counter(instruction.op_type for instruction in graph.fast_instructions)


def conv_norm(
    transposed: bool = False,
    opset: int = 17,
    extra: list[NodeProto] | None = None,
    **attributes: float,
) -> onnx.ModelProto:
    nodes = small_nodes()[:2]
    if transposed:
        nodes[0].op_type = "ConvTranspose"
    nodes[1].attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    outputs = ["norm"]
    weights = {n: small_weights()[n] for n in ("w", "b", "gamma", "beta", "mean", "var")}
    return build([*nodes, *(extra or [])], {"x": ["N", 1, 6, 6]}, outputs, weights, opset=opset)


def test_batch_normalization_behind_conv_is_folded_exactly() -> None:
    graph = to_torch(conv_norm(epsilon=0.01))
    assert operators(graph) == Counter(Conv=1)
    x = torch.from_numpy(images(3, 1, 6, 6))
    w = {name: torch.from_numpy(value).double() for name, value in small_weights().items()}
    conv = F.conv2d(x.double(), w["w"], w["b"], padding=1)
    per_channel = {n: w[n].reshape(1, -1, 1, 1) for n in ("gamma", "beta", "mean", "var")}
    expected = (conv - per_channel["mean"]) / (per_channel["var"] + 0.01) ** 0.5
    expected = expected * per_channel["gamma"] + per_channel["beta"]
    torch.testing.assert_close(graph(x)[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_folding_in_double_precision_changes_nothing() -> None:
    model = conv_norm()
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    graph = to_torch(model)
    x = torch.from_numpy(images(2, 1, 6, 6)).double()
    slow = TorchGraph(
        graph.instructions,
        {name: graph.constant(name) for name in graph.constant_names},
        graph.input_names,
        graph.output_names,
    )
    assert operators(slow) == Counter(Conv=1, BatchNormalization=1)
    torch.testing.assert_close(graph(x)[0], slow(x)[0], rtol=1e-12, atol=1e-12)


def test_conv_without_bias_is_folded() -> None:
    model = conv_norm()
    del model.graph.node[0].input[2]
    graph = to_torch(model)
    x = images(2, 1, 6, 6)
    assert operators(graph) == Counter(Conv=1)
    np.testing.assert_allclose(graph(torch.from_numpy(x))[0], run_ort(model, x)[0], atol=1e-5)


def test_tensors_that_folding_removes_are_still_features() -> None:
    model = small_net()
    graph = to_torch(model)
    assert operators(graph)["BatchNormalization"] == 0
    x = images(2, 1, 8, 8)
    for name in ("conv", "norm"):
        got = graph.features(name, torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, run_ort(model, x, [name])[0], rtol=1e-5, atol=1e-5)


def second_reader() -> onnx.ModelProto:
    return conv_norm(extra=[helper.make_node("Relu", ["conv"], ["other"])])


def conv_is_an_output() -> onnx.ModelProto:
    model = conv_norm()
    model.graph.output.add(name="conv")
    return model


def scale_from_the_image() -> onnx.ModelProto:
    model = conv_norm()
    model.graph.node[1].input[1] = "scale"
    model.graph.node.insert(0, helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0))
    model.graph.node.insert(1, helper.make_node("Mul", ["gamma", "m"], ["scale"]))
    return model


@pytest.mark.parametrize("make", [second_reader, conv_is_an_output, scale_from_the_image])
def test_not_folded_where_that_would_change_something(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    graph = to_torch(model)
    assert operators(graph)["BatchNormalization"] == 1
    x = images(2, 1, 6, 6)
    for got, expected in zip(graph(torch.from_numpy(x)), run_ort(model, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def layer(op_type: str, *names: str, **attributes: object) -> NodeProto:
    return helper.make_node(op_type, ["x", *names], ["layer"], **attributes)


def norm(source: str, result: str) -> NodeProto:
    return helper.make_node(
        "BatchNormalization", [source, "gamma", "beta", "mean", "var"], [result], epsilon=0.01
    )


def channel_weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Statistics of 4 channels, and further weights of these shapes."""
    rng = np.random.default_rng(1)
    weights = {n: rng.uniform(0.5, 2, 4) for n in ("gamma", "beta", "mean", "var", "bias")}
    weights |= {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return {name: np.asarray(value, np.float32) for name, value in weights.items()}


@pytest.mark.parametrize(
    ("node", "shape", "weight"),
    [
        (layer("ConvTranspose", "w"), (2, 6, 6), (2, 4, 3, 3)),
        (layer("ConvTranspose", "w", "bias", group=2, strides=[2, 2]), (2, 6, 6), (2, 2, 3, 3)),
        (layer("Conv", "w", "bias", group=2), (2, 6, 6), (4, 1, 3, 3)),
        (layer("Conv", "w"), (2, 9), (4, 2, 3)),
        (layer("Gemm", "w", "bias"), (3,), (3, 4)),
        (layer("Gemm", "w", "bias", transB=1, alpha=0.5, beta=2.0), (3,), (4, 3)),
        (layer("Gemm", "w"), (3,), (3, 4)),
        (layer("Gemm", "w", "one", beta=3.0), (3,), (3, 4)),
    ],
)
def test_batch_normalization_behind_other_layers(
    node: NodeProto, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    weights = channel_weights(w=weight, one=(1, 1))
    model = build([node, norm("layer", "y")], {"x": ["N", *shape]}, ["y"], weights)
    graph = to_torch(model)
    assert operators(graph) == Counter({node.op_type: 1})
    x = images(2, *shape)
    got = graph(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(got, run_ort(model, x)[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        graph.features("layer", torch.from_numpy(x)).numpy(),
        run_ort(model, x, ["layer"])[0],
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_chain_of_scales_and_shifts_becomes_one_convolution() -> None:
    nodes = [
        layer("Conv", "w"),
        helper.make_node("Identity", ["layer"], ["same"]),
        norm("same", "n"),
        helper.make_node("Mul", ["n", "by_channel"], ["m"]),
        helper.make_node("Sub", ["number", "m"], ["s"]),
        helper.make_node("Div", ["s", "by_channel"], ["d"]),
        helper.make_node("Dropout", ["d"], ["dropped"]),
        helper.make_node("Add", ["by_channel", "dropped"], ["a"]),
        helper.make_node("Sub", ["a", "number"], ["y"]),
    ]
    weights = channel_weights(w=(4, 2, 3, 3), by_channel=(4, 1, 1), number=())
    model = build(nodes, {"x": ["N", 2, 6, 6]}, ["y"], weights)
    graph = to_torch(model)
    assert operators(graph) == Counter(Conv=1)
    x = images(2, 2, 6, 6)
    for name in ("y", "dropped", "s", "same"):
        got = graph.features(name, torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, run_ort(model, x, [name])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op_type", "names", "shape"),
    [
        ("Mul", ("layer", "v"), (4,)),  # along the width, which is 4 as well
        ("Mul", ("layer", "v"), (4, 4)),
        ("Add", ("layer", "v"), (2, 1, 4, 1, 1)),  # a result of higher rank
        ("Add", ("layer", "layer"), (1,)),
        ("Div", ("v", "layer"), (4, 1, 1)),
        ("Max", ("layer", "v"), (4, 1, 1)),
    ],
)
def test_other_arithmetic_stays(op_type: str, names: tuple[str, ...], shape: tuple[int]) -> None:
    nodes = [layer("Conv", "w"), helper.make_node(op_type, names, ["y"])]
    weights = channel_weights(w=(4, 2, 3, 3), v=shape)
    model = build(nodes, {"x": ["N", 2, 6, 6]}, ["y"], weights)
    graph = to_torch(model)
    assert operators(graph) == Counter({"Conv": 1, op_type: 1})
    x = images(2, 2, 6, 6)
    got = graph(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(got, run_ort(model, x)[0], rtol=1e-3, atol=1e-5)


def test_division_by_zero_is_not_folded() -> None:
    nodes = [layer("Conv", "w"), helper.make_node("Div", ["layer", "v"], ["y"])]
    weights = channel_weights(w=(4, 2, 3, 3)) | {"v": np.zeros((4, 1, 1), np.float32)}
    graph = to_torch(build(nodes, {"x": ["N", 2, 6, 6]}, ["y"], weights))
    assert operators(graph) == Counter(Conv=1, Div=1)


def test_parameters_of_each_example_are_not_folded() -> None:
    model = conv_norm(opset=7)
    attribute = helper.make_attribute("spatial", 0)
    model.graph.node[1].attribute.append(attribute)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name in ("gamma", "beta", "mean", "var"):
            value = rng.uniform(1, 2, (4, 6, 6)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    graph = to_torch(model)
    assert operators(graph)["BatchNormalization"] == 1
    assert graph(torch.rand(2, 1, 6, 6))[0].shape == (2, 4, 6, 6)


def test_folded_weights_take_no_name_that_the_file_uses() -> None:
    decoy = helper.make_node("Add", ["norm", "norm/folded_weight"], ["sum"])
    model = conv_norm(extra=[decoy])
    value = np.full((4, 1, 1), 7, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(value, "norm/folded_weight"))
    model.graph.output.add(name="sum")
    graph = to_torch(model)
    assert operators(graph)["BatchNormalization"] == 0
    x = images(2, 1, 6, 6)
    for got, expected in zip(graph(torch.from_numpy(x)), run_ort(model, x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_constants_are_computed_once() -> None:
    seven = helper.make_tensor("", TensorProto.FLOAT, [1], [7])
    nodes = [
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["same", "two"], ["twice"]),
        helper.make_node("Shape", ["twice"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["sevens"], value=seven),
        helper.make_node("Add", ["twice", "sevens"], ["sum"]),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    model = build(nodes, {"x": ["N", 3]}, ["y"], {"w": np.float32([1, 2, 3])})
    graph = to_torch(model)
    assert [i.op_type for i in graph.instructions] == ["Add"]
    assert graph.constant("sum").tolist() == [9, 11, 13]
    assert graph.constant("shape").tolist() == [3]
    assert graph(torch.zeros(1, 3))[0].tolist() == [[9, 11, 13]]


def test_outputs_that_no_input_influences() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Neg", ["w"], ["z"]),
    ]
    graph = to_torch(build(nodes, {"x": [2]}, ["y", "z"], {"w": np.float32([1, 2])}))
    assert graph(torch.zeros(2))[1].tolist() == [-1, -2]
