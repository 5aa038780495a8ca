"""A few bytes of a file may not ask for a result that fills the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converters import UnsupportedModelError
from converters.ops import _values

from .one_node import Arrays, one_node, run_torch

ONE = np.ones((1, 1, 2, 2), np.float32)
HUGE = 2**40
HOSTILE: list[tuple[str, Arrays, int, dict[str, Any]]] = [
    ("ConstantOfShape", [np.int64([2**20, 2**20])], 17, {}),
    ("ConstantOfShape", [np.int64([2**62, 2**62])], 17, {}),
    ("Expand", [ONE, np.int64([HUGE, 1, 2, 2])], 17, {}),
    ("Tile", [ONE, np.int64([1, HUGE, 1, 1])], 17, {}),
    ("Tile", [ONE, np.float32(HUGE), np.float32(1)], 5, {}),
    ("Range", [np.int64(0), np.int64(HUGE), np.int64(1)], 17, {}),
    ("Range", [np.float32(0), np.float32(1e30), np.float32(1)], 17, {}),
    ("Pad", [ONE, np.int64([0, 0, 0, 0, 0, 0, HUGE, 0])], 17, {}),
    ("Pad", [ONE], 2, {"pads": [0, 0, 0, 0, 0, 0, HUGE, 0]}),
    ("Resize", [ONE, None, None, np.int64([1, 1, HUGE, 2])], 17, {}),
    ("Resize", [ONE, None, np.float32([1, 1, 1e12, 1])], 17, {"mode": "linear"}),
    ("Upsample", [ONE, np.float32([1, 1, 1e12, 1])], 9, {}),
    ("OneHot", [np.int64([1]), np.int64(HUGE), np.float32([0, 1])], 17, {}),
    ("ConvTranspose", [ONE, ONE], 17, {"strides": [2**30, 2**30]}),
    ("ConvTranspose", [ONE, ONE], 17, {"output_padding": [HUGE, 0]}),
    ("AffineGrid", [np.ones((1, 2, 3), np.float32), np.int64([1, 1, HUGE, 2])], 20, {}),
    ("DFT", [np.ones((1, 4, 1), np.float32), np.int64(HUGE)], 17, {}),
    (
        "MelWeightMatrix",
        [np.int64(HUGE), np.int64(8), np.int64(8000), np.float32(0), np.float32(4000)],
        17,
        {},
    ),
    ("RoiAlign", [ONE, np.ones((1, 4), np.float32), np.int64([0])], 16, {"output_width": HUGE}),
    ("RoiAlign", [ONE, np.ones((1, 4), np.float32), np.int64([0])], 16, {"sampling_ratio": HUGE}),
    (
        "MaxUnpool",
        [ONE, np.zeros((1, 1, 2, 2), np.int64)],
        11,
        {"kernel_shape": [2, 2], "strides": [HUGE, 1]},
    ),
]


@pytest.mark.parametrize(
    ("op_type", "inputs", "opset", "attributes"),
    HOSTILE,
    ids=[f"{i}-{case[0]}" for i, case in enumerate(HOSTILE)],
)
def test_huge_result_is_refused(
    op_type: str, inputs: Arrays, opset: int, attributes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"bytes; the limit is 4294967296"):
        run_torch(one_node(op_type, inputs, opset, **attributes), inputs)


def test_eye_of_a_broad_view_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_values, "MAX_RESULT_BYTES", 1000)
    square = np.ones((20, 20), np.uint8)
    with pytest.raises(UnsupportedModelError, match="3200 bytes; the limit is 1000"):
        run_torch(one_node("EyeLike", [square], 17), [square])


def test_results_up_to_the_limit_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_values, "MAX_RESULT_BYTES", 4 * 20)
    shape = np.int64([4, 5])
    assert run_torch(one_node("ConstantOfShape", [shape], 17), [shape])[0].shape == (4, 5)
