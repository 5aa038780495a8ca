"""Normalization, and Dropout, all with inference semantics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from converters.errors import ModelFormatError
from converters.ops._values import beside, one_axis, widened
from converters.registry import op

_MOST_NEIGHBOURS = 4096  # channels that LRN may ask for beside those that there are


def _batch_normalization(
    x: torch.Tensor, parameters: Sequence[torch.Tensor], epsilon: float
) -> torch.Tensor:
    """Parameters: scale, bias, mean and variance, one number for each channel (dimension 1)."""
    scale, bias, mean, var = (beside(p, x) for p in parameters)
    same_type = all(p.dtype == x.dtype for p in parameters)
    if same_type and x.ndim >= 2 and not (mean.requires_grad or var.requires_grad):
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
    shape = [-1, *[1] * (x.ndim - 2)]
    scale, bias, mean, var = (widened(p).reshape(shape) for p in (scale, bias, mean, var))
    return ((widened(x) - mean) * (scale / torch.sqrt(var + epsilon)) + bias).to(x.dtype)


@op("BatchNormalization", since=1)
def batch_normalization_1(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    *,
    consumed_inputs: Sequence[int] = (),
    epsilon: float = 1e-5,
    is_test: int = 0,
    momentum: float = 0.9,
    spatial: int = 1,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """As version 14; without `spatial` the parameters have the shape of one example."""
    if spatial:
        y = _batch_normalization(x, (scale, bias, mean, var), epsilon)
    else:
        s, b, m, v = (beside(p, x).reshape(x.shape[1:]) for p in (scale, bias, mean, var))
        y = (x - m) / torch.sqrt(v + epsilon) * s + b
    return (y, mean, var, mean, var)[:n_outputs]


@op("BatchNormalization", since=9)
def batch_normalization_9(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """As version 14, with the saved statistics as further outputs."""
    y = _batch_normalization(x, (scale, bias, mean, var), epsilon)
    return (y, mean, var, mean, var)[:n_outputs]


@op("BatchNormalization", since=14)
def batch_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, also where the node says training_mode."""
    y = _batch_normalization(x, (scale, bias, mean, var), epsilon)
    return (y, mean, var)[:n_outputs]


def _standardized(x: torch.Tensor, dims: Sequence[int], epsilon: float) -> torch.Tensor:
    var, mean = torch.var_mean(x, dim=list(dims), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + epsilon)


def _per_channel(parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return widened(beside(parameter, x)).reshape(-1, *[1] * (x.ndim - 2))


@op("InstanceNormalization")
def instance_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    epsilon: float = 1e-5,
    consumed_inputs: Sequence[int] = (),
) -> torch.Tensor:
    """Each channel of each image to mean 0 and variance 1, then scale and bias by channel."""
    y = _standardized(widened(x), range(2, x.ndim), epsilon)
    return (y * _per_channel(scale, x) + _per_channel(bias, x)).to(x.dtype)


def _group_normalization(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float, groups: int
) -> torch.Tensor:
    grouped = widened(x).reshape(x.shape[0], groups, -1)
    y = _standardized(grouped, (2,), epsilon).reshape(x.shape)
    return (y * _per_channel(scale, x) + _per_channel(bias, x)).to(x.dtype)


@op("GroupNormalization", since=18)
def group_normalization_18(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
) -> torch.Tensor:
    """As version 21, with one scale and bias for each group."""
    repeats = x.shape[1] // num_groups
    scale, bias = (p.repeat_interleave(repeats) for p in (scale, bias))
    return _group_normalization(x, scale, bias, epsilon, num_groups)


@op("GroupNormalization", since=21)
def group_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> torch.Tensor:
    """Each group of channels to mean 0 and variance 1, then scale and bias by channel."""
    return _group_normalization(x, scale, bias, epsilon, num_groups)


@op("LayerNormalization", since=17)
def layer_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """The dimensions from `axis` on to mean 0 and variance 1; outputs: Y, Mean, InvStdDev."""
    first = one_axis(axis, x.ndim)
    wide = widened(x)
    scale = widened(beside(scale, x))
    bias = None if bias is None else widened(beside(bias, x))
    dims = list(range(first, x.ndim))
    plain = scale.shape == x.shape[first:] and (bias is None or bias.shape == scale.shape)
    if n_outputs == 1 and plain:
        return (F.layer_norm(wide, scale.shape, scale, bias, epsilon).to(x.dtype),)
    var, mean = torch.var_mean(wide, dim=dims, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + epsilon)
    y = (wide - mean) * inverse * scale
    y = y if bias is None else y + bias
    return (y.to(x.dtype), mean.float(), inverse.float())[:n_outputs]


@op("RMSNormalization", since=23)
def rms_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> torch.Tensor:
    """The dimensions from `axis` on divided by their root mean square, times the scale."""
    wide = widened(x)
    dims = list(range(one_axis(axis, x.ndim), x.ndim))
    y = wide * torch.rsqrt(wide.square().mean(dim=dims, keepdim=True) + epsilon)
    return y.to(x.dtype) * beside(scale, x)


@op("LpNormalization")
def lp_normalization(x: torch.Tensor, *, axis: int = -1, p: int = 2) -> torch.Tensor:
    """x divided by its L1 or L2 norm along one axis; what has norm 0 stays 0."""
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@op("LRN")
def lrn(
    x: torch.Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> torch.Tensor:
    """Each number divided by (bias + alpha / size * sum of squares of neighbour channels)^beta."""
    channels = x.shape[1]
    if size > 2 * channels + _MOST_NEIGHBOURS:
        # ONNX Runtime would make room for every neighbour, also for those that are not there.
        raise ModelFormatError(f"LRN over {size} of {channels} channels", "too_much_work")
    before, after = (min(reach, channels) for reach in ((size - 1) // 2, size // 2))
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, after])
    shifted = (squares[:, i : i + channels] for i in range(before + after + 1))
    total = sum(shifted, torch.zeros_like(x))
    return x / (bias + alpha / size * total) ** beta


@op("Dropout", since=1)
def dropout_1(
    x: torch.Tensor,
    *,
    consumed_inputs: Sequence[int] = (),
    is_test: int = 0,
    ratio: float = 0.5,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """x itself; the mask has the type of x and, as in ONNX Runtime, is 0 before version 12."""
    return (x,) if n_outputs == 1 else (x, torch.zeros_like(x))


@op("Dropout", since=10)
def dropout_10(
    x: torch.Tensor, *, ratio: float = 0.5, n_outputs: int = 1
) -> tuple[torch.Tensor, ...]:
    """x itself; the mask is boolean and, as in ONNX Runtime, false before version 12."""
    return (x,) if n_outputs == 1 else (x, torch.zeros_like(x, dtype=torch.bool))


@op("Dropout", since=12)
def dropout(
    x: torch.Tensor,
    ratio: torch.Tensor | None = None,
    training_mode: torch.Tensor | None = None,
    *,
    seed: int = 0,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """x itself, also where `training_mode` is true; the mask is boolean."""
    return (x,) if n_outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
