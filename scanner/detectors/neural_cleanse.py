"""Neural Cleanse as published: the smallest mask for each class, and the classes far below it.

B. Wang, Y. Yao, S. Shan, H. Li, B. Viswanath, H. Zheng, B. Y. Zhao, "Neural Cleanse: Identifying
and Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019; L-RED's problem (13):

    minimise ||m||_1   subject to   sum_{s != t} q_st(m, u) / (K - 1) >= pi

For each putative target class t Adam lowers, on mini-batches of clean images,

    - mean log p(t | (1 - m) x + m u) + cost * ||m||_1

| paper      | here                       | shape, range                              |
|------------|----------------------------|-------------------------------------------|
| m, Delta   | `mask`, `pattern`          | (H, W), (C, H, W), (tanh of free + 1) / 2 |
| lambda     | `cost`                     | 0 until the attack succeeds               |
| pi         | `attack_success_threshold` | .99                                       |
| L1 norm    | `size`                     | pixels                                    |
| anomaly index | `anomaly_index`         | deviations from the median, > 2: accused  |

A step is one pass over the images in shuffled mini-batches; its success rate is the mean over its
mini-batches, measured as the trigger moves; what is kept is the trigger at its end. The original
shows also images of the target class to the search, L-RED's problem (13) only the others, and so
does this (`target_class_images` switches to the original): images that already belong to t succeed
for nothing, and thin out what the threshold asks of the others. Images count alike; that is (13)'s
mean over classes where every class has as many.

All target classes advance in lockstep: mini-batch k of each goes through the model in one batch.
Nothing is shared but that pass: each class has its own start, shuffling, optimiser state, cost and
stopping rule, so its result is the one that it has alone, up to floating-point rounding.

`scanner.detectors.mask_pattern` solves the same problem in a tenth of the steps.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from scanner.config import NeuralCleanseConfig
from scanner.detectors.mask_pattern import (
    NO_IMAGES,
    STEPS_DONE,
    TIME_LIMIT,
    Floats,
    MaskEstimate,
)
from scanner.detectors.misclassification import GroupMisclassification, OutOfTime

CONVERGED = "no_more_gain"
ANOMALY_THRESHOLD = 2.0
CONSISTENCY = 1.4826  # makes the median absolute deviation of a normal its standard deviation

_BETAS = (0.5, 0.9)
_EPSILON = 1e-7  # Adam's, and of the tanh: the original's library uses it for both


def anomaly_index(sizes: npt.ArrayLike) -> Floats:
    """(median - size) / (1.4826 MAD): how far a mask is below the median, in robust deviations.

    The paper accuses a class whose index is above 2. That is no 5 % test of a model. Among clean
    models whose K sizes are independent draws of one distribution, this share has a class above 2:

        | sizes                      | K = 5 | K = 10 | K = 43 | K = 100 |
        | normal, cv .2              | .28   | .33    | .64    | .87     |
        | Gamma of shape 20          | .24   | .24    | .38    | .57     |
        | inverse Gamma of shape 20  | .20   | .17    | .20    | .26     |

    (tests/benchmarks/mad_false_alarms.json).

    Args:
        sizes: (K,) ||m||_1, inf for a class without a mask.

    Returns:
        (K,) indices, positive on the small side. Where more than half of the sizes are equal, the
        deviation is 0 and smaller ones have an infinite index.

    Raises:
        ValueError: fewer than 3 sizes, a negative or undefined one, or half of them infinite.
    """
    size = np.asarray(sizes, dtype=np.float64)
    if len(size) < 3 or np.isnan(size).any() or (size < 0).any():
        raise ValueError("expected at least 3 sizes of 0 or more")
    median = np.median(size)
    if not np.isfinite(median):
        raise ValueError("half of the classes or more have no mask")
    deviation = CONSISTENCY * np.median(np.abs(size - median))
    below = median - size
    with np.errstate(divide="ignore", invalid="ignore"):
        index: Floats = np.where(below == 0, 0.0, below / deviation)
    return index


@dataclass
class _Schedule:
    """One class's cost, its smallest mask so far, and when to stop."""

    config: NeuralCleanseConfig
    cost: float = 0.0
    best_size: float = np.inf
    finished: bool = False
    _in_a_row: list[int] = field(default_factory=lambda: [0, 0, 0])  # to begin, good, bad
    _moved: set[str] = field(default_factory=set)
    _without_gain: int = 0
    _reference: float = np.inf

    def update(self, success: float, size: float) -> bool:
        """Take a step's success rate and its size; whether this is the smallest mask so far."""
        good = success >= self.config.attack_success_threshold
        better = good and size < self.best_size
        if better:
            self.best_size = size
        self._look_for_gain()
        self._move_cost(good)
        return better

    def _look_for_gain(self) -> None:
        if self.best_size == np.inf:
            return
        gained = self.best_size < self.config.gain * self._reference
        self._without_gain = 0 if gained else self._without_gain + 1
        self._reference = min(self._reference, self.best_size)
        both = len(self._moved) == 2
        self.finished = both and self._without_gain >= self.config.stop_patience

    def _move_cost(self, good: bool) -> None:
        config, (begin, up, down) = self.config, self._in_a_row
        begin = begin + 1 if good and self.cost == 0 else 0
        up, down = (up + 1, 0) if good else (0, down + 1)
        if begin >= config.patience:
            self.cost, begin, up, down = config.initial_cost, 0, 0, 0
            self._moved.clear()
        if up >= config.patience:
            self.cost, up = self.cost * config.cost_up, 0
            self._moved.add("up")
        elif down >= config.patience:
            self.cost, down = self.cost / config.cost_down, 0
            self._moved.add("down")
        self._in_a_row = [begin, up, down]


class _Search:
    """One class's search: what nothing else has a part in."""

    def __init__(
        self,
        objective: GroupMisclassification,
        position: int,
        config: NeuralCleanseConfig,
        seed: int,
    ) -> None:
        target = objective.targets[position]
        self.position = position
        self.generator = np.random.default_rng([seed, target])
        channels, height, width = objective.classifier.image_shape
        start = self.generator.random((1 + channels, height, width), dtype=np.float32)
        free = torch.atanh((2 * torch.from_numpy(start) - 1) * (1 - _EPSILON))
        self.free = free.to(objective.device).requires_grad_()
        self.rows = objective._rows[position]
        if config.target_class_images:
            own = torch.nonzero(objective.labels == target).flatten()
            self.rows = torch.cat([self.rows, own])
        self.schedule = _Schedule(config)
        self.best = self.values()
        self.successes = 0.0
        self.trace: list[tuple[float, float]] = []

    def values(self) -> torch.Tensor:
        """(1 + C, H, W): mask and pattern."""
        return (torch.tanh(self.free.detach()) + 1) / 2

    def batches(self, size: int) -> tuple[torch.Tensor, ...]:
        """The images of one step, shuffled and cut into mini-batches."""
        order = torch.from_numpy(self.generator.permutation(len(self.rows)))
        return torch.split(self.rows[order], size)

    def take(self, gradient: torch.Tensor, values: torch.Tensor) -> None:
        """Leave the gradient of the cost, given that of J, where the optimiser finds it."""
        cost = -gradient
        cost[:1] += self.schedule.cost
        self.free.grad = cost * 2 * values * (1 - values)  # the derivative of (tanh + 1) / 2

    def end_step(self) -> None:
        success, values = self.successes / len(self.rows), self.values()
        size = float(values[0].double().sum())
        self.successes = 0.0
        self.trace.append((size, success))
        if self.schedule.update(success, size):
            self.best = values


def neural_cleanse_masks(
    objective: GroupMisclassification,
    config: NeuralCleanseConfig,
    seed: int,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[MaskEstimate]:
    """Estimate mask and pattern for every target class of `objective`, all in lockstep.

    Args:
        objective: embeds by `embed_mask_pattern`. When its deadline has passed, what was found so
            far is returned.
        seed: of the starts and the shuffling; a class's own depend on it and the class alone.
        progress: called after each step with (classes finished, classes, image gradients so far).

    Returns:
        Estimates whose `misclassification` is that of the mask that was kept, over all images.
    """
    every = [_Search(objective, p, config, seed) for p in range(len(objective.targets))]
    active = [s for s in every if objective.image_count(s.position)]
    adam = torch.optim.Adam([s.free for s in every], config.learning_rate, _BETAS, _EPSILON)
    late = False
    for _ in range(config.steps):
        if not active or late:
            break
        try:
            _step(objective, active, config, adam)
        except OutOfTime:
            late = True
        active = [s for s in active if not s.schedule.finished]
        if progress is not None:
            done = len(every) - len(active)
            progress(done, len(every), objective.image_gradients)
    return [_estimate(objective, s, late and s in active) for s in every]


def _step(
    objective: GroupMisclassification,
    active: list[_Search],
    config: NeuralCleanseConfig,
    adam: torch.optim.Adam,
) -> None:
    """One pass over the images of every active class.

    Raises:
        OutOfTime: the objective's deadline has passed.
    """
    shuffled = [s.batches(config.batch_images) for s in active]
    for batch in itertools.zip_longest(*shuffled):
        rows = {s.position: r for s, r in zip(active, batch, strict=True) if r is not None}
        here = [s for s in active if s.position in rows]
        values = torch.stack([s.values() for s in here])
        part = _mini_batch(objective, rows)
        gradient = part.evaluate([s.position for s in here], values, _each_image_alike(part, here))
        objective.image_gradients += sum(map(len, rows.values()))
        adam.zero_grad()  # a class without a gradient stands still
        for s, g, v in zip(here, gradient, values, strict=True):
            s.take(g, v)
        adam.step()
    for s in active:
        s.end_step()


def _mini_batch(
    whole: GroupMisclassification, rows: dict[int, torch.Tensor]
) -> GroupMisclassification:
    """The same objective on some of the images of each position."""
    part = copy.copy(whole)
    part._rows = [rows.get(p, torch.zeros(0, dtype=torch.long)) for p in range(len(whole.targets))]
    classes = whole.classifier.class_count
    part.counts = np.stack(
        [np.bincount(whole.labels[r], minlength=classes).astype(np.float64) for r in part._rows]
    )
    return part


def _each_image_alike(
    part: GroupMisclassification, here: list[_Search]
) -> Callable[[list[int], Floats], Floats]:
    """Class weights that make J the mean over images; successes are counted on the way."""
    by_position = {s.position: s for s in here}

    def weigh(positions: list[int], q: Floats) -> Floats:
        counts = part.counts[positions]
        for position, hits in zip(positions, (q * counts).sum(1), strict=True):
            by_position[position].successes += float(np.rint(hits))
        weights: Floats = counts / counts.sum(1, keepdims=True)
        return weights

    return weigh


def _estimate(objective: GroupMisclassification, search: _Search, late: bool) -> MaskEstimate:
    position, best = search.position, search.best
    images = objective.image_count(position)
    weights = objective.counts[position] / max(images, 1)
    found = bool(np.isfinite(search.schedule.best_size))
    q = np.zeros_like(weights)
    if found:
        check = copy.copy(objective)
        check.deadline = None  # one forward pass, so that what is told of the mask is true
        q = check.fractions([position], best[None])[0]
    finished = CONVERGED if search.schedule.finished else STEPS_DONE
    trigger = best.cpu().numpy()
    return MaskEstimate(
        target_class=objective.targets[position],
        mask=trigger[0],
        pattern=trigger[1:],
        size=search.schedule.best_size if found else None,
        found=found,
        stop_reason=NO_IMAGES if not images else TIME_LIMIT if late else finished,
        misclassification=round(float(weights @ q), 9),
        source_weights=weights,
        source_fractions=q,
        gradient_evaluations=len(search.trace),
        images=images,
        trace=np.array(search.trace, dtype=np.float64).reshape(-1, 2),
    )
