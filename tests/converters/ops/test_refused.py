"""Parameters that are refused: engines differ on them, or torch has nothing for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from converters import UnsupportedModelError

from .one_node import Arrays, one_node, run_torch


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


QUERY, KEYS, PAST = ones(1, 1, 2, 3), ones(1, 1, 4, 3), ones(1, 1, 1, 3)
RECURRENT = [ones(2, 1, 3), ones(1, 4, 3), ones(1, 4, 4)]
CASES: list[tuple[str, Arrays, int, dict[str, Any], str]] = [
    # A causal mask over past keys and more new keys than queries.
    ("Attention", [QUERY, KEYS, KEYS, None, PAST, PAST], 23, {"is_causal": 1}, "past keys"),
    ("Attention", [ones(1, 2, 6), ones(1, 2, 6), ones(1, 2, 6)], 23, {}, "heads"),
    ("AffineGrid", [ones(1, 2, 3), whole(1, 1, 1, 2)], 20, {"align_corners": 1}, "size 1"),
    ("BitCast", [ones(2)], 26, {"to": 7}, "different sizes"),
    ("BitShift", [np.uint8([1]), np.uint8([1])], 11, {"direction": "UP"}, "direction"),
    ("Add", [np.uint64([2**63]), np.uint64([1])], 14, {}, "uint64"),
    ("Col2Im", [ones(1, 4, 3), whole(3, 3), whole(2, 2)], 18, {}, "4 windows"),
    ("DFT", [ones(1, 4, 2)], 17, {"onesided": 1}, "complex"),
    ("DFT", [ones(1, 4, 3)], 17, {}, "real and imaginary"),
    ("GridSample", [ones(1, 1, 2, 2, 2), ones(1, 1, 1, 1, 3)], 20, {"mode": "cubic"}, "cubic"),
    ("MaxUnpool", [ones(1, 1, 1), whole(0).reshape(1, 1, 1), whole(1, 1, 5)], 11,
     {"kernel_shape": [2]}, "output_shape"),
    ("MaxUnpool", [ones(1, 1, 1), whole(2).reshape(1, 1, 1)], 11, {"kernel_shape": [2]}, "range"),
    ("Mod", [ones(2), ones(2)], 13, {}, "fmod"),
    ("RNN", RECURRENT, 14, {"activations": ["Affine"]}, "activations Affine"),
    ("RNN", RECURRENT, 14, {"activation_alpha": [0.5]}, "with parameters"),
    ("RNN", RECURRENT, 14, {"direction": "both"}, "direction"),
    ("ReverseSequence", [ones(3, 2), whole(4, 1)], 10, {}, "sequence_lens"),
    ("STFT", [ones(1, 4, 1), np.int64(0), ones(3)], 17, {}, "steps of 0"),
    ("Split", [ones(7)], 18, {"num_outputs": 4}, "num_outputs is 4"),
    ("TensorScatter", [ones(1, 3, 2), ones(1, 2, 2), whole(2)], 24, {}, "does not fit"),
    ("Unique", [np.float32([np.nan, 1])], 11, {}, "NaN"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op_type", "inputs", "opset", "attributes", "message"),
    CASES,
    ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)],
)
def test_refused(
    op_type: str, inputs: Arrays, opset: int, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        run_torch(one_node(op_type, inputs, opset, **attributes), inputs)
    assert op_type in str(caught.value)


@pytest.mark.parametrize(
    ("op_type", "inputs"),
    [
        ("RandomNormalLike", [ones(2)]),
        ("StringSplit", [ones(1)]),
        ("TfIdfVectorizer", [ones(1)]),
    ],
)
def test_operators_that_are_not_there_are_refused_by_name(op_type: str, inputs: Arrays) -> None:
    with pytest.raises(UnsupportedModelError, match=op_type):
        run_torch(one_node(op_type, inputs, 17), inputs)
