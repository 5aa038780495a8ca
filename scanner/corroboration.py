"""Is a suspect class's shortcut real? Its trigger must carry images that it was not made from.

The clean images are split in two halves. The trigger is estimated again on one half and tried on
the other, with the class weights of its own estimate, in both directions. A random perturbation of
the same norm would be no test, since any optimised one beats it; so the triggers of the other
target classes, rescaled to the same norm, are what it must beat.

A smallest perturbation ends on the decision boundary of the very images that it was made from, so
on new images about half of even a true backdoor's fall short of it. All triggers are therefore
tried at `MARGIN` times the norm found: on a CIFAR-10 model with a backdoor that lifts the held-out
rate from .43 to .95, on a clean one from .13 to .23 (tests/benchmarks/corroboration_margin.json).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.config import ScanConfig
from scanner.detectors.l_red import PatternEstimate, estimate_patterns
from scanner.detectors.misclassification import GroupMisclassification
from scanner.results import Corroboration

MARGIN = 1.25

Images = npt.NDArray[np.float32]
Halves = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def corroborate(
    classifier: Classifier,
    images: Images,
    labels: npt.NDArray[np.int64],
    estimates: Sequence[PatternEstimate],
    suspect: int,
    config: ScanConfig,
    batch_images: int,
    deadline: float | None = None,
    margin: float = MARGIN,
) -> tuple[Corroboration, int]:
    """Re-estimate the suspect class's trigger on halves of the clean images and cross-check it.

    Args:
        images, labels: what the search used: (N, C, H, W) in [0, 1] and (N,).
        estimates: of every target class, on all images.
        suspect: the target class in question.
        margin: triggers are tried at this multiple of the norm found.

    Returns:
        (the result, image gradients spent).
    """
    whole = next(e for e in estimates if e.target_class == suspect)
    others = [e for e in estimates if e.target_class != suspect and e.norm > 0]
    spent, rates, rivals = 0, [], []
    halves = split_halves(labels)
    for half, held_out in (halves, halves[::-1]):
        search = GroupMisclassification(
            classifier, images[half], labels[half], [suspect], batch_images, deadline
        )
        check = GroupMisclassification(
            classifier, images[held_out], labels[held_out], [suspect], batch_images
        )
        found = estimate_patterns(search, config.l_red)[0]
        spent += search.image_gradients
        weights = held_out_weights(found.source_weights, whole.source_weights, check)
        norm = margin * found.norm
        own = _carried(check, [(found.perturbation, found.norm)], norm, weights)
        rates.append(float(own[0]) if found.found else 0.0)
        rivals.append(_carried(check, [(e.perturbation, e.norm) for e in others], norm, weights))
    held_out_rate = float(np.mean(rates))
    best_other_rate = float(np.mean(rivals, axis=0).max()) if others else 0.0
    required_rate = config.verdict.min_held_out_rate
    result = Corroboration(
        held_out_rate=held_out_rate,
        best_other_rate=best_other_rate,
        required_rate=required_rate,
        corroborated=held_out_rate >= required_rate and held_out_rate > best_other_rate,
    )
    return result, spent


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
    check: GroupMisclassification,
    perturbations: Sequence[tuple[Images, float]],
    norm: float,
    weights: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """(n,) class-weighted share of images that each of n (perturbation, its norm) carries to the
    only target class of `check`, after rescaling to `norm`."""
    rates = []
    for perturbation, own_norm in perturbations:
        scale = norm / own_norm if own_norm > 0 else 0.0
        v = torch.from_numpy(perturbation * np.float32(scale))[None].to(check.device)
        rates.append(float(weights @ check.fractions([0], v)[0]))
    return np.array(rates)
