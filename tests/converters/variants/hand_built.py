"""Odd but legal graphs, node by node, and all that are built so by name."""

from __future__ import annotations

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch.nn import functional as F

from tests.converters.onnx_models import build
from tests.converters.variants.building import HandBuilt, random_weights, tensors
from tests.converters.variants.frameworks import (
    before_opset_7,
    caffe2,
    cntk,
    mxnet,
    paddle,
    tensorflow,
)
from tests.converters.variants.nets import CLASSES, SHAPE


def computed_weights() -> HandBuilt:
    """Weights through Identity, Transpose, Mul, ConstantOfShape, DequantizeLinear and Cast."""
    w = random_weights(12, conv=(8, 3, 3, 3), flipped=(5, 5, 8, 8), fc=(8, CLASSES))
    rng = np.random.default_rng(13)
    w |= {
        "bytes": rng.integers(-100, 100, (8, 8, 1, 1)).astype(np.int8),
        "steps": rng.uniform(0.002, 0.01, 8).astype(np.float32),
        "zeros": np.zeros(8, np.int8),
        "half": w["fc"].astype(np.float16),
        "gain": np.float32([1.7]),
        "ten": np.int64([CLASSES]),
    }
    tenth = numpy_helper.from_array(np.float32([0.1]))
    nodes = [
        helper.make_node("Identity", ["conv"], ["same"]),
        helper.make_node("Mul", ["same", "gain"], ["w0"]),
        helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Transpose", ["flipped"], ["w1"], perm=[3, 2, 0, 1]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], strides=[2, 2]),
        helper.make_node("DequantizeLinear", ["bytes", "steps", "zeros"], ["w2"], axis=0),
        helper.make_node("Conv", ["c1", "w2"], ["c2"]),
        helper.make_node("Tanh", ["c2"], ["t2"]),
        helper.make_node("GlobalAveragePool", ["t2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Cast", ["half"], ["w3"], to=TensorProto.FLOAT),
        helper.make_node("ConstantOfShape", ["ten"], ["b3"], value=tenth),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"]),
    ]
    model = build(nodes, {"x": ("N", *SHAPE)}, ["y"], w, opset=13)
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(F.conv2d(x, t["conv"] * t["gain"], padding=1))
        x = F.conv2d(x, t["flipped"].permute(3, 2, 0, 1), stride=2)
        x = torch.tanh(F.conv2d(x, t["bytes"] * t["steps"].reshape(8, 1, 1, 1)))
        return x.mean((2, 3)) @ t["half"] + 0.1

    return HandBuilt(model, truth)


def flat_input() -> HandBuilt:
    """A perceptron of [N, 784] images, in Keras' way; the gradient only by finite differences."""
    w = random_weights(14, w0=(32, 784), b0=(32,), w1=(CLASSES, 32), b1=(CLASSES,))
    nodes = [
        helper.make_node("Gemm", ["dense_input", "w0", "b0"], ["h0"], transB=1, alpha=2.0),
        helper.make_node("Elu", ["h0"], ["h1"], alpha=0.5),
        helper.make_node("Gemm", ["h1", "w1", "b1"], ["h2"], transB=1),
        helper.make_node("Sigmoid", ["h2"], ["y"]),
    ]
    model = build(nodes, {"dense_input": ("N", 784)}, ["y"], w)
    pixels = np.random.default_rng(15).random((8, 784)).astype(np.float32)
    return HandBuilt(model, None, pixels, "sigmoid")


def if_node(condition: bool) -> HandBuilt:
    """A constant If around the head, as torch.jit.script leaves it; no other truth at hand."""
    w = random_weights(16, conv=(8, 3, 3, 3), fc=(CLASSES, 8))
    branches = {}
    for name, op_type in (("then_branch", "Tanh"), ("else_branch", "Softplus")):
        result = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        node = helper.make_node(op_type, ["flat"], [f"{name}_y"])
        branches[name] = helper.make_graph([node], name, [], [result])
    constant = numpy_helper.from_array(np.array(condition))
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Constant", [], ["condition"], value=constant),
        helper.make_node("If", ["condition"], ["h"], **branches),
        helper.make_node("Gemm", ["h", "fc"], ["y"], transB=1),
    ]
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(F.conv2d(x, t["conv"], stride=2)).mean((2, 3))
        return (torch.tanh(x) if condition else F.softplus(x)) @ t["fc"].T

    return HandBuilt(build(nodes, {"x": ("N", *SHAPE)}, ["y"], w), truth)


def local_function() -> HandBuilt:
    """A function of the model's own, used twice, that bears a standard operator's attributes."""
    w = random_weights(17, conv=(8, 3, 3, 3), second=(8, 8, 1, 1), fc=(CLASSES, 8))
    body = [
        helper.make_node("Conv", ["a", "k"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["out"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    block = helper.make_function("vendor.blocks", "Block", ["a", "k"], ["out"], body, opsets)
    nodes: list[NodeProto] = [
        helper.make_node("Block", ["x", "conv"], ["h0"], domain="vendor.blocks"),
        helper.make_node("Block", ["h0", "second"], ["h1"], domain="vendor.blocks"),
        helper.make_node("GlobalAveragePool", ["h1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc"], ["y"], transB=1),
    ]
    model = build(nodes, {"x": ("N", *SHAPE)}, ["y"], w, imports={"vendor.blocks": 1})
    model.functions.append(block)
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = F.silu(F.conv2d(x, t["conv"]))
        x = F.silu(F.conv2d(x, t["second"]))
        return x.mean((2, 3)) @ t["fc"].T

    return HandBuilt(model, truth)


HAND_BUILT = {
    "tf2onnx uint8 NHWC": lambda: tensorflow("uint8"),
    "tf2onnx float NHWC": lambda: tensorflow("float"),
    "MXNet opset 7": lambda: mxnet(7),
    "MXNet opset 8": lambda: mxnet(8),
    "before opset 7": lambda: before_opset_7("N"),
    "before opset 7, batch 1": lambda: before_opset_7(1),
    "CNTK opset 7": lambda: cntk(7),
    "CNTK opset 9": lambda: cntk(9),
    "Caffe2 IR 3": caffe2,
    "Paddle": paddle,
    "computed weights": computed_weights,
    "flat input": flat_input,
    "If, true": lambda: if_node(True),
    "If, false": lambda: if_node(False),
    "local functions": local_function,
}
