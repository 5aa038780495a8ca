"""Differences between operator versions, each against ONNX Runtime.

One-node models at opsets from 7 (the oldest that ONNX Runtime runs) to 24.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from converters.errors import UnsupportedModelError
from converters.registry import lookup

from .one_node import Arrays, assert_as_ort, one_node, run_torch


def real(*shape: int) -> np.ndarray:
    """Numbers of a normal distribution, the same ones at every call."""
    return np.asarray(np.random.default_rng(3).normal(size=shape), dtype=np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


IMAGE = real(2, 3, 7, 8)
CUBE = real(4, 5, 6)
PADDINGS: list[dict[str, Any]] = [
    {"pads": (0, 0, 0, 0)},
    {"pads": (1, 1, 1, 1)},
    {"pads": (1, 0, 2, 1)},
    {"auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
]
STRIDES = [(1, 1), (2, 3)]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("opset", [7, 11, 22])
def test_conv(opset: int, padding: dict[str, Any]) -> None:
    for strides, dilations in itertools.product([*STRIDES, (4, 4)], [(1, 1), (2, 2)]):
        # ONNX Runtime has no convolution with dilations and SAME padding.
        if dilations == (1, 1) or "SAME" not in padding.get("auto_pad", ""):
            attributes = padding | {"strides": strides, "dilations": dilations}
            assert_as_ort("Conv", [IMAGE, real(4, 3, 3, 2), real(4)], opset, **attributes)


def test_conv_of_one_and_three_dimensions() -> None:
    assert_as_ort("Conv", [real(1, 4, 5), real(6, 2, 3), real(6)], 11, group=2, pads=(1, 2))
    inputs = [real(1, 2, 5, 4, 5), real(3, 2, 3, 2, 1)]
    assert_as_ort("Conv", inputs, 11, pads=(1, 0, 0, 1, 1, 0))


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", [*STRIDES, (3, 3)])
def test_conv_transpose(strides: tuple[int, int], padding: dict[str, Any]) -> None:
    inputs = [real(1, 4, 5, 4), real(4, 3, 3, 2), real(6)]
    extra = tuple(s - 1 for s in strides)
    for output_padding in {(0, 0), extra}:
        attributes = padding | {"strides": strides, "output_padding": output_padding}
        assert_as_ort("ConvTranspose", inputs, 11, group=2, **attributes)


def test_conv_transpose_output_shape() -> None:
    for auto_pad in ("NOTSET", "SAME_UPPER", "SAME_LOWER"):
        attributes = {"auto_pad": auto_pad, "strides": (2, 2), "output_shape": (10, 8)}
        assert_as_ort("ConvTranspose", [real(1, 4, 5, 4), real(4, 3, 3, 2)], 11, **attributes)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_max_pool(strides: tuple[int, int], padding: dict[str, Any]) -> None:
    attributes = padding | {"strides": strides, "kernel_shape": (3, 2)}
    for opset in (7, 8):
        assert_as_ort("MaxPool", [IMAGE], opset, **attributes)
    for opset, ceil_mode in itertools.product((10, 12, 22), (0, 1)):
        assert_as_ort("MaxPool", [IMAGE], opset, ceil_mode=ceil_mode, **attributes)
        if "pads" in padding:
            dilated = attributes | {"dilations": (2, 2), "ceil_mode": ceil_mode}
            assert_as_ort("MaxPool", [IMAGE], opset, **dilated)


@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_indices(storage_order: int) -> None:
    more = {"storage_order": storage_order}
    for pads, ceil_mode in itertools.product([(0, 0, 0, 0), (1, 0, 1, 1)], (0, 1)):
        window = {"kernel_shape": (3, 2), "strides": (2, 2), "pads": pads, "ceil_mode": ceil_mode}
        assert_as_ort("MaxPool", [IMAGE], 12, 2, **window, **more)
    assert_as_ort("MaxPool", [real(2, 3, 9)], 12, 2, kernel_shape=(3,), strides=(2,), **more)
    window = {"kernel_shape": (3, 2, 2), "strides": (2, 1, 2)}
    assert_as_ort("MaxPool", [real(2, 3, 5, 4, 6)], 12, 2, **window, **more)


@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("strides", STRIDES)
def test_average_pool(
    strides: tuple[int, int], padding: dict[str, Any], count_include_pad: int
) -> None:
    attributes = padding | {"strides": strides, "kernel_shape": (3, 2)}
    attributes["count_include_pad"] = count_include_pad
    assert_as_ort("AveragePool", [IMAGE], 7, **attributes)
    for opset, ceil_mode in itertools.product((10, 11, 19, 22), (0, 1)):
        assert_as_ort("AveragePool", [IMAGE], opset, ceil_mode=ceil_mode, **attributes)
        if opset >= 19 and "pads" in padding:
            dilated = attributes | {"dilations": (2, 2), "ceil_mode": ceil_mode}
            assert_as_ort("AveragePool", [IMAGE], opset, **dilated)


@pytest.mark.parametrize(
    ("opset", "op_type", "attributes"),
    [
        (10, "MaxPool", {"auto_pad": "SAME_UPPER", "dilations": (2, 2), "kernel_shape": (2, 2)}),
        (
            19,
            "AveragePool",
            {"auto_pad": "SAME_LOWER", "dilations": (2, 2), "kernel_shape": (2, 2)},
        ),
        (11, "AveragePool", {"auto_pad": "SAME_UPPER", "strides": (4, 4), "kernel_shape": (2, 2)}),
        (11, "MaxPool", {"pads": (2, 0, 0, 0), "kernel_shape": (2, 2)}),
    ],
)
def test_where_ort_leaves_the_specification_pools_refuse(
    opset: int, op_type: str, attributes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModelError):
        run_torch(one_node(op_type, [IMAGE], opset, **attributes), [IMAGE])


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow"])
@pytest.mark.parametrize("shapes", [((2, 3, 4), (4,)), ((1, 4), (3, 1)), ((), (2, 2))], ids=str)
def test_broadcasting(op_type: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    inputs = [np.abs(real(*shape)) + np.float32(0.1) for shape in shapes]
    for opset in (7, 12, 13):
        assert_as_ort(op_type, inputs, opset)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Mod", "Pow"])
def test_integers(op_type: str) -> None:
    a, b = np.array([7, -7, 8, -8], np.int32), np.array([2, 2, -3, -3], np.int32)
    assert_as_ort(op_type, [a, b], 13)


def test_pow_keeps_the_type_of_the_base() -> None:
    assert_as_ort("Pow", [np.array([2, 3], np.int64), np.array([2.5], np.float32)], 13)
    assert_as_ort("Pow", [real(3), np.array(2, np.int64)], 13)


def test_broadcasting_before_opset_7() -> None:
    """ONNX Runtime has no kernels for these: the specification's own examples."""
    a = torch.arange(120.0).reshape(2, 3, 4, 5)
    add = lookup("", "Add", 6)
    for shape, axis in [((5,), None), ((4, 5), None), ((3, 4), 1), ((2,), 0), ((), None)]:
        b = torch.ones(shape)
        assert torch.equal(add(a, b, axis=axis, broadcast=1), a + 1)
    scale = torch.tensor([1.0, 2.0, 3.0])
    expected = a * scale.reshape(1, 3, 1, 1)
    assert torch.equal(lookup("", "Mul", 6)(a, scale, axis=1, broadcast=1), expected)
    with pytest.raises(ValueError, match="differ"):
        add(a, scale)
    with pytest.raises(ValueError, match="broadcast"):
        add(a, scale, axis=2, broadcast=1)


@pytest.mark.parametrize(
    ("starts", "ends", "axes"),
    [((1,), (3,), None), ((0, -3), (-1, 100), (1, 2)), ((-1000,), (2,), (2,))],
)
def test_slice_1(starts: Any, ends: Any, axes: Any) -> None:
    more = {} if axes is None else {"axes": axes}
    assert_as_ort("Slice", [CUBE], 9, starts=starts, ends=ends, **more)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [3], None, None),
        ([-1], [-100], [1], [-1]),
        ([3], [0], [0], [-2]),
        ([0, 4], [100, -7], [0, 1], [2, -1]),
        ([2**31 - 1], [-(2**31)], [2], [-3]),
        ([2**63 - 1], [-(2**63)], [-1], [-1]),
        ([5], [1], [2], [1]),
        ([-100], [100], [-2], [3]),
    ],
)
@pytest.mark.parametrize("opset", [10, 13])
def test_slice_10(opset: int, starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    optional = [None if value is None else whole(*value) for value in (axes, steps)]
    assert_as_ort("Slice", [CUBE, whole(*starts), whole(*ends), *optional], opset)


def test_slice_that_starts_before_the_axis() -> None:
    """With a negative step ONNX begins at the first number then; Python's slices are empty."""
    inputs = [np.arange(3.0), whole(-5), whole(-9), whole(0), whole(-1)]
    assert run_torch(one_node("Slice", inputs, 13), inputs)[0].tolist() == [0.0]
    assert_as_ort("Slice", inputs, 13)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Flatten"])
@pytest.mark.parametrize("opset", [7, 11, 13])
def test_softmax_and_flatten(op_type: str, opset: int) -> None:
    assert_as_ort(op_type, [CUBE], opset)
    for axis in (0, 1, 2, -1) if opset >= 11 else (0, 1, 2):
        assert_as_ort(op_type, [CUBE], opset, axis=axis)


REDUCTIONS = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


@pytest.mark.parametrize("kind", [*REDUCTIONS, "LogSum"])
def test_reductions(kind: str) -> None:
    name = f"Reduce{kind}"
    x = real(2, 3, 4) if kind != "LogSum" else np.abs(real(2, 3, 4)) + np.float32(0.1)
    small = np.array([[1, -2, 3], [4, 5, -7]], np.int32)
    old, new = (11, 13) if kind == "Sum" else (13, 18)
    for keepdims in (0, 1):
        assert_as_ort(name, [x], old, keepdims=keepdims)
        assert_as_ort(name, [x], old, keepdims=keepdims, axes=(-1, 0))
        for axes in ([whole(1)], [whole(-1, 0)], [whole()], []):
            for noop in (0, 1):
                more = {"keepdims": keepdims, "noop_with_empty_axes": noop}
                assert_as_ort(name, [x, *axes], new, **more)
    if kind == "LogSumExp":
        with pytest.raises(UnsupportedModelError, match="of integers"):
            run_torch(one_node(name, [small], old), [small])
    elif kind != "LogSum":
        assert_as_ort(name, [small], old, axes=(1,))
        assert_as_ort(name, [small, whole(1)], new)


def test_reductions_of_nothing() -> None:
    empty = real(2, 0, 3)
    for kind in ("L1", "L2", "LogSumExp", "Max", "Min", "Prod", "Sum", "SumSquare"):
        opset = 13 if kind == "Sum" else 20
        assert_as_ort(f"Reduce{kind}", [empty, whole(1)], opset)
        assert_as_ort(f"Reduce{kind}", [empty], opset, keepdims=0)
    with pytest.raises(UnsupportedModelError, match="mean of nothing"):
        run_torch(one_node("ReduceMean", [empty], 18), [empty])


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg_max(op_type: str) -> None:
    ties = np.array([[1, 3, 3], [2, 2, 1]], np.float32)
    for opset, keepdims in itertools.product((7, 11, 12, 13), (0, 1)):
        assert_as_ort(op_type, [ties], opset, axis=1, keepdims=keepdims)
    assert_as_ort(op_type, [ties], 13, axis=-1, select_last_index=1)


def test_batch_normalization() -> None:
    parameters = [real(3), real(3), real(3), np.abs(real(3))]
    per_number = [real(3, 2), real(3, 2), real(3, 2), np.abs(real(3, 2))]
    assert_as_ort("BatchNormalization", [real(2, 3, 2), *per_number], 7, spatial=0)
    for opset in (7, 9, 14, 15):
        for x in (real(2, 3, 4, 5), real(2, 3)):
            assert_as_ort("BatchNormalization", [x, *parameters], opset, epsilon=1e-2)


@pytest.mark.parametrize("shape", [(4,), (1,), (3, 1), (3, 4), (1, 4), ()], ids=str)
def test_gemm(shape: tuple[int, ...]) -> None:
    more = {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}
    for opset in (7, 9, 11, 13):
        assert_as_ort("Gemm", [real(2, 3), real(4, 2), real(*shape)], opset, **more)


def test_clip() -> None:
    low, high = np.array(-0.5, np.float32), np.array(0.3, np.float32)
    odd = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert_as_ort("Clip", [CUBE], 7, min=-0.5, max=0.3)
    assert_as_ort("Clip", [CUBE], 10, max=0.3)
    for inputs in ([CUBE, low], [CUBE, None, high], [CUBE, high, low], [odd, low, high]):
        assert_as_ort("Clip", inputs, 11)
        assert_as_ort("Clip", inputs, 13)


PADS = [(1, 2, 1, 0), (0, 0, 2, 3), (-1, 0, 1, 2), (-1, -1, 0, 0)]


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", PADS)
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    value = np.array(1.5, np.float32)
    if mode != "wrap":
        assert_as_ort("Pad", [real(3, 4)], 7, mode=mode, pads=pads, value=1.5)
    for opset in (19,) if mode == "wrap" else (11, 13, 18):
        assert_as_ort("Pad", [real(3, 4), whole(*pads), value], opset, mode=mode)


def test_pad_axes() -> None:
    assert_as_ort("Pad", [real(3, 4), whole(1, 2), None, whole(-1)], 18)


def test_squeeze_and_unsqueeze() -> None:
    assert_as_ort("Squeeze", [real(1, 3, 1)], 7)
    assert_as_ort("Squeeze", [real(1, 3, 1)], 11, axes=(-1,))
    assert_as_ort("Squeeze", [real(1, 3, 1), whole(0)], 13)
    assert_as_ort("Unsqueeze", [real(3, 4)], 7, axes=(0, 3))
    assert_as_ort("Unsqueeze", [real(3, 4)], 11, axes=(-1, 0))
    assert_as_ort("Unsqueeze", [real(3, 4), whole(3, 0)], 13)


def test_split() -> None:
    assert_as_ort("Split", [CUBE], 7, 2, axis=0)
    assert_as_ort("Split", [CUBE], 11, 2, axis=1, split=(2, 3))
    assert_as_ort("Split", [CUBE, whole(2, 3)], 13, 2, axis=-2)
    assert_as_ort("Split", [CUBE], 18, 3, axis=1, num_outputs=3)


def test_dropout() -> None:
    for opset in (7, 10):
        assert_as_ort("Dropout", [CUBE], opset, 2, ratio=0.3)
    for opset in (12, 13, 22):
        assert_as_ort("Dropout", [CUBE, np.array(0.3, np.float32)], opset, 2)


@pytest.mark.parametrize("slope", [(6,), (5, 1), (1,)], ids=str)
def test_prelu(slope: tuple[int, ...]) -> None:
    for opset in (7, 9, 16):
        assert_as_ort("PRelu", [CUBE, real(*slope)], opset)


def test_gather() -> None:
    for opset, indices in itertools.product((7, 11, 13), (whole(2, 0), np.array(-1))):
        assert_as_ort("Gather", [CUBE, indices], opset, axis=1)


def test_top_k() -> None:
    ties = np.array([[1, 3, 3, 1, 3]], np.float32)
    assert_as_ort("TopK", [CUBE], 7, 2, k=2, axis=1)
    assert_as_ort("TopK", [CUBE, whole(3)], 10, 2)
    for largest in (0, 1):
        assert_as_ort("TopK", [ties, whole(4)], 11, 2, largest=largest)


def test_shape_and_reshape() -> None:
    assert_as_ort("Shape", [CUBE], 15, start=-2)
    assert_as_ort("Shape", [CUBE], 15, start=1, end=100)
    assert_as_ort("Reshape", [CUBE, whole(0, -1)], 7)
    assert_as_ort("Reshape", [real(0, 3), whole(3, 0)], 14, allowzero=1)


@pytest.mark.parametrize("op_type", ["Max", "Min", "Sum", "Mean"])
def test_variadic(op_type: str) -> None:
    assert_as_ort(op_type, [real(2, 3), real(2, 3), real(2, 3)], 7)
    assert_as_ort(op_type, [real(2, 3), real(3), real(1)], 8)
    assert_as_ort(op_type, [real(2, 3), np.array([np.nan, 1, 2], np.float32)], 13)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("op_type", ["Relu", "Sigmoid", "Softmax", "Exp", "ReduceMean", "Tanh"])
def test_types_are_kept(op_type: str, dtype: Any) -> None:
    if (op_type, dtype) != ("ReduceMean", np.float16):
        assert_as_ort(op_type, [real(1, 2, 3).astype(dtype)], 13)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn(size: int) -> None:
    assert_as_ort("LRN", [real(2, 6, 3, 3)], 13, size=size, alpha=0.3)


def test_normalizations() -> None:
    assert_as_ort("LayerNormalization", [CUBE, real(6), real(6)], 17, 3)
    assert_as_ort("LayerNormalization", [CUBE, real(5, 6)], 17, 3, axis=1)
    assert_as_ort("InstanceNormalization", [real(2, 3, 4), real(3), real(3)], 7)
    assert_as_ort("GroupNormalization", [real(2, 4, 4), real(2), real(2)], 18, num_groups=2)
    assert_as_ort("GroupNormalization", [real(2, 4, 4), real(4), real(4)], 21, num_groups=2)


BY_SCALES = [(1, 1, 2, 2), (1, 1, 1.3, 0.7), (1, 1, 0.6, 0.6), (1, 1, 0.2, 3.5)]
BY_SIZES = [(1, 2, 10, 9), (1, 2, 3, 4), (1, 2, 1, 1), (1, 2, 5, 11)]
COORDINATES = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]


def resize_inputs(roi: np.ndarray | None, opset: int) -> list[Arrays]:
    """The inputs of Resize for every target of BY_SCALES and BY_SIZES."""
    x, empty = real(1, 2, 5, 6), np.array([], np.float32)
    no_roi = roi if roi is not None or opset >= 13 else empty
    scales = [[x, no_roi, np.array(target, np.float32)] for target in BY_SCALES]
    sizes = [[x, no_roi, None if opset >= 13 else empty, whole(*t)] for t in BY_SIZES]
    return scales + sizes


@pytest.mark.parametrize(
    "coordinates", [*COORDINATES, "half_pixel_symmetric", "tf_crop_and_resize"]
)
@pytest.mark.parametrize("opset", [11, 13, 18, 19])
def test_resize(opset: int, coordinates: str) -> None:
    if coordinates == "half_pixel_symmetric" and opset < 19:
        pytest.skip("new in opset 19")
    crops = coordinates == "tf_crop_and_resize"
    roi = np.array([0, 0, 0.1, 0.2, 1, 1, 0.8, 1.1], np.float32) if crops else None
    common = {"coordinate_transformation_mode": coordinates, "extrapolation_value": 7.5}
    modes: list[dict[str, Any]] = [
        {"mode": "nearest", "nearest_mode": "round_prefer_floor"},
        {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
        {"mode": "nearest", "nearest_mode": "floor"},
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"mode": "linear"},
        {"mode": "cubic"},
        {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
    ]
    if opset >= 18:
        modes += [{"mode": mode, "antialias": 1} for mode in ("linear", "cubic")]
    if coordinates == "half_pixel_symmetric":
        modes = [mode for mode in modes if mode["mode"] != "nearest"]
    for inputs, mode in itertools.product(resize_inputs(roi, opset), modes):
        assert_as_ort("Resize", inputs, opset, **common, **mode)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_to_the_same_size_copies(mode: str) -> None:
    """ONNX Runtime does so even where the scales would shift the image."""
    inputs = [real(1, 1, 5, 6), None, np.array([1, 1, 1.1, 1.05], np.float32)]
    for coordinates in COORDINATES:
        how = {"mode": mode, "coordinate_transformation_mode": coordinates}
        assert_as_ort("Resize", inputs, 18, **how)
        np.testing.assert_array_equal(
            run_torch(one_node("Resize", inputs, 18, **how), inputs)[0], inputs[0]
        )


def test_resize_refuses_a_policy_with_negative_axes() -> None:
    inputs = [real(1, 1, 5, 6), None, None, whole(7, 9)]
    how = {"axes": [-2, -1], "keep_aspect_ratio_policy": "not_larger"}
    with pytest.raises(UnsupportedModelError, match="negative axes"):
        run_torch(one_node("Resize", inputs, 18, **how), inputs)


def test_resize_refuses_rounding_of_halves() -> None:
    inputs = [real(1, 1, 5, 6), None, np.array([1, 1, 0.6, 0.6], np.float32)]
    model = one_node("Resize", inputs, 19, coordinate_transformation_mode="half_pixel_symmetric")
    with pytest.raises(UnsupportedModelError):
        run_torch(model, inputs)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_and_resize_10(mode: str) -> None:
    x = real(1, 2, 5, 6)
    for scales in ((1, 1, 2, 2), (1, 1, 1.5, 2.5), (1, 1, 3, 1)):
        floats = [float(scale) for scale in scales]
        assert_as_ort("Upsample", [x], 7, mode=mode, scales=floats)
        assert_as_ort("Upsample", [x, np.array(scales, np.float32)], 9, mode=mode)
    for scales in ((1, 1, 2, 2), (1, 1, 0.5, 0.6), (1, 1, 0.6, 2)):
        assert_as_ort("Resize", [x, np.array(scales, np.float32)], 10, mode=mode)
