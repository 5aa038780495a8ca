"""Sequences of tensors, which are tuples here, and what is optional, which may be None.

A function that gives a sequence returns it as the only entry of a tuple: the entries of what an
operator returns are its outputs.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from onnx import TensorProto

from converters.ops._values import affordable, ints, one_axis, together
from converters.registry import op
from converters.values import Entries, Text, Value

MAX_ENTRIES = 1024
"""How long a sequence may be; so that copies of long ones can't fill the memory."""

_Given = TypeVar("_Given")


def _sequence(value: object) -> Entries:
    if not isinstance(value, tuple):
        raise TypeError("an input that must be a sequence is none")
    return value


def _bounded(entries: tuple[Any, ...]) -> tuple[Entries]:
    """The one output of an operator that gives a sequence."""
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"a sequence of {len(entries)} entries; the limit is {MAX_ENTRIES}")
    if any(entry is None or isinstance(entry, tuple) for entry in entries):
        raise TypeError("an entry of a sequence is no tensor")
    return (entries,)


def _place(position: torch.Tensor, count: int) -> int:
    """A position, negative ones from the end, among `count` places."""
    if position.numel() != 1:
        raise ValueError(f"a position of shape {list(position.shape)}")
    place = ints(position)[0]
    if not -count <= place < count:
        raise ValueError(f"position {place} is out of range for {count} places")
    return place % count


@op("SequenceEmpty", since=11)
def sequence_empty(*, dtype: int = TensorProto.FLOAT) -> tuple[Any]:
    """A sequence without entries."""
    return ((),)


@op("SequenceConstruct", since=11)
def sequence_construct(*entries: torch.Tensor | Text) -> tuple[Any]:
    """The inputs as a sequence."""
    return _bounded(entries)


@op("SequenceInsert", since=11)
def sequence_insert(
    sequence: Entries, entry: torch.Tensor | Text, position: torch.Tensor | None = None
) -> tuple[Any]:
    """The sequence with one more entry before the one at `position`, by default at its end."""
    entries = _sequence(sequence)
    count = len(entries)
    place = ints(position)[0] if position is not None else count
    if not -count <= place <= count:
        raise ValueError(f"position {place} is out of range for {count} entries")
    place += count if place < 0 else 0
    return _bounded((*entries[:place], entry, *entries[place:]))


@op("SequenceErase", since=11)
def sequence_erase(sequence: Entries, position: torch.Tensor | None = None) -> tuple[Any]:
    """The sequence without the entry at `position`, by default the last one."""
    entries = _sequence(sequence)
    place = _place(torch.tensor(-1) if position is None else position, len(entries))
    return (entries[:place] + entries[place + 1 :],)


@op("SequenceAt", since=11)
def sequence_at(sequence: Entries, position: torch.Tensor) -> tuple[Any]:
    """The entry at `position`."""
    entries = _sequence(sequence)
    return (entries[_place(position, len(entries))],)


@op("SequenceLength", since=11)
def sequence_length(sequence: Entries) -> torch.Tensor:
    """The number of entries."""
    return torch.tensor(len(_sequence(sequence)))


@op("SplitToSequence", since=11)
def split_to_sequence(
    x: torch.Tensor, split: torch.Tensor | None = None, *, axis: int = 0, keepdims: int = 1
) -> tuple[Any]:
    """x cut along `axis`: into parts of one size, of the sizes in `split`, or of size 1.

    The last part may be smaller than the one size. Parts of size 1 lose the axis if `keepdims` is 0
    and no size is given.
    """
    axis = one_axis(axis, x.ndim)
    total = x.shape[axis]
    if split is None or split.ndim == 0:
        size = 1 if split is None else ints(split)[0]
        if size < 1 or -(-total // size) > MAX_ENTRIES:
            raise ValueError(f"can't split {total} into parts of {size}, {MAX_ENTRIES} at most")
        parts = torch.split(x, size, dim=axis) if total else ()
        return _bounded(tuple(p.squeeze(axis) for p in parts) if split is None and not keepdims
                        else tuple(parts))  # fmt: skip
    sizes = ints(split)
    if sum(sizes) != total or min(sizes, default=0) < 0 or len(sizes) > MAX_ENTRIES:
        raise ValueError(f"can't split {total} into {sizes[:MAX_ENTRIES]}")
    return _bounded(torch.split(x, sizes, dim=axis))


@op("ConcatFromSequence", since=11)
def concat_from_sequence(sequence: Entries, *, axis: int, new_axis: int = 0) -> torch.Tensor:
    """The entries one after the other along an axis, or along a new one."""
    entries = [entry for entry in _sequence(sequence) if isinstance(entry, torch.Tensor)]
    if not entries or len(entries) < len(sequence):
        raise ValueError("a sequence without entries, or of texts")
    shape = list(entries[0].shape)
    if new_axis:
        shape.insert(one_axis(axis, len(shape) + 1), len(entries))
        affordable(shape, entries[0].dtype)
        return torch.stack(together(*entries), axis)
    axis = one_axis(axis, len(shape))
    shape[axis] = sum(entry.shape[axis] for entry in entries if entry.ndim == len(shape))
    affordable(shape, entries[0].dtype)
    return torch.cat(together(*entries), axis)


@op("Optional", since=15)
def optional(value: Value = None, *, type: object = None) -> tuple[Any]:
    """The input as something that might as well be absent; nothing if there is no input."""
    return (value,)


@op("OptionalHasElement", since=15)
def optional_has_element(value: Value = None) -> torch.Tensor:
    """Whether there is something."""
    return torch.tensor(value is not None)


@op("OptionalGetElement", since=15)
def optional_get_element(value: Value) -> tuple[Any]:
    """What there is."""
    if value is None:
        raise ValueError("what is optional is not there")
    return (value,)
