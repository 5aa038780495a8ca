"""Maximum margin: how far a class's logit can be lifted above all others, on any image at all.

H. Wang, Z. Xiang, D. J. Miller, G. Kesidis, "MM-BD: Post-Training Detection of Backdoor Attacks
with Arbitrary Backdoor Pattern Types Using a Maximum Margin Statistic", IEEE S&P 2024. Training on
a trigger lifts the target class's logit far beyond what it needs, so that

    r_t = max_{x in [0, 1]^(C x H x W)}  g_t(x) - max_{k != t} g_k(x)

is an outlier for the target class; g are the logits. It needs no image and no kind of trigger.

Adam climbs from a few random images for each class, all in lockstep, and is projected back to
[0, 1] after each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.config import MaximumMarginConfig

STEPS_DONE = "steps_done"
TIME_LIMIT = "time_limit"

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


@dataclass(frozen=True)
class MarginEstimate:
    """The result of the search for one putative target class t.

    Attributes:
        target_class: t.
        margin: the largest g_t - max_{k != t} g_k found, in logits. A class whose margin never
            turns positive is never predicted on any image seen.
        image: (C, H, W) float32 in [0, 1], where it is that large.
        stop_reason: why the search ended.
        gradient_evaluations: image gradients spent on this class.
        trace: (steps, 2): the largest and the smallest margin among the starts at each step.
    """

    target_class: int
    margin: float
    image: npt.NDArray[np.float32]
    stop_reason: str
    gradient_evaluations: int
    trace: npt.NDArray[np.float64]


def estimate_margins(
    classifier: Classifier,
    targets: Sequence[int],
    config: MaximumMarginConfig,
    seed: int,
    batch_images: int,
    deadline: float | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[MarginEstimate]:
    """Estimate the maximum margin of every target class.

    Args:
        seed: of the random starts. A class's own starts depend on the seed and the class alone.
        batch_images: how many images one pass may hold.
        deadline: `time.monotonic()` after which no further step is begun.
        progress: called after each step with (steps done, steps, gradient evaluations so far).
    """
    x = torch.from_numpy(_starts(classifier, targets, config.starts, seed)).to(classifier.device)
    owner = torch.tensor(targets, device=x.device).repeat_interleave(config.starts)
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    best, best_image = torch.full((len(x),), -torch.inf, device=x.device), x.clone()
    trace: list[torch.Tensor] = []
    stop_reason = STEPS_DONE
    for step in range(1, config.steps + 1):
        if deadline is not None and time.monotonic() >= deadline:
            stop_reason = TIME_LIMIT
            break
        margins, gradient = _margins(classifier, x, owner, batch_images)
        trace.append(margins)
        better = margins > best
        best, best_image[better] = torch.where(better, margins, best), x[better]
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.lerp_(gradient.square(), 1 - _BETAS[1])
        rate = config.learning_rate / (1 - _BETAS[0] ** step)
        x += rate * mean / ((square / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON)
        x.clamp_(0, 1)
        if progress is not None:
            progress(step, config.steps, step * len(x))
    shape = (len(targets), config.starts)
    return [
        MarginEstimate(
            target_class=target,
            margin=float(values.max()),
            image=images[int(values.argmax())].cpu().numpy(),
            stop_reason=stop_reason,
            gradient_evaluations=len(trace) * config.starts,
            trace=_extremes(trace, index, config.starts),
        )
        for index, (target, values, images) in enumerate(
            zip(targets, best.reshape(shape), best_image.reshape(*shape, *x.shape[1:]), strict=True)
        )
    ]


def _starts(
    classifier: Classifier, targets: Sequence[int], starts: int, seed: int
) -> npt.NDArray[np.float32]:
    """(len(targets) * starts, C, H, W) random images."""
    shape = (starts, *classifier.image_shape)
    return np.concatenate(
        [np.random.default_rng([seed, t]).random(shape, dtype=np.float32) for t in targets]
    )


def _margins(
    classifier: Classifier, x: torch.Tensor, owner: torch.Tensor, batch_images: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(margins (N,), their gradients (N, C, H, W)) of each image towards its owner class."""
    margins, gradients = [], []
    for start in range(0, len(x), batch_images):
        leaf = x[start : start + batch_images].detach().requires_grad_()
        target = owner[start : start + batch_images]
        logits = classifier.differentiable_logits(leaf)
        own = logits.gather(1, target[:, None])
        margin = own[:, 0] - logits.scatter(1, target[:, None], -torch.inf).amax(1)
        gradients.append(torch.autograd.grad(margin.sum(), leaf)[0])
        margins.append(margin.detach())
    return torch.cat(margins), torch.cat(gradients)


def _extremes(trace: Sequence[torch.Tensor], index: int, starts: int) -> npt.NDArray[np.float64]:
    """(steps, 2): the largest and the smallest margin of one class's starts."""
    rows = [margins[index * starts : (index + 1) * starts] for margins in trace]
    return np.array([(float(r.max()), float(r.min())) for r in rows]).reshape(-1, 2)
