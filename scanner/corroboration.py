"""Is a suspect class's shortcut real? Its trigger must carry images that it was not made from.

The clean images are split in two halves. The trigger is estimated again on one half and tried on
the other, with the class weights of its own estimate, in both directions. A random trigger of the
same size would be no test, since any optimised one beats it; so the triggers of the other target
classes, scaled to the same size, are what it must beat.

A smallest trigger ends on the decision boundary of the very images that it was made from, so on
new images about half of even a true backdoor's fall short of it. All triggers are therefore tried
at `MARGIN` times the size found: on a CIFAR-10 model with a backdoor that lifts the held-out rate
of the smallest perturbation from .43 to .95, on a clean one from .13 to .23
(tests/benchmarks/corroboration_margin.json).

At the suspect's size the triggers of the other classes must not reach their own classes either:
where they do, the suspect is no easier a target than any other. And the searches on the halves must
find about the same size: a trigger that shrinks much when images are left out is fitted to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from scanner.arms import Ready, TriggerArm
from scanner.arms.base import MARGIN, split_halves
from scanner.config import ScanConfig
from scanner.detectors.misclassification import GroupMisclassification
from scanner.remeasure import TriggerEstimate
from scanner.results import Corroboration

MAX_OTHERS = 20  # other classes whose triggers are tried, evenly spread

Floats = npt.NDArray[np.float64]


def corroborate(
    arm: TriggerArm,
    ready: Ready,
    estimates: Sequence[TriggerEstimate],
    suspect: int,
    config: ScanConfig,
    margin: float = MARGIN,
) -> tuple[Corroboration, int]:
    """Re-estimate the suspect class's trigger on halves of the clean images and cross-check it.

    Args:
        ready: with all clean images at hand, also those that the arm did not search with.
        estimates: the arm's, of every target class.
        suspect: the target class in question.
        margin: triggers are tried at this multiple of the size found.

    Returns:
        (the result, image gradients spent).
    """
    whole = next(e for e in estimates if e.target_class == suspect)
    others = _spread([e for e in estimates if e.target_class != suspect and e.size])
    trials = []
    halves = split_halves(ready.labels)
    for half, held_out in (halves, halves[::-1]):
        trials.append(_trial(arm, ready, (half, held_out), whole, others, config, margin))
    rate = _share(np.mean([t.rate for t in trials]))
    rivals = np.mean([t.rivals for t in trials], axis=0)
    own = np.mean([t.own for t in trials], axis=0)
    best_other_rate = _share(rivals.max()) if others else 0.0
    typical_own_rate = _share(np.median(own)) if others else 0.0
    required_rate = config.verdict.min_held_out_rate
    result = Corroboration(
        target_class=suspect,
        held_out_rate=rate,
        best_other_rate=best_other_rate,
        required_rate=required_rate,
        corroborated=rate >= required_rate and rate > max(best_other_rate, typical_own_rate),
        typical_own_rate=typical_own_rate,
        size_on_halves=_mean_share([t.size for t in trials], whole.size),
    )
    return result, sum(t.spent for t in trials)


class _Trial(NamedTuple):
    """One half's trigger on the other half's images."""

    rate: float
    rivals: Floats
    own: Floats
    size: float
    spent: int


def _trial(
    arm: TriggerArm,
    ready: Ready,
    halves: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    whole: TriggerEstimate,
    others: Sequence[TriggerEstimate],
    config: ScanConfig,
    margin: float,
) -> _Trial:
    seen, held_out = (
        ready._replace(images=ready.images[h], labels=ready.labels[h]) for h in halves
    )
    search = arm.objective(seen._replace(targets=(whole.target_class,)), arm.sources_of(whole))
    found = arm.estimate(search, config, None)[0]
    check = arm.objective(
        held_out._replace(targets=(whole.target_class,), deadline=None), arm.sources_of(whole)
    )
    weights = held_out_weights(found.source_weights, whole.source_weights, check)
    size = margin * (found.size or 0.0)
    rate = float(_carried(arm, check, [found], size, weights)[0]) if found.found else 0.0
    return _Trial(
        rate=rate,
        rivals=_carried(arm, check, others, size, weights),
        own=_towards_their_own(arm, held_out, others, size),
        size=found.size or 0.0,
        spent=search.image_gradients,
    )


def _spread(others: Sequence[TriggerEstimate]) -> list[TriggerEstimate]:
    """At most `MAX_OTHERS` of them."""
    return list(others[:: -(-len(others) // MAX_OTHERS)]) if others else []


def _share(weighted: float | np.floating[Any]) -> float:
    """A sum of weights times shares, which rounding may have lifted above 1."""
    return min(1.0, round(float(weighted), 9))


def _mean_share(sizes: Sequence[float], whole: float | None) -> float | None:
    """Mean of the sizes, as a share of the whole's."""
    return float(np.mean(sizes)) / whole if whole else None


def held_out_weights(own: Floats, whole: Floats, check: GroupMisclassification) -> Floats:
    """The class weights to judge held-out images by, on the classes that those images have.

    The half's own weights are honest. Only where most of their classes have no held-out image (one
    image a class) do the weights of the search over all images take their place.
    """
    present = check.uniform_weights[0] > 0
    weights = own if own[present].sum() >= 0.5 else whole
    restricted: Floats = np.where(present, weights, 0.0)
    if restricted.sum() <= 0:
        restricted = present.astype(np.float64)
    restricted /= max(restricted.sum(), 1e-300)
    return restricted


def _carried(
    arm: TriggerArm,
    check: GroupMisclassification,
    estimates: Sequence[TriggerEstimate],
    size: float,
    weights: Floats,
) -> Floats:
    """(n,) class-weighted share of images that each of n triggers, scaled to `size`, carries to the
    only target class of `check`."""
    rates = []
    for estimate in estimates:
        trigger = _scaled(arm, estimate, size, check.device)[None]
        rates.append(float(weights @ check.fractions([0], trigger)[0]))
    return np.array(rates)


def _towards_their_own(
    arm: TriggerArm, held_out: Ready, others: Sequence[TriggerEstimate], size: float
) -> Floats:
    """(n,) the same for each trigger's own target class, with its own weights."""
    rates = []
    for estimate in others:
        ready = held_out._replace(targets=(estimate.target_class,), deadline=None)
        check = arm.objective(ready, arm.sources_of(estimate))
        weights = held_out_weights(estimate.source_weights, estimate.source_weights, check)
        rates.append(float(_carried(arm, check, [estimate], size, weights)[0]))
    return np.array(rates)


def _scaled(
    arm: TriggerArm, estimate: TriggerEstimate, size: float, device: torch.device
) -> torch.Tensor:
    factor = size / estimate.size if estimate.size else 0.0
    return arm.scale(torch.from_numpy(estimate.trigger), factor).to(device)
