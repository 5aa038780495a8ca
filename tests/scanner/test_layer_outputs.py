"""Layers found in graphs whose layers are known; both engines against torch's own functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import NodeProto, helper
from torch.nn import functional

from converters import UnsupportedModelError, prepare_classifier, read_model
from scanner.classifier import Classifier
from scanner.errors import BdscanError, UsageError
from scanner.layer_outputs import (
    LayerNotFoundError,
    check_layer,
    convolution_map,
    differentiable_features,
    open_layers,
    penultimate_vector,
    rows,
)
from scanner.preprocessing import Preprocessing
from tests.models import as_classifier, linear_model, make_model, two_layer_model

SHAPE = (1, 8, 8)
SHIFTED = Preprocessing(1.0, (0.3,), (0.5,), "gray")


def node(op: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def weights(**shapes: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return {n: generator.normal(size=s).astype(np.float32) * 0.3 for n, s in shapes.items()}


def conv(inputs: str, output: str) -> NodeProto:
    return node("Conv", inputs, output, pads=[1, 1, 1, 1])


HEAD = [
    node("GlobalAveragePool", "map", "pooled"),
    node("Flatten", "pooled", "vector"),
    node("Gemm", "vector out", "logits"),
]
PLAIN = weights(w1=(4, 1, 3, 3), b1=(4,), out=(4, 3))


def plain(end: Sequence[NodeProto] = HEAD) -> onnx.ModelProto:
    return make_model([conv("x w1 b1", "c1"), node("Relu", "c1", "map"), *end], PLAIN, 3, SHAPE)


def found(nodes: list[NodeProto], **shapes: Sequence[int]) -> tuple[str, str]:
    """(convolution map, penultimate vector) of a model of three classes."""
    model = prepare_classifier(read_model(make_model(nodes, weights(**shapes), 3, SHAPE)))
    return convolution_map(model), penultimate_vector(model)


def images(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).random((count, *SHAPE), dtype=np.float32)


def expected_map(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The map of `plain` behind SHIFTED, by torch."""
    ready = torch.from_numpy((pixels - 0.3) / 0.5)
    kernel, bias = torch.from_numpy(PLAIN["w1"]), torch.from_numpy(PLAIN["b1"])
    result: npt.NDArray[np.float32] = (
        functional.conv2d(ready, kernel, bias, padding=1).relu().numpy()
    )
    return result


def test_onnx_runtime_gives_logits_and_layers_in_one_pass() -> None:
    classifier = as_classifier(plain(), SHIFTED)
    layers = open_layers(classifier, ["map", "vector"])
    pixels = images(7)
    logits, (feature_map, vector) = layers.run(pixels)
    np.testing.assert_allclose(logits, classifier.logits(pixels), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(feature_map, expected_map(pixels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vector, expected_map(pixels).mean((2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows(feature_map), vector, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(rows(vector), vector)


def test_torch_gives_the_same_map_with_a_gradient_to_the_images() -> None:
    classifier = as_classifier(plain(), SHIFTED)
    features = differentiable_features(classifier, convolution_map(classifier.onnx))
    pixels = torch.from_numpy(images(3)).requires_grad_()
    values = features(pixels)
    np.testing.assert_allclose(
        values.detach().numpy(), expected_map(images(3)), rtol=1e-4, atol=1e-5
    )
    (gradient,) = torch.autograd.grad(values[:, 2].sum(), pixels)
    # d map / d image: the kernel turned round, where the map is active, by the preprocessing.
    active = torch.from_numpy(np.float32(expected_map(images(3))[:, 2:3] > 0))
    kernel = torch.from_numpy(PLAIN["w1"][2:3])
    expected = functional.conv_transpose2d(active, kernel, padding=1) / 0.5
    np.testing.assert_allclose(gradient.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_last_map_is_taken_after_its_activation() -> None:
    nodes = [
        conv("x w1", "c1"), node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2]), conv("p1 w2", "c2"),
        node("Elu", "c2", "map"), *HEAD,
    ]  # fmt: skip
    assert found(nodes, w1=(4, 1, 3, 3), w2=(4, 4, 3, 3), out=(4, 3)) == ("map", "vector")


def test_sums_gates_and_branches_are_followed() -> None:
    shapes = {"w1": (4, 1, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 1, 1), "out": (4, 3)}
    residual = [
        conv("x w1", "c1"), node("Relu", "c1", "r1"), conv("r1 w2", "c2"),
        node("Conv", "r1 w3", "shortcut"), node("Add", "c2 shortcut", "sum"),
        node("Relu", "sum", "map"), *HEAD,
    ]  # fmt: skip
    assert found(residual, **shapes)[0] == "map"
    squeeze = [
        conv("x w1", "c1"), node("Sigmoid", "c1", "s1"), node("Mul", "c1 s1", "swish"),
        node("GlobalAveragePool", "swish", "g"), node("Conv", "g w3", "gate"),
        node("Sigmoid", "gate", "open"), node("Mul", "swish open", "map"), *HEAD,
    ]  # fmt: skip
    assert found(squeeze, **{k: shapes[k] for k in ("w1", "w3", "out")})[0] == "map"
    dense = [
        conv("x w1", "c1"), conv("c1 w2", "c2"), node("Concat", "c1 c2", "map", axis=1), *HEAD,
    ]  # fmt: skip
    assert found(dense, **{**shapes, "out": (8, 3)})[0] == "map"


def test_a_convolution_of_one_pixel_is_a_linear_layer() -> None:
    nodes = [
        conv("x w1", "c1"), node("Relu", "c1", "map"), node("GlobalAveragePool", "map", "pooled"),
        node("Conv", "pooled w2", "scores"), node("Flatten", "scores", "logits"),
    ]  # fmt: skip
    # Nor is there a Gemm: the pooled map itself must do as the vector.
    assert found(nodes, w1=(4, 1, 3, 3), w2=(3, 4, 1, 1)) == ("map", "map")


def test_convolutions_and_products_beside_the_path_do_not_count() -> None:
    nodes = [
        node("MatMul", "a b", "offset"), conv("x w1", "c1"), node("Relu", "c1", "map"),
        node("GlobalAveragePool", "map", "pooled"), node("Flatten", "pooled", "vector"),
        node("MatMul", "vector out", "raw"), node("Add", "raw offset", "logits"),
        conv("map w2", "unused"),
    ]  # fmt: skip
    shapes = {"w1": (4, 1, 3, 3), "w2": (4, 4, 3, 3), "out": (4, 3), "a": (1, 2), "b": (2, 3)}
    assert found(nodes, **shapes) == ("map", "vector")


def test_the_vector_is_read_before_it_is_quantised() -> None:
    end = [
        node("GlobalAveragePool", "map", "pooled"), node("Flatten", "pooled", "vector"),
        helper.make_node("DynamicQuantizeLinear", ["vector"], ["q", "scale", "zero"]),
        node("MatMulInteger", "q whole zero", "sums"), node("Cast", "sums", "wide", to=1),
        node("Mul", "wide scale", "logits"),
    ]  # fmt: skip
    model = plain(end)
    whole = np.random.default_rng(0).integers(-9, 9, (4, 3)).astype(np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(whole, "whole"))
    assert penultimate_vector(prepare_classifier(read_model(model))) == "vector"


def test_without_a_convolution_it_is_one_line() -> None:
    model = prepare_classifier(
        read_model(two_layer_model(np.eye(16), np.zeros(16), np.eye(16)[:4], np.zeros(4)))
    )
    with pytest.raises(LayerNotFoundError, match="no convolution") as caught:
        convolution_map(model)
    assert isinstance(caught.value, BdscanError)
    assert caught.value.reason == "no_convolution"
    assert "\n" not in str(caught.value)
    assert penultimate_vector(model) == "active"
    linear = prepare_classifier(read_model(linear_model(np.eye(16)[:4])))
    assert penultimate_vector(linear) == "flat"  # the image itself


def test_a_layer_that_the_user_names_is_checked() -> None:
    model = prepare_classifier(read_model(plain()))
    assert check_layer(model, "c1") == "c1"
    for name in ("nonsense", "w1", "x", ""):
        with pytest.raises(UsageError, match="the last are map, pooled, vector, logits"):
            check_layer(model, name)


def fixed_batch_model() -> onnx.ModelProto:
    """Takes one image only: picks it out of two rows by an index."""
    end = [
        node("Flatten", "map", "flat"), node("Neg", "flat", "negated"),
        node("Concat", "flat negated", "both", axis=0),
        node("Gather", "both zero", "vector", axis=0), node("Gemm", "vector wide", "logits"),
    ]  # fmt: skip
    model = plain(end)
    initializers = {"zero": np.array([0]), **weights(wide=(256, 3))}
    for name, array in initializers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def test_a_model_of_one_image_at_a_time_gives_the_same() -> None:
    classifier = as_classifier(fixed_batch_model(), SHIFTED)
    assert classifier.onnx.batch_size == 1
    name = convolution_map(classifier.onnx)
    _, (by_runtime,) = open_layers(classifier, [name]).run(images(5))
    by_torch = differentiable_features(classifier, name)(torch.from_numpy(images(5)))
    np.testing.assert_allclose(by_runtime, expected_map(images(5)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_torch.numpy(), by_runtime, rtol=1e-4, atol=1e-5)


def forward_only() -> Classifier:
    linear = helper.make_node(
        "LinearRegressor",
        ["vector"],
        ["logits"],
        domain="ai.onnx.ml",
        coefficients=PLAIN["out"].T.ravel().tolist(),
        targets=3,
    )
    model = plain([*HEAD[:2], linear])
    model.graph.initializer.pop()  # `out`
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return as_classifier(model, SHIFTED)


def test_a_model_without_a_gradient_has_layers_too() -> None:
    classifier = forward_only()
    assert not classifier.onnx.differentiable
    name = convolution_map(classifier.onnx)
    assert name == penultimate_vector(classifier.onnx) == "map"
    logits, (feature_map,) = open_layers(classifier, [name]).run(images(4))
    np.testing.assert_allclose(feature_map, expected_map(images(4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, rows(feature_map) @ PLAIN["out"], rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedModelError):
        differentiable_features(classifier, name)


def test_results_do_not_depend_on_how_many_images_come_at_once() -> None:
    layers = open_layers(as_classifier(plain()), ["map"])
    whole = layers.run(images(9))[1][0]
    parts = [layers.run(images(9)[start : start + 2])[1][0] for start in range(0, 9, 2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-6)
