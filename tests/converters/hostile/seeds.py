"""Small honest models that a fuzzer starts from, made at run time, and the shipped ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.conftest import ROOT
from tests.converters.onnx_models import build, fixed_reshape, node, small_net, small_nodes
from tests.converters.onnx_models import small_weights as weights


@dataclass(frozen=True)
class Seed:
    """An honest model.

    Attributes:
        data: the file's bytes.
        weights: of the file `weights.bin` beside it, which only some read.
    """

    name: str
    data: bytes
    weights: bytes = b""


@functools.cache
def seeds() -> list[Seed]:
    """All of them."""
    made = {
        "cnn": small_net(),
        "softmax": small_net(node("Softmax", "logits", "p"), output="p"),
        "fixed_batch": fixed_reshape(shape=np.array([1, 4], np.int64)),
        "bytes_nhwc": _bytes_nhwc(),
        "qdq": _qdq(),
        "qlinear": _qlinear(),
        "branches": _branches(),
        "loop": _loop(),
        "function": _function(),
        "fused": _fused(),
        "shapes": _shapes(),
        "pools": _pools(),
    }
    pool = [Seed(name, model.SerializeToString()) for name, model in made.items()]
    pool.append(_external())
    pool.append(Seed("lenet5", (ROOT / "fixtures/models/mnist_lenet5_clean.onnx").read_bytes()))
    return pool


def _net(
    nodes: Sequence[NodeProto],
    more: dict[str, np.ndarray],
    imports: dict[str, int] | None = None,
) -> onnx.ModelProto:
    shape = {"x": ("N", 1, 8, 8)}
    return build(nodes, shape, ["logits"], weights() | more, imports=imports)


def _bytes_nhwc() -> onnx.ModelProto:
    head = [
        node("Cast", "image", "float", to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "range"], ["scaled"]),
        node("Transpose", "scaled", "x", perm=[0, 3, 1, 2]),
    ]
    return build(
        [*head, *small_nodes()],
        {"image": ("N", 8, 8, 1)},
        ["logits"],
        weights() | {"range": np.float32(255)},
        elem_type=TensorProto.UINT8,
    )


_SCALE = {"scale": np.array(0.05, np.float32), "zero": np.array(128, np.uint8)}


def _qdq() -> onnx.ModelProto:
    nodes = small_nodes()
    nodes[2].output[0] = "raw"
    pair = [
        helper.make_node("QuantizeLinear", ["raw", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["act"]),
    ]
    return _net([*nodes[:3], *pair, *nodes[3:]], _SCALE)


def _qlinear() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    more = {
        "wq": rng.integers(0, 255, (4, 1, 3, 3)).astype(np.uint8),
        "ws": np.array(0.02, np.float32),
        "wz": np.array(120, np.uint8),
    }
    names = ["xq", "scale", "zero", "wq", "ws", "wz", "scale", "zero"]
    head = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("QLinearConv", names, ["cq"], pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["cq", "scale", "zero"], ["act"]),
    ]
    return _net([*head, *small_nodes()[3:]], _SCALE | more)


def _branch(operator: str) -> onnx.GraphProto:
    graph = helper.make_graph([node(operator, "norm", "b_" + operator)], operator, [], [])
    graph.output.append(helper.make_tensor_value_info("b_" + operator, TensorProto.FLOAT, None))
    return graph


def _branches() -> onnx.ModelProto:
    nodes = small_nodes()
    nodes[2] = helper.make_node(
        "If", ["yes"], ["act"], then_branch=_branch("Relu"), else_branch=_branch("Tanh")
    )
    return _net(nodes, {"yes": np.array(True)})


def _loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", "go", "still"), node("Tanh", "state", "next")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = small_nodes()
    nodes[2] = helper.make_node("Loop", ["trips", "yes", "norm"], ["act"], body=body)
    return _net(nodes, {"trips": np.array(3, np.int64), "yes": np.array(True)})


def _function() -> onnx.ModelProto:
    body = [node("Sigmoid", "a", "s"), helper.make_node("Mul", ["a", "s"], ["b"])]
    imports = [helper.make_opsetid("", 17)]
    nodes = small_nodes()
    nodes[2] = helper.make_node("Swish", ["norm"], ["act"], domain="own")
    model = _net(nodes, {}, imports={"own": 1})
    model.functions.append(helper.make_function("own", "Swish", ["a"], ["b"], body, imports))
    return model


def _fused() -> onnx.ModelProto:
    nodes = small_nodes()
    nodes[0] = helper.make_node(
        "FusedConv", ["x", "w", "b"], ["conv"], domain="com.microsoft",
        activation="Relu", pads=[1, 1, 1, 1],
    )  # fmt: skip
    nodes[2] = helper.make_node("Gelu", ["norm"], ["act"], domain="com.microsoft")
    return _net(nodes, {}, imports={"com.microsoft": 1})


def _shapes() -> onnx.ModelProto:
    nodes = small_nodes()
    nodes[4:5] = [
        node("Shape", "pooled", "sizes"),
        helper.make_node("Gather", ["sizes", "first"], ["count"]),
        helper.make_node("Concat", ["count", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
    ]
    return _net(nodes, {"first": np.array([0]), "rest": np.array([-1])})


def _pools() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        node("MaxPool", "padded", "most", kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Resize", ["most", "", "scales"], ["wide"], mode="linear"),
        node("AveragePool", "wide", "x2", kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
        helper.make_node("Slice", ["x2", "from", "to", "axes"], ["x3"]),
        *small_nodes(),
    ]
    nodes[5].input[0] = "x3"
    more = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "from": np.array([0, 0]),
        "to": np.array([6, 6]),
        "axes": np.array([2, 3]),
    }
    return _net(nodes, more)


def _external() -> Seed:
    model = small_net()
    tensor = next(t for t in model.graph.initializer if t.name == "w")
    data = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "0", "length": str(len(data))}.items():
        tensor.external_data.add(key=key, value=value)
    return Seed("external", model.SerializeToString(), data)
