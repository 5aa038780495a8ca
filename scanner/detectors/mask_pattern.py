"""The perceptible arm: the smallest mask through which a pattern carries images to each class.

L-RED section A.3, problem (13), which is that of B. Wang et al., "Neural Cleanse: Identifying and
Mitigating Backdoor Attacks in Neural Networks", IEEE S&P 2019:

    minimise ||m||_1   subject to   Q_t = sum_{s != t} w_s q_st(m, u) >= pi

with uniform class weights w. The constraint becomes a cost: at each step Adam lowers

    - J_t(m, u) + lambda_t ||m||_1

where J is the weighted mean log-posterior of t, and lambda_t is raised while the constraint holds
and lowered while it does not. Mask and pattern are sigmoids of free numbers.

| paper     | here                         | shape, range                          |
|-----------|------------------------------|---------------------------------------|
| m         | `mask`                       | (H, W), in [0, 1]                     |
| u         | `pattern`                    | (C, H, W), in [0, 1]                  |
| ||m||_1   | `size`                       | pixels                                |
| q_st      | `source_fractions`           | (K,), share of class s that goes to t |
| pi        | `misclassification_fraction` | (0, 1)                                |

Where the weights are annealed as in L-RED, the mask runs away to one easily flipped class and
accuses clean models, so they stay uniform: this arm finds attacks on most classes, the additive one
those on few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from scanner.config import MaskPatternConfig
from scanner.detectors.misclassification import GroupMisclassification, OutOfTime

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

STEPS_DONE = "steps_done"
TIME_LIMIT = "time_limit"
NO_IMAGES = "no_usable_images"

_BETAS = (0.5, 0.9)  # Neural Cleanse's: a short memory, because lambda keeps changing
_EPSILON = 1e-8
_START = 0.1  # of the mask, everywhere: it can still grow anywhere
_FIRST_LAMBDA = 1e-2
_PATIENCE_TO_START = 2  # steps in a row on which the constraint holds before lambda is not 0
_PATIENCE = 3  # steps in a row before lambda moves
_UP, _DOWN = 1.5, 1.5**1.5


@dataclass(frozen=True)
class MaskEstimate:
    """The result of the search for one putative target class t.

    Attributes:
        target_class: t.
        mask: (H, W) float32 in [0, 1]: the smallest for which the constraint held.
        pattern: (C, H, W) float32 in [0, 1].
        size: ||m||_1 in pixels, None unless `found`: nothing is known of it then.
        found: the constraint held at some step.
        stop_reason: why the search ended.
        misclassification: Q_t of this mask and pattern.
        source_weights, source_fractions: (K,) w and q.
        gradient_evaluations: gradients of the cost, each over all images of the class's search.
        images: how many images those are.
        trace: (gradient_evaluations, 2): size and Q at each evaluation.
    """

    target_class: int
    mask: npt.NDArray[np.float32]
    pattern: npt.NDArray[np.float32]
    size: float | None
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
        """(1 + C, H, W), as `embed_mask_pattern` takes it."""
        return np.concatenate([self.mask[None], self.pattern])


class _Penalties:
    """lambda of every target class: up while its constraint holds, down while it does not."""

    def __init__(self, count: int) -> None:
        self.values = np.zeros(count)
        self._good = np.zeros(count, dtype=np.int64)
        self._bad = np.zeros(count, dtype=np.int64)

    def update(self, holds: Flags) -> None:
        self._good = np.where(holds, self._good + 1, 0)
        self._bad = np.where(holds, 0, self._bad + 1)
        begun = self.values > 0
        begin = ~begun & (self._good >= _PATIENCE_TO_START)
        up, down = begun & (self._good >= _PATIENCE), begun & (self._bad >= _PATIENCE)
        self.values[begin] = _FIRST_LAMBDA
        self.values[up] *= _UP
        self.values[down] /= _DOWN
        self._good[begin | up] = 0
        self._bad[down] = 0


class _Adam:
    """Adam (Kingma and Ba, 2015) on the free numbers behind masks and patterns."""

    def __init__(self, free: torch.Tensor, learning_rate: float) -> None:
        self.free = free
        self.learning_rate = learning_rate
        self.steps = 0
        self._mean = torch.zeros_like(free)
        self._square = torch.zeros_like(free)

    def step(self, gradient: torch.Tensor) -> None:
        self.steps += 1
        beta_1, beta_2 = _BETAS
        self._mean.lerp_(gradient, 1 - beta_1)
        self._square.lerp_(gradient.square(), 1 - beta_2)
        mean = self._mean / (1 - beta_1**self.steps)
        square = self._square / (1 - beta_2**self.steps)
        self.free -= self.learning_rate * mean / (square.sqrt() + _EPSILON)


class _Search:
    """The searches of all target classes, in lockstep: mask, then pattern, in (T, 1 + C, H, W)."""

    def __init__(self, objective: GroupMisclassification, config: MaskPatternConfig) -> None:
        self.objective, self.config = objective, config
        channels, height, width = objective.classifier.image_shape
        count = len(objective.targets)
        start = torch.full((count, 1 + channels, height, width), 0.5, device=objective.device)
        start[:, 0] = _START
        self.adam = _Adam(torch.logit(start), config.learning_rate)
        self.penalties = _Penalties(count)
        self.active = [p for p in range(count) if objective.image_count(p)]
        self.w = objective.uniform_weights
        self.q: Floats = np.zeros_like(self.w)  # of the latest evaluation
        self.best, self.best_q = start.clone(), self.q.copy()
        self.best_size = np.full(count, np.inf)
        self.trace: list[tuple[Floats, Floats]] = []

    def step(self) -> None:
        """One evaluation of every class, and one step of Adam.

        Raises:
            OutOfTime: the objective's deadline has passed.
        """
        values = torch.sigmoid(self.adam.free)
        gradient = torch.zeros_like(values)
        gradient[self.active] = -self.objective.evaluate(
            self.active, values[self.active], self._weigh
        )
        holds = self._note(values)
        gradient[:, 0] += torch.from_numpy(self.penalties.values).to(gradient)[:, None, None]
        self.adam.step(gradient * values * (1 - values))
        self.penalties.update(holds)

    def _weigh(self, positions: list[int], q: Floats) -> Floats:
        self.q[positions] = q
        weights: Floats = self.w[positions]
        return weights

    def _note(self, values: torch.Tensor) -> Flags:
        """Keep what is the smallest so far; for which classes the constraint holds now."""
        size = values[:, 0].sum((1, 2)).double().cpu().numpy()
        misclassification = np.round((self.w * self.q).sum(1), 9)  # shares: 9 / 9 is 1, not more
        self.trace.append((size, misclassification))
        holds: Flags = misclassification >= self.config.misclassification_fraction
        better = holds & (size < self.best_size)
        self.best[torch.from_numpy(better)] = values[torch.from_numpy(better)]
        self.best_q[better], self.best_size[better] = self.q[better], size[better]
        return holds


def estimate_masks(
    objective: GroupMisclassification,
    config: MaskPatternConfig,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[MaskEstimate]:
    """Estimate mask and pattern for every target class of `objective`, all in lockstep.

    Args:
        objective: embeds by `embed_mask_pattern`. When its deadline has passed, what was found so
            far is returned.
        progress: called after each step with (steps done, steps, gradient evaluations so far).
    """
    search = _Search(objective, config)
    stop_reason = STEPS_DONE
    for step in range(config.steps if search.active else 0):
        try:
            search.step()
        except OutOfTime:
            stop_reason = TIME_LIMIT
            break
        if progress is not None:
            progress(step + 1, config.steps, (step + 1) * len(search.active))
    return [_estimate(search, p, stop_reason) for p in range(len(objective.targets))]


def _estimate(search: _Search, position: int, stop_reason: str) -> MaskEstimate:
    objective = search.objective
    images = objective.image_count(position)
    found = bool(np.isfinite(search.best_size[position]))
    best = search.best[position].cpu().numpy()
    trace = [(size[position], q[position]) for size, q in search.trace] if images else []
    return MaskEstimate(
        target_class=objective.targets[position],
        mask=best[0],
        pattern=best[1:],
        size=float(best[0].sum(dtype=np.float64)) if found else None,
        found=found,
        stop_reason=stop_reason if images else NO_IMAGES,
        misclassification=round(float(search.w[position] @ search.best_q[position]), 9),
        source_weights=search.w[position],
        source_fractions=search.best_q[position],
        gradient_evaluations=len(trace),
        images=images,
        trace=np.array(trace, dtype=np.float64).reshape(-1, 2),
    )
