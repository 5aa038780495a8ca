"""Whole networks from ONNX Runtime's quantiser and optimiser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from converters import (
    OnnxClassifier,
    UnsupportedModelError,
    check_parity,
    load_classifier,
    open_session,
    to_torch,
)
from tests.converters.onnx_models import small_net
from tests.converters.quantized_models import optimized, patterns, plain, quantized

STATIC = ["qdq_u8", "qdq_s8_per_channel", "qoperator_u8", "qoperator_s8_per_channel"]


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def gradient(classifier: OnnxClassifier, x: np.ndarray) -> torch.Tensor:
    given = torch.from_numpy(x).requires_grad_()
    classifier.logits(given)[:, 0].sum().backward()
    assert given.grad is not None
    return given.grad


@pytest.mark.parametrize("how", [*STATIC, "dynamic"])
def test_quantized_network(tmp_path: Path, how: str) -> None:
    model = quantized(tmp_path, how)
    classifier = load_classifier(model)
    x = patterns(64, seed=9)
    session = open_session(classifier.model, optimize=False)
    parity = check_parity(classifier, x, session)
    assert parity.loose
    assert parity.argmax_agreement >= 0.95
    assert parity.max_difference < 0.05
    grad = gradient(classifier, x[:3])
    assert bool(grad.isfinite().all())
    assert bool((grad.abs().amax((1, 2, 3)) > 0).all())
    assert classifier.logits(torch.from_numpy(x[:5])).shape == (5, 10)
    assert (classifier.batch_size is None) == (how != "dynamic")


@pytest.mark.parametrize("how", STATIC)
def test_gradient_is_near_that_of_the_float_network(tmp_path: Path, how: str) -> None:
    x = patterns(8, seed=3)
    true = gradient(load_classifier(onnx.load(plain(tmp_path))), x).reshape(-1)
    found = gradient(load_classifier(quantized(tmp_path, how)), x).reshape(-1)
    assert float(torch.cosine_similarity(true, found, dim=0)) > 0.9


def test_quantised_files_hold_what_this_is_about(tmp_path: Path) -> None:
    assert operators(quantized(tmp_path, "qoperator_u8")) >= {
        "QLinearConv",
        "QLinearAdd",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "QLinearConcat",
        "QLinearAveragePool",
        "QGemm",
    }
    assert operators(quantized(tmp_path, "dynamic")) >= {"DynamicQuantizeLinear", "ConvInteger"}


@pytest.mark.parametrize(
    ("level", "holds"),
    [
        (ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, "Conv"),
        (ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, "FusedConv"),
    ],
)
def test_optimised_file(tmp_path: Path, level: ort.GraphOptimizationLevel, holds: str) -> None:
    model = optimized(plain(tmp_path), level)
    assert holds in operators(model)
    classifier = load_classifier(model)
    x = patterns(5, seed=9)
    reference = to_torch(onnx.load(tmp_path / "plain.onnx"))(torch.from_numpy(x))[0]
    np.testing.assert_allclose(classifier.logits(torch.from_numpy(x)), reference, atol=1e-4)
    assert bool((gradient(classifier, x).abs().amax((1, 2, 3)) > 0).all())


def test_file_laid_out_for_one_processor_is_refused() -> None:
    model = small_net()
    model.graph.node[0].domain = "com.microsoft.nchwc"
    model.opset_import.add(domain="com.microsoft.nchwc", version=1)
    with pytest.raises(UnsupportedModelError, match="give the un-optimised file"):
        load_classifier(model)
