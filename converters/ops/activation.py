"""Activation functions (those without attributes are in `elementwise`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from converters.ops._values import beside, one_axis, together
from converters.registry import op


@op("LeakyRelu")
def leaky_relu(
    x: torch.Tensor, *, alpha: float = 0.01, consumed_inputs: Sequence[int] = ()
) -> torch.Tensor:
    """x, or alpha * x where x < 0."""
    return F.leaky_relu(x, alpha)


@op("Elu")
def elu(
    x: torch.Tensor, *, alpha: float = 1.0, consumed_inputs: Sequence[int] = ()
) -> torch.Tensor:
    """x, or alpha * (exp(x) - 1) where x < 0."""
    return F.elu(x, alpha)


@op("Celu")
def celu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    return F.celu(x, alpha)


@op("Selu", since=1)
def selu_1(
    x: torch.Tensor,
    *,
    alpha: float = 1.6732,
    gamma: float = 1.0507,
    consumed_inputs: Sequence[int] = (),
) -> torch.Tensor:
    """Selu with the rounder defaults of version 1."""
    return gamma * F.elu(x, alpha)


@op("Selu", since=6)
def selu(
    x: torch.Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813
) -> torch.Tensor:
    """gamma * elu(x, alpha)."""
    return gamma * F.elu(x, alpha)


@op("ThresholdedRelu")
def thresholded_relu(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """x where x > alpha, else 0."""
    return F.threshold(x, alpha, 0.0)


@op("Shrink")
def shrink(x: torch.Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> torch.Tensor:
    """x + bias below -lambd, x - bias above lambd, 0 between."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


@op("HardSigmoid")
def hard_sigmoid(
    x: torch.Tensor,
    *,
    alpha: float = 0.2,
    beta: float = 0.5,
    consumed_inputs: Sequence[int] = (),
) -> torch.Tensor:
    """alpha * x + beta, kept within [0, 1]."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("HardSwish")
def hard_swish(x: torch.Tensor) -> torch.Tensor:
    """x * hard_sigmoid(x, 1/6, 1/2)."""
    return F.hardswish(x)


@op("Softplus")
def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x))."""
    return torch.logaddexp(x, torch.zeros_like(x))


@op("Softsign")
def softsign(x: torch.Tensor) -> torch.Tensor:
    """x / (1 + |x|)."""
    return F.softsign(x)


@op("Mish")
def mish(x: torch.Tensor) -> torch.Tensor:
    """x * tanh(softplus(x))."""
    return F.mish(x)


@op("Swish")
def swish(x: torch.Tensor, *, alpha: float = 1.0) -> torch.Tensor:
    """x * sigmoid(alpha * x)."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("Gelu")
def gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """x times the normal distribution function of x, or its tanh approximation."""
    return F.gelu(x, approximate=approximate)


@op("PRelu", since=1)
def prelu_1(
    x: torch.Tensor, slope: torch.Tensor, *, consumed_inputs: Sequence[int] = ()
) -> torch.Tensor:
    """slope * x where x < 0; the slope is one number or one for each channel (dimension 1)."""
    if slope.numel() > 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return prelu(x, slope)


@op("PRelu", since=7)
def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """slope * x where x < 0; the slope broadcasts to the shape of x."""
    return torch.where(x < 0, beside(slope, x) * x, x)


@op("Clip", since=1)
def clip_1(
    x: torch.Tensor,
    *,
    min: float = -math.inf,
    max: float = math.inf,
    consumed_inputs: Sequence[int] = (),
) -> torch.Tensor:
    """x kept within [min, max], which are attributes."""
    return torch.clamp(x, min, max)


@op("Clip", since=11)
def clip(
    x: torch.Tensor, minimum: torch.Tensor | None = None, maximum: torch.Tensor | None = None
) -> torch.Tensor:
    """x kept within [min, max], which are scalar inputs; all is max where min > max.

    Raises:
        ValueError: a bound that is no scalar.
    """
    if any(bound is not None and bound.numel() != 1 for bound in (minimum, maximum)):
        raise ValueError("min and max must be scalars")
    if minimum is not None:
        x = torch.maximum(*together(x, minimum.reshape(())))
    return x if maximum is None else torch.minimum(*together(x, maximum.reshape(())))


@op("Softmax", since=1)
def softmax_1(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """Softmax over all dimensions from `axis` on, taken as one."""
    return F.softmax(_flat_from(x, axis), dim=-1).reshape(x.shape)


@op("LogSoftmax", since=1)
def log_softmax_1(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """Logarithm of the softmax over all dimensions from `axis` on, taken as one."""
    return F.log_softmax(_flat_from(x, axis), dim=-1).reshape(x.shape)


@op("Softmax", since=13)
def softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """Softmax over one dimension."""
    return F.softmax(x, dim=axis)


@op("LogSoftmax", since=13)
def log_softmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """Logarithm of the softmax over one dimension."""
    return F.log_softmax(x, dim=axis)


@op("Hardmax", since=1)
def hardmax_1(x: torch.Tensor, *, axis: int = 1) -> torch.Tensor:
    """Hardmax over all dimensions from `axis` on, taken as one."""
    return hardmax(_flat_from(x, axis), axis=-1).reshape(x.shape)


@op("Hardmax", since=13)
def hardmax(x: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """1 at the first of the greatest numbers of one dimension, 0 elsewhere."""
    at = torch.argmax(x, dim=axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, at, 1)


def _flat_from(x: torch.Tensor, axis: int) -> torch.Tensor:
    first = axis if axis == x.ndim else one_axis(axis, x.ndim)
    return x.reshape(*x.shape[:first], -1)
