"""L-RED: the smallest perturbation that carries images to each putative target class.

Z. Xiang, D. J. Miller, G. Kesidis, "L-RED: Efficient Post-Training Detection of Imperceptible
Backdoor Attacks without Access to the Training Set", ICASSP 2021. Problem (3):

    minimise ||v||_2   subject to   Q_t(v, w) = sum_{s != t} w_s q_st(v) >= pi

with the class weights w annealed towards the classes that give way (eqs. 6 to 8).

| paper        | here                     | shape, range                                      |
|--------------|--------------------------|---------------------------------------------------|
| v_t          | `perturbation`           | (C, H, W), added to images in [0, 1]              |
| w            | `source_weights`         | (K,), sums to 1, 0 for t and for imageless classes|
| q_st(v)      | `source_fractions`       | (K,), share of class s that goes to t             |
| Q_t(v, w)    | `misclassification`      | [0, 1]                                            |
| pi           | `misclassification_fraction` | (0, 1)                                        |
| delta        | `step_size`              | L2 norm                                           |
| T            | `temperature`            | -log Q                                            |

Two schedules solve it. `paper` is Algorithm 1 to the letter. `fast` follows the same path in far
fewer steps: at each v the weights are iterated to the fixed point of eqs. (7) and (8), which costs
no forward pass; a coarse run finds the norm, a second one starts again with steps that are small
against it, and the last step is taken back and divided. Where no class of the coarse run is far
from the median, none can be after the second, so that is left out (`refine_from`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from scanner.config import LRedConfig
from scanner.detectors.misclassification import GroupMisclassification, OutOfTime

Floats = npt.NDArray[np.float64]

# The fast schedule's steps, as shares of a norm (measured in tests/benchmarks).
COARSE_START = 0.02  # first coarse step at 3x32x32 pixels; scaled with the square root of the size
COARSE_GROWTH = 0.2  # coarse steps grow with the norm reached so far
FINE_STEP = 0.025  # of the coarse norm
LAST_STEP = 0.2  # of a fine step, after going back one
FEW_CLASSES = 5  # with fewer target classes every search is refined
_REFERENCE_PIXELS = 3072
_FIXED_POINT_ITERATIONS = 1000
_FIXED_POINT_TOLERANCE = 1e-9

REACHED = "misclassification_fraction_reached"
OUT_OF_RANGE = "norm_exceeds_image_range"
VANISHING_GRADIENT = "vanishing_gradient"
MAX_STEPS = "max_steps"
TIME_LIMIT = "time_limit"
NO_IMAGES = "no_usable_images"


@dataclass(frozen=True)
class PatternEstimate:
    """The result of the search for one putative target class t.

    Attributes:
        target_class: t.
        perturbation: (C, H, W) float32, the last v.
        norm: ||v||_2; a lower bound of the class's norm unless `found`.
        found: Q_t > pi was reached. Else the class is censored.
        stop_reason: why the search ended.
        misclassification: Q_t(v, w) at the end.
        source_weights, source_fractions: (K,) w and q at the end.
        gradient_evaluations: gradients of J_t, each over all images of the class's search.
        images: how many images those are.
        trace: (gradient_evaluations, 2): norm and Q at each evaluation.
    """

    target_class: int
    perturbation: npt.NDArray[np.float32]
    norm: float
    found: bool
    stop_reason: str
    misclassification: float
    source_weights: Floats
    source_fractions: Floats
    gradient_evaluations: int
    images: int
    trace: Floats

    @property
    def trigger(self) -> npt.NDArray[np.float32]:
        """The perturbation, as `embed_additive` takes it."""
        return self.perturbation

    @property
    def size(self) -> float:
        """The norm."""
        return self.norm


def annealed_weights(q: Floats, temperature: float, present: npt.NDArray[np.bool_]) -> Floats:
    """Eq. (8): w_s = exp(q_s / T) / sum_c exp(q_c / T) over the classes that are present."""
    exponents = np.where(present, q / max(temperature, 1e-12), -np.inf)
    powers = np.exp(exponents - exponents.max())
    weights: Floats = powers / powers.sum()
    return weights


def fixed_point_weights(q: Floats, uniform: Floats, fraction: float) -> tuple[Floats, float]:
    """Where eqs. (7) and (8) lead from uniform weights while v stands still.

    The iteration is monotone in Q: a larger Q lowers the temperature, which shifts weight to
    larger q. It stops at the fixed point, or as soon as Q exceeds `fraction`.

    Args:
        q: (K,) misclassification fractions.
        uniform: (K,) w^(0).

    Returns:
        (weights, their Q).
    """
    w, misclassification = uniform, float(uniform @ q)
    present = uniform > 0
    for _ in range(_FIXED_POINT_ITERATIONS):
        if misclassification <= 0 or misclassification > fraction:
            break
        w = annealed_weights(q, -math.log(misclassification), present)
        previous, misclassification = misclassification, float(w @ q)
        if misclassification - previous < _FIXED_POINT_TOLERANCE:
            break
    return w, misclassification


@dataclass
class _Search:
    """The state of one class's search; subclasses say how weights and v are updated."""

    position: int
    config: LRedConfig
    uniform: Floats
    v: torch.Tensor
    w: Floats = field(init=False)
    q: Floats = field(init=False)
    misclassification: float = 0.0
    stop_reason: str = ""
    trace: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.w, self.q = self.uniform, np.zeros_like(self.uniform)

    @property
    def norm(self) -> float:
        return float(self.v.norm())

    @property
    def reached(self) -> bool:
        """Q_t > pi, strictly, as in line 5 of Algorithm 1."""
        return self.misclassification > self.config.misclassification_fraction

    def weigh(self, q: Floats) -> Floats:
        """Take q at the present v, update Q and w, and return w."""
        self.q = q
        if self.config.weights == "uniform":
            self.misclassification = float(self.uniform @ q)
        else:
            self.anneal(q)
        self.trace.append((self.norm, self.misclassification))
        return self.w

    def advance(self, gradient: torch.Tensor) -> None:
        """Take the gradient of J at (v, w): either stop, or step."""
        length = float(gradient.norm())
        if not self.reached and (not math.isfinite(length) or length < 1e-30):
            self.stop(VANISHING_GRADIENT)
        elif not self.reached and self.norm > math.sqrt(self.v.numel()):
            self.stop(OUT_OF_RANGE)  # a larger v only clips
        else:
            self.step(gradient / max(length, 1e-30))

    def stop(self, reason: str) -> None:
        self.stop_reason = reason

    def anneal(self, q: Floats) -> None:
        """Update Q and w by eqs. (6) to (8)."""
        raise NotImplementedError

    def step(self, direction: torch.Tensor) -> None:
        raise NotImplementedError


class _PaperSearch(_Search):
    """Algorithm 1 to the letter."""

    def anneal(self, q: Floats) -> None:
        self.misclassification = float(self.w @ q)
        if self.reached:  # line 5
            return
        if self.misclassification > 0:  # lines 7 to 10
            temperature = -math.log(self.misclassification)
            self.w = annealed_weights(q, temperature, self.uniform > 0)
        else:  # line 12
            self.w = self.uniform

    def step(self, direction: torch.Tensor) -> None:
        if self.reached:
            self.stop(REACHED)
        elif len(self.trace) > self.config.max_steps:  # the first evaluation is at v = 0
            self.stop(MAX_STEPS)
        else:
            self.v = self.v + self.config.step_size * direction  # line 4


@dataclass
class _FastSearch(_Search):
    """Coarse run, fine run, last step divided."""

    phase: str = "coarse"
    step_size: float = 0.0
    steps_left: int = 0
    before: tuple[torch.Tensor, torch.Tensor] | None = None  # v and direction of the last step
    best: tuple[torch.Tensor, Floats, Floats, float] | None = None

    def anneal(self, q: Floats) -> None:
        self.w, self.misclassification = fixed_point_weights(
            q, self.uniform, self.config.misclassification_fraction
        )

    def step(self, direction: torch.Tensor) -> None:
        if self.reached:
            self._keep_best()
            self._next_phase()
        elif self.phase != "coarse" and self.steps_left <= 0:
            self.stop(REACHED)  # the fine run lost its way: the coarse result stands
        else:
            self.steps_left -= 1
            self._move(direction)

    def _move(self, direction: torch.Tensor) -> None:
        size = self.step_size
        if self.phase == "coarse":
            start = COARSE_START * math.sqrt(self.v.numel() / _REFERENCE_PIXELS)
            size = start + COARSE_GROWTH * self.norm
        self.before = (self.v, direction)
        self.v = self.v + size * direction

    def refine(self) -> None:
        """Start again, with steps that are small against the coarse norm."""
        self.phase, self.step_size = "fine", FINE_STEP * self.norm
        self.v, self.before = torch.zeros_like(self.v), None
        self.steps_left = round(1.2 / FINE_STEP)

    def _next_phase(self) -> None:
        if self.phase == "coarse" and self.before is not None:
            self.phase = "waiting"
        elif self.phase == "fine" and self.before is not None:
            self.phase, self.step_size = "last", LAST_STEP * self.step_size
            self.steps_left = round(1 / LAST_STEP)
            self.v, direction = self.before
            self._move(direction)
        else:
            self.stop(REACHED)

    def _keep_best(self) -> None:
        if self.best is None or self.norm < float(self.best[0].norm()):
            self.best = (self.v, self.w, self.q, self.misclassification)

    def stop(self, reason: str) -> None:
        """End with the smallest perturbation that reached pi, if any did."""
        super().stop(reason)
        if self.best is not None:
            self.v, self.w, self.q, self.misclassification = self.best
            if reason != TIME_LIMIT:
                self.stop_reason = REACHED


def estimate_patterns(
    objective: GroupMisclassification,
    config: LRedConfig,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[PatternEstimate]:
    """Estimate v_t for every target class of `objective`, all in lockstep.

    Args:
        objective: when its deadline has passed, every search that still runs is censored.
        progress: called after each lockstep iteration with (classes finished, classes, gradient
            evaluations so far).
    """
    kind = _PaperSearch if config.schedule == "paper" else _FastSearch
    shape = objective.classifier.image_shape
    uniform = objective.uniform_weights
    searches = [
        kind(position, config, uniform[position], torch.zeros(shape, device=objective.device))
        for position in range(len(objective.targets))
    ]
    for search in searches:
        if objective.image_count(search.position) == 0:
            search.stop(NO_IMAGES)
    evaluations = 0
    while active := _active(searches, config):
        try:
            _advance_all(objective, active)
        except OutOfTime:
            for unfinished in active:
                unfinished.stop(TIME_LIMIT)
            break
        evaluations += len(active)
        if progress is not None:
            finished = sum(1 for s in searches if s.stop_reason)
            progress(finished, len(searches), evaluations)
    return [_estimate(objective, search) for search in searches]


def _active(searches: Sequence[_Search], config: LRedConfig) -> list[_Search]:
    """The searches that go on. Once all coarse runs are over, either all are refined or none."""
    active = [s for s in searches if not s.stop_reason and not _waits(s)]
    waiting = [s for s in searches if isinstance(s, _FastSearch) and _waits(s)]
    if active or not waiting:
        return active
    norms = np.array([s.norm for s in waiting])
    if len(norms) < FEW_CLASSES or np.median(norms) / norms.min() >= config.refine_from:
        for coarse in waiting:
            coarse.refine()
        return list(waiting)
    for coarse in waiting:
        coarse.stop(REACHED)
    return []


def _waits(search: _Search) -> bool:
    return isinstance(search, _FastSearch) and search.phase == "waiting" and not search.stop_reason


def _advance_all(objective: GroupMisclassification, active: Sequence[_Search]) -> None:
    """One forward and backward pass over all active classes, and one step of each."""
    by_position = {search.position: search for search in active}

    def weigh(positions: list[int], q: Floats) -> Floats:
        return np.stack([by_position[p].weigh(row) for p, row in zip(positions, q, strict=True)])

    v = torch.stack([search.v for search in active])
    gradient = objective.evaluate([search.position for search in active], v, weigh)
    for search, row in zip(active, gradient, strict=True):
        search.advance(row)


def _estimate(objective: GroupMisclassification, search: _Search) -> PatternEstimate:
    return PatternEstimate(
        target_class=objective.targets[search.position],
        perturbation=search.v.cpu().numpy(),
        norm=search.norm,
        found=search.reached and search.norm > 0,
        stop_reason=search.stop_reason,
        misclassification=min(1.0, search.misclassification),  # rounding may lift the sum above
        source_weights=search.w,
        source_fractions=search.q,
        gradient_evaluations=len(search.trace),
        images=objective.image_count(search.position),
        trace=np.array(search.trace, dtype=np.float64).reshape(-1, 2),
    )
