"""Graphs as exporters write them that are not at hand here, with the same networks in torch.

Sources: the exporters' documentation and the third-party files that they are known by.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from tests.converters.onnx_models import build
from tests.converters.variants.building import (
    HandBuilt,
    as_inputs,
    batch_norm,
    normalization,
    random_weights,
    tensors,
)
from tests.converters.variants.nets import CLASSES, SHAPE, patterns


def tensorflow(pixels: str) -> HandBuilt:
    """tf2onnx: NHWC, SAME_UPPER, explicit Pad, unfused normalization, MatMul and Add.

    Args:
        pixels: "uint8" with preprocessing in the graph, or "float".
    """
    w = random_weights(1, conv=(8, 3, 3, 3), depth=(8, 1, 3, 3), fc=(CLASSES, 8), bias=(CLASSES,))
    w |= normalization(8, seed=2) | {"fc": np.ascontiguousarray(w["fc"].T)}
    w |= {"centre": np.float32([0.5, 0.4, 0.3]), "spread": np.float32([0.2, 0.3, 0.25])}
    w |= {"full": np.float32(255), "back": np.int64([-1, 8])}
    w |= {"pads": np.int64([0, 0, 0, 0, 0, 0, 1, 1])}
    norm = ["gamma", "beta", "mean", "var"]
    begin = [
        helper.make_node("Cast", ["image"], ["net/Cast:0"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["net/Cast:0", "full"], ["net/truediv:0"]),
        helper.make_node("Sub", ["net/truediv:0", "centre"], ["net/sub:0"]),
        helper.make_node("Div", ["net/sub:0", "spread"], ["net/scaled:0"]),
    ]
    first = "net/scaled:0" if pixels == "uint8" else "image"
    nodes = [
        *(begin if pixels == "uint8" else []),
        helper.make_node("Transpose", [first], ["net/t:0"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["net/t:0", "conv"], ["net/Conv2D:0"], auto_pad="SAME_UPPER", strides=[2, 2]
        ),
        helper.make_node("BatchNormalization", ["net/Conv2D:0", *norm], ["net/bn:0"], epsilon=1e-3),
        helper.make_node("Transpose", ["net/bn:0"], ["net/nhwc:0"], perm=[0, 2, 3, 1]),
        helper.make_node("Clip", ["net/nhwc:0", "low", "six"], ["net/Relu6:0"]),
        helper.make_node("Transpose", ["net/Relu6:0"], ["net/nchw:0"], perm=[0, 3, 1, 2]),
        helper.make_node("Pad", ["net/nchw:0", "pads"], ["net/Pad:0"]),
        helper.make_node(
            "Conv", ["net/Pad:0", "depth"], ["net/depthwise:0"], group=8, strides=[2, 2]
        ),
        helper.make_node("Transpose", ["net/depthwise:0"], ["net/last:0"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["net/last:0"], ["net/Mean:0"], axes=[1, 2], keepdims=1),
        helper.make_node("Squeeze", ["net/Mean:0", "hw"], ["net/Squeeze:0"]),
        helper.make_node("Reshape", ["net/Squeeze:0", "back"], ["net/flat:0"]),
        helper.make_node("MatMul", ["net/flat:0", "fc"], ["net/MatMul:0"]),
        helper.make_node("Add", ["net/MatMul:0", "bias"], ["net/BiasAdd:0"]),
        helper.make_node("Softmax", ["net/BiasAdd:0"], ["net/Softmax:0"]),
        helper.make_node("ArgMax", ["net/Softmax:0"], ["classes"], axis=1, keepdims=0),
        helper.make_node("Identity", ["net/Softmax:0"], ["probabilities"]),
    ]
    w |= {"low": np.float32(0), "six": np.float32(6), "hw": np.int64([1, 2])}
    kind = TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    model = build(
        nodes,
        {"image": ("unk__7", 16, 16, 3)},
        ["classes", "probabilities"],
        w,
        elem_type=kind,
        opset=13,
    )
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = (x / 255 - t["centre"]) / t["spread"] if pixels == "uint8" else x
        x = F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))
        x = batch_norm(F.conv2d(x, t["conv"], stride=2), t, 1e-3).clamp(0, 6)
        x = F.conv2d(F.pad(x, (0, 1, 0, 1)), t["depth"], stride=2, groups=8)
        return x.mean((2, 3)) @ t["fc"] + t["bias"]

    images = np.ascontiguousarray(patterns(8, seed=9).transpose(0, 2, 3, 1))
    images = np.rint(images * 255).astype(np.uint8) if pixels == "uint8" else images
    return HandBuilt(model, truth, images, "softmax")


def mxnet(opset: int) -> HandBuilt:
    """MXNet: constants for the preprocessing, fix_gamma, LRN, Dropout-7, Softmax that flattens."""
    w = random_weights(3, conv0_weight=(8, 3, 3, 3), conv0_bias=(8,), fc_weight=(CLASSES, 128))
    w |= random_weights(4, fc_bias=(CLASSES,)) | normalization(8, seed=5)
    w |= {"gamma": np.ones(8, np.float32), "mean_rgb": np.full((1, 3, 1, 1), 0.4, np.float32)}
    w |= {"rate": np.float32([3])}
    norm = ["gamma", "beta", "mean", "var"]
    nodes = [
        helper.make_node("Sub", ["data", "mean_rgb"], ["centred"]),
        helper.make_node("Mul", ["centred", "rate"], ["scaled"]),
        helper.make_node(
            "Conv",
            ["scaled", "conv0_weight", "conv0_bias"],
            ["conv0"],
            pads=[1, 1, 1, 1],
            kernel_shape=[3, 3],
            strides=[1, 1],
            dilations=[1, 1],
            group=1,
        ),
        helper.make_node(
            "BatchNormalization", ["conv0", *norm], ["bn0"], epsilon=2e-5, momentum=0.9
        ),
        helper.make_node("Relu", ["bn0"], ["relu0"], name="relu0"),
        helper.make_node("LRN", ["relu0"], ["lrn0"], size=5, alpha=0.1, beta=0.75, bias=2.0),
        helper.make_node(
            "MaxPool", ["lrn0"], ["pool0"], kernel_shape=[4, 4], strides=[4, 4], pads=[0, 0, 0, 0]
        ),
        helper.make_node("Flatten", ["pool0"], ["flat"]),
        helper.make_node("Dropout", ["flat"], ["dropped"], ratio=0.5),
        helper.make_node(
            "Gemm", ["dropped", "fc_weight", "fc_bias"], ["fc"], alpha=1.0, beta=1.0, transB=1
        ),
        helper.make_node("Softmax", ["fc"], ["softmax"]),
    ]
    model = as_inputs(build(nodes, {"data": (1, *SHAPE)}, ["softmax"], w, opset=opset))
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d((x - 0.4) * 3, t["conv0_weight"], t["conv0_bias"], padding=1)
        x = torch.relu(batch_norm(x, t, 2e-5))
        x = F.local_response_norm(x, 5, 0.1, 0.75, 2.0)
        x = F.max_pool2d(x, 4).flatten(1)
        return x @ t["fc_weight"].T + t["fc_bias"]

    return HandBuilt(model, truth, activation="softmax")


def before_opset_7(batch: int | str) -> HandBuilt:
    """What operators were like when they broadcast by attributes, in opset 6."""
    w = random_weights(18, conv=(8, 3, 3, 3), shift=(8,), fc=(128, CLASSES), bias=(CLASSES,))
    w |= normalization(8, seed=19) | {"shape": np.int64([-1, 128])}
    norm = ["gamma", "beta", "mean", "var"]
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "shift"], ["a"], axis=1, broadcast=1),
        helper.make_node("BatchNormalization", ["a", *norm], ["n"], is_test=1, epsilon=1e-3),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Dropout", ["p"], ["d"], is_test=1, ratio=0.5),
        helper.make_node("Reshape", ["d", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "bias"], ["g"], broadcast=1),
        helper.make_node("Softmax", ["g"], ["y"]),
    ]
    model = as_inputs(build(nodes, {"x": (batch, *SHAPE)}, ["y"], w, opset=6))
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, t["conv"], padding=1) + t["shift"][:, None, None]
        x = F.avg_pool2d(torch.relu(batch_norm(x, t, 1e-3)), 4)
        return x.flatten(1) @ t["fc"] + t["bias"]

    return HandBuilt(model, truth, activation="softmax")


def cntk(opset: int) -> HandBuilt:
    """CNTK: Times as MatMul of two Reshapes with the batch size 1 in it, a 3-D bias, IR 3."""
    w = random_weights(6, Parameter5=(8, 3, 5, 5), Parameter6=(8, 1, 1))
    w |= random_weights(7, Parameter193=(8, 4, 4, CLASSES), Parameter194=(1, CLASSES))
    w["Parameter193"] *= 5
    w |= {"shape0": np.int64([1, 128]), "shape1": np.int64([128, CLASSES])}
    nodes = [
        helper.make_node(
            "Conv",
            ["Input3", "Parameter5"],
            ["Convolution28_Output_0"],
            auto_pad="SAME_UPPER",
            kernel_shape=[5, 5],
        ),
        helper.make_node("Add", ["Convolution28_Output_0", "Parameter6"], ["Plus30_Output_0"]),
        helper.make_node("Relu", ["Plus30_Output_0"], ["ReLU32_Output_0"]),
        helper.make_node(
            "MaxPool",
            ["ReLU32_Output_0"],
            ["Pooling66_Output_0"],
            auto_pad="NOTSET",
            kernel_shape=[5, 5],
            strides=[4, 4],
            pads=[1, 1, 1, 1],
        ),
        helper.make_node("Reshape", ["Parameter193", "shape1"], ["Parameter193_reshape1"]),
        helper.make_node("Reshape", ["Pooling66_Output_0", "shape0"], ["Pooling160_reshape0"]),
        helper.make_node(
            "MatMul", ["Pooling160_reshape0", "Parameter193_reshape1"], ["Times212_Output_0"]
        ),
        helper.make_node("Add", ["Times212_Output_0", "Parameter194"], ["Plus214_Output_0"]),
    ]
    inputs = {"Input3": (1, *SHAPE)}
    model = as_inputs(build(nodes, inputs, ["Plus214_Output_0"], w, opset=opset))
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(F.conv2d(x, t["Parameter5"], padding=2) + t["Parameter6"])
        x = F.max_pool2d(x, 5, 4, 1).flatten(1)
        return x @ t["Parameter193"].reshape(128, CLASSES) + t["Parameter194"]

    return HandBuilt(model, truth)


def caffe2() -> HandBuilt:
    """Caffe2: IR 3, scale layers by Unsqueeze, Mul and Add, variadic Sum, ConstantOfShape."""
    w = random_weights(8, w0=(8, 3, 3, 3), b0=(8,), w1=(8, 8, 1, 1), scale=(8,), shift=(8,))
    w |= random_weights(9, fc=(CLASSES, 8), fcb=(CLASSES,)) | {"shape": np.int64([1, -1])}
    w |= {"many": np.int64([1, 8, 1, 1])}
    half = numpy_helper.from_array(np.float32([0.5]))
    nodes = [
        helper.make_node("Conv", ["data_0", "w0", "b0"], ["conv1_1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1_1"], ["conv1_2"]),
        helper.make_node("LRN", ["conv1_2"], ["norm1_1"], size=5, alpha=0.5, beta=0.75, bias=1.0),
        helper.make_node("Unsqueeze", ["scale"], ["scale_1"], axes=[1, 2]),
        helper.make_node("Mul", ["norm1_1", "scale_1"], ["scaled"]),
        helper.make_node("Unsqueeze", ["shift"], ["shift_1"], axes=[1, 2]),
        helper.make_node("Add", ["scaled", "shift_1"], ["shifted"]),
        helper.make_node("Conv", ["shifted", "w1"], ["conv2_1"]),
        helper.make_node("ConstantOfShape", ["many"], ["halves"], value=half),
        helper.make_node("Sum", ["conv2_1", "shifted", "halves"], ["sum_1"]),
        helper.make_node(
            "AveragePool",
            ["sum_1"],
            ["pool_1"],
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[0, 0, 1, 1],
        ),
        helper.make_node("GlobalAveragePool", ["pool_1"], ["pool_2"]),
        helper.make_node("Reshape", ["pool_2", "shape"], ["flat_1"]),
        helper.make_node("Gemm", ["flat_1", "fc", "fcb"], ["gemm_1"], transB=1),
        helper.make_node("Softmax", ["gemm_1"], ["prob_1"]),
    ]
    model = as_inputs(build(nodes, {"data_0": (1, *SHAPE)}, ["prob_1"], w, opset=9))
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(F.conv2d(x, t["w0"], t["b0"], padding=1))
        x = F.local_response_norm(x, 5, 0.5, 0.75, 1.0)
        x = x * t["scale"][:, None, None] + t["shift"][:, None, None]
        x = F.conv2d(x, t["w1"]) + x + 0.5
        ones = F.pad(torch.ones_like(x), (0, 1, 0, 1))
        count = F.avg_pool2d(ones, 3, 2)  # padding does not count
        x = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2) / count
        return x.mean((2, 3)) @ t["fc"].T + t["fcb"]

    return HandBuilt(model, truth, activation="softmax")


def paddle() -> HandBuilt:
    """Paddle: Shape, Slice, Concat and Reshape; scale as Mul and Add; ceil_mode; input dims -1."""
    w = random_weights(10, conv=(8, 3, 3, 3), fc=(128, CLASSES), fcb=(CLASSES,))
    w |= normalization(8, seed=11)
    w |= {"zero": np.int64([0]), "one": np.int64([1]), "rest": np.int64([-1])}
    w |= {"two": np.float32([2]), "tenth": np.float32([0.1])}
    norm = ["gamma", "beta", "mean", "var"]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["p2o.Mul.0"]),
        helper.make_node("Add", ["p2o.Mul.0", "tenth"], ["p2o.Add.0"]),
        helper.make_node("Conv", ["p2o.Add.0", "conv"], ["conv2d_0.tmp_0"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv2d_0.tmp_0", *norm], ["batch_norm_0.tmp_3"]),
        helper.make_node("HardSwish", ["batch_norm_0.tmp_3"], ["hardswish_0.tmp_0"]),
        helper.make_node(
            "MaxPool",
            ["hardswish_0.tmp_0"],
            ["pool2d_0.tmp_0"],
            kernel_shape=[3, 3],
            strides=[4, 4],
            ceil_mode=1,
        ),
        helper.make_node("Shape", ["pool2d_0.tmp_0"], ["p2o.Shape.0"]),
        helper.make_node("Slice", ["p2o.Shape.0", "zero", "one"], ["p2o.Slice.0"]),
        helper.make_node("Concat", ["p2o.Slice.0", "rest"], ["p2o.Concat.0"], axis=0),
        helper.make_node("Reshape", ["pool2d_0.tmp_0", "p2o.Concat.0"], ["flatten_0.tmp_0"]),
        helper.make_node("MatMul", ["flatten_0.tmp_0", "fc"], ["linear_0.tmp_0"]),
        helper.make_node("Add", ["linear_0.tmp_0", "fcb"], ["linear_0.tmp_1"]),
        helper.make_node("Softmax", ["linear_0.tmp_1"], ["softmax_0.tmp_0"], axis=-1),
    ]
    model = build(nodes, {"x": (-1, *SHAPE)}, ["softmax_0.tmp_0"], w, opset=14)
    t = tensors(w)

    def truth(x: torch.Tensor) -> torch.Tensor:
        x = batch_norm(F.conv2d(x * 2 + 0.1, t["conv"], padding=1), t, 1e-5)
        x = F.max_pool2d(F.hardswish(x), 3, 4, ceil_mode=True)
        return x.flatten(1) @ t["fc"] + t["fcb"]

    return HandBuilt(model, truth, activation="softmax")
