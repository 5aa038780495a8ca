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
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from scanner.arms import Ready, TriggerArm
from scanner.config import ScanConfig
from scanner.detectors.misclassification import GroupMisclassification
from scanner.remeasure import TriggerEstimate
from scanner.results import Corroboration

MARGIN = 1.25

Halves = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


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
    others = [e for e in estimates if e.target_class != suspect and e.size]
    spent, rates, rivals = 0, [], []
    halves = split_halves(ready.labels)
    for half, held_out in (halves, halves[::-1]):
        search = _objective(arm, ready, half, suspect, ready.deadline)
        check = _objective(arm, ready, held_out, suspect, None)
        found = arm.estimate(search, config, None)[0]
        spent += search.image_gradients
        weights = held_out_weights(found.source_weights, whole.source_weights, check)
        size = margin * (found.size or 0.0)
        rates.append(float(_carried(arm, check, [found], size, weights)[0]) if found.found else 0.0)
        rivals.append(_carried(arm, check, others, size, weights))
    held_out_rate = float(np.mean(rates))
    best_other_rate = float(np.mean(rivals, axis=0).max()) if others else 0.0
    required_rate = config.verdict.min_held_out_rate
    result = Corroboration(
        target_class=suspect,
        held_out_rate=held_out_rate,
        best_other_rate=best_other_rate,
        required_rate=required_rate,
        corroborated=held_out_rate >= required_rate and held_out_rate > best_other_rate,
    )
    return result, spent


def _objective(
    arm: TriggerArm,
    ready: Ready,
    indices: npt.NDArray[np.int64],
    suspect: int,
    deadline: float | None,
) -> GroupMisclassification:
    return GroupMisclassification(
        ready.classifier,
        ready.images[indices],
        ready.labels[indices],
        [suspect],
        ready.batch_images,
        deadline,
        arm.embed,
    )


def split_halves(labels: npt.NDArray[np.int64]) -> Halves:
    """Indices of two halves: within each class, images go to them in turn.

    Which half begins alternates too, so that classes with one image are split between the halves.
    """
    halves: tuple[list[int], list[int]] = ([], [])
    turn = 0
    for label in np.unique(labels):
        for index in np.flatnonzero(labels == label):
            halves[turn % 2].append(int(index))
            turn += 1
    return np.array(sorted(halves[0])), np.array(sorted(halves[1]))


def held_out_weights(
    own: npt.NDArray[np.float64],
    whole: npt.NDArray[np.float64],
    check: GroupMisclassification,
) -> npt.NDArray[np.float64]:
    """The class weights to judge held-out images by, on the classes that those images have.

    The half's own weights are honest. Only where most of their classes have no held-out image (one
    image a class) do the weights of the search over all images take their place.
    """
    present = check.uniform_weights[0] > 0
    weights = own if own[present].sum() >= 0.5 else whole
    restricted: npt.NDArray[np.float64] = np.where(present, weights, 0.0)
    if restricted.sum() <= 0:
        restricted = present.astype(np.float64)
    restricted /= restricted.sum()
    return restricted


def _carried(
    arm: TriggerArm,
    check: GroupMisclassification,
    estimates: Sequence[TriggerEstimate],
    size: float,
    weights: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """(n,) class-weighted share of images that each of n triggers, scaled to `size`, carries to the
    only target class of `check`."""
    rates = []
    for estimate in estimates:
        factor = size / estimate.size if estimate.size else 0.0
        trigger = arm.scale(torch.from_numpy(estimate.trigger), factor)[None].to(check.device)
        rates.append(float(weights @ check.fractions([0], trigger)[0]))
    return np.array(rates)
