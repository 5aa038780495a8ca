"""Both exporters of torch, over operator sets, batch sizes and options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from converters import load_classifier
from tests.converters.variants.checks import BATCH_SIZES, check_gradient, check_variant
from tests.converters.variants.nets import NETS, in_float64, net, patterns
from tests.converters.variants.torch_files import SCRIPT_OPSETS, dynamo_exported, script_exported

FIRST_OPSET = {"residual": 10}  # the exporter has no Slice with steps before
DYNAMIC = [
    (name, opset)
    for name in NETS
    for opset in (SCRIPT_OPSETS if name == "conv" else (9, 13, 17, 20))
    if opset >= FIRST_OPSET.get(name, 9)
] + [("vit", 11), ("vit", 14), ("vit", 16)]


@pytest.mark.parametrize(("name", "opset"), DYNAMIC)
def test_torchscript_exporter(name: str, opset: int) -> None:
    classifier = check_variant(script_exported(net(name), opset), in_float64(name))
    assert classifier.rewrites == ()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    ("opset", "batch", "fold"), [(11, 4, True), (14, 1, False), (18, 4, False)]
)
def test_torchscript_exporter_with_a_fixed_batch(
    name: str, opset: int, batch: int, fold: bool
) -> None:
    model = script_exported(net(name), opset, batch, fold=fold)
    classifier = check_variant(model, in_float64(name))
    assert classifier.image_input.batch_size == batch


@pytest.mark.parametrize(("name", "opset"), [("conv", 11), ("mobile", 13), ("conv", 17)])
def test_export_in_training_mode_is_read_as_for_inference(name: str, opset: int) -> None:
    model = script_exported(net(name), opset, fold=False, training=True)
    assert "BatchNormalization" in {node.op_type for node in model.graph.node}
    known = patterns(64, seed=5)  # the statistics are those of these images
    classifier = load_classifier(model, parity_inputs=known)
    assert classifier.training_mode_forced
    assert classifier.batch_size is None
    for size in BATCH_SIZES:
        x = torch.from_numpy(patterns(size, seed=9))
        with torch.no_grad():
            expected = in_float64(name)(x.double()).float()
        torch.testing.assert_close(classifier.logits(x), expected, rtol=1e-3, atol=1e-4)
    check_gradient(classifier, x, in_float64(name), 1e-3)


@pytest.mark.parametrize(
    ("name", "opset", "batch", "external"),
    [
        ("conv", 18, 1, True),
        ("mobile", 20, None, False),
        ("shuffle", 21, 4, False),
        ("vit", 23, None, True),
        ("smooth", 22, 1, False),
    ],
)
def test_dynamo_exporter(
    tmp_path: Path, name: str, opset: int, batch: int | None, external: bool
) -> None:
    path = tmp_path / "model.onnx"
    dynamo_exported(net(name), opset, path, batch, external=external)
    assert (tmp_path / "model.onnx.data").exists() == external
    check_variant(str(path), in_float64(name))
