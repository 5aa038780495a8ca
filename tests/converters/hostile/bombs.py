"""Hostile files of a few bytes that ask for endless memory or work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.converters.hostile.kinds import Made, kind
from tests.converters.onnx_models import build, node, small_nodes, small_weights

HUGE = 2**36
_REFUSED = "result_too_large"


def _net(nodes: Sequence[NodeProto], weights: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """`small_net`, to whose logits the mean of the tensor `bomb` is added."""
    tail = [
        node("ReduceMean", "bomb", "one", keepdims=0),
        helper.make_node("Add", ["logits", "one"], ["y"]),
    ]
    every = [*small_nodes(), *nodes, *tail]
    return build(every, {"x": ("N", 1, 8, 8)}, ["y"], small_weights() | weights)


def _shape(*sizes: int) -> np.ndarray:
    return np.array(sizes, np.int64)


@kind(_REFUSED)
def constant_of_shape(folder: Path) -> Made:
    return _net([node("ConstantOfShape", "s", "bomb")], {"s": _shape(2**17, 2**17)})


@kind(_REFUSED)
def constant_of_three_gigabytes(folder: Path) -> Made:
    return _net([node("ConstantOfShape", "s", "bomb")], {"s": _shape(3 * 2**28)})


@kind(_REFUSED)
def many_constants_of_a_hundred_megabytes(folder: Path) -> Made:
    fill = [node("ConstantOfShape", "s", f"c{i}") for i in range(100)]
    add = helper.make_node("Concat", [f"c{i}" for i in range(100)], ["bomb"], axis=0)
    return _net([*fill, add], {"s": _shape(25 * 10**6)})


@kind(_REFUSED)
def expand(folder: Path) -> Made:
    return _net([helper.make_node("Expand", ["logits", "s"], ["bomb"])], {"s": _shape(HUGE, 1, 5)})


@kind(_REFUSED)
def expand_of_three_gigabytes(folder: Path) -> Made:
    nodes = [helper.make_node("Expand", ["fb", "s"], ["e"]), node("Neg", "e", "bomb")]
    return _net(nodes, {"s": _shape(15 * 10**7, 5)})


@kind(_REFUSED)
def tile(folder: Path) -> Made:
    return _net([helper.make_node("Tile", ["logits", "s"], ["bomb"])], {"s": _shape(1, HUGE)})


@kind(_REFUSED)
def range_(folder: Path) -> Made:
    weights = {"from": np.int64(0), "to": np.int64(HUGE), "by": np.int64(1)}
    nodes = [helper.make_node("Range", ["from", "to", "by"], ["i"])]
    nodes.append(node("Cast", "i", "bomb", to=TensorProto.FLOAT))
    return _net(nodes, {k: np.array(v) for k, v in weights.items()})


@kind(_REFUSED)
def pad(folder: Path) -> Made:
    nodes = [helper.make_node("Pad", ["x", "p"], ["bomb"])]
    return _net(nodes, {"p": _shape(0, 0, 0, 0, 0, 0, 0, HUGE)})


@kind(_REFUSED)
def resize_sizes(folder: Path) -> Made:
    nodes = [helper.make_node("Resize", ["x", "", "", "s"], ["bomb"], mode="nearest")]
    return _net(nodes, {"s": _shape(1, 1, 2**20, 2**20)})


@kind(_REFUSED)
def resize_scales(folder: Path) -> Made:
    nodes = [helper.make_node("Resize", ["x", "", "s"], ["bomb"], mode="linear")]
    return _net(nodes, {"s": np.array([1, 1, 1e6, 1e6], np.float32)})


@kind(_REFUSED)
def one_hot(folder: Path) -> Made:
    weights = {"i": _shape(1), "d": np.array(HUGE), "v": np.array([0, 1], np.float32)}
    return _net([helper.make_node("OneHot", ["i", "d", "v"], ["bomb"])], weights)


@kind(_REFUSED)
def conv_pads(folder: Path) -> Made:
    nodes = [helper.make_node("Conv", ["x", "w"], ["bomb"], pads=[2**18] * 4)]
    return _net(nodes, {})


@kind(_REFUSED)
def conv_uneven_pads(folder: Path) -> Made:
    nodes = [helper.make_node("Conv", ["x", "w"], ["bomb"], pads=[0, 0, 2**20, 2**20])]
    return _net(nodes, {})


@kind(_REFUSED)
def conv_transpose_strides(folder: Path) -> Made:
    nodes = [helper.make_node("ConvTranspose", ["x", "w1"], ["bomb"], strides=[2**20] * 2)]
    return _net(nodes, {"w1": np.ones((1, 1, 2, 2), np.float32)})


@kind(_REFUSED)
def conv_transpose_dilations(folder: Path) -> Made:
    nodes = [helper.make_node("ConvTranspose", ["x", "w1"], ["bomb"], dilations=[2**20] * 2)]
    return _net(nodes, {"w1": np.ones((1, 1, 2, 2), np.float32)})


@kind(_REFUSED, "unsupported_model", "too_much_work")
def max_pool_pads(folder: Path) -> Made:
    big = {"kernel_shape": [2**20] * 2, "pads": [2**19] * 4}
    return _net([node("MaxPool", "x", "bomb", **big)], {})


@kind(_REFUSED, "unsupported_model", "too_much_work")
def average_pool_kernel(folder: Path) -> Made:
    big = {"kernel_shape": [2**16] * 2, "pads": [2**16 - 1] * 4, "count_include_pad": 1}
    return _net([node("AveragePool", "x", "bomb", **big)], {})


@kind("too_much_work")
def local_response_size(folder: Path) -> Made:
    return _net([node("LRN", "x", "bomb", size=2**30)], {})


@kind("too_much_work")
def local_response_loop(folder: Path) -> Made:
    return _net([node("LRN", "x", "bomb", size=2**20)], {})


@kind(_REFUSED)
def eye_of_a_broad_view(folder: Path) -> Made:
    nodes = [node("ConstantOfShape", "s", "e"), node("EyeLike", "e", "bomb", dtype=1)]
    byte = numpy_helper.from_array(np.array([1], np.uint8))
    nodes[0].attribute.append(helper.make_attribute("value", byte))
    return _net(nodes, {"s": _shape(20_000, 20_000)})


@kind(_REFUSED)
def gather(folder: Path) -> Made:
    nodes = [
        node("ConstantOfShape", "s", "i"),
        helper.make_node("Gather", ["wide", "i"], ["bomb"]),
    ]
    zero = numpy_helper.from_array(np.array([0], np.int64))
    nodes[0].attribute.append(helper.make_attribute("value", zero))
    return _net(nodes, {"s": _shape(100_000), "wide": np.ones((1, 50_000), np.float32)})


@kind(_REFUSED)
def concat_doubles(folder: Path) -> Made:
    nodes = [
        helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=1) for i in range(40)
    ]
    nodes[0].input[:] = ["logits", "logits"]
    return _net([*nodes, node("Neg", "c40", "bomb")], {})


@kind(_REFUSED, "too_much_work")
def matmul_outer_products(folder: Path) -> Made:
    nodes = [node("Flatten", "x", "f0", axis=0)]
    for i in range(4):
        nodes.append(node("Transpose", f"f{i}", f"t{i}"))
        nodes.append(helper.make_node("MatMul", [f"t{i}", f"f{i}"], [f"m{i}"]))
        nodes.append(node("Flatten", f"m{i}", f"f{i + 1}", axis=0))
    return _net([*nodes, node("Neg", "f4", "bomb")], {})


@kind(_REFUSED)
def einsum_outer_product(folder: Path) -> Made:
    nodes = [
        node("Flatten", "x", "f", axis=1),
        helper.make_node("Einsum", ["f"] * 6, ["bomb"], equation="na,nb,nc,nd,ne,nf->nabcdef"),
    ]
    return _net(nodes, {})


@kind(_REFUSED)
def broadcasts(folder: Path) -> Made:
    nodes = [helper.make_node("Reshape", ["logits", f"s{i}"], [f"r{i}"]) for i in range(13)]
    last = "r0"
    for i in range(1, 13):
        nodes.append(helper.make_node("Add", [last, f"r{i}"], [f"a{i}"]))
        last = f"a{i}"
    shapes = {f"s{i}": _shape(*[5 if j == i else 1 for j in range(13)]) for i in range(13)}
    model = _net([*nodes, node("Neg", last, "bomb")], shapes)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


@kind(_REFUSED, "unsupported_model", sessions=True)
def mel_weights(folder: Path) -> Made:
    names = ["bins", "length", "rate", "low", "high"]
    values = [2**16, 2**20, 16000, 0, 8000]
    weights = {n: np.array(v, np.int64) for n, v in zip(names[:3], values, strict=False)}
    weights |= {n: np.array(v, np.float32) for n, v in zip(names[3:], values[3:], strict=True)}
    return _net([helper.make_node("MelWeightMatrix", names, ["bomb"])], weights)


@kind(_REFUSED, "unsupported_model", sessions=True)
def window_of_gigabytes(folder: Path) -> Made:
    return _net([node("HannWindow", "n", "bomb")], {"n": np.array(2**33, np.int64)})


@kind(_REFUSED, "unsupported_model", sessions=True)
def random_numbers(folder: Path) -> Made:
    nodes = [helper.make_node("RandomNormal", [], ["bomb"], shape=[2**17, 2**17])]
    return _net(nodes, {})


@kind(_REFUSED, "unsupported_model", sessions=True)
def affine_grid(folder: Path) -> Made:
    weights = {"theta": np.zeros((1, 2, 3), np.float32), "s": _shape(1, 1, 2**17, 2**17)}
    return _net([helper.make_node("AffineGrid", ["theta", "s"], ["bomb"])], weights)


@kind(_REFUSED)
def grows_with_the_batch(folder: Path) -> Made:
    nodes = [node("Shape", "x", "d", end=1)]
    for i in range(6):
        nodes.append(helper.make_node("Mul", [f"d{i}" if i else "d"] * 2, [f"d{i + 1}"]))
    nodes.append(node("ConstantOfShape", "d6", "ones"))
    return _net([*nodes, node("Neg", "ones", "bomb")], {})


@kind("too_much_work")
def large_products_without_end(folder: Path) -> Made:
    nodes = [node("ConstantOfShape", "s", "m0")]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(2000)]
    return _net([*nodes, node("Neg", "m2000", "bomb")], {"s": _shape(4096, 4096)})


@kind("too_much_work")
def conv_of_a_giant_kernel(folder: Path) -> Made:
    nodes = [
        helper.make_node("Expand", ["x", "s"], ["wide"]),
        node("ConstantOfShape", "k", "kernel"),
        helper.make_node("Conv", ["wide", "kernel"], ["bomb"], pads=[511] * 4),
    ]
    return _net(nodes, {"s": _shape(1, 64, 8, 8), "k": _shape(16, 64, 64, 64)})


def _loop(trips: int, body: Sequence[NodeProto], condition: str) -> onnx.ModelProto:
    inner = helper.make_graph(
        [*body, node("Identity", "go", "still")],
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
    nodes = [helper.make_node("Loop", ["trips", condition, "logits"], ["bomb"], body=inner)]
    return _net(nodes, {"trips": np.array(trips, np.int64), "yes": np.array(True)})


@kind("trip_count")
def loop_without_end(folder: Path) -> Made:
    return _loop(2**62, [node("Relu", "state", "next")], "")


@kind("trip_count", "too_much_work", "unsupported_model")
def loop_under_a_condition_without_end(folder: Path) -> Made:
    return _loop(2**62, [node("Relu", "state", "next")], "yes")


@kind(_REFUSED, "unsupported_model", sessions=True)
def loop_that_doubles(folder: Path) -> Made:
    body = [helper.make_node("Concat", ["state", "state"], ["next"], axis=1)]
    return _loop(60, body, "")
