"""Windows that slide over images: the arithmetic that Conv and the pools share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from converters.ops._values import Ints, affordable


@dataclass(frozen=True)
class Window:
    """A sliding window; every field has one number for each spatial dimension."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """The kernel's size with its dilation."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def positions(self, sizes: Sequence[int], ceil_mode: bool = False) -> tuple[int, ...]:
        """How often the window fits into a padded image of these unpadded sizes.

        With `ceil_mode` the last window may reach over the end, if it begins before it.
        """
        counts = []
        for i, size in enumerate(sizes):
            room = size + self.begins[i] + self.ends[i] - self.extents[i]
            if room < 0:
                raise ValueError(f"a window of {self.extents[i]} does not fit into {size} pixels")
            count = room // self.strides[i] + 1
            partial = ceil_mode and room % self.strides[i] > 0
            if partial and count * self.strides[i] < size + self.begins[i]:
                count += 1
            counts.append(count)
        return tuple(counts)

    def reach(self, sizes: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
        """The padding after the image that makes exactly these positions; may be negative."""
        return tuple(
            (n - 1) * stride + extent - size - begin
            for n, stride, extent, size, begin in zip(
                positions, self.strides, self.extents, sizes, self.begins, strict=True
            )
        )


def window(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    auto_pad: str,
) -> Window:
    """The window that these attributes describe on an image of these spatial sizes.

    Raises:
        ValueError: lists of the wrong length, numbers out of range, an unknown `auto_pad`.
    """
    rank = len(sizes)
    strides = tuple(strides) if strides else (1,) * rank
    dilations = tuple(dilations) if dilations else (1,) * rank
    if not len(kernel) == len(strides) == len(dilations) == rank:
        raise ValueError(f"kernel_shape, strides and dilations must have {rank} numbers each")
    if min((*kernel, *strides, *dilations), default=1) < 1:
        raise ValueError("kernel_shape, strides and dilations must be positive")
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    begins, ends = _padding(sizes, extents, strides, pads, auto_pad)
    return Window(tuple(kernel), strides, dilations, begins, ends)


def check_result(x: torch.Tensor, channels: int, place: Window) -> None:
    """Refuse a convolution whose result would be too large; see `affordable`.

    Not while torch.compile looks: it can't follow, and what it makes ready has run before.
    """
    if not torch.compiler.is_compiling():
        affordable([len(x), channels, *place.positions(x.shape[2:])], x.dtype)


def _padding(
    sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], pads: Ints, auto_pad: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = len(sizes)
    if auto_pad == "NOTSET" and pads:
        if len(pads) != 2 * rank or min(pads) < 0:
            raise ValueError(f"pads must be {2 * rank} numbers >= 0, not {list(pads)}")
        return tuple(pads[:rank]), tuple(pads[rank:])
    if auto_pad in ("NOTSET", "VALID"):
        return (0,) * rank, (0,) * rank
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"unknown auto_pad {auto_pad!r}")
    # SAME: as many positions as there are strides in the image, its last one maybe partial.
    totals = [
        max((-(-size // stride) - 1) * stride + extent - size, 0)
        for size, extent, stride in zip(sizes, extents, strides, strict=True)
    ]
    smaller, larger = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    return (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)


def padded(
    x: torch.Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0
) -> torch.Tensor:
    """`x` with its last dimensions padded; negative numbers cut off."""
    if not any(begins) and not any(ends):
        return x
    # torch wants the last dimension first.
    pads = [n for pair in zip(reversed(begins), reversed(ends), strict=True) for n in pair]
    return F.pad(x, pads, value=value)
