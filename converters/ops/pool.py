"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from converters.ops._spatial import Window, padded, window
from converters.ops._values import Ints, affordable, beside, ints
from converters.ops.indexing import positive
from converters.registry import op

_MAX_POOL: dict[int, Callable[..., torch.Tensor]] = {
    1: F.max_pool1d,
    2: F.max_pool2d,
    3: F.max_pool3d,
}
_AVERAGE_POOL: dict[int, Callable[..., torch.Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}
_CONV: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _pool_window(
    x: torch.Tensor,
    kernel_shape: Sequence[int],
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    auto_pad: str,
) -> Window:
    if x.ndim - 2 not in _MAX_POOL:
        raise NotImplementedError(f"pooling of a tensor of rank {x.ndim}")
    place = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    pairs = zip((*place.begins, *place.ends), (*place.extents, *place.extents), strict=True)
    if any(pad >= extent for pad, extent in pairs):
        raise ValueError("pads must be smaller than the kernel")
    if auto_pad.startswith("SAME") and place.kernel != place.extents:
        # ONNX Runtime forgets the dilations here, so its result is smaller than specified.
        raise NotImplementedError(f"auto_pad {auto_pad} with dilations")
    if auto_pad == "SAME_UPPER" and any(
        (-(-size // stride) - 1) * stride + extent <= size - 2
        for size, stride, extent in zip(x.shape[2:], place.strides, place.extents, strict=True)
    ):
        # ONNX Runtime takes this for negative padding and shifts the windows, or fails.
        raise NotImplementedError("auto_pad SAME_UPPER with strides greater than the kernel")
    return place


@op("MaxPool")
def max_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    storage_order: int = 0,
    strides: Ints = None,
    n_outputs: int = 1,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """The greatest number of each window, and as second output its index in the flat input.

    With `storage_order` 1 the index counts the spatial dimensions in column-major order.
    """
    if not x.is_floating_point():  # int8 and uint8 only: float32 holds them exactly
        y = max_pool(
            x.float(),
            kernel_shape=kernel_shape,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
            dilations=dilations,
            pads=pads,
            storage_order=storage_order,
            strides=strides,
            n_outputs=n_outputs,
        )
        return (y[0].to(x.dtype), y[1]) if isinstance(y, tuple) else y.to(x.dtype)
    place = _pool_window(x, kernel_shape, strides, dilations, pads, auto_pad)
    sizes = x.shape[2:]
    ends = place.reach(sizes, place.positions(sizes, bool(ceil_mode)))
    pool = _MAX_POOL[x.ndim - 2]
    halves = [k // 2 for k in place.kernel]
    small = all(b <= h for b, h in zip(place.begins, halves, strict=True))
    if n_outputs == 1 and small and place.begins == place.ends:
        return pool(x, place.kernel, place.strides, place.begins, place.dilations, bool(ceil_mode))
    source = padded(x, place.begins, ends, value=float("-inf"))
    arguments = (place.kernel, place.strides, 0, place.dilations)
    if n_outputs == 1:
        return pool(source, *arguments)
    y, at = pool(source, *arguments, return_indices=True)
    return y, _flat_indices(at, source.shape[2:], x, place.begins, bool(storage_order))


def _flat_indices(
    at: torch.Tensor,
    padded_sizes: Sequence[int],
    x: torch.Tensor,
    begins: Sequence[int],
    column_major: bool,
) -> torch.Tensor:
    """Indices into one padded image (N, C, *positions) as indices into the whole of `x`."""
    sizes = list(x.shape[2:])
    coordinates = []
    for padded_size, begin in zip(reversed(padded_sizes), reversed(begins), strict=True):
        coordinates.append(at % padded_size - begin)
        at = at // padded_size
    coordinates.reverse()
    order = sorted(range(len(sizes)), reverse=column_major)
    flat = torch.zeros_like(at)
    for axis in order:
        flat = flat * sizes[axis] + coordinates[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    offsets = planes.reshape(*x.shape[:2], *[1] * len(sizes)) * x[0, 0].numel()
    return flat + offsets


@op("AveragePool")
def average_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """The mean of each window, over the image alone or, with `count_include_pad`, its padding too.

    What a window reaches over with `ceil_mode` is never counted.
    """
    place = _pool_window(x, kernel_shape, strides, dilations, pads, auto_pad)
    sizes, rank = x.shape[2:], x.ndim - 2
    positions = place.positions(sizes, bool(ceil_mode))
    plain = positions == place.positions(sizes) and place.kernel == place.extents
    halves = all(b <= k // 2 for b, k in zip(place.begins, place.kernel, strict=True))
    if plain and halves and place.begins == place.ends:
        return _AVERAGE_POOL[rank](
            x, place.kernel, place.strides, place.begins, False, bool(count_include_pad)
        )
    # A mask of what counts goes through the same sums as the image.
    mask = x.new_ones(1, 1, *sizes)
    mask = padded(mask, place.begins, place.ends, value=1.0 if count_include_pad else 0.0)
    ends = place.reach(sizes, positions)
    mask = padded(mask, [0] * rank, [e - p for e, p in zip(ends, place.ends, strict=True)])
    ones = x.new_ones(1, 1, *place.kernel)
    images = padded(x.reshape(-1, 1, *sizes), place.begins, ends)
    convolve = _CONV[rank]
    totals = convolve(images, ones, None, place.strides, 0, place.dilations)
    counts = convolve(mask, ones, None, place.strides, 0, place.dilations)
    return (totals / counts).reshape(*x.shape[:2], *totals.shape[2:])


@op("GlobalAveragePool")
def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    """The mean over all spatial dimensions, which stay with size 1."""
    return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    """The maximum over all spatial dimensions, which stay with size 1."""
    return x.amax(dim=tuple(range(2, x.ndim)), keepdim=True)


@op("LpPool")
def lp_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    p: float = 2,
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """The p-norm of each window."""
    place = _pool_window(x, kernel_shape, strides, dilations, pads, auto_pad)
    sizes, rank = x.shape[2:], x.ndim - 2
    ends = place.reach(sizes, place.positions(sizes, bool(ceil_mode)))
    powers = padded(x.abs().pow(p).reshape(-1, 1, *sizes), place.begins, ends)
    ones = x.new_ones(1, 1, *place.kernel)
    totals = _CONV[rank](powers, ones, None, place.strides, 0, place.dilations)
    # The root has no gradient at 0.
    some = totals > 0
    norms = torch.where(some, torch.where(some, totals, 1.0).pow(1 / p), 0.0).to(x.dtype)
    return norms.reshape(*x.shape[:2], *totals.shape[2:])


@op("GlobalLpPool")
def global_lp_pool(x: torch.Tensor, *, p: float = 2) -> torch.Tensor:
    """The p-norm over all spatial dimensions, which stay with size 1."""
    dims = tuple(range(2, x.ndim))
    norm: torch.Tensor = torch.linalg.vector_norm(x, ord=p, dim=dims, keepdim=True)
    return norm


@op("MaxUnpool", since=9)
def max_unpool(
    x: torch.Tensor,
    indices: torch.Tensor,
    output_shape: torch.Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Ints = None,
    strides: Ints = None,
) -> torch.Tensor:
    """Zeros, but the numbers of x where MaxPool found them, by its second output.

    Raises:
        NotImplementedError: an `output_shape` other than the one that the window makes: the
            specification's reference and ONNX Runtime disagree about what the indices mean then.
        IndexError: an index beyond the result.
    """
    place = window((0,) * (x.ndim - 2), kernel_shape, strides, None, None, "NOTSET")
    cut = list(pads) if pads else [0] * (2 * len(place.kernel))
    totals = [
        a + b for a, b in zip(cut[: len(place.kernel)], cut[len(place.kernel) :], strict=True)
    ]
    parts = zip(x.shape[2:], place.strides, place.kernel, totals, strict=True)
    shape = [*x.shape[:2], *((n - 1) * stride + k - total for n, stride, k, total in parts)]
    if output_shape is not None and ints(output_shape) != shape:
        raise NotImplementedError(f"output_shape {ints(output_shape)} instead of {shape}")
    count = math.prod(affordable(shape, x.dtype))
    at = beside(positive(indices.reshape(-1), count), x)
    return x.new_zeros(count).scatter(0, at, x.reshape(-1)).reshape(shape)
