"""Pattern estimation: the smallest perturbation, the paper's weights and Algorithm 1."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import optimize

from scanner.config import LRedConfig
from scanner.detectors import l_red, misclassification
from scanner.detectors.l_red import (
    PatternEstimate,
    annealed_weights,
    estimate_patterns,
    fixed_point_weights,
)
from scanner.detectors.misclassification import GroupMisclassification
from tests.models import (
    as_classifier,
    linear_model,
    random_network,
    template_images,
    template_model,
    two_layer_model,
)

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

FAST = LRedConfig()
LARGE_BATCH = 4096


def gray(count: int, shape: tuple[int, int, int] = (1, 4, 4), value: float = 0.5) -> Images:
    """Images in the middle of the range: small perturbations clip nothing."""
    return np.full((count, *shape), value, np.float32)


def estimate(
    model: object,
    images: Images,
    labels: Labels,
    targets: list[int],
    config: LRedConfig = FAST,
    batch_images: int = LARGE_BATCH,
    deadline: float | None = None,
) -> list[PatternEstimate]:
    objective = GroupMisclassification(
        as_classifier(model), images, np.asarray(labels, np.int64), targets, batch_images, deadline
    )
    return estimate_patterns(objective, config)


# --- (a) the norm -----------------------------------------------------------------------------


def two_class_problem(seed: int) -> tuple[object, Images, Labels, float]:
    """A linear model, images of class 0, and the distance of the farthest to the boundary."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(2, 16))
    difference = weights[1] - weights[0]
    images = 0.5 + generator.normal(scale=0.01, size=(6, 16))
    bias = np.array([0.3 + np.max(images @ difference), 0.0])
    margins = bias[0] - images @ difference
    norm = float(margins.max() / np.linalg.norm(difference))
    return (
        linear_model(weights, bias),
        images.reshape(6, 1, 4, 4).astype(np.float32),
        np.zeros(6, np.int64),
        norm,
    )


@pytest.mark.parametrize("seed", range(4))
def test_fast_finds_the_projection_on_the_boundary_within_two_percent(seed: int) -> None:
    model, images, labels, optimum = two_class_problem(seed)
    (found,) = estimate(model, images, labels, [1])
    assert found.found
    assert optimum * 0.999 <= found.norm <= optimum * 1.02
    assert found.misclassification == 1.0


@pytest.mark.parametrize("seed", range(2))
def test_paper_with_a_small_delta_finds_it_too(seed: int) -> None:
    model, images, labels, optimum = two_class_problem(seed)
    config = LRedConfig(schedule="paper", step_size=optimum / 100)
    (found,) = estimate(model, images, labels, [1], config)
    assert found.found
    assert optimum * 0.999 <= found.norm <= optimum * 1.05


@pytest.mark.parametrize("scale", [1e-2, 1.0, 10.0])
def test_fast_is_as_exact_whatever_the_norm(scale: float) -> None:
    weights = np.zeros((2, 64))
    weights[1] = 1.0
    optimum = scale * 0.3  # at most .375 a pixel: nothing clips
    model = linear_model(weights, np.array([0.5 * 64 + optimum * 8.0, 0.0]), (1, 8, 8))
    (found,) = estimate(model, gray(3, (1, 8, 8)), np.zeros(3), [1])
    assert optimum * 0.999 <= found.norm <= optimum * 1.05


def test_fast_solves_the_problem_with_rival_classes_where_the_softmax_is_sharp() -> None:
    # One source class, identical images: min ||v|| with (w_t - w_c) . v >= margin_c for all c.
    # (With a flat softmax log p(t) is a poor surrogate of Q, in the paper's algorithm too.)
    generator = np.random.default_rng(11)
    weights = 10 * generator.normal(size=(5, 16))
    bias = -weights.sum(1) * 0.5 + 10 * np.array([1.0, 0.0, 0.3, -0.2, 0.1])
    logits = weights.sum(1) * 0.5 + bias
    for target in range(1, 5):
        rows = np.array([weights[target] - weights[c] for c in range(5) if c != target])
        margins = np.array([logits[c] - logits[target] for c in range(5) if c != target])
        solved = optimize.minimize(
            lambda v: v @ v,
            np.zeros(16),
            jac=lambda v: 2 * v,
            constraints={
                "type": "ineq",
                "fun": lambda v, rows=rows, margins=margins: rows @ v - margins,
                "jac": lambda v, rows=rows: rows,
            },
            method="SLSQP",
        )
        optimum = float(np.linalg.norm(solved.x))
        (found,) = estimate(linear_model(weights, bias), gray(4), np.zeros(4), [target])
        assert solved.success
        assert optimum * 0.999 <= found.norm <= optimum * 1.05


def test_fast_is_never_longer_than_plain_small_steps_by_more_than_two_percent() -> None:
    images, labels = template_images(5, 6)
    targets = list(range(5))
    fast = estimate(template_model(5), images, labels, targets, LRedConfig(refine_from=0))
    config = LRedConfig(schedule="paper", step_size=2e-3)
    plain = estimate(template_model(5), images, labels, targets, config)
    for one, other in zip(fast, plain, strict=True):
        assert one.found
        assert other.found
        assert one.norm <= 1.02 * other.norm


def test_norms_that_are_close_are_left_coarse_and_a_far_one_has_all_refined() -> None:
    images, labels = template_images(5, 6)
    targets = list(range(5))
    close = estimate(template_model(5), images, labels, targets)
    exact = estimate(template_model(5), images, labels, targets, LRedConfig(refine_from=0))
    for coarse, fine in zip(close, exact, strict=True):
        assert coarse.gradient_evaluations < fine.gradient_evaluations / 2
        assert fine.norm * 0.98 <= coarse.norm <= fine.norm * 1.25
    norms = [e.norm for e in exact]
    ratio = float(np.median([e.norm for e in close])) / min(e.norm for e in close)
    refined = estimate(template_model(5), images, labels, targets, LRedConfig(refine_from=ratio))
    assert [e.norm for e in refined] == norms


def test_uniform_weights_stay_uniform_and_need_most_images_of_all_classes() -> None:
    images, labels = template_images(5, 6)
    found = estimate(template_model(5), images, labels, [0, 1], LRedConfig(weights="uniform"))
    annealed = estimate(template_model(5), images, labels, [0, 1])
    for one, other in zip(found, annealed, strict=True):
        others = one.source_weights > 0
        np.testing.assert_array_equal(one.source_weights[others], 0.25)
        assert one.source_fractions[others].mean() > 0.9
        assert one.norm >= other.norm * 0.98


def test_fast_takes_at_most_120_gradients_a_class() -> None:
    images, labels = template_images(5, 6)
    for found in estimate(template_model(5), images, labels, list(range(5))):
        assert 20 < found.gradient_evaluations <= 120


def test_what_is_reported_belongs_to_the_perturbation_that_is_reported() -> None:
    images, labels = template_images(5, 6)
    classifier = as_classifier(template_model(5))
    objective = GroupMisclassification(classifier, images, labels, range(5), LARGE_BATCH)
    for position, found in enumerate(estimate_patterns(objective, FAST)):
        v = torch.from_numpy(found.perturbation)[None]
        q = objective.fractions([position], v)[0]
        np.testing.assert_array_equal(found.source_fractions, q)
        assert found.norm == pytest.approx(float(np.linalg.norm(found.perturbation)), rel=1e-5)
        assert found.misclassification == pytest.approx(float(found.source_weights @ q))
        assert found.misclassification > FAST.misclassification_fraction
        assert found.source_weights.sum() == pytest.approx(1.0)
        assert found.source_weights[position] == 0.0
        assert found.trace.shape == (found.gradient_evaluations, 2)
        assert found.images == np.sum(labels != position)


# --- (b) the weights --------------------------------------------------------------------------


def solve_problem_six(q: npt.NDArray[np.float64], temperature: float) -> npt.NDArray[np.float64]:
    """Problem (6) over the simplex, by a general solver."""

    def negative(w: npt.NDArray[np.float64]) -> float:
        inside = np.maximum(w, 1e-300)
        return float(-(w @ q) + temperature * np.sum(w * np.log(inside)))

    solved = optimize.minimize(
        negative,
        np.full(len(q), 1 / len(q)),
        bounds=[(1e-12, 1)] * len(q),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert solved.success
    return solved.x


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.15, 0.7, 3.0])
def test_annealed_weights_solve_problem_six(seed: int, temperature: float) -> None:
    q = np.random.default_rng(seed).random(7)
    weights = annealed_weights(q, temperature, np.ones(7, bool))
    np.testing.assert_allclose(weights, solve_problem_six(q, temperature), atol=2e-4)


def test_annealed_weights_of_absent_classes_are_zero() -> None:
    present = np.array([True, False, True, False])
    weights = annealed_weights(np.array([0.1, 1.0, 0.4, 1.0]), 0.5, present)
    assert weights[1] == weights[3] == 0.0
    np.testing.assert_allclose(weights[[0, 2]], solve_problem_six(np.array([0.1, 0.4]), 0.5), 1e-3)


def test_temperature_zero_assigns_all_weight_to_the_largest_fraction() -> None:
    weights = annealed_weights(np.array([0.2, 0.9, 0.5]), 0.0, np.ones(3, bool))
    np.testing.assert_allclose(weights, [0, 1, 0], atol=1e-12)


def iterate_equations(
    q: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64], fraction: float
) -> Iterator[tuple[npt.NDArray[np.float64], float]]:
    """Eqs. (7) and (8) in turn while v stands still, 5000 times or until Q > pi."""
    w = uniform
    for _ in range(5000):
        level = float(w @ q)
        yield w, level
        if level > fraction or level <= 0:
            return
        powers = np.where(uniform > 0, np.exp(q / -math.log(level)), 0.0)
        w = powers / powers.sum()


@pytest.mark.parametrize("seed", range(12))
def test_fixed_point_weights_are_where_equations_seven_and_eight_lead(seed: int) -> None:
    generator = np.random.default_rng(seed)
    q = generator.random(8) ** (1 + seed % 5)
    uniform = (generator.random(8) < 0.7) / 1.0
    uniform[0] = 1.0
    uniform /= uniform.sum()
    path = list(iterate_equations(q, uniform, 0.9))
    levels = [level for _, level in path]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(levels))
    weights, level = fixed_point_weights(q, uniform, 0.9)
    assert level == pytest.approx(float(weights @ q))
    assert level >= float(uniform @ q)
    assert (weights[uniform == 0] == 0).all()
    if levels[-1] > 0.9:
        assert level > 0.9
    else:
        again = annealed_weights(q, -math.log(level), uniform > 0)
        np.testing.assert_allclose(weights, again, atol=1e-4)
        np.testing.assert_allclose(weights, path[-1][0], atol=1e-3)


def test_weights_stay_uniform_while_nothing_is_misclassified() -> None:
    uniform = np.array([0.0, 0.5, 0.5])
    weights, level = fixed_point_weights(np.zeros(3), uniform, 0.9)
    np.testing.assert_array_equal(weights, uniform)
    assert level == 0.0


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_target_and_imageless_classes_get_no_weight(schedule: str) -> None:
    images, labels = template_images(5, 6)
    there = labels != 2
    config = LRedConfig(schedule=schedule, step_size=0.01)
    for found in estimate(template_model(5), images[there], labels[there], [0, 2, 4], config):
        assert found.source_weights[found.target_class] == 0.0
        assert found.source_weights[2] == 0.0
        assert found.source_fractions[2] == 0.0
        assert found.source_weights.sum() == pytest.approx(1.0)


# --- (c) Algorithm 1 --------------------------------------------------------------------------


def algorithm_one(
    weights: tuple[npt.NDArray[np.float32], ...],
    images: Images,
    labels: Labels,
    t: int,
    config: LRedConfig,
) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
    """Appendix A.2, written down again."""
    w1, b1, w2, b2 = (torch.from_numpy(np.asarray(a, np.float32)) for a in weights)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ w1.T + b1).relu() @ w2.T + b2

    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    sources = [s for s in np.unique(labels) if s != t]
    w = {s: 1 / len(sources) for s in sources}
    v = torch.zeros(x.shape[1:])
    for _ in range(config.max_steps):
        leaf = v.clone().requires_grad_()
        log_p = logits((x + leaf).clamp(0, 1)).log_softmax(1)[:, t]
        sum((w[s] * log_p[y == int(s)].mean() for s in sources), torch.zeros(())).backward()
        v = v + config.step_size * leaf.grad / leaf.grad.norm()  # line 4
        with torch.no_grad():
            hit = logits((x + v).clamp(0, 1)).argmax(1) == t
        q = {s: float(hit[y == int(s)].double().mean()) for s in sources}
        level = sum(w[s] * q[s] for s in sources)
        if level > config.misclassification_fraction:  # line 5
            break
        if level > 0:  # lines 7 to 10
            powers = {s: math.exp(q[s] / -math.log(level)) for s in sources}
            w = {s: p / sum(powers.values()) for s, p in powers.items()}
        else:  # line 12
            w = {s: 1 / len(sources) for s in sources}
    return v, np.array([w.get(k, 0.0) for k in range(len(b2))])


def small_network() -> tuple[tuple[npt.NDArray[np.float32], ...], object, Images, Labels]:
    """Prototypes through a ReLU layer, fitted: all images are classified rightly."""
    generator = np.random.default_rng(2)
    images, labels = template_images(4, 5)
    first = generator.normal(size=(40, 16))
    hidden = np.maximum(images.reshape(20, 16) @ first.T, 0)
    onehot = np.eye(4)[labels] * 6
    second = np.linalg.lstsq(np.c_[hidden, np.ones(20)], onehot, rcond=None)[0].T
    weights = (first, np.zeros(40), second[:, :-1], second[:, -1])
    as_float = tuple(np.asarray(a, np.float32) for a in weights)
    return as_float, two_layer_model(*as_float), images, labels


@pytest.mark.parametrize("t", range(4))
def test_paper_schedule_is_algorithm_one_when_it_runs_out_of_steps(t: int) -> None:
    weights, model, images, labels = small_network()
    config = LRedConfig(schedule="paper", step_size=0.004, max_steps=20)
    (found,) = estimate(model, images, labels, [t], config)
    v, w = algorithm_one(weights, images, labels, t, config)
    assert not found.found
    assert found.stop_reason == l_red.MAX_STEPS
    np.testing.assert_allclose(found.perturbation, v.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.source_weights, w, atol=1e-6)


@pytest.mark.parametrize("t", range(4))
def test_paper_schedule_is_algorithm_one_to_its_end(t: int) -> None:
    weights, model, images, labels = small_network()
    config = LRedConfig(schedule="paper", step_size=0.01, max_steps=3000)
    (found,) = estimate(model, images, labels, [t], config)
    v, w = algorithm_one(weights, images, labels, t, config)
    assert found.found
    np.testing.assert_allclose(found.perturbation, v.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.source_weights, w, atol=1e-6)


# --- (d) searches that fail -------------------------------------------------------------------


def dead_network() -> object:
    """Class 0 always: the hidden layer is dead wherever pixels are."""
    second = np.random.default_rng(0).normal(size=(3, 5))
    return two_layer_model(-np.ones((5, 16)), np.full(5, -1.0), second, np.array([1.0, 0.0, 0.0]))


@pytest.mark.parametrize("schedule", ["fast", "paper"])
@pytest.mark.parametrize("target", [1, 2])
def test_a_vanishing_gradient_censors_the_class(schedule: str, target: int) -> None:
    config = LRedConfig(schedule=schedule)
    (found,) = estimate(dead_network(), gray(4), np.zeros(4), [target], config)
    assert not found.found
    assert found.stop_reason == l_red.VANISHING_GRADIENT
    assert found.norm == 0.0


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_a_model_that_is_constant_never_yields_norm_zero_as_found(schedule: str) -> None:
    model = linear_model(np.zeros((3, 16)))
    labels = np.array([0, 0, 1, 1, 2, 2])
    for found in estimate(model, gray(6), labels, [0, 1, 2], LRedConfig(schedule=schedule)):
        assert not found.found


def test_a_class_that_can_not_be_reached_is_censored_with_a_large_bound() -> None:
    weights = np.random.default_rng(1).normal(size=(3, 16))
    model = linear_model(weights, np.array([0.0, 0.0, -1e4]))
    (found,) = estimate(model, gray(4), np.zeros(4), [2])
    assert not found.found
    assert found.stop_reason in (l_red.OUT_OF_RANGE, l_red.VANISHING_GRADIENT)
    assert found.norm > 1.0
    assert found.misclassification == 0.0


def test_a_gradient_that_is_not_finite_censors_the_class() -> None:
    model = linear_model(np.array([[1e38] * 16, [-1e38] * 16, [0.0] * 16]))
    (found,) = estimate(model, gray(4, value=1.0), np.zeros(4), [1])
    assert not found.found
    assert np.isfinite(found.perturbation).all()


def test_a_class_without_images_of_other_classes_is_censored_at_once() -> None:
    images, labels = template_images(3, 4)
    only = labels == 1
    first, second = estimate(template_model(3), images[only], labels[only], [1, 0])
    assert not first.found
    assert first.stop_reason == l_red.NO_IMAGES
    assert first.images == first.gradient_evaluations == 0
    assert second.found


@pytest.mark.parametrize("schedule", ["fast", "paper"])
def test_a_deadline_in_the_past_censors_every_class(schedule: str) -> None:
    images, labels = template_images(4, 3)
    config = LRedConfig(schedule=schedule)
    past = time.monotonic() - 1
    for found in estimate(template_model(4), images, labels, [0, 1, 2, 3], config, deadline=past):
        assert not found.found
        assert found.stop_reason == l_red.TIME_LIMIT


def test_a_deadline_keeps_the_lower_bounds_reached_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(misclassification.time, "monotonic", lambda: next(ticks))
    images, labels = template_images(4, 3)
    config = LRedConfig(schedule="paper", step_size=0.01)
    for found in estimate(template_model(4), images, labels, [0, 1], config, deadline=7):
        assert not found.found
        assert found.gradient_evaluations == len(found.trace) == 7
        assert found.norm == pytest.approx(0.07, rel=0.05)


def test_a_deadline_after_the_coarse_run_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = template_images(4, 3)
    (whole,) = estimate(template_model(4), images, labels, [1])
    reached = np.flatnonzero(whole.trace[:, 1] > FAST.misclassification_fraction)
    ticks = iter(range(1000))
    monkeypatch.setattr(misclassification.time, "monotonic", lambda: next(ticks))
    coarse_end = int(reached[0]) + 1
    (found,) = estimate(template_model(4), images, labels, [1], deadline=coarse_end + 3)
    assert found.found
    assert found.stop_reason == l_red.TIME_LIMIT
    assert found.norm == pytest.approx(whole.trace[reached[0], 0], rel=1e-5)
    assert found.misclassification > FAST.misclassification_fraction


# --- (e) independence -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def problem() -> tuple[object, Images, Labels]:
    images, _ = template_images(5, 6)
    model = random_network(9, 5)
    labels = as_classifier(model).predictions(images)
    assert len(np.unique(labels)) >= 3
    return model, images, labels


def assert_same(one: PatternEstimate, other: PatternEstimate) -> None:
    assert one.target_class == other.target_class
    assert one.stop_reason == other.stop_reason
    assert one.gradient_evaluations == other.gradient_evaluations
    np.testing.assert_allclose(one.perturbation, other.perturbation, atol=2e-4)
    np.testing.assert_allclose(one.source_weights, other.source_weights, atol=1e-6)


def test_a_class_gets_the_same_result_alone_and_with_others(
    problem: tuple[object, Images, Labels],
) -> None:
    model, images, labels = problem
    together = estimate(model, images, labels, [3, 0, 1, 4, 2])
    for one in together:
        (alone,) = estimate(model, images, labels, [one.target_class])
        assert_same(one, alone)


@pytest.mark.parametrize("batch_images", [1, 7, 30, 61])
def test_results_do_not_depend_on_the_batch_size(
    problem: tuple[object, Images, Labels], batch_images: int
) -> None:
    model, images, labels = problem
    whole = estimate(model, images, labels, [0, 1, 2])
    parts = estimate(model, images, labels, [0, 1, 2], batch_images=batch_images)
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other)


def test_progress_is_told_of_every_iteration() -> None:
    images, labels = template_images(3, 4)
    objective = GroupMisclassification(
        as_classifier(template_model(3)), images, labels, [0, 1, 2], LARGE_BATCH
    )
    told: list[tuple[int, int, int]] = []
    found = estimate_patterns(objective, FAST, lambda *figures: told.append(figures))
    assert told[-1] == (3, 3, sum(f.gradient_evaluations for f in found))
    assert [finished for finished, _, _ in told] == sorted(finished for finished, _, _ in told)
