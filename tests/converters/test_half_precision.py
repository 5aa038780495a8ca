"""Half-precision models: float32 in torch, the vendor's file in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from converters import (
    ConverterError,
    ParityError,
    UnsupportedModelError,
    check_parity,
    load_classifier,
    open_session,
    prepare_classifier,
    read_model,
    run_session,
)
from tests.converters.onnx_models import build, images, node, small_nodes, small_weights

HALF, WIDE = TensorProto.FLOAT16, TensorProto.FLOAT


def half_weights() -> dict[str, np.ndarray]:
    return {name: value.astype(np.float16) for name, value in small_weights().items()}


def half_model() -> onnx.ModelProto:
    """`small_net` in half precision from input to output."""
    shape = {"x": ("N", 1, 8, 8)}
    return build(small_nodes(), shape, ["logits"], half_weights(), elem_type=HALF)


def framed_model() -> onnx.ModelProto:
    """The same between casts from and to float32."""
    nodes = [
        node("Cast", "image", "x", to=HALF),
        *small_nodes(),
        node("Cast", "logits", "y", to=WIDE),
    ]
    return build(nodes, {"image": ("N", 1, 8, 8)}, ["y"], half_weights())


def wide_model() -> onnx.ModelProto:
    """The same numbers in float32."""
    weights = {name: value.astype(np.float32) for name, value in half_weights().items()}
    return build(small_nodes(), {"x": ("N", 1, 8, 8)}, ["logits"], weights)


@pytest.mark.parametrize("make", [half_model, framed_model])
def test_torch_computes_in_float32(make: object) -> None:
    """The very logits and gradient of the model whose weights are float32."""
    assert callable(make)
    classifier, wide = load_classifier(make()), load_classifier(wide_model())
    assert classifier.half_precision
    assert not wide.half_precision
    x = torch.from_numpy(images(4, 1, 8, 8))
    types = classifier.graph.tensor_types(x).values()
    assert {kind.dtype for kind in types if kind.dtype.is_floating_point} == {torch.float32}
    gradients = []
    for each in (classifier, wide):
        image = x.clone().requires_grad_()
        arranged = each.image_input.arrange(image)
        assert arranged.dtype == torch.float32
        logits = each.logits(arranged)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), image)
        gradients.append((logits.detach(), gradient))
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_onnx_runtime_computes_in_half_precision() -> None:
    classifier = load_classifier(half_model())
    x = images(4, 1, 8, 8, dtype=np.float16)
    raw = run_session(open_session(classifier.model), [classifier.logits_name], x, None)[0]
    assert raw.dtype == np.float16
    by_torch = classifier.logits(torch.from_numpy(x)).numpy()  # takes half precision too
    assert 0 < np.abs(raw - by_torch).max() < 0.05


def test_bytes_for_onnx_runtime_are_half_precision() -> None:
    wanted = prepare_classifier(read_model(half_model())).image_input
    assert wanted.arrange_array(images(2, 1, 8, 8)).dtype == np.float16


def test_overflow_is_noticed_in_the_logits() -> None:
    """90,000 is infinite in float16 and a number in float32."""
    nodes = [helper.make_node("Mul", ["x", "large"], ["a"]), node("Relu", "a", "y")]
    for pixel, refused in ((200.0, False), (300.0, True)):
        model = build(nodes, {"x": ("N", 64)}, ["y"], {"large": np.float16([300])}, elem_type=HALF)
        x = images(20, 64, dtype=np.float16)
        x[:, 3] = pixel
        classifier = prepare_classifier(read_model(model))
        assert bool(classifier.logits(torch.from_numpy(x)).isfinite().all())
        if refused:
            with pytest.raises(ParityError, match="not finite"):
                check_parity(classifier, x)
        else:
            assert check_parity(classifier, x).argmax_agreement == 1


def test_overflow_is_noticed_where_it_decides_the_class() -> None:
    """The largest number of a window, as float16 has it: infinite, so that its inverse is 0."""
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["a"]),
        helper.make_node("Reciprocal", ["pooled"], ["inverse"]),
        helper.make_node("Mul", ["inverse", "second"], ["b"]),
        helper.make_node("Add", ["b", "first"], ["y"]),
    ]
    nodes.insert(1, node("Cast", "a", "half", to=HALF))
    nodes.insert(2, node("Cast", "half", "pooled", to=WIDE))
    weights = {
        "large": np.float32([300]),
        "second": np.float32(60000) * np.eye(64, dtype=np.float32)[1],
        "first": np.float32(0.4) * np.eye(64, dtype=np.float32)[0],
    }
    classifier = prepare_classifier(read_model(build(nodes, {"x": ("N", 64)}, ["y"], weights)))
    x = np.full((20, 64), 200, np.float32)
    assert check_parity(classifier, x).argmax_agreement == 1
    x[:] = 300
    with pytest.raises(ParityError, match=r"agrees on 0\.0% of 20 images"):
        check_parity(classifier, x)


def bfloat16(name: str, values: np.ndarray) -> TensorProto:
    return helper.make_tensor(name, TensorProto.BFLOAT16, values.shape, values.reshape(-1).tolist())


def test_bfloat16_weights_behind_a_cast() -> None:
    weights = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    nodes = [
        node("Cast", "w", "wide", to=WIDE),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    model = build(nodes, {"x": ("N", 64)}, ["y"])
    model.graph.initializer.append(bfloat16("w", weights))
    classifier = load_classifier(model)
    rounded = torch.from_numpy(weights).bfloat16().float()
    x = torch.from_numpy(images(3, 64))
    torch.testing.assert_close(classifier.logits(x), x @ rounded)


def test_bfloat16_arithmetic_is_refused_by_onnx_runtime() -> None:
    nodes = [
        node("Cast", "x", "h", to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["l"]),
        node("Cast", "l", "y", to=WIDE),
    ]
    model = build(nodes, {"x": ("N", 64)}, ["y"])
    model.graph.initializer.append(bfloat16("w", np.ones((64, 5), np.float32)))
    with pytest.raises(UnsupportedModelError, match="ONNX Runtime refuses the model"):
        load_classifier(model)


def test_input_of_bfloat16_is_refused_by_name() -> None:
    model = build([node("Relu", "x", "y")], {"x": ("N", 64)}, ["y"], elem_type=TensorProto.BFLOAT16)
    with pytest.raises(ConverterError, match="bfloat16, expected float or uint8 images"):
        load_classifier(model)
