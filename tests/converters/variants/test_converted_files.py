"""Files converted after their export: precision, operator set, labels, storage and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.converters.variants import converted_files as convert
from tests.converters.variants.checks import check_rounded_variant, check_variant
from tests.converters.variants.nets import NETS, in_float64, net
from tests.converters.variants.torch_files import script_exported


def exported(name: str = "conv", opset: int = 17, batch: int | None = None) -> onnx.ModelProto:
    return script_exported(net(name), opset, batch)


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_half_precision(name: str, keep_io: bool) -> None:
    model = convert.half_precision(exported(name), keep_io)
    dtype = np.float32 if keep_io else np.float16
    check_rounded_variant(model, in_float64(name), cosine=0.98, dtype=dtype)


@pytest.mark.parametrize("opset", range(7, 27))
def test_version_converter(opset: int) -> None:
    name = "mobile" if opset < 11 else ("conv", "shuffle")[opset % 2]
    model = convert.at_opset(exported(name, 9 if opset < 11 else 11), opset)
    assert model.opset_import[0].version == opset
    check_variant(model, in_float64(name))


@pytest.mark.parametrize("opset", [21, 24, 26])
def test_version_converter_on_a_transformer(opset: int) -> None:
    check_variant(convert.at_opset(exported("vit"), opset), in_float64("vit"))


@pytest.mark.parametrize("ir_version", range(3, 15))
def test_ir_version(ir_version: int) -> None:
    check_variant(convert.labelled(exported(), ir_version), in_float64("conv"))


def test_what_onnx_writes_by_default_and_onnx_runtime_refuses() -> None:
    model = convert.labelled(convert.at_opset(exported(), 27), 14, 28)
    classifier = check_variant(model, in_float64("conv"))
    assert classifier.rewrites == ("operator set 28 converted to 26",)


def test_external_data(tmp_path: Path) -> None:
    path = convert.with_external_data(exported("vit"), tmp_path / "vit.onnx")
    assert path.stat().st_size < (tmp_path / "w.bin").stat().st_size
    check_variant(str(path), in_float64("vit"))


@pytest.mark.parametrize("name", ["shuffle", "vit"])
def test_unsorted_nodes(name: str) -> None:
    model = convert.unsorted(exported(name))
    with pytest.raises(onnx.checker.ValidationError, match="sorted"):
        onnx.checker.check_model(model)
    check_variant(model, in_float64(name))


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("name", ["conv", "vit"])
def test_odd_names(name: str, batch: int | None) -> None:
    check_variant(convert.oddly_named(exported(name, 13, batch)), in_float64(name))


@pytest.mark.parametrize(
    ("op_type", "activation"),
    [("Softmax", "softmax"), ("Sigmoid", "sigmoid"), ("LogSoftmax", "none")],
)
def test_ends(op_type: str, activation: str) -> None:
    def truth(x: torch.Tensor) -> torch.Tensor:
        logits = in_float64("conv")(x)
        return logits.log_softmax(1) if op_type == "LogSoftmax" else logits

    check_variant(convert.ending(exported(), op_type), truth, activation=activation)


def test_several_outputs() -> None:
    model = convert.with_more_outputs(exported())
    classifier = check_variant(model, in_float64("conv"), activation="softmax")
    assert classifier.output_name == "probabilities"


@pytest.mark.parametrize(
    ("batch", "output_batch"),
    [("odd name/0", 1), ("", ""), (-1, -1), (None, None), ("N", 1), (1, "N"), (2, 1)],
)
def test_declared_batch_sizes(batch: int | str | None, output_batch: int | str | None) -> None:
    """Whatever the file declares of a graph that takes any batch size."""
    check_variant(convert.declared(exported("mobile"), batch, output_batch), in_float64("mobile"))
