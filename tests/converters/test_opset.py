"""Operator sets that ONNX Runtime does not read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from converters import (
    UnsupportedModelError,
    load_classifier,
    prepare,
    prepare_classifier,
    read_model,
)
from tests.converters.onnx_models import (
    assert_logits,
    build,
    images,
    node,
    run_ort,
    small_net,
    small_nodes,
    small_weights,
)


def old_model() -> onnx.ModelProto:
    """`small_net` in the operators of opset 6, as exporters wrote them then."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["plain"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["plain", "b"], ["conv"], axis=1, broadcast=1),
        helper.make_node(
            "BatchNormalization", ["conv", "gamma", "beta", "mean", "var"], ["norm"], is_test=1
        ),
        node("Relu", "norm", "act"),
        node("GlobalAveragePool", "act", "pooled"),
        node("Flatten", "pooled", "flat"),
        helper.make_node("Gemm", ["flat", "fc", "fb"], ["logits"], transB=1, broadcast=1),
        node("Softmax", "logits", "y"),
    ]
    model = build(nodes, {"x": (1, 1, 8, 8)}, ["y"], small_weights(), opset=6, ir_version=3)
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    return model


def test_old_operator_set_is_raised() -> None:
    classifier = load_classifier(old_model())
    x = images(4, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)
    assert "operator set 6 converted to 7" in classifier.rewrites
    assert classifier.file.opset == 6


@pytest.mark.parametrize("opset", [27, 28])
def test_new_operator_set_is_lowered(opset: int) -> None:
    model = build(small_nodes(), {"x": ("N", 1, 8, 8)}, ["logits"], small_weights(), opset=opset)
    classifier = load_classifier(model)
    x = images(4, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)
    assert f"operator set {opset} converted to 26" in classifier.rewrites


def test_unknown_operator_set_is_refused() -> None:
    model = small_net()
    model.opset_import[0].version = 1000
    with pytest.raises(UnsupportedModelError, match="1000 can't be converted to 26") as caught:
        prepare_classifier(read_model(model))
    assert "\n" not in str(caught.value)


def test_conversion_that_changes_results_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto, ranks: dict[str, int]) -> str:
        model.graph.node[3].op_type = "Neg"
        return "converted"

    monkeypatch.setattr(prepare, "fit_opset", wrong)
    with pytest.raises(UnsupportedModelError, match="changes the results"):
        prepare_classifier(read_model(old_model()))


def byte_model(front: str) -> onnx.ModelProto:
    """`small_net` of 3 channels behind uint8 images in NHWC, scaled to [0, 1]."""
    moves = {
        "Transpose": [
            node("Transpose", "image", "t", perm=[0, 3, 1, 2]),
            node("Cast", "t", "c", to=onnx.TensorProto.FLOAT),
        ],
        "Cast": [
            node("Cast", "image", "t", to=onnx.TensorProto.FLOAT),
            node("Transpose", "t", "c", perm=[0, 3, 1, 2]),
        ],
    }[front]
    scale = helper.make_node("Div", ["c", "range"], ["x"])
    weights = small_weights(channels=3) | {"range": np.float32(255)}
    nodes = [*moves, scale, *small_nodes(), node("Softmax", "logits", "y")]
    return build(nodes, {"image": ("N", 8, 8, 3)}, ["y"], weights, elem_type=onnx.TensorProto.UINT8)


@pytest.mark.parametrize("front", ["Transpose", "Cast"])
def test_images_of_bytes(front: str) -> None:
    classifier = load_classifier(byte_model(front))
    wanted = classifier.image_input
    assert (wanted.layout, wanted.dtype, wanted.pixel_range_hint) == ("NHWC", np.uint8, 255.0)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.float32)
    fed = wanted.arrange_array(pixels)
    assert fed.dtype == np.uint8
    assert_logits(classifier, run_ort(small_net(shape=("N", 3, 8, 8)), pixels / 255)[0], fed)
    given = torch.from_numpy(pixels).requires_grad_()
    logits = classifier.logits(wanted.arrange(given))
    torch.testing.assert_close(logits, classifier.logits(torch.from_numpy(fed)))
    logits[:, 0].sum().backward()
    assert bool((given.grad.abs().amax((1, 2, 3)) > 0).all())


def test_bytes_are_rounded_and_kept_in_range() -> None:
    wanted = prepare_classifier(read_model(byte_model("Cast"))).image_input
    pixels = np.full((1, 3, 8, 8), 254.6, np.float32)
    pixels[0, 0], pixels[0, 1] = -3, 300
    assert wanted.arrange_array(pixels)[0, 0, 0].tolist() == [0, 255, 255]


def test_float_images_have_no_hint() -> None:
    assert load_classifier(small_net()).image_input.pixel_range_hint is None
