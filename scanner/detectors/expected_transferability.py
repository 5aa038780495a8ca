"""Expected transferability: do the perturbations of single images flip the other images, too?

Z. Xiang, D. J. Miller, G. Kesidis, "Post-Training Detection of Backdoor Attacks for Two-Class and
Multi-Attack Scenarios", ICLR 2022. For putative target class t and images x_i of other classes,

    v_i  = a smallest perturbation with f([x_i + v_i]_c) = t
    ET_t = mean over i != j of [ f([x_j + v_i]_c) = t ]

Where t has no backdoor each image has its own shortest way to t, which leads no other image there.
A backdoor is a way that all share. The classes are not compared with one another, so two of them
suffice, and any number of them may be targets.

| paper     | here                  | shape, range                                         |
|-----------|-----------------------|------------------------------------------------------|
| v_i       | `perturbation`        | (C, H, W), that of the image whose v_i carries most   |
| T(x_i)    | `transfers[i]`        | (M,), images that some v_i found so far carries       |
| ET_t      | `transferability`     | [0, 1]                                               |
| tau       | `patience`            | rounds from new random starts that add nothing        |
| -         | `scale`               | v_i is applied at so many times its size; paper: 1    |

The paper's threshold of 1/2 is that of exact minima: if all images share one way, v_i carries just
those x_j for which less is needed, half of them. So an exact search stays near 1/2 or below even on
a backdoor (.39 to .51 on MNIST models with additive triggers, .05 at most on clean ones), while the
authors' search, which overshoots, exceeds it. Here v_i is enlarged before it is tried, as
corroboration does for the same reason: that lifts a shared way (to .86 to .94 at twice the size)
and the others little. With few classes twice the size reaches t from anywhere, so it is less there.
Where all ways are shared by nature, in a linear model, every class has a high ET; see `suspects`.

A v_i is found by the decoupled direction and norm of J. Rony et al., CVPR 2019, which needs a few
dozen gradients: steps along the gradient of log p(t | .), and after each step a norm that shrinks
while the image is t and grows while it is not. All pairs of an image and a class are one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.config import TransferabilityConfig
from scanner.triggers import embed_additive

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

STABLE = "transfers_stable"
ROUNDS_DONE = "rounds_done"
TIME_LIMIT = "time_limit"
NO_IMAGES = "no_usable_images"

FEW_CLASSES = 5  # with fewer, other scales and thresholds hold
TIMES_MEDIAN = 3.0

_REFERENCE_PIXELS = 3072
_START = 0.05  # norm of the random start, at 3x32x32 pixels; scaled with the square root
_FIRST_NORM = 0.3  # likewise
_STEP = (0.5, 0.05)  # first and last step, as shares of the norm
_SHRINK = (0.3, 0.02)  # first and last change of the norm


@dataclass(frozen=True)
class TransferEstimate:
    """The result for one putative target class t, over M images of other classes.

    Attributes:
        target_class: t.
        transferability: ET_t; None for fewer than two images, or if time ran out.
        reached: share of the images for which a perturbation was found. The others carry nothing:
            where it is small, a low ET says nothing.
        transfers: (M, M), row i: the images that some perturbation of image i carries to t.
        used: (M,) indices of the images.
        norms: (M,) ||v_i||_2, the smallest of all rounds; inf where none was found.
        perturbation: (C, H, W) float32, the one that carries most images, at `scale` times its
            size; 0 where none was found.
        source_fractions: (K,) share of the other images' perturbations that carry a class's images.
        stop_reason: why the rounds ended.
        image_gradients: what was spent on this class.
    """

    target_class: int
    transferability: float | None
    reached: float
    transfers: Flags
    used: Labels
    norms: Floats
    perturbation: Images
    source_fractions: Floats
    stop_reason: str
    image_gradients: int


def scale_for(classes: int, config: TransferabilityConfig) -> float:
    """The scale for a model of so many classes."""
    if config.scale is not None:
        return config.scale
    return 1.25 if classes < FEW_CLASSES else 2.0


def threshold(classes: int) -> float:
    """ET at the default scale from which a class of a model of so many classes is suspect.

    The largest on clean models was .19 for pairs and .14 for triples of a 10-class model's logits,
    .24 for 10 classes (23 models), .28 for 43 (5 models); but for a linear model, see `suspects`.
    """
    return 0.25 if classes < FEW_CLASSES else 0.3


def suspects(estimates: Sequence[TransferEstimate], classes: int) -> tuple[int, ...]:
    """The target classes to which ways are shared, descending by ET.

    A class must reach the threshold, and stand out: from 5 classes on with three times the median,
    below by not all of them reaching it. Where all ways are shared, as in a linear model, or more
    than half of the classes are targets, no class stands out.
    """
    known = {e.target_class: e.transferability for e in estimates}
    rates = {t: rate for t, rate in known.items() if rate is not None}
    if not rates:
        return ()
    least = threshold(classes)
    if len(rates) >= FEW_CLASSES:
        least = max(least, TIMES_MEDIAN * float(np.median(list(rates.values()))))
    far = [t for t, rate in rates.items() if rate >= least]
    if len(far) == len(rates) > 1:
        return ()
    return tuple(sorted(far, key=lambda t: -rates[t]))


class _OutOfTime(Exception):
    """The deadline passed in the middle of a search."""


def estimate_transferability(
    classifier: Classifier,
    images: Images,
    labels: Labels,
    targets: Sequence[int],
    config: TransferabilityConfig,
    seed: int,
    batch_images: int,
    deadline: float | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[TransferEstimate]:
    """Estimate ET of every target class; what a perturbation carries is told by ONNX Runtime.

    Args:
        images, labels: (N, C, H, W) in [0, 1] and (N,), all classified as labelled.
        seed: of the random starts; a class's own depend on it, the class and the round alone.
        batch_images: how many images one pass may hold.
        deadline: `time.monotonic()` after which no further step is begun.
        progress: called after each step with (steps done in this round and batch, steps of a round,
            image gradients so far).
    """
    search = _Search(classifier, images, config, batch_images, deadline, progress)
    states = [_State(t, _spread(labels, t, config.images), labels, images) for t in targets]
    late = False
    for number in range(config.max_rounds):
        active = [s for s in states if s.wants_more(config.patience)]
        if not active:
            break
        try:
            _round(search, active, config, seed, number)
        except _OutOfTime:
            late = True
            break
    return [_estimate(s, classifier, config, late) for s in states]


def _spread(labels: Labels, target: int, count: int) -> Labels:
    """Indices of at most `count` images of other classes: the first of each, then the second."""
    others = np.flatnonzero(labels != target)
    turn = np.array([np.sum(labels[:i] == labels[i]) for i in others], dtype=np.int64)
    return np.sort(others[np.argsort(turn, kind="stable")[:count]])


class _State:
    """What is known of one target class."""

    def __init__(self, target: int, used: Labels, labels: Labels, images: Images) -> None:
        count = len(used)
        self.target, self.used, self.labels = target, used, labels[used]
        self.transfers = np.zeros((count, count), dtype=bool)
        self.norms = np.full(count, np.inf)
        self.most, self.perturbation = -1, np.zeros_like(images[0])
        self.stable = np.zeros(count, dtype=np.int64)
        self.rounds = 0
        self.gradients = 0

    def active(self, patience: int) -> npt.NDArray[np.int64]:
        """Positions of the images that get another start."""
        return np.flatnonzero(self.stable < patience)

    def wants_more(self, patience: int) -> bool:
        return len(self.used) > 1 and len(self.active(patience)) > 0

    def take(self, position: int, carried: Flags, norm: float, perturbation: Images) -> None:
        """One image's new perturbation, and what it carries."""
        grown = self.transfers[position] | carried
        same = bool((grown == self.transfers[position]).all()) and self.rounds > 0
        self.stable[position] = self.stable[position] + 1 if same else 0
        self.transfers[position] = grown
        self.norms[position] = min(self.norms[position], norm)
        if carried.sum() > self.most and np.isfinite(norm):
            self.most, self.perturbation = int(carried.sum()), perturbation


def _round(
    search: _Search,
    active: Sequence[_State],
    config: TransferabilityConfig,
    seed: int,
    number: int,
) -> None:
    """One more start for every image that is not done.

    Raises:
        _OutOfTime: the deadline has passed.
    """
    todo = [s.active(config.patience) for s in active]
    rows = np.concatenate([s.used[positions] for s, positions in zip(active, todo, strict=True)])
    target = np.repeat([s.target for s in active], [len(p) for p in todo])
    starts = [
        np.random.default_rng([seed, s.target, number]).standard_normal(
            (len(s.used), *search.images.shape[1:]), dtype=np.float32
        )[positions]
        for s, positions in zip(active, todo, strict=True)
    ]
    v, norms = search.smallest(rows, target, np.concatenate(starts))
    begin = 0
    for s, positions in zip(active, todo, strict=True):
        here = slice(begin, begin + len(positions))
        begin += len(positions)
        scaled = scale_for(search.classifier.class_count, config) * v[here]
        carried = search.carried(s, scaled) & np.isfinite(norms[here])[:, None]
        for index, position in enumerate(positions):
            s.take(int(position), carried[index], float(norms[here][index]), scaled[index])
        s.rounds += 1
        s.gradients += config.steps * len(positions)


@dataclass
class _Search:
    """Smallest perturbations of single images, many at once."""

    classifier: Classifier
    images: Images
    config: TransferabilityConfig
    batch_images: int
    deadline: float | None
    progress: Callable[[int, int, int], None] | None
    spent: int = 0

    def smallest(self, rows: Labels, target: Labels, start: Images) -> tuple[Images, Floats]:
        """(perturbations (P, C, H, W), their norms (P,), inf where none was found)."""
        found, norms = [], []
        for begin in range(0, len(rows), self.batch_images):
            part = slice(begin, begin + self.batch_images)
            v, norm = self._decoupled(rows[part], target[part], start[part])
            found.append(v.cpu().numpy())
            norms.append(norm.double().cpu().numpy())
        return np.concatenate(found), np.concatenate(norms)

    def _decoupled(
        self, rows: Labels, target: Labels, start: Images
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoupled direction and norm, for one batch."""
        device = self.classifier.device
        x, t = torch.from_numpy(self.images[rows]).to(device), torch.from_numpy(target).to(device)
        unit = (x[0].numel() / _REFERENCE_PIXELS) ** 0.5
        norm = torch.full((len(x),), _FIRST_NORM * unit, device=device)
        v = _resized(torch.from_numpy(start).to(device), _START * unit)
        best, best_norm = torch.zeros_like(x), torch.full_like(norm, torch.inf)
        for step in range(self.config.steps):
            self._look_at_the_clock()
            flipped, gradient = self._gradient(x, v, t)
            length = v.flatten(1).norm(dim=1)
            better = flipped & (length < best_norm)
            best = torch.where(better[:, None, None, None], v, best)
            best_norm = torch.where(better, length, best_norm)
            share = step / self.config.steps
            shrink = _between(_SHRINK, share)
            lower = torch.minimum(norm, length) * (1 - shrink)
            norm = torch.where(flipped, lower, norm * (1 + shrink))
            norm = torch.minimum(norm, best_norm * (1 - shrink / 2))
            stride = _between(_STEP, share) * norm
            v = _resized(v + _resized(gradient, stride), norm)
            self.spent += len(x)
            if self.progress is not None:
                self.progress(step + 1, self.config.steps, self.spent)
        return best, best_norm

    def _gradient(
        self, x: torch.Tensor, v: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(which images are t now, gradients of log p(t))."""
        leaf = v.detach().requires_grad_()
        logits = self.classifier.differentiable_logits(embed_additive(x, leaf))
        log_p = logits.log_softmax(1).gather(1, target[:, None]).sum()
        gradient = torch.autograd.grad(log_p, leaf)[0]
        return logits.detach().argmax(1) == target, gradient.nan_to_num()

    def carried(self, state: _State, perturbations: Images) -> Flags:
        """(P, M) which of a class's images each perturbation carries, by ONNX Runtime."""
        x = torch.from_numpy(self.images[state.used])
        rows = []
        for v in perturbations:
            self._look_at_the_clock()
            triggered = embed_additive(x, torch.from_numpy(v)).numpy()
            rows.append(self.classifier.predictions(triggered) == state.target)
        return np.stack(rows)

    def _look_at_the_clock(self) -> None:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise _OutOfTime


def _between(first_and_last: tuple[float, float], share: float) -> float:
    first, last = first_and_last
    return first + (last - first) * share


def _resized(v: torch.Tensor, norm: torch.Tensor | float) -> torch.Tensor:
    """Each row at that L2 norm; a zero row stays zero."""
    length = v.flatten(1).norm(dim=1).clamp_min(1e-30)
    resized: torch.Tensor = v * (norm / length)[:, None, None, None]
    return resized


def _estimate(
    state: _State, classifier: Classifier, config: TransferabilityConfig, late: bool
) -> TransferEstimate:
    pairs = state.transfers & ~np.eye(len(state.used), dtype=bool)
    possible = len(state.used) - 1
    rates = pairs.sum(0) / max(possible, 1)  # of each image, over the others' perturbations
    classes = classifier.class_count
    counts = np.bincount(state.labels, minlength=classes)
    fractions = np.bincount(state.labels, rates, minlength=classes) / np.maximum(counts, 1)
    unstable = state.wants_more(config.patience)
    usable = possible > 0 and state.rounds > 0 and not (late and unstable)
    ended = STABLE if not unstable else TIME_LIMIT if late else ROUNDS_DONE
    return TransferEstimate(
        target_class=state.target,
        transferability=float(rates.mean()) if usable else None,
        reached=float(np.isfinite(state.norms).mean()) if len(state.used) else 0.0,
        transfers=state.transfers,
        used=state.used,
        norms=state.norms,
        perturbation=state.perturbation,
        source_fractions=fractions,
        stop_reason=ended if possible > 0 else NO_IMAGES,
        image_gradients=state.gradients,
    )
