"""Gradient checks on models whose gradients are known to be right, wrong, or not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper

from scanner.classifier import Classifier
from scanner.gradient_checks import (
    COARSE_STEP,
    FEW_VANISHING_GRADIENTS,
    FINE_STEP,
    FORBIDDING,
    GRADIENTS_MISLEAD,
    NON_DETERMINISTIC,
    PROBES,
    ROBUST_MODEL,
    ROUGH_GRADIENTS,
    STAND_IN_GRADIENT,
    VANISHING_GRADIENTS,
    Probes,
    gradient_checks,
    judge,
    probe,
    robust_model,
)
from tests.models import (
    as_classifier,
    linear_model,
    make_model,
    random_network,
    template_images,
    template_model,
)

CLASSES = 4
SHAPE = (1, 8, 8)
Data = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


@pytest.fixture(scope="module")
def data() -> Data:
    return template_images(CLASSES, 6, SHAPE)


def codes(classifier: Classifier, data: Data) -> set[str]:
    return {note.code for note in gradient_checks(classifier, *data)}


def behind(front: list[onnx.NodeProto], constants: dict[str, float]) -> onnx.ModelProto:
    """The nearest-prototype model behind nodes that turn `x` into `seen`."""
    linear = template_model(CLASSES, SHAPE)
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in linear.graph.initializer}
    arrays |= {name: np.float32(value) for name, value in constants.items()}
    nodes = list(linear.graph.node)
    nodes[0].input[0] = "seen"
    return make_model([*front, *nodes], arrays, CLASSES, SHAPE)


def steps(operator: str, count: float) -> onnx.ModelProto:
    """What is seen are `count` levels of each pixel."""
    nodes = [
        helper.make_node("Mul", ["x", "count"], ["many"]),
        helper.make_node(operator, ["many"], ["levels"]),
        helper.make_node("Div", ["levels", "count"], ["seen"]),
    ]
    return behind(nodes, {"count": count})


def quantised(count: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["levels"]),
        helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["seen"]),
    ]
    model = behind(nodes, {"scale": 1 / count})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(0), "zero"))
    return model


def test_an_ordinary_model_has_no_flag(data: Data) -> None:
    assert codes(as_classifier(template_model(CLASSES, SHAPE)), data) == set()


def test_a_linear_gap_is_measured_as_it_is() -> None:
    """For two linear classes the distance to the boundary is |gap| / ||w_t - w_y||, exactly."""
    w = np.random.default_rng(0).normal(size=(2, 16))
    images = np.random.default_rng(1).uniform(0.3, 0.7, (5, 1, 4, 4)).astype(np.float32)
    gap = images.reshape(5, -1) @ (w[1] - w[0])
    labels = (gap > 0).astype(np.int64)
    found = probe(as_classifier(linear_model(w)), images, labels, 5)
    expected = np.abs(gap) / np.linalg.norm(w[1] - w[0]) / 4
    np.testing.assert_allclose(found.distance, expected, rtol=1e-4)
    assert found.unsteady == 0


def test_ratios_are_those_of_the_definition(data: Data) -> None:
    images, labels = data
    classifier = as_classifier(random_network(3, CLASSES, SHAPE))
    labels = classifier.predictions(images)
    found = probe(classifier, images, labels, len(images))
    for index, (pixels, own) in enumerate(zip(images, labels, strict=True)):
        turn = index % (CLASSES - 1)
        target = turn + 1 if turn >= own else turn
        x = torch.from_numpy(pixels)[None].requires_grad_()
        log_p = classifier.differentiable_logits(x).log_softmax(1)[0, target]
        g = torch.autograd.grad(log_p, x)[0]
        for step, ratio in ((FINE_STEP, found.fine), (COARSE_STEP, found.coarse)):
            length = step * (64 / 3072) ** 0.5
            moved = (x.detach() + length * g / g.norm()).clamp(0, 1)
            after = classifier.differentiable_logits(moved).log_softmax(1)[0, target]
            predicted = (g * (moved - x.detach())).sum()
            expected = float(((after - log_p) / predicted).detach())
            if np.isfinite(ratio[index]):
                assert ratio[index] == pytest.approx(expected, abs=0.02)
    assert np.isfinite(found.fine).mean() > 0.9


def test_gradients_behind_rounding_vanish(data: Data) -> None:
    """The straight path is there but for its gradient: no class can be searched."""
    images, labels = data
    nodes = [
        helper.make_node("Mul", ["x", "tiny"], ["leak"]),
        *steps("Round", 32.0).graph.node[:2],
        helper.make_node("Div", ["levels", "count"], ["level"]),
        helper.make_node("Add", ["level", "leak"], ["seen"]),
    ]
    masked = as_classifier(behind(nodes, {"count": 32.0, "tiny": 1e-6}))
    assert (masked.predictions(images) == labels).all()
    assert codes(masked, data) == {VANISHING_GRADIENTS, STAND_IN_GRADIENT}


def test_a_gradient_that_points_elsewhere_misleads(data: Data) -> None:
    """Rounded pixels decide; the gradient is that of a smooth path of the opposite sign."""
    nodes = [
        *steps("Round", 5000.0).graph.node[:2],
        helper.make_node("Div", ["levels", "count"], ["level"]),
        helper.make_node("Mul", ["x", "part"], ["against"]),
        helper.make_node("Sub", ["level", "against"], ["seen"]),
    ]
    notes = codes(as_classifier(behind(nodes, {"count": 5000.0, "part": 0.3})), data)
    assert GRADIENTS_MISLEAD in notes


def test_coarse_steps_are_rough_and_fine_ones_pass(data: Data) -> None:
    coarse = codes(as_classifier(quantised(200.0)), data)
    assert STAND_IN_GRADIENT in coarse
    assert coarse & {ROUGH_GRADIENTS, GRADIENTS_MISLEAD}
    assert codes(as_classifier(quantised(255.0 * 2)), data) >= {STAND_IN_GRADIENT}


def test_stand_ins_are_told_by_name(data: Data) -> None:
    notes = gradient_checks(as_classifier(quantised(200.0)), *data)
    told = next(note.message for note in notes if note.code == STAND_IN_GRADIENT)
    assert "QuantizeLinear" in told
    assert "Relu" not in told


def test_a_saturated_model_vanishes(data: Data) -> None:
    """A sigmoid far out on its tail: float32 has no gradient there."""
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["far"]),
        helper.make_node("Sigmoid", ["far"], ["seen"]),
    ]
    saturated = as_classifier(behind(nodes, {"large": 1e4}))
    own = saturated.predictions(data[0])
    assert codes(saturated, (data[0], own)) == {VANISHING_GRADIENTS}


class _Trembling(Classifier):
    """A model that answers a little differently each time."""

    def logits(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        exact = super().logits(images)
        noise = self._generator.normal(scale=1e-2, size=exact.shape)
        return (exact + noise).astype(np.float32)

    _generator = np.random.default_rng(0)


def test_a_model_that_draws_at_random_is_told(data: Data) -> None:
    steady = as_classifier(template_model(CLASSES, SHAPE))
    trembling = _Trembling(steady.onnx, steady.preprocessing, steady.session, steady.device)
    assert NON_DETERMINISTIC in codes(trembling, data)


def measured(**changes: object) -> Probes:
    ones = np.ones(PROBES)
    return replace(Probes(0.01 * ones, ones, ones, 0.0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"distance": np.r_[[np.inf], np.full(47, 0.01)]}, [FEW_VANISHING_GRADIENTS]),
        ({"distance": np.r_[np.full(6, np.inf), np.full(42, 0.01)]}, [VANISHING_GRADIENTS]),
        ({"fine": np.zeros(PROBES)}, [ROUGH_GRADIENTS]),
        ({"fine": np.zeros(PROBES), "coarse": np.full(PROBES, -1.0)}, [GRADIENTS_MISLEAD]),
        ({"fine": np.zeros(PROBES), "coarse": np.full(PROBES, np.nan)}, [GRADIENTS_MISLEAD]),
        ({"fine": np.full(PROBES, np.nan)}, []),
        ({"unsteady": 1e-3}, [NON_DETERMINISTIC]),
        ({"distance": np.full(PROBES, 0.5)}, [ROBUST_MODEL]),
    ],
)
def test_judgement(changes: dict[str, object], expected: list[str]) -> None:
    assert [note.code for note in judge(measured(**changes))] == expected


def test_what_forbids_and_what_accompanies() -> None:
    assert {VANISHING_GRADIENTS, GRADIENTS_MISLEAD, NON_DETERMINISTIC} == FORBIDDING


def test_perturbations_that_repaint_the_image_are_told() -> None:
    assert robust_model([0.29 * 28] * 10, 784) == ()
    assert [n.code for n in robust_model([0.31 * 28] * 10, 784)] == [ROBUST_MODEL]
    assert robust_model([], 784) == ()
