"""Convolution and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from converters.ops._spatial import check_result, padded, window
from converters.ops._values import Ints, affordable, beside, broadcast_shape, together
from converters.registry import op

_CONV: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., torch.Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _checked_kernel(x: torch.Tensor, w: torch.Tensor, kernel_shape: Ints) -> tuple[int, ...]:
    """The spatial shape of the weights, which `kernel_shape` can only repeat."""
    kernel = tuple(w.shape[2:])
    if x.ndim != w.ndim or len(kernel) not in _CONV:
        raise ValueError(f"input of rank {x.ndim} with weights of rank {w.ndim}")
    if kernel_shape and tuple(kernel_shape) != kernel:
        raise ValueError(f"kernel_shape {list(kernel_shape)} differs from weights {list(kernel)}")
    return kernel


@op("Conv")
def conv(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """Convolution of x (N, C, *spatial) with w (M, C / group, *kernel), 1 to 3 spatial dims."""
    kernel = _checked_kernel(x, w, kernel_shape)
    place = window(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    check_result(x, len(w), place)
    padding = place.begins
    if place.begins != place.ends:
        ends = zip(x.shape[2:], place.begins, place.ends, strict=True)
        affordable([*x.shape[:2], *map(sum, ends)], x.dtype)
        x, padding = padded(x, place.begins, place.ends), (0,) * len(kernel)
    bias = None if b is None else beside(b, x)
    convolve = _CONV[len(kernel)]
    return convolve(x, beside(w, x), bias, place.strides, padding, place.dilations, group)


@op("ConvTranspose")
def conv_transpose(
    x: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """Transposed convolution of x (N, C, *spatial) with w (C, M / group, *kernel)."""
    kernel = _checked_kernel(x, w, kernel_shape)
    rank = len(kernel)
    place = window((0,) * rank, kernel, strides, dilations, None, "NOTSET")
    extra = tuple(output_padding or (0,) * rank)
    grown = zip(x.shape[2:], place.strides, place.extents, extra, strict=True)
    spatial = [(n - 1) * stride + extent + more for n, stride, extent, more in grown]
    affordable([len(x), w.shape[1] * group, *spatial], x.dtype)
    full = _CONV_TRANSPOSE[rank](x, beside(w, x), None, place.strides, 0, 0, group, place.dilations)
    size = [n + e for n, e in zip(full.shape[2:], extra, strict=True)]
    if output_shape:
        totals = [n - wanted for n, wanted in zip(size, output_shape[-rank:], strict=True)]
        if any(-n >= stride for n, stride in zip(totals, place.strides, strict=True)):
            raise ValueError("output_shape is greater than the inputs can give")
        before, after = _halves([max(n, 0) for n in totals], auto_pad)
        extra = tuple(e + max(-n, 0) for e, n in zip(extra, totals, strict=True))
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        steps = zip(size, x.shape[2:], place.strides, strict=True)
        before, after = _halves([max(n - old * stride, 0) for n, old, stride in steps], auto_pad)
    else:
        cut = list(pads) if pads and auto_pad == "NOTSET" else [0] * (2 * rank)
        before, after = cut[:rank], cut[rank:]
    # The full result is cut to size: what lies beyond it by `output_padding` is the bias alone.
    y = padded(full, [-n for n in before], [e - n for e, n in zip(extra, after, strict=True)])
    return y if b is None else y + beside(b, x).reshape(-1, *[1] * rank)


def _halves(totals: Sequence[int], auto_pad: str) -> tuple[list[int], list[int]]:
    """Padding split into what is before and after; an odd one is after only for SAME_UPPER."""
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


@op("Gemm", since=1)
def gemm_1(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """alpha * A @ B + beta * C, where C is broadcast only if `broadcast` is set."""
    columns, rows = b.shape[0 if transB else 1], a.shape[1 if transA else 0]
    if not broadcast and tuple(c.shape) != (rows, columns):
        raise ValueError(f"C has shape {list(c.shape)}, not {[rows, columns]}, broadcast is 0")
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@op("Gemm", since=7)
def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> torch.Tensor:
    """alpha * A @ B + beta * C, A and B matrices, maybe transposed, C broadcast to the result."""
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"A and B must be matrices, not of rank {a.ndim} and {b.ndim}")
    if not a.is_floating_point() and (alpha != 1 or beta != 1):
        raise NotImplementedError("integer Gemm with alpha or beta other than 1")
    a, b = together(a, b)
    y = torch.matmul(a.t() if transA else a, b.t() if transB else b)
    y = y if alpha == 1 else y * alpha
    if c is None or beta == 0:
        return y
    c = beside(c, y)
    if broadcast_shape(c.shape, y.shape) != y.shape:
        raise ValueError(f"C of shape {list(c.shape)} does not broadcast to {list(y.shape)}")
    return y + (c if beta == 1 else c * beta)


@op("MatMul")
def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix product as numpy.matmul defines it, with broadcast leading dimensions."""
    return torch.matmul(*together(a, b))


@op("Einsum")
def einsum(*values: torch.Tensor, equation: str) -> torch.Tensor:
    """Einstein summation."""
    return torch.einsum(equation, *together(*values))


@op("Det")
def det(x: torch.Tensor) -> torch.Tensor:
    """Determinants of the square matrices in the last two dimensions."""
    found: torch.Tensor = torch.linalg.det(x)
    return found
