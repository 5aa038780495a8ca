"""Quantisation with a gradient: integers carried by float tensors.

torch has no gradient for integer types, so an operator that gives quantised numbers gives a float
tensor that holds exactly these integers. Rounding counts as the identity for the gradient (the
"straight-through estimator"; Bengio, Léonard and Courville 2013), and what is cut off at the ends
of the range gets none. Inputs may be carried integers or integers of integer type alike.
`converters.carried_integers` says which operators may see them.
"""

from __future__ import annotations

import torch

from converters.ops._values import beside, one_axis, widened

RANGES: dict[torch.dtype, tuple[int, int]] = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}


def straight_through(value: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Exactly `value`, with the gradient of `path`, which must be finite."""
    return value.detach() + (path - path.detach()) if path.requires_grad else value


def along_axis(parameter: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """A scale or zero point as a float tensor that broadcasts against `x`.

    One number stands for the whole tensor, a vector for the slices along `axis`; see `by_block` for
    a tensor of the shape of `x`.

    Raises:
        ValueError: another shape.
    """
    parameter = widened(as_float(beside(parameter, x)))
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.shape == x.shape and x.ndim > 1:
        return parameter
    if parameter.ndim != 1:
        raise ValueError(f"scales of shape {list(parameter.shape)} for one of {list(x.shape)}")
    axis = one_axis(axis, x.ndim)
    if len(parameter) != x.shape[axis]:
        raise ValueError(f"{len(parameter)} scales or zero points for an axis of {x.shape[axis]}")
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def by_block(parameter: torch.Tensor, x: torch.Tensor, axis: int, block_size: int) -> torch.Tensor:
    """A scale or zero point with one number for each block along `axis`, in the shape of `x`.

    Raises:
        ValueError: another number of blocks than `x` has, the last one maybe partial.
    """
    axis, parameter = one_axis(axis, x.ndim), beside(parameter, x)
    size = x.shape[axis]
    if block_size < 1 or parameter.shape != (
        *x.shape[:axis],
        -(-size // block_size),
        *x.shape[axis + 1 :],
    ):
        raise ValueError(
            f"scales of shape {list(parameter.shape)} for blocks of {block_size} of {list(x.shape)}"
        )
    at = torch.arange(size, device=x.device) // block_size
    return parameter.index_select(axis, at)


def as_float(x: torch.Tensor) -> torch.Tensor:
    """Integers as a float32 tensor; a float tensor as it is."""
    return x if x.is_floating_point() else x.float()


def result_type(zero_point: torch.Tensor) -> torch.dtype:
    """The integer type of a quantised result: that of its zero point.

    Raises:
        NotImplementedError: it has other than 8 or 16 bits.
    """
    return known_type(zero_point.dtype)


def known_type(kind: torch.dtype) -> torch.dtype:
    """The type itself.

    Raises:
        NotImplementedError: it has other than 8 or 16 bits.
    """
    if kind not in RANGES:
        raise NotImplementedError(f"quantised numbers of type {kind}".replace("torch.", ""))
    return kind


def dequantized(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, axis: int = 1
) -> torch.Tensor:
    """(x - zero point) * scale, in float32 at least."""
    return without_zero_point(x, zero_point, axis) * along_axis(scale, x, axis)


def without_zero_point(
    x: torch.Tensor, zero_point: torch.Tensor | None, axis: int = 1
) -> torch.Tensor:
    """x - zero point as carried integers."""
    carried = widened(as_float(x))
    return carried if zero_point is None else carried - along_axis(zero_point, x, axis)


def requantized(
    steps: torch.Tensor, zero_point: torch.Tensor | None, kind: torch.dtype, axis: int = 1
) -> torch.Tensor:
    """round(steps) + zero point, cut off at the ends of the type's range; carried integers.

    Args:
        steps: real numbers in units of the scale.
    """
    low, high = RANGES[kind]
    zero = steps.new_zeros(()) if zero_point is None else along_axis(zero_point, steps, axis)
    # The bounds are whole numbers, so cutting off may come first; then rounding sees no infinity.
    kept = torch.clamp(steps, low - zero, high - zero)
    return straight_through(torch.round(kept), kept) + zero


def quantized(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    kind: torch.dtype,
    axis: int = 1,
) -> torch.Tensor:
    """round(x / scale) + zero point, cut off at the ends of the type's range."""
    steps = widened(as_float(x)) / along_axis(scale, x, axis)
    return requantized(steps, zero_point, kind, axis)
