"""The ONNX project's own node cases, for every operator that the registry has.

Left out by rule: cases whose operator is not registered, cases of an opset after `LAST_OPSET`,
"expanded" cases (the same operators again, written with others), and cases whose inputs or outputs
are no plain tensors of a type that numpy and torch share (strings, 8 bits and less).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from converters import to_torch
from converters.errors import UnsupportedModelError
from converters.registry import lookup

from .one_node import assert_same

LAST_OPSET = 26

# Operators without a function here, which the bodies in `onnx.defs` stand for.
BY_BODY = (
    "Attention",
    "BlackmanWindow",
    "CenterCropPad",
    "HammingWindow",
    "HannWindow",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "RotaryEmbedding",
    "SoftmaxCrossEntropyLoss",
)

UNSIGNED = "torch has no arithmetic on unsigned integers of 16 bits and more"
EMPTY = "the maximum of nothing"
CACHE = "onnx's inliner can't infer a type in the body, which has a cache of past keys"
SCATTER_ND = "ScatterND with a product, a maximum or a minimum"
REFUSED = {
    **{
        f"test_{op}_uint{bits}": UNSIGNED
        for op in (
            "add",
            "sub",
            "div",
            "max",
            "min",
            "greater",
            "greater_equal",
            "less",
            "less_equal",
        )
        for bits in (16, 32, 64)
    },
    "test_bitwise_not_3d": UNSIGNED,
    **{
        f"test_attention_{name}": CACHE
        for name in (
            "4d_causal_nonpad_attn_mask_composition",
            "4d_causal_nonpad_batch_prefill",
            "4d_causal_nonpad_continued_prefill",
            "4d_causal_nonpad_negative_offset_structural_empty",
            "4d_causal_with_past_and_present",
            "4d_diff_heads_mask4d_padded_kv",
            "4d_gqa_causal_nonpad_decode",
            "4d_gqa_causal_nonpad_decode_fp16",
            "local_window_ext_cache_float16_mask",
            "local_window_ext_cache_rank2_mask",
            "local_window_ext_cache_rank3_head_mask",
            "local_window_ext_cache_rank4_batch_mask",
            "local_window_with_past",
        )
    },
    "test_reduce_max_empty_set": EMPTY,
    "test_reduce_max_empty_set_bool": EMPTY,
    "test_reduce_min_empty_set": EMPTY,
    "test_scatternd_max": SCATTER_ND,
    "test_scatternd_max_with_element_indices": SCATTER_ND,
    "test_scatternd_min": SCATTER_ND,
    "test_scatternd_min_with_element_indices": SCATTER_ND,
    "test_scatternd_multiply": SCATTER_ND,
}

TRAINING = "inference semantics are forced on nodes in training mode"
ALIGN_CORNERS = "as ONNX Runtime: align_corners with scales uses the rounded size of the result"
HALF = "the body of the operator rounds to half precision after each of its steps"
DIFFERENT = {
    "test_attention_4d_causal_fp16": HALF,
    "test_batchnorm_epsilon_training_mode": TRAINING,
    "test_batchnorm_example_training_mode": TRAINING,
    "test_training_dropout": TRAINING,
    "test_training_dropout_default": TRAINING,
    "test_training_dropout_default_mask": TRAINING,
    "test_training_dropout_mask": TRAINING,
    "test_resize_downsample_scales_cubic_align_corners": ALIGN_CORNERS,
    "test_resize_downsample_scales_linear_align_corners": ALIGN_CORNERS,
}


def as_array(value: Any) -> np.ndarray | None:
    """A case's input or output as an array that torch can share, or None."""
    try:
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        array = np.array(value)
        torch.from_numpy(array)
    except (TypeError, ValueError):
        return None
    return array


def is_in_scope(case: TestCase) -> bool:
    opsets = {o.domain: o.version for o in case.model.opset_import}
    values = [v for data_set in case.data_sets for part in data_set for v in part]
    return (
        "_expanded" not in case.name
        and opsets.get("", 0) <= LAST_OPSET
        and all(
            n.op_type in BY_BODY or lookup(n.domain, n.op_type, opsets[n.domain])
            for n in case.model.graph.node
        )
        and all(as_array(v) is not None for v in values)
    )


def cases_in_scope() -> dict[str, TestCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {c.name: c for c in load_model_tests(kind="node") if is_in_scope(c)}


CASES = cases_in_scope()


def run(case: TestCase) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """The actual and the expected outputs of each of the case's data sets."""
    graph = to_torch(case.model)
    pairs = []
    for inputs, expected in case.data_sets:
        given = [torch.from_numpy(as_array(value)) for value in inputs]
        actual = [output.numpy() for output in graph(*given)]
        pairs.append((actual, [as_array(value) for value in expected]))
    return pairs


@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED) - set(DIFFERENT)))
def test_case_passes(name: str) -> None:
    for actual, expected in run(CASES[name]):
        assert_same(actual, expected)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_case_is_refused_and_not_wrong(name: str) -> None:
    with pytest.raises(UnsupportedModelError):
        run(CASES[name])


@pytest.mark.parametrize("name", sorted(DIFFERENT))
def test_case_differs_knowingly(name: str) -> None:
    """Fails once a case agrees, so that the list above stays true."""
    for actual, expected in run(CASES[name]):
        with pytest.raises(AssertionError):
            assert_same(actual, expected)


def test_most_of_the_suite_is_in_scope() -> None:
    """A rule that leaves out too much would hide failures."""
    assert len(CASES) > 700
