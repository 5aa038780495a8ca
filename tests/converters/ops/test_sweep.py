"""Parameters at random, with a seed: bdscan computes what ONNX Runtime computes, or refuses.

Each family draws attributes and inputs that its operators allow together. Draws that either side
refuses count for nothing; enough must be left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.random import Generator

from converters import UnsupportedModelError

from .one_node import Arrays, assert_same, one_node, run_ort, run_torch


class Draw(NamedTuple):
    """One node with its inputs."""

    op_type: str
    inputs: Arrays
    opset: int
    attributes: Mapping[str, Any] = MappingProxyType({})
    n_outputs: int = 1
    domain: str = ""


def real(rng: Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.normal(size=shape), np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def pick(rng: Generator, *values: Any) -> Any:
    return values[rng.integers(len(values))]


def several(rng: Generator, low: int, high: int, count: int) -> list[int]:
    """`count` integers from low to high, both included."""
    return [int(n) for n in rng.integers(low, high + 1, count)]


def numbers(rng: Generator, kind: Any, *shape: int) -> np.ndarray:
    """Integers of the whole range of a type."""
    info = np.iinfo(kind)
    return np.asarray(rng.integers(info.min, info.max + 1, shape), kind)


def scale(rng: Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.uniform(0.01, 0.05, shape), np.float32)


def windows(rng: Generator) -> Iterator[Draw]:
    rank = pick(rng, 1, 2, 2, 3)
    sizes, kernel = several(rng, 3, 8, rank), several(rng, 1, 3, rank)
    padding = pick(
        rng,
        {},
        {"pads": several(rng, 0, 2, 2 * rank)},
        *({"auto_pad": mode} for mode in ("VALID", "SAME_UPPER", "SAME_LOWER")),
    )
    steps = {"strides": several(rng, 1, 3, rank), **padding}
    dilations = {"dilations": several(rng, 1, 2, rank)}
    group = pick(rng, 1, 1, 2, 4)
    depth, filters = group * pick(rng, 1, 2), group * pick(rng, 1, 2)
    x = real(rng, 2, depth, *sizes)
    w = real(rng, filters, depth // group, *kernel)
    yield Draw("Conv", [x, w, real(rng, filters)], 11, {"group": group, **steps, **dilations})
    w = real(rng, depth, filters // group, *kernel)
    extra = {"output_padding": [int(rng.integers(0, s)) for s in steps["strides"]]}
    attributes = {"group": group, **steps, **dilations, **pick(rng, {}, extra)}
    yield Draw("ConvTranspose", [x, w], 11, attributes)
    pool = {"kernel_shape": kernel, "ceil_mode": pick(rng, 0, 1), **steps, **dilations}
    yield Draw("MaxPool", [x], 12, pool | {"storage_order": pick(rng, 0, 1)}, pick(rng, 1, 2))
    yield Draw("MaxPool", [numbers(rng, np.int8, 1, 2, *sizes)], 12, pool)
    yield Draw("AveragePool", [x], 19, pool | {"count_include_pad": pick(rng, 0, 1)})
    yield Draw("LpPool", [x], 18, pool | {"p": pick(rng, 1, 2, 3)})


def resizing(rng: Generator) -> Iterator[Draw]:
    coordinates = pick(
        rng,
        "half_pixel",
        "align_corners",
        "asymmetric",
        "pytorch_half_pixel",
        "tf_crop_and_resize",
        "half_pixel_symmetric",
    )
    attributes = {"coordinate_transformation_mode": coordinates}
    attributes["mode"] = mode = pick(rng, "nearest", "linear", "cubic")
    if mode == "nearest":
        modes = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        attributes["nearest_mode"] = pick(rng, *modes)
    crops = coordinates == "tf_crop_and_resize"
    if mode != "nearest" and not crops:
        attributes |= {"antialias": pick(rng, 0, 1), "exclude_outside": pick(rng, 0, 1)}
    x = real(rng, 1, 2, *several(rng, 1, 8, 2))
    roi = np.array([0, 0, *rng.uniform(-0.1, 0.4, 2), 1, 1, *rng.uniform(0.5, 1.1, 2)], np.float32)
    # Scales just above 1 leave the size as it is.
    scales = rng.uniform(*pick(rng, (0.3, 2.7), (1.0, 1.15)), 2).astype(np.float32)
    sizes = several(rng, 1, 12, 2)
    if crops:
        full = np.array([1, 1, *scales], np.float32)
        yield Draw("Resize", [x, roi, full], 19, attributes | {"extrapolation_value": 3.0})
        return
    axes = {"axes": pick(rng, [2, 3], [3, 2], [-1, -2])}
    policy = pick(rng, "stretch", "not_larger", "not_smaller")
    yield Draw("Resize", [x, None, scales], 19, attributes | axes)
    sized = attributes | axes | {"keep_aspect_ratio_policy": policy}
    yield Draw("Resize", [x, None, None, whole(*sizes)], 18, sized)


def indexing(rng: Generator) -> Iterator[Draw]:
    rank = int(rng.integers(1, 5))
    shape = several(rng, 1, 5, rank)
    x, axis = real(rng, *shape), int(rng.integers(-rank, rank))
    size = shape[axis]
    axes = [int(a) - pick(rng, 0, rank) for a in rng.permutation(rank)]
    bounds = [whole(*several(rng, -7, 8, rank)) for _ in range(2)]
    steps = whole(*(pick(rng, -3, -2, -1, 1, 2, 3) for _ in axes))
    yield Draw("Slice", [x, *bounds, whole(*axes), steps], 13)
    anywhere = rng.integers(-size, size, shape)
    yield Draw("Gather", [x, rng.integers(-size, size, several(rng, 1, 3, 2))], 13, {"axis": axis})
    yield Draw("GatherElements", [x, anywhere], 13, {"axis": axis})
    reduction = pick(rng, "add", "mul", "max", "min")
    more = {"axis": axis, "reduction": reduction}
    yield Draw("ScatterElements", [x, anywhere, real(rng, *shape)], 18, more)
    depth = int(rng.integers(1, rank + 1))
    at = np.stack([rng.integers(-n, n, 3) for n in shape[:depth]], axis=-1)
    updates = real(rng, 3, *shape[depth:])
    yield Draw("ScatterND", [x, at, updates], 18, {"reduction": reduction})
    ties = np.round(x)
    largest = {"axis": axis, "largest": pick(rng, 0, 1)}
    yield Draw("TopK", [ties, whole(rng.integers(1, size + 1))], 11, largest, 2)
    last = {"axis": axis, "keepdims": pick(rng, 0, 1), "select_last_index": pick(rng, 0, 1)}
    yield Draw(pick(rng, "ArgMax", "ArgMin"), [ties], 13, last)
    runs = {"exclusive": pick(rng, 0, 1), "reverse": pick(rng, 0, 1)}
    yield Draw("CumSum", [x, np.array(axis)], 14, runs)
    yield Draw("CumProd", [x, np.array(axis)], 26, runs)
    order = {"sorted": pick(rng, 0, 1), **pick(rng, {}, {"axis": axis})}
    yield Draw("Unique", [ties], 11, order, 4)
    yield Draw("Compress", [x, rng.random(size) < 0.5], 11, {"axis": axis})
    mode = pick(rng, "constant", "reflect", "edge", "wrap")
    yield Draw("Pad", [x, whole(*several(rng, -1, 3, 2 * rank))], 19, {"mode": mode})


def reductions(rng: Generator) -> Iterator[Draw]:
    rank = int(rng.integers(1, 5))
    shape = several(rng, 1, 5, rank)
    kinds = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    x = (real(rng, *shape) * 3).astype(pick(rng, np.float32, np.float64, np.int32, np.int64))
    axes = whole(*rng.permutation(rank)[: rng.integers(0, rank + 1)])
    keep = {"keepdims": pick(rng, 0, 1)}
    name = f"Reduce{pick(rng, *kinds)}"
    yield Draw(name, [x, axes], 18, keep | {"noop_with_empty_axes": pick(rng, 0, 1)})
    yield Draw(name, [x], 11, keep | ({"axes": axes.tolist()} if len(axes) else {}))
    axis = {"axis": int(rng.integers(-rank, rank))}
    y = real(rng, *shape)
    for op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        yield Draw(op_type, [y], pick(rng, 11, 13), axis)
    tail = shape[axis["axis"] % rank :]
    yield Draw("LayerNormalization", [y, real(rng, *tail), real(rng, *tail)], 17, axis, 3)
    groups, each = pick(rng, 1, 2, 3), pick(rng, 1, 2)
    z = real(rng, 2, groups * each, *several(rng, 2, 4, 2))
    for opset, count in ((18, groups), (21, groups * each)):
        parameters = [real(rng, count), real(rng, count)]
        yield Draw("GroupNormalization", [z, *parameters], opset, {"num_groups": groups})
    kind = pick(rng, np.uint16, np.uint32, np.uint64, np.uint8, np.int8, np.int16, np.int32)
    pair = [rng.integers(1, 100, 4).astype(kind) for _ in range(2)]
    yield Draw(pick(rng, "Add", "Sub", "Mul", "Div", "Max", "Min", "Mod"), pair, 13)
    yield Draw(pick(rng, "Less", "Greater", "Equal", "LessOrEqual"), pair, 16)
    shift = [pair[0], rng.integers(0, 8, 4).astype(kind)]
    yield Draw("BitShift", shift, 11, {"direction": pick(rng, "LEFT", "RIGHT")})


def quantised(rng: Generator) -> Iterator[Draw]:
    kind = pick(rng, np.uint8, np.int8)
    group = pick(rng, 1, 1, 2)
    filters = group * pick(rng, 1, 2)
    x = numbers(rng, kind, 2, 2 * group, *several(rng, 3, 7, 2))
    w = numbers(rng, np.int8, filters, 2, *several(rng, 1, 3, 2))
    channels = pick(rng, (), (filters,))
    inputs = [
        x,
        scale(rng),
        numbers(rng, kind),
        w,
        scale(rng, *channels),
        np.zeros(channels, w.dtype),
    ]
    inputs += [scale(rng) * np.float32(20), numbers(rng, kind)]
    inputs += pick(rng, [], [rng.integers(-500, 500, filters).astype(np.int32)])
    padding = pick(rng, {"pads": several(rng, 0, 2, 4)}, {"auto_pad": "SAME_LOWER"})
    steps = {"group": group, "strides": several(rng, 1, 2, 2), **padding}
    yield Draw("QLinearConv", inputs, 10, steps)
    a, b = numbers(rng, kind, 3, 4), numbers(rng, np.int8, 4, 5)
    parameters = [scale(rng), numbers(rng, kind)]
    result = [scale(rng) * np.float32(10), numbers(rng, kind)]
    inputs = [a, *parameters, b, scale(rng), numbers(rng, np.int8), *result]
    yield Draw("QLinearMatMul", inputs, 10)
    y = np.append(real(rng, 9) * 3, np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9]))
    yield Draw("QuantizeLinear", [y, pick(rng, np.float32(1), scale(rng)), numbers(rng, kind)], 13)
    z, axis = real(rng, 3, 4, 2), int(rng.integers(-3, 3))
    along = [scale(rng, z.shape[axis]), numbers(rng, kind, z.shape[axis])]
    yield Draw("QuantizeLinear", [z, *along], 13, {"axis": axis})
    yield Draw("DequantizeLinear", [numbers(rng, kind, 3, 4, 2), *along], 13, {"axis": axis})
    blocks = [scale(rng, 4, 3), numbers(rng, kind, 4, 3)]
    by_block = {"axis": 1, "block_size": 2}
    yield Draw("QuantizeLinear", [real(rng, 4, 6), *blocks], 21, by_block)
    yield Draw("DequantizeLinear", [numbers(rng, kind, 4, 6), *blocks], 21, by_block)
    flat = pick(rng, real(rng, 7), np.abs(real(rng, 7)), np.full(4, rng.normal(), np.float32))
    yield Draw("DynamicQuantizeLinear", [flat], 11, {}, 3)
    a, columns = numbers(rng, np.uint8, 2, 3, 4), pick(rng, (), (5,))
    scales, zeros = scale(rng, *columns), numbers(rng, np.int8, *columns)
    bias = pick(rng, [], [real(rng, 5)])
    inputs = [a, b, scale(rng), scales, numbers(rng, np.uint8), zeros, *bias]
    yield Draw("MatMulIntegerToFloat", inputs, 17, domain="com.microsoft")
    inputs = [real(rng, 2, 3, 4), b, scales, zeros, *bias]
    yield Draw("DynamicQuantizeMatMul", inputs, 17, domain="com.microsoft")


def sampling(rng: Generator) -> Iterator[Draw]:
    mode = pick(rng, "linear", "nearest", "cubic")
    how = {"mode": mode, "padding_mode": pick(rng, "zeros", "border", "reflection")}
    how |= {"align_corners": pick(rng, 0, 1)}
    grid = rng.uniform(-1.6, 1.6, (2, 3, 4, 2)).astype(np.float32)
    yield Draw("GridSample", [real(rng, 2, 2, *several(rng, 2, 5, 2)), grid], 20, how)
    corners = np.sort(rng.uniform(-2, 10, (3, 4)).astype(np.float32), axis=-1)
    region = {"output_height": 2, "output_width": 3, "sampling_ratio": pick(rng, 0, 1, 2)}
    region |= {"mode": pick(rng, "avg", "max"), "spatial_scale": pick(rng, 0.5, 1.0)}
    yield Draw("RoiAlign", [real(rng, 2, 2, 6, 7), corners, whole(0, 1, 1)], 16, region)
    boxes, scores = rng.random((2, 7, 4)), np.round(rng.random((2, 2, 7)), 1)
    limits = [whole(3), np.float32([rng.uniform(0, 0.6)]), np.float32([0.3])]
    inputs = [boxes.astype(np.float32), scores.astype(np.float32), *limits]
    yield Draw("NonMaxSuppression", inputs, 11, {"center_point_box": pick(rng, 0, 1)})
    kernel, strides, pads = several(rng, 1, 3, 2), several(rng, 1, 2, 2), several(rng, 0, 1, 4)
    out = [(6 + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i in range(2)]
    count = kernel[0] * kernel[1]
    steps = {"strides": strides, "pads": pads}
    columns = real(rng, 2, 3 * count, out[0] * out[1])
    yield Draw("Col2Im", [columns, whole(6, 6), whole(*kernel)], 18, steps)
    group, offset_group = pick(rng, 1, 2), pick(rng, 1, 2)
    inputs = [real(rng, 2, 4, 6, 6), real(rng, 4, 4 // group, *kernel)]
    inputs += [real(rng, 2, offset_group * count * 2, *out), real(rng, 4)]
    inputs += [rng.random((2, offset_group * count, *out)).astype(np.float32)]
    steps |= {"group": group, "offset_group": offset_group}
    yield Draw("DeformConv", inputs, 19, steps)


def sequences(rng: Generator) -> Iterator[Draw]:
    steps, batch, size, hidden = several(rng, 1, 4, 4)
    direction = pick(rng, "forward", "reverse", "bidirectional")
    count = 2 if direction == "bidirectional" else 1
    for op_type, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        inputs: list[np.ndarray | None] = [
            real(rng, steps, batch, size),
            real(rng, count, gates * hidden, size),
            real(rng, count, gates * hidden, hidden),
            pick(rng, None, real(rng, count, 2 * gates * hidden)),
            pick(rng, None, rng.integers(1, steps + 1, batch).astype(np.int32)),
            real(rng, count, batch, hidden),
        ]
        more = {"direction": direction, "hidden_size": hidden, **pick(rng, {}, {"clip": 0.5})}
        if op_type == "GRU":
            more["linear_before_reset"] = pick(rng, 0, 1)
        if op_type == "LSTM":
            inputs += [real(rng, count, batch, hidden), real(rng, count, 3 * hidden)]
            more["input_forget"] = pick(rng, 0, 1)
        yield Draw(op_type, inputs, 14, more, 3 if op_type == "LSTM" else 2)
    heads, keys = pick(rng, (2, 2), (4, 2)), int(rng.integers(1, 6))
    how = {"is_causal": pick(rng, 0, 1), "softcap": pick(rng, 0.0, 2.0)}
    query = real(rng, 2, heads[0], steps, size)
    pair = [real(rng, 2, heads[1], keys, size) for _ in range(2)]
    mask = pick(rng, None, real(rng, steps, keys), rng.random((steps, keys)) < 0.6)
    yield Draw("Attention", [query, *pair, mask], 23, how)
    past = [real(rng, 2, heads[1], 3, size) for _ in range(2)]
    # Mode 2 shows what is added to hidden scores: minus infinity here, the lowest float there.
    mode = {"qk_matmul_output_mode": pick(rng, 0, 1, 3)}
    yield Draw("Attention", [query, *pair, None, *past], 23, how | mode, 4)
    signal = real(rng, 1, 12, 1)
    one_sided = {"onesided": pick(rng, 0, 1)}
    yield Draw("STFT", [signal, np.array(3), real(rng, 5)], 17, one_sided)
    yield Draw("DFT", [signal, np.array(rng.integers(2, 15))], 17, one_sided)


FAMILIES: dict[Callable[[Generator], Iterator[Draw]], int] = {
    windows: 60,
    resizing: 90,
    indexing: 40,
    reductions: 40,
    quantised: 30,
    sampling: 20,
    sequences: 20,
}
"""How often each family is drawn."""


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_random_parameters(family: Callable[[Generator], Iterator[Draw]]) -> None:
    rng = np.random.default_rng(11)
    compared = drawn = 0
    for _ in range(FAMILIES[family]):
        for draw in family(rng):
            drawn += 1
            compared += agrees(draw)
    assert compared > 0.6 * drawn


def agrees(draw: Draw) -> bool:
    """Whether both engines ran the node; they must agree then."""
    model = one_node(
        draw.op_type,
        draw.inputs,
        draw.opset,
        draw.n_outputs,
        domain=draw.domain,
        **draw.attributes,
    )
    try:
        expected = run_ort(model, draw.inputs)
    except Exception:  # its errors share no public base class
        return False
    try:
        actual = run_torch(model, draw.inputs)
    except UnsupportedModelError:
        return False
    try:
        assert_same(actual, expected)
    except AssertionError as error:
        shapes = [None if v is None else (v.dtype.name, v.shape) for v in draw.inputs]
        raise AssertionError(f"{draw.op_type}-{draw.opset} {draw.attributes} {shapes}") from error
    return True
