"""What ONNX Runtime saves after optimising or quantising."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from converters import ParityError, UnsupportedModelError, load_classifier, open_session
from tests.converters.onnx_models import (
    assert_logits,
    build,
    images,
    small_net,
    small_nodes,
    small_weights,
)
from tests.converters.variants.checks import check_rounded_variant, check_variant
from tests.converters.variants.nets import NETS, in_float64, net
from tests.converters.variants.runtime_files import STATIC, operators, optimized, quantized
from tests.converters.variants.torch_files import script_exported

FUSED = {
    "conv": {"com.microsoft.FusedConv"},
    "mobile": {"com.microsoft.FusedConv"},
    "shuffle": {"com.microsoft.FusedConv"},
    "vit": {"com.microsoft.BiasGelu"},
    "smooth": {"com.microsoft.Gelu", "com.microsoft.QuickGelu"},
    "residual": {"com.microsoft.FusedConv", "com.microsoft.QuickGelu"},
}


@pytest.mark.parametrize("level", ["basic", "extended"])
@pytest.mark.parametrize("name", NETS)
def test_optimised_file(tmp_path: Path, name: str, level: str) -> None:
    model = optimized(script_exported(net(name), 17), level, tmp_path)
    if level == "extended":
        assert operators(model) >= FUSED[name]
    check_variant(model, in_float64(name))


@pytest.mark.parametrize("level", ["layout", "all"])
@pytest.mark.parametrize("name", ["conv", "vit"])
def test_file_optimised_for_one_processor(tmp_path: Path, name: str, level: str) -> None:
    model = optimized(script_exported(net(name), 17), level, tmp_path)
    if not any(used.startswith("com.microsoft.nchwc.") for used in operators(model)):
        pytest.skip("ONNX Runtime does not block the weights for this processor")
    with pytest.raises(UnsupportedModelError, match="give the un-optimised file"):
        load_classifier(model)


def test_file_laid_out_for_one_processor_is_refused_on_any() -> None:
    model = small_net()
    model.graph.node[0].domain = "com.microsoft.nchwc"
    model.opset_import.add(domain="com.microsoft.nchwc", version=1)
    with pytest.raises(UnsupportedModelError, match="give the un-optimised file"):
        load_classifier(model)


def test_what_the_optimiser_makes_different_is_not_scanned_in_silence() -> None:
    """ONNX Runtime 1.31 merges a Pad by zeros with a MaxPool, which pads by minus infinity."""
    nodes = small_nodes()
    head = [
        helper.make_node("Neg", ["act"], ["negative"]),
        helper.make_node("Pad", ["negative", "pads"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["greatest"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    nodes[3].input[0] = "greatest"
    weights = small_weights() | {"pads": np.int64([0, 0, 0, 0, 0, 0, 1, 1])}
    model = build([*nodes[:3], *head, *nodes[3:]], {"x": ("N", 1, 8, 8)}, ["logits"], weights)
    x = images(8, 1, 8, 8)
    fast, slow = (open_session(model, optimize=o).run(None, {"x": x})[0] for o in (True, False))
    if np.abs(fast - slow).max() > 1e-3 * np.abs(slow).max():
        with pytest.raises(ParityError):
            load_classifier(model)
    else:
        assert_logits(load_classifier(model), slow, x)


@pytest.mark.parametrize(
    ("name", "how"),
    [("residual", how) for how in STATIC]
    + [("mobile" if how.startswith("qdq") else "vit", how) for how in STATIC],
)
def test_static_quantisation(tmp_path: Path, name: str, how: str) -> None:
    model = quantized(script_exported(net(name), 17), how, tmp_path)
    classifier = check_rounded_variant(model, in_float64(name), cosine=0.8)
    assert classifier.batch_size is None


@pytest.mark.parametrize(("name", "how"), [("conv", "qdq u8s8"), ("residual", "qoperator s8s8")])
def test_static_quantisation_of_a_prepared_file(tmp_path: Path, name: str, how: str) -> None:
    model = quantized(script_exported(net(name), 17), how, tmp_path, prepare=True)
    check_rounded_variant(model, in_float64(name), cosine=0.8)


@pytest.mark.parametrize(("name", "how"), [("residual", "u8"), ("mobile", "s8"), ("vit", "u8")])
def test_dynamic_quantisation(tmp_path: Path, name: str, how: str) -> None:
    """The range is taken over the whole batch, so that images influence each other."""
    model = quantized(script_exported(net(name), 17), f"dynamic {how}", tmp_path)
    wanted = {"DynamicQuantizeLinear", "MatMulInteger" if name == "vit" else "ConvInteger"}
    assert operators(model) >= wanted
    classifier = check_rounded_variant(model, in_float64(name), cosine=0.8)
    assert classifier.batch_size == 1


def test_quantised_files_hold_what_this_is_about(tmp_path: Path) -> None:
    base = script_exported(net("residual"), 17)
    assert operators(quantized(base, "qoperator u8u8", tmp_path)) >= {
        "QLinearConv",
        "com.microsoft.QLinearAdd",
        "com.microsoft.QLinearMul",
        "com.microsoft.QLinearSigmoid",
        "com.microsoft.QLinearLeakyRelu",
        "com.microsoft.QLinearConcat",
        "com.microsoft.QLinearAveragePool",
        "com.microsoft.QGemm",
    }
    per_channel = quantized(base, "qdq s8s8 per channel", tmp_path)
    assert any(_axes(per_channel))
    assert operators(per_channel) >= {"QuantizeLinear", "DequantizeLinear", "Conv"}


def _axes(model: onnx.ModelProto) -> list[bool]:
    """For each weight that is dequantised, whether it has one step size for each channel."""
    sizes = {t.name: list(t.dims) for t in model.graph.initializer}
    dequantized = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    return [sum(sizes.get(n.input[1], [])) > 1 for n in dequantized if n.input[0] in sizes]
