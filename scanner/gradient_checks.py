"""Can the gradient be trusted? Flags in the manner of AutoAttack's checks, in about a second.

Every search here follows gradients of log p(t | x). Where they lie, a search ends early or far
from the smallest trigger, and a backdoor looks like a clean class. So before a search: F. Croce,
M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
Attacks", ICML 2020, and the checks of its public implementation (random models, zero gradients).

A probe is one clean image x and one class t that is not the image's, of all classes in turn. With
g the gradient of log p(t | x) by torch, x moves by h along g, inside [0, 1], and ONNX Runtime says
how log p(t | x) changed. The ratio of that change to g . (x' - x) is 1 for a true gradient and a
small h. Steps are L2 norms at 3x32x32 pixels, scaled with the square root of the number of pixels:

- .01: on 73 models (those of a fleet, third parties' and vendors'; ReLU, ViT, self-attention) 98 %
  of the probes and more have a ratio of a half to 2, on a binarised network 33 %.
- .1: the size of a small trigger. A gradient that fails at .01 only (the steps of a quantised
  network) still leads a search.

`FORBIDDING` names the flags under which nothing found is no evidence that nothing is there; the
others accompany a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from converters import OnnxClassifier
from converters.instructions import Instruction
from converters.subgraph import Subgraph
from scanner.classifier import Classifier
from scanner.results import Note

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

VANISHING_GRADIENTS = "vanishing_gradients"
FEW_VANISHING_GRADIENTS = "few_vanishing_gradients"
GRADIENTS_MISLEAD = "gradients_mislead"
ROUGH_GRADIENTS = "rough_gradients"
STAND_IN_GRADIENT = "stand_in_gradient"
NON_DETERMINISTIC = "non_deterministic"
ROBUST_MODEL = "robust_model"

FORBIDDING = frozenset({VANISHING_GRADIENTS, GRADIENTS_MISLEAD, NON_DETERMINISTIC})
"""Flags that forbid `no_backdoor_found`."""

PROBES = 48
FINE_STEP, COARSE_STEP = 0.01, 0.1
MAX_VANISHING_SHARE = 0.1
MIN_PREDICTED_SHARE = 0.75  # of the probes, with a ratio of a half to 2
VANISHING_DISTANCE = 10.0  # to the boundary, to first order, in ranges of all pixels
# Twice and 1.6 times the largest median of 74 and 20 models, none of which is robust in that sense:
# networks trained against perturbations of 2/255 are within the range of the others.
ROBUST_DISTANCE = 0.2
ROBUST_NORM = 0.3
_REFERENCE_PIXELS = 3072
# What rounding does, as a share of the largest |logit|; by half precision or not.
_NOISE = {False: 1e-6, True: 1e-3}
_SIGNAL_TO_NOISE = 10.0

_STRAIGHT_THROUGH = ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "Sign")
_STEPS = ("Ceil", "Floor", "Round")


@dataclass(frozen=True)
class Probes:
    """What the probes measured; see the module's text.

    Attributes:
        distance: (P,) to first order, how far the boundary to t is: the difference of the logits
            over the L2 norm of its gradient, in the image's largest L2 norm sqrt(C H W). inf where
            the gradient is 0 or not finite.
        fine, coarse: (P,) ratios of the measured change to the predicted one at the two steps; NaN
            where the predicted change drowns in rounding.
        unsteady: largest difference of the logits of two equal forward passes by either engine, as
            a share of the largest |logit|.
    """

    distance: Floats
    fine: Floats
    coarse: Floats
    unsteady: float


def gradient_checks(
    classifier: Classifier, images: Images, labels: Labels, count: int = PROBES
) -> tuple[Note, ...]:
    """What is wrong with the gradients of a model; empty for an ordinary one.

    Args:
        classifier: differentiable.
        images, labels: (N, C, H, W) in [0, 1] and (N,), all classified as labelled.
        count: how many probes.
    """
    found = probe(classifier, images, labels, count)
    return (*judge(found), *stand_in_gradient(classifier.onnx))


def probe(classifier: Classifier, images: Images, labels: Labels, count: int = PROBES) -> Probes:
    """Take the measurements; arguments as in `gradient_checks`.

    Costs one gradient and two forward passes by torch, four by ONNX Runtime, of `count` images.
    """
    chosen = np.linspace(0, len(images) - 1, count).astype(np.int64)
    x, own = images[chosen], labels[chosen]
    target = _targets(own, classifier.class_count)
    clean = classifier.logits(x).astype(np.float64)
    gradient, slope, by_torch = _gradients(classifier, x, own, target)
    noise = _NOISE[classifier.onnx.half_precision] * float(np.abs(clean).max())
    scale = math.sqrt(x[0].size / _REFERENCE_PIXELS)

    def ratio(step: float) -> Floats:
        moved = _moved(x, gradient, step * scale)
        predicted = (gradient * (moved - x)).reshape(count, -1).sum(1, dtype=np.float64)
        after = _log_p(classifier.logits(moved).astype(np.float64), target)
        measured = after - _log_p(clean, target)
        heard = np.isfinite(predicted) & (predicted > _SIGNAL_TO_NOISE * noise)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(heard, measured / predicted, np.nan)

    again = np.abs(classifier.logits(x) - clean).max()
    again_by_torch = float((_torch_logits(classifier, x) - by_torch).abs().max())
    return Probes(
        distance=_distance(clean, own, target, slope, x[0].size),
        fine=ratio(FINE_STEP),
        coarse=ratio(COARSE_STEP),
        unsteady=max(float(again), again_by_torch) / max(float(np.abs(clean).max()), 1e-30),
    )


def judge(found: Probes) -> tuple[Note, ...]:
    """The flags that measurements call for."""
    notes = []
    lost = float((found.distance > VANISHING_DISTANCE).mean())
    if lost > 0:
        code = VANISHING_GRADIENTS if lost > MAX_VANISHING_SHARE else FEW_VANISHING_GRADIENTS
        what = (
            f"{lost:.0%} of the gradients towards another class vanish or are not finite, so a "
            "search by gradients can't see such a class; scan the model before it was saturated, "
            "quantised or defended"
        )
        notes.append(Note(code, what))
    fine, coarse = _predicted_share(found.fine), _predicted_share(found.coarse)
    if fine is not None and fine < MIN_PREDICTED_SHARE:
        missed = f"{1 - fine:.0%} of the gradients don't predict what a small step does"
        if coarse is not None and coarse >= 0.5:
            what = f"{missed}, but do for larger ones: norms may come out too large; compare models"
            notes.append(Note(ROUGH_GRADIENTS, what))
        else:
            what = f"{missed}: they are masked, and searches miss small triggers; scan the original"
            notes.append(Note(GRADIENTS_MISLEAD, what))
    if found.unsteady > 1e-4:
        what = (
            f"two runs on the same images differ by {found.unsteady:.2g} of the largest logit: the "
            "model draws at random; export it in inference mode"
        )
        notes.append(Note(NON_DETERMINISTIC, what))
    typical = float(np.median(found.distance))
    if ROBUST_DISTANCE < typical <= VANISHING_DISTANCE:
        what = (
            f"classes are far apart (to first order {typical:.2g} of the largest possible change): "
            "small perturbations do nothing here, so judge this model by its masks"
        )
        notes.append(Note(ROBUST_MODEL, what))
    return tuple(notes)


def stand_in_gradient(onnx: OnnxClassifier) -> tuple[Note, ...]:
    """Flag operators with steps, whose true gradient is 0 wherever there is one.

    Quantisation and Sign get the straight-through estimator (`converters.ops._quantization`);
    rounding of other kinds keeps its zero.
    """
    if onnx.network is None:
        return ()
    names = {i.op_type for i in _instructions(onnx.network.instructions)}
    through = sorted(
        n for n in names if n in _STRAIGHT_THROUGH or n.startswith(("QLinear", "Quant"))
    )
    stopped = sorted(names & set(_STEPS))
    parts = []
    if through:
        parts.append(f"{', '.join(through)} count as the identity")
    if stopped:
        parts.append(f"{', '.join(stopped)} stop it")
    if not parts:
        return ()
    what = (
        f"the gradient is a stand-in ({'; '.join(parts)}): norms are upper bounds; scan the model "
        "in floating point, too, if you can get it"
    )
    return (Note(STAND_IN_GRADIENT, what),)


def robust_model(norms: Sequence[float], pixels: int) -> tuple[Note, ...]:
    """Flag a model whose perturbations are so large that their sizes say nothing.

    Args:
        norms: L2 norms of the additive arm, one for each class that was found.
        pixels: C * H * W; a perturbation can't be larger than its square root.
    """
    share = float(np.median(norms)) / math.sqrt(pixels) if len(norms) else 0.0
    if share < ROBUST_NORM:
        return ()
    what = (
        f"the median perturbation is {share:.2g} of the largest possible: it repaints the images, "
        "and no class stands out against that; judge this model by masks and margins"
    )
    return (Note(ROBUST_MODEL, what),)


def _targets(own: Labels, classes: int) -> Labels:
    """For each image another class than its own, all classes in turn."""
    turns: Labels = np.arange(len(own)) % max(classes - 1, 1)
    return np.where(turns >= own, turns + 1, turns) % classes


def _gradients(
    classifier: Classifier, x: Images, own: Labels, target: Labels
) -> tuple[Images, Floats, torch.Tensor]:
    """(gradients of log p(t), (P,) norms of those of the logits' difference, logits), by torch.

    Both in one forward pass. Gradients that are not finite are 0 here, as a search takes them.
    """
    leaf = torch.from_numpy(x).to(classifier.device).requires_grad_()
    logits = classifier.differentiable_logits(leaf)
    rows, t, y = (torch.as_tensor(i, device=logits.device) for i in (range(len(x)), target, own))
    log_p = logits.log_softmax(1)[rows, t].sum()
    gap = (logits[rows, t] - logits[rows, y]).sum()
    of_p = torch.autograd.grad(log_p, leaf, retain_graph=True)[0]
    of_gap = torch.autograd.grad(gap, leaf)[0]
    finite = of_p.flatten(1).isfinite().all(1) & of_gap.flatten(1).isfinite().all(1)
    of_p = torch.where(finite[:, None, None, None], of_p, torch.zeros_like(of_p))
    slope = torch.where(finite, of_gap.flatten(1).double().norm(dim=1), 0.0)
    return of_p.cpu().numpy(), slope.cpu().numpy(), logits.detach()


@torch.no_grad()
def _torch_logits(classifier: Classifier, x: Images) -> torch.Tensor:
    return classifier.differentiable_logits(torch.from_numpy(x).to(classifier.device))


def _moved(x: Images, gradient: Images, step: float) -> Images:
    """x, a step of that L2 norm along its gradient, inside [0, 1]."""
    length = np.sqrt((gradient.astype(np.float64) ** 2).sum((1, 2, 3), keepdims=True))
    unit = gradient / np.maximum(length, 1e-300)
    moved: Images = np.clip(x + step * unit, 0, 1).astype(np.float32)
    return moved


def _log_p(logits: Floats, target: Labels) -> Floats:
    """(P,) log p(t) of each row."""
    top = logits.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(1))
    result: Floats = logits[np.arange(len(logits)), target] - log_sum
    return result


def _distance(logits: Floats, own: Labels, target: Labels, slope: Floats, pixels: int) -> Floats:
    rows = np.arange(len(logits))
    gap = np.abs(logits[rows, own] - logits[rows, target])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope > 0, gap / slope / math.sqrt(pixels), np.inf)


def _predicted_share(ratios: Floats) -> float | None:
    """Share of the ratios of a half to 2, among those that are known; None if none is."""
    known = ratios[np.isfinite(ratios)]
    return float(((known > 0.5) & (known < 2)).mean()) if len(known) else None


def _instructions(instructions: Iterable[Instruction]) -> Iterator[Instruction]:
    """Instructions, and those of the branches and bodies within them."""
    for instruction in instructions:
        yield instruction
        for value in instruction.attributes.values():
            if isinstance(value, Subgraph):
                yield from _instructions(value.instructions)
