"""Models in training mode: what is scanned, and when that is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from converters import ParityError, check_parity, load_classifier, prepare_classifier, read_model
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


def photos(count: int, seed: int = 0) -> np.ndarray:
    """Noise of every brightness, so that the classes of `trained_weights` differ."""
    brightness = np.random.default_rng(seed).permutation(np.linspace(0.05, 1, count))
    pixels = images(count, 1, 8, 8, seed=seed) * brightness[:, None, None, None]
    return pixels.astype(np.float32)


def statistics_of(weights: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the convolution's channels over these images."""
    w, b = (torch.from_numpy(weights[name]) for name in ("w", "b"))
    conv = torch.nn.functional.conv2d(torch.from_numpy(x), w, b, padding=1).numpy()
    return conv.mean((0, 2, 3)), conv.var((0, 2, 3))


def trained_weights() -> dict[str, np.ndarray]:
    """Weights with the running statistics of `photos`, which give each class its share."""
    weights = small_weights()
    mean, var = statistics_of(weights, photos(200, seed=9))
    weights |= {"mean": mean, "var": var}
    logits = run_ort(model_of(weights, False), photos(200, seed=9))[0]
    return weights | {"fb": weights["fb"] - logits.mean(0)}


def model_of(
    weights: dict[str, np.ndarray],
    training: bool,
    opset: int = 17,
    batch: int | str = "N",
    tail: tuple[NodeProto, ...] = (),
    output: str = "logits",
) -> onnx.ModelProto:
    """`small_net`, with BatchNormalization in training mode as this operator set writes it."""
    nodes = small_nodes()
    norm = nodes[1]
    if opset < 7:
        norm.attribute.append(helper.make_attribute("is_test", int(not training)))
        nodes[5].attribute.append(helper.make_attribute("broadcast", 1))
    elif training:
        norm.output.extend(f"statistics_{i}" for i in range(2 if opset >= 14 else 4))
        if opset >= 14:
            norm.attribute.append(helper.make_attribute("training_mode", 1))
    shape = {"x": (batch, 1, 8, 8)}
    return build([*nodes, *tail], shape, [output], weights, opset=opset)


@pytest.mark.parametrize("opset", [6, 7, 9, 13, 14, 15, 17])
def test_running_statistics_are_used_and_compared(opset: int) -> None:
    weights = trained_weights()
    classifier = prepare_classifier(read_model(model_of(weights, True, opset)))
    assert classifier.training_mode_forced
    assert "1 BatchNormalization in training mode: inference forced" in classifier.rewrites
    x = photos(64)
    parity = check_parity(classifier, x)
    assert not parity.loose
    assert parity.training_agreement is not None
    assert parity.training_agreement >= 0.95
    assert_logits(classifier, run_ort(model_of(weights, False), x)[0], x)


@pytest.mark.parametrize("opset", [6, 7, 14, 17])
def test_inference_mode_is_left_alone(opset: int) -> None:
    classifier = prepare_classifier(read_model(model_of(trained_weights(), False, opset)))
    assert not classifier.training_mode_forced
    assert check_parity(classifier, images(8, 1, 8, 8)).training_agreement is None


@pytest.mark.parametrize("opset", [6, 9, 17])
@pytest.mark.parametrize("batch", ["N", 4])
def test_another_network_in_the_running_statistics_is_refused(opset: int, batch: int | str) -> None:
    """Deployed in training mode it would be one network, scanned in inference mode another."""
    weights = trained_weights()
    weights["mean"] = weights["mean"][::-1] - 2
    weights["var"] = weights["var"] * np.float32([30, 1, 1, 0.02])
    classifier = prepare_classifier(read_model(model_of(weights, True, opset, batch)))
    with pytest.raises(ParityError, match="export the model in evaluation mode"):
        check_parity(classifier, photos(64))


def test_the_share_of_equal_classes_is_that_of_the_vendors_file() -> None:
    """Against ONNX Runtime on the file as it came, on batches of the declared size."""
    weights = trained_weights()
    model = model_of(weights, True, batch=16)
    x = photos(40)
    parity = check_parity(prepare_classifier(read_model(model)), x)
    filled = x[np.resize(np.arange(40), 48)]
    as_it_came = [run_ort(model, filled[i : i + 16])[0] for i in range(0, 48, 16)]
    classes = np.concatenate(as_it_came)[:40].argmax(1)
    scanned = run_ort(model_of(weights, False), x)[0].argmax(1)
    assert parity.training_agreement == pytest.approx((classes == scanned).mean())


def test_running_statistics_that_are_read_are_the_given_ones() -> None:
    weights = trained_weights()
    tail = (
        helper.make_node("ReduceSum", ["statistics_0"], ["sum"], keepdims=0),
        helper.make_node("Add", ["logits", "sum"], ["y"]),
    )
    classifier = prepare_classifier(read_model(model_of(weights, True, tail=tail, output="y")))
    x = images(3, 1, 8, 8)
    expected = run_ort(model_of(weights, False), x)[0] + weights["mean"].sum()
    np.testing.assert_allclose(
        classifier.logits(torch.from_numpy(x)), expected, rtol=1e-3, atol=1e-4
    )


# --- Dropout -------------------------------------------------------------------------------------


def with_dropout(mode: str, opset: int = 17) -> onnx.ModelProto:
    """`small_net` with a Dropout whose mode is this tensor, before its last layer."""
    model = small_net()
    del model.opset_import[:]
    model.opset_import.add(version=opset)
    inputs = ["flat", "half", mode] if mode else ["flat"]
    nodes = [NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    nodes[5].input[0] = "dropped"
    bright = [
        helper.make_node("ReduceMax", ["x"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "half"], ["computed"]),
        node("Constant", "", "constant", value=numpy_helper.from_array(np.array(True))),
    ]
    del bright[2].input[:]
    nodes[5:5] = [*bright, helper.make_node("Dropout", inputs, ["dropped"])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (
        ("half", np.float32(0.5)),
        ("yes", np.array(True)),
        ("no", np.array(False)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


@pytest.mark.parametrize(
    ("mode", "forced"),
    [("yes", True), ("constant", True), ("computed", True), ("no", False), ("", False)],
)
def test_dropout_never_drops(mode: str, forced: bool) -> None:
    classifier = load_classifier(with_dropout(mode))
    assert classifier.training_mode_forced == forced
    assert ("1 Dropout in training mode: inference forced" in classifier.rewrites) == forced
    x = images(5, 1, 8, 8)
    assert check_parity(classifier, x).training_agreement is None
    assert_logits(classifier, run_ort(small_net(), x)[0], x)


def test_both_at_once() -> None:
    model = with_dropout("yes")
    norm = model.graph.node[1]
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["m", "v"])
    weights = trained_weights()
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    classifier = prepare_classifier(read_model(model))
    said = "1 BatchNormalization and 1 Dropout in training mode: inference forced"
    assert said in classifier.rewrites
    parity = check_parity(classifier, photos(64))
    assert parity.training_agreement is not None
    assert parity.training_agreement >= 0.95
    assert parity.max_difference < 1e-4
    assert TensorProto.BOOL == 9  # the mode's type; dropping it must not leave it in the graph
    assert all(len(n.input) < 3 for n in classifier.model.graph.node if n.op_type == "Dropout")
