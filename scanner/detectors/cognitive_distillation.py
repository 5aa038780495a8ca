"""Cognitive Distillation: how little of an image the model needs for what it says of it.

H. Huang, X. Ma, S. Erfani, J. Bailey, "Distilling Cognitive Backdoor Patterns within an Image",
ICLR 2023. A mask m in [0, 1]^(H x W) is learned for each image x so that what is left of it,

    x_cp = x * m + (1 - m) * delta                                                       (eq. 2)

still gives the model's output, and costs as little as possible:

    min_m  |f(x) - f(x_cp)|_1 + alpha |m|_1 + beta TV(m)                                 (eq. 1)

delta is one random colour, drawn anew for each image and step. A trigger is a shortcut, so that
few pixels are left of a triggered image: the score is |m|_1, small is suspicious (eq. 4).

Three outputs f can be matched: the logits (CD-L) and the last convolution's map (CD-F), as in the
paper, and the class probabilities (CD-P), which is not in the paper. How the symbols are read:

    m = (tanh p + 1) / 2, p = 1 at the start; Adam on p, rate .1, betas (.1, .1), 100 steps
    |f - f'|_1  mean over the outputs; CD-P: half the sum, which is the total variation distance
    |m|_1       sum over the pixels
    TV(m)       sum of the squared differences of neighbours / (H * W)

alpha is .01 (CD-L) and .001 (CD-F) at 32x32, a tenth of it at 224x224 (appendix B.3); `weights_of`
says what is done elsewhere. CD-P costs 1 for a full mask and 10 / 1024 for each squared difference,
at any size: sums of squared differences do not change when an image is enlarged, and
probabilities know nothing of the number of classes. Logits of an unusually large scale are divided
by `output_scale_factor` first: a saturated softmax has no gradient.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.layer_outputs import differentiable_features
from scanner.preprocessing import Preprocessing

CD_P, CD_L, CD_F = "cd_p", "cd_l", "cd_f"
VARIANTS = (CD_P, CD_L, CD_F)

Outputs = Callable[[torch.Tensor], torch.Tensor]
"""(N, C, H, W) images in [0, 1] -> (N, ...) what is matched, with a gradient to the images."""

_BETAS = (0.1, 0.1)
_EPSILON = 1e-8
_START = 1.0  # of p, which makes every mask .88 at the start
_PAPER_SIZES = (32 * 32, 224 * 224)
_PAPER_ALPHA = {CD_L: (0.01, 0.001), CD_F: (0.001, 0.0001)}  # at those sizes, appendix B.3
_PAPER_BETA = 10.0
# What an empty mask costs in fidelity on networks like the paper's, and how far from it they may be
# before the weights follow (see `output_scale_factor`).
_USUAL_SCALE = {CD_L: 2.0, CD_F: 0.2}
_USUAL_RANGE = 3.0
_FULL_MASK = 1.0  # CD-P: cost of a full mask, in units of probability
_SQUARED_DIFFERENCE = 10 / 1024  # CD-P: cost of two neighbours that differ by 1


@dataclass(frozen=True)
class DistillationConfig:
    """Settings of the search for masks.

    Attributes:
        steps: of Adam.
        learning_rate: Adam's, on the numbers behind the tanh.
        full_mask: CD-P: what a full mask costs, in units of probability.
    """

    steps: int = 100
    learning_rate: float = 0.1
    full_mask: float = _FULL_MASK


class Weights(NamedTuple):
    """What a mask costs.

    Attributes:
        size: for each unit of the mask's sum (the paper's alpha).
        smoothness: for each squared difference of neighbours (the paper's beta / (H * W)).
    """

    size: float
    smoothness: float


def weights_of(
    variant: str, height: int, width: int, scale_factor: float, config: DistillationConfig
) -> Weights:
    """The weights of eq. 1 for images of one size.

    CD-L and CD-F: the paper's table at 32x32 and at 224x224, and between and beyond the power law
    through both, alpha ~ (H * W)^-.59.

    Args:
        scale_factor: see `output_scale_factor`; not used by CD-P.
    """
    pixels = height * width
    if variant == CD_P:
        return Weights(config.full_mask / pixels, _SQUARED_DIFFERENCE)
    small, large = _PAPER_ALPHA[variant]
    exponent = math.log(large / small) / math.log(_PAPER_SIZES[1] / _PAPER_SIZES[0])
    alpha = small * (pixels / _PAPER_SIZES[0]) ** exponent
    return Weights(alpha * scale_factor, _PAPER_BETA / pixels * scale_factor)


def output_scale_factor(variant: str, empty_cost: float) -> float:
    """By how much the paper's weights must be multiplied for outputs of another scale.

    Twice the logits want twice the weights. Networks whose scale is within a factor of three of
    those that the paper's weights were made for get exactly the paper's. For CD-P, CD-L's figures
    say whether a temperature is needed.

    Args:
        empty_cost: the fidelity of an empty mask, mean over clean images: see `empty_mask_cost`.
    """
    if not (math.isfinite(empty_cost) and empty_cost > 0):
        return 1.0
    ratio = empty_cost / _USUAL_SCALE[variant]
    return ratio / min(max(ratio, 1 / _USUAL_RANGE), _USUAL_RANGE)


def empty_mask_cost(variant: str, outputs: Outputs, images: torch.Tensor, seed: int) -> float:
    """Mean fidelity where nothing is left of the images but one random colour each."""
    colours = torch.from_numpy(noise_colours(images.cpu().numpy(), 1, seed)[:, 0])
    plain = colours.to(images)[:, :, None, None].expand_as(images).contiguous()
    with torch.no_grad():
        return float(fidelity(variant, outputs(images), outputs(plain)).mean())


def noise_colours(
    images: npt.NDArray[np.floating], steps: int, seed: int
) -> npt.NDArray[np.float32]:
    """(N, steps, C) colours in [0, 1]: delta of eq. 2 for each image and step.

    They depend on the seed and the image's content alone, so neither on the batch nor on the order.
    """
    draws = []
    for image in images:
        digest = hashlib.sha256(np.ascontiguousarray(image, dtype=np.float32).tobytes()).digest()
        words = np.frombuffer(digest[:16], dtype="<u4").tolist()
        generator = np.random.default_rng([seed, *words])
        draws.append(generator.random((steps, image.shape[0]), dtype=np.float32))
    return np.stack(draws)


def fidelity(variant: str, got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(N,) the first term of eq. 1."""
    difference = (got - wanted).abs().flatten(1)
    return difference.sum(1) / 2 if variant == CD_P else difference.mean(1)


def total_variation(mask: torch.Tensor) -> torch.Tensor:
    """(N, H, W) masks -> (N,) sums of the squared differences of neighbours."""
    down, right = mask.diff(dim=1), mask.diff(dim=2)
    return down.square().sum((1, 2)) + right.square().sum((1, 2))


def _total_variation_gradient(mask: torch.Tensor) -> torch.Tensor:
    """The gradient of `total_variation`."""
    gradient = torch.zeros_like(mask)
    down, right = 2 * mask.diff(dim=1), 2 * mask.diff(dim=2)
    gradient[:, 1:] += down
    gradient[:, :-1] -= down
    gradient[:, :, 1:] += right
    gradient[:, :, :-1] -= right
    return gradient


def distill(
    variant: str,
    outputs: Outputs,
    images: torch.Tensor,
    noise: torch.Tensor,
    weights: Weights,
    config: DistillationConfig,
) -> torch.Tensor:
    """Learn the masks of a batch of images, all together.

    The objective is a sum over the images and Adam works number by number, so no image influences
    another. The gradient goes through the network by autograd and from there on by the chain rule,
    written out.

    Args:
        images: (N, C, H, W) in [0, 1].
        noise: (N, steps, C), see `noise_colours`.

    Returns:
        (N, H, W) masks in [0, 1], after the last step.
    """
    with torch.no_grad():
        wanted = outputs(images)
    p = torch.full_like(images[:, 0], _START)
    mean, square = torch.zeros_like(p), torch.zeros_like(p)
    for step in range(1, config.steps + 1):
        tanh = p.tanh()
        m = (tanh + 1) / 2
        delta = noise[:, step - 1, :, None, None]
        kept = images - delta
        x_cp = torch.addcmul(delta, m[:, None], kept).requires_grad_()  # eq. 2
        cost = fidelity(variant, outputs(x_cp), wanted).sum()
        (by_pixel,) = torch.autograd.grad(cost, x_cp)
        gradient = (by_pixel * kept).sum(1) + weights.size
        gradient += weights.smoothness * _total_variation_gradient(m)
        gradient *= (1 - tanh.square()) / 2
        mean.mul_(_BETAS[0]).add_(gradient, alpha=1 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        rate = config.learning_rate / (1 - _BETAS[0] ** step)
        p -= rate * mean / ((square / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON)
    return (p.tanh() + 1) / 2


def outputs_of(
    variant: str,
    classifier: Classifier,
    features: str | None = None,
    temperature: float = 1.0,
) -> Outputs:
    """What a variant matches.

    Args:
        features: the ONNX name of the tensor that CD-F matches, see `scanner.layer_outputs`.
        temperature: what CD-P divides the logits by.

    Raises:
        ValueError: CD-F without a name.
    """
    if variant == CD_L:
        return classifier.differentiable_logits
    if variant == CD_P:
        return lambda images: (classifier.differentiable_logits(images) / temperature).softmax(1)
    if features is None:
        raise ValueError("CD-F needs the name of a tensor")
    return differentiable_features(classifier, features)


class _AlreadyApplied(Preprocessing):
    """The preprocessing of images that went through it before."""

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """The images as they are."""
        return images


def prepared(classifier: Classifier) -> Classifier:
    """The classifier of images that its preprocessing was applied to.

    Eq. 2 mixes x and delta with weights that add up to 1, and preprocessing is affine: it makes no
    difference whether the mixture is preprocessed or x and delta are, once, before the search.
    """
    used = classifier.preprocessing
    applied = _AlreadyApplied(used.pixel_range, used.mean, used.std, used.channel_order)
    return replace(classifier, preprocessing=applied)


def learn_masks(
    variant: str,
    classifier: Classifier,
    outputs: Outputs,
    images: npt.NDArray[np.float32],
    weights: Weights,
    config: DistillationConfig,
    seed: int,
) -> npt.NDArray[np.float32]:
    """`distill` for images as they lie in files.

    Args:
        outputs: of `prepared(classifier)`, see `outputs_of`.
        images: (N, C, H, W) in [0, 1].

    Returns:
        (N, H, W) masks in [0, 1].
    """
    apply, device = classifier.preprocessing.apply, classifier.device
    colours = torch.from_numpy(noise_colours(images, config.steps, seed)).to(device)
    noise = apply(colours.reshape(-1, images.shape[1], 1, 1)).reshape(colours.shape)
    batch = apply(torch.from_numpy(images).to(device)).contiguous()
    masks = distill(variant, outputs, batch, noise, weights, config)
    learned: npt.NDArray[np.float32] = masks.cpu().numpy()
    return learned


def mask_scores(masks: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(N, H, W) masks -> (N,) their L1 norms, in pixels."""
    scores: npt.NDArray[np.float64] = np.asarray(masks, dtype=np.float64).sum((1, 2))
    return scores


def simplified(
    image: npt.NDArray[np.float32],
    mask: npt.NDArray[np.float32],
    clean: npt.NDArray[np.float32],
    threshold: float = 0.05,
) -> npt.NDArray[np.float32]:
    """Clean images with the simplified trigger of eq. 3: the pixels that the mask keeps.

    Args:
        image: (C, H, W), the suspect one.
        mask: (H, W).
        clean: (..., C, H, W).
        threshold: of the mask's binarisation.
    """
    return np.where(mask > threshold, image, clean).astype(np.float32)
