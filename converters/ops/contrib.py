"""Float operators of ONNX Runtime's own (com.microsoft), which its graph optimiser writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from converters.ops._values import Ints, beside, together, widened
from converters.ops.activation import gelu, hard_sigmoid, leaky_relu
from converters.ops.linear import conv, gemm
from converters.registry import op

MICROSOFT = "com.microsoft"

_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "": lambda x: x,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
}


def _activated(x: torch.Tensor, activation: str, parameters: Sequence[float]) -> torch.Tensor:
    """The activation of this name; its parameters are all there or none are needed.

    Raises:
        NotImplementedError: an activation that is not known here.
        ValueError: a wrong number of parameters.
    """
    if activation in _PLAIN:
        return _PLAIN[activation](x)
    wanted = {"LeakyRelu": 1, "Clip": 2, "HardSigmoid": 2}
    if activation not in wanted:
        raise NotImplementedError(f"activation {activation!r}")
    if len(parameters) != wanted[activation]:
        raise ValueError(f"{activation} with {len(parameters)} parameters")
    if activation == "LeakyRelu":
        return leaky_relu(x, alpha=parameters[0])
    if activation == "Clip":
        return torch.clamp(x, parameters[0], parameters[1])
    return hard_sigmoid(x, alpha=parameters[0], beta=parameters[1])


@op("FusedConv", domain=MICROSOFT)
def fused_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """activation(conv(x, w) + b + z)."""
    y = conv(
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    if z is not None and z.shape != y.shape:
        raise ValueError(f"can't add a tensor of shape {list(z.shape)} to {list(y.shape)}")
    return _activated(y if z is None else y + beside(z, y), activation, activation_params)


@op("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """activation(alpha * A @ B + beta * C)."""
    parameters = [p for p in (activation_alpha, activation_beta, activation_gamma) if p is not None]
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return _activated(y, activation, parameters)


@op("FusedMatMul", domain=MICROSOFT)
def fused_mat_mul(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> torch.Tensor:
    """alpha * A @ B, the last two dimensions of either maybe swapped first.

    Raises:
        NotImplementedError: batch dimensions that are swapped, or vectors.
    """
    if transBatchA or transBatchB:
        raise NotImplementedError("transBatchA and transBatchB")
    if (transA and a.ndim < 2) or (transB and b.ndim < 2):
        raise NotImplementedError("a transposed vector")
    a, b = together(a, b)
    y = torch.matmul(a.transpose(-1, -2) if transA else a, b.transpose(-1, -2) if transB else b)
    return y if alpha == 1 else y * alpha


@op("Gelu", domain=MICROSOFT)
def exact_gelu(x: torch.Tensor) -> torch.Tensor:
    """x times the normal distribution function of x."""
    return gelu(x)


@op("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x + bias)."""
    return gelu(x + beside(bias, x))


@op("FastGelu", domain=MICROSOFT)
def fast_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The tanh approximation of gelu(x + bias)."""
    return gelu(x if bias is None else x + beside(bias, x), approximate="tanh")


@op("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: torch.Tensor, *, alpha: float = 1.702) -> torch.Tensor:
    """x * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@op("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: torch.Tensor,
    skip: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[torch.Tensor, ...]:
    """Layer normalization of x + skip + bias; also mean, 1 / standard deviation and that sum."""
    total = x + beside(skip, x)
    total = total if bias is None else total + beside(bias, x)
    wide = widened(total)
    var, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + epsilon)
    y = (wide - mean) * inverse * beside(gamma, x)
    y = y if beta is None else y + beside(beta, x)
    return y.to(x.dtype), mean, inverse, total
