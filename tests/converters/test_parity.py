from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from converters import (
    OnnxClassifier,
    Parity,
    ParityError,
    UnsupportedModelError,
    check_parity,
    kernels,
    load_classifier,
    open_session,
    prepare_classifier,
    read_model,
    registry,
)
from tests.converters.onnx_models import build, images, small_net, small_nodes, small_weights

Operator = Callable[..., torch.Tensor]


def prepared(model: onnx.ModelProto | None = None) -> OnnxClassifier:
    return prepare_classifier(read_model(model or small_net()))


def doctor(monkeypatch: pytest.MonkeyPatch, name: str, function: Operator) -> None:
    """Let torch compute an operator differently from ONNX Runtime."""
    monkeypatch.setitem(registry._REGISTRY, ("", name), {1: function})
    monkeypatch.delitem(kernels._KERNELS, name)


def scaled_relu(factor: float) -> Operator:
    def relu(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * factor

    return relu


def direct_model(elem_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Logits are the Relu of a flat image of 64 pixels."""
    node = helper.make_node("Relu", ["x"], ["y"])
    return build([node], {"x": ("N", 64)}, ["y"], elem_type=elem_type)


def test_honest_models_pass() -> None:
    parity = check_parity(prepared(), images(9, 1, 8, 8))
    assert parity.images == 9
    assert parity.argmax_agreement == 1
    assert 0 <= parity.max_difference < 1e-5
    assert not parity.loose


def test_session_at_hand_is_used() -> None:
    classifier = prepared()
    other = open_session(prepared(small_net(classes=6)).model)
    with pytest.raises(ParityError, match=r"ONNX Runtime gives \(4, 6\), torch \(4, 5\)"):
        check_parity(classifier, images(4, 1, 8, 8), other)
    check_parity(classifier, images(4, 1, 8, 8), open_session(classifier.model))


def test_wrong_operator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor(monkeypatch, "Relu", lambda x: torch.abs(x))
    with pytest.raises(ParityError, match="'logits': ONNX Runtime and torch differ by"):
        load_classifier(small_net())


@pytest.mark.parametrize(("factor", "passes"), [(1.0008, True), (1.0012, False)])
def test_tolerance_is_a_thousandth_of_the_largest_value(
    monkeypatch: pytest.MonkeyPatch, factor: float, passes: bool
) -> None:
    doctor(monkeypatch, "Relu", scaled_relu(factor))
    classifier = prepared(direct_model())
    x = images(4, 64)
    x[:, 3] = 2
    if passes:
        parity: Parity = check_parity(classifier, x)
        assert parity.max_difference == pytest.approx(factor - 1, rel=1e-2)
    else:
        with pytest.raises(ParityError, match=r"agrees on 100\.0% of 4 images"):
            check_parity(classifier, x)


@pytest.mark.parametrize(("margin", "passes"), [(0.0005, True), (0.0012, False)])
def test_winner_must_agree_where_the_margin_is_clear(
    monkeypatch: pytest.MonkeyPatch, margin: float, passes: bool
) -> None:
    """Torch moves classes 0 and 1 by .0009 of the largest value each, towards one another."""

    def relu(x: torch.Tensor) -> torch.Tensor:
        shift = torch.zeros(64)
        shift[0], shift[1] = -0.0009, 0.0009
        return torch.relu(x) + shift

    doctor(monkeypatch, "Relu", relu)
    classifier = prepared(direct_model())
    x = np.zeros((2, 64), dtype=np.float32)
    x[:, 0], x[:, 1] = 1, 1 - margin
    if passes:
        assert check_parity(classifier, x).argmax_agreement == 0
    else:
        with pytest.raises(ParityError, match=r"agrees on 0\.0% of 2 images"):
            check_parity(classifier, x)


@pytest.mark.parametrize(("wrong", "passes"), [(1, True), (2, False)])
def test_half_precision_is_judged_by_the_winner(
    monkeypatch: pytest.MonkeyPatch, wrong: int, passes: bool
) -> None:
    """Differences of a tenth are forgiven, other winners on more than 5 % of 20 images are not."""

    def relu(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, -1:] > 0.5, x.flip(1), x * 0.9)

    doctor(monkeypatch, "Relu", relu)
    classifier = prepared(direct_model(TensorProto.FLOAT16))
    x = images(20, 64, dtype=np.float16) / 4
    x[:, 7], x[:wrong, -1] = 1, 0.75
    if passes:
        parity = check_parity(classifier, x)
        assert parity.loose
        assert parity.argmax_agreement == pytest.approx(0.95)
        assert parity.max_difference >= 0.1
    else:
        with pytest.raises(ParityError, match=r"agrees on 90\.0%"):
            check_parity(classifier, x)


def test_unused_half_precision_does_not_soften_the_comparison(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doctor(monkeypatch, "Relu", scaled_relu(1.01))
    model = small_net()
    model.graph.initializer.append(helper.make_tensor("unused", TensorProto.FLOAT16, [1], [1.0]))
    model.graph.node.append(helper.make_node("Identity", ["unused"], ["unread"]))
    with pytest.raises(ParityError):
        load_classifier(model)


def test_results_that_are_not_finite_are_refused() -> None:
    weights = small_weights()
    weights["fb"][0] = np.nan
    model = build(small_nodes(), {"x": ("N", 1, 8, 8)}, ["logits"], weights)
    with pytest.raises(ParityError, match="not finite"):
        load_classifier(model)


def test_what_onnx_runtime_refuses_is_one_line() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Cast", ["r"], ["y"], to=TensorProto.FLOAT),
    ]
    model = build(nodes, {"x": ("N", 64)}, ["y"])
    with pytest.raises(UnsupportedModelError, match="ONNX Runtime refuses the model") as caught:
        load_classifier(model)
    assert "\n" not in str(caught.value)


def test_no_images_prove_nothing() -> None:
    with pytest.raises(ValueError, match="no images"):
        check_parity(prepared(), images(0, 1, 8, 8))


def test_more_images_than_a_batch() -> None:
    assert check_parity(prepared(direct_model()), images(600, 64)).images == 600


def test_fewer_images_where_they_are_run_one_by_one() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0]),
        helper.make_node("Sub", ["x", "mean"], ["away"]),
        helper.make_node("Add", ["away", "x"], ["y"]),
    ]
    classifier = prepared(build(nodes, {"x": ("N", 64)}, ["y"]))
    assert classifier.batch_size == 1
    assert check_parity(classifier, images(70, 64)).images == 24
    assert check_parity(classifier, images(32, 64)).images == 32
