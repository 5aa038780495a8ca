"""A list of instructions made ready to run: what can be looked up once is looked up once.

Every tensor of a program has a number, its slot. A step knows the function to call, the slots to
read and to write, and those that nobody reads after it, which are emptied.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from converters.instructions import Instruction
from converters.kernels import (
    MAKES_NEW_MEMORY,
    InputOverwrittenError,
    has_kernel,
    kernel,
    number_arguments,
)
from converters.registry import OperatorFunction
from converters.values import Value

Slots = list[Any]
"""By slot a value, None where there is none (yet), or a constant's numbers as a tuple of ints."""

_ABSENT = 0  # what the name '' of an optional input stands for
_UNUSED = 1  # what the name '' of an output stands for


class Step(NamedTuple):
    """One call.

    Attributes:
        call: the operator's function with its attributes, or a kernel.
        shortcut: `call` is a kernel: where it raises, the instruction itself is run.
        inputs, outputs: slots, in the order of the instruction's.
        emptied: slots that are read for the last time.
    """

    instruction: Instruction
    call: OperatorFunction
    shortcut: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    emptied: tuple[int, ...]

    def run(self, slots: Slots) -> tuple[Value, ...]:
        """Do the step; returns what the instruction computes.

        Raises:
            See `Instruction.run`.
        """
        try:
            results: Any = self.call(*[slots[slot] for slot in self.inputs])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            results = self._instead(slots, error)
        if not isinstance(results, tuple):
            results = (results,)
        if len(results) < len(self.outputs):
            self.instruction.check_count(results)
        return self._store(slots, results)

    def _instead(self, slots: Slots, error: Exception) -> tuple[Value, ...]:
        """What the operator gives where its kernel failed: it takes more, or says what is wrong."""
        if not self.shortcut or isinstance(error, InputOverwrittenError):
            raise self.instruction.failure(error) from error
        values = {n: slots[s] for n, s in zip(self.instruction.inputs, self.inputs, strict=True)}
        return self.instruction.run(values)

    def run_bare(self, slots: Slots) -> tuple[Value, ...]:
        """The same without care for errors, which torch.compile can follow."""
        results = self.call(*[slots[slot] for slot in self.inputs])
        return self._store(slots, results if isinstance(results, tuple) else (results,))

    def _store(self, slots: Slots, results: tuple[Value, ...]) -> tuple[Value, ...]:
        for slot, result in zip(self.outputs, results, strict=False):
            slots[slot] = result
        for slot in self.emptied:
            slots[slot] = None
        return results


@dataclass(frozen=True)
class Program:
    """What it takes to compute some tensors.

    Attributes:
        steps: in order.
        filled: the slots before the run, with the constants that are no buffers.
        buffers: (slot, buffer's name) of the other constants.
        inputs, wanted: slots of the graph's inputs and of what the run returns.
        slot_of: all tensors by name.
    """

    steps: tuple[Step, ...]
    filled: tuple[Any, ...]
    buffers: tuple[tuple[int, str], ...]
    inputs: tuple[int, ...]
    wanted: tuple[int, ...]
    slot_of: Mapping[str, int]

    def start(self, buffers: Mapping[str, torch.Tensor | None], inputs: Sequence[Value]) -> Slots:
        """The slots before the first step."""
        slots = list(self.filled)
        for slot, name in self.buffers:
            slots[slot] = buffers[name]
        for slot, value in zip(self.inputs, inputs, strict=True):
            slots[slot] = value
        return slots

    def results(self, slots: Slots) -> tuple[Value, ...]:
        """The wanted tensors, after the last step."""
        return tuple([slots[slot] for slot in self.wanted])


def write_program(
    needed: Sequence[Instruction],
    constants: Mapping[str, torch.Tensor],
    buffer_of: Mapping[str, str],
    input_names: Sequence[str],
    wanted: Sequence[str],
) -> Program:
    """A program of these instructions.

    Args:
        needed: in topological order, all that `wanted` depends on.
        constants: by name; those in `buffer_of` are read from the buffer of that name at each run.
    """
    slots = _SlotNumbers(constants, buffer_of)
    inputs = tuple([slots[name] for name in input_names])
    read = [slots.inputs(instruction) for instruction in needed]
    written = [
        tuple([slots[name] if name else _UNUSED for name in instruction.outputs])
        for instruction in needed
    ]
    wanted_slots = tuple([slots[name] for name in wanted])
    kept = bytearray(value is not None for value in slots.filled)  # never emptied nor overwritten
    buffers = [(s, buffer_of[name]) for name, s in slots.items() if name in buffer_of]
    for slot in (_ABSENT, _UNUSED, *inputs, *wanted_slots, *(s for s, _ in buffers)):
        kept[slot] = True
    spare = _spare(needed, read, written, kept)
    emptied = _last_uses(read, written, kept)
    steps = [
        _step(instruction, constants, places, spare)
        for instruction, places in zip(
            needed, zip(read, written, emptied, strict=True), strict=True
        )
    ]
    return Program(
        tuple(steps), tuple(slots.filled), tuple(buffers), inputs, wanted_slots, dict(slots)
    )


class _SlotNumbers(dict[str, int]):
    """The slot of each name, given at first need.

    Attributes:
        filled: what the slots hold before a run.
    """

    def __init__(self, constants: Mapping[str, torch.Tensor], buffer_of: Mapping[str, str]) -> None:
        super().__init__()
        self._constants, self._buffer_of = constants, buffer_of
        self._numbers: dict[str, int] = {}
        self.filled: Slots = [None, None]

    def __missing__(self, name: str) -> int:
        slot = self[name] = len(self.filled)
        self.filled.append(None if name in self._buffer_of else self._constants.get(name))
        return slot

    def inputs(self, instruction: Instruction) -> tuple[int, ...]:
        """The slots that an instruction reads."""
        as_numbers = number_arguments(instruction)
        if not as_numbers:
            return tuple([self[name] if name else _ABSENT for name in instruction.inputs])
        return tuple(
            (self._as_numbers(name) if position in as_numbers else self[name]) if name else _ABSENT
            for position, name in enumerate(instruction.inputs)
        )

    def _as_numbers(self, name: str) -> int:
        """The slot of a constant's numbers, or of the tensor if it is no constant of integers."""
        value = self._constants.get(name)
        if value is None or not _is_integer(value) or name in self._buffer_of:
            return self[name]
        if name not in self._numbers:
            self._numbers[name] = len(self.filled)
            self.filled.append(tuple(int(n) for n in value.reshape(-1).tolist()))
        return self._numbers[name]


def _step(
    instruction: Instruction,
    constants: Mapping[str, torch.Tensor],
    places: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    spare: Sequence[int],
) -> Step:
    quick = None
    if has_kernel(instruction):
        quick = kernel(instruction, constants, [bool(spare[slot]) for slot in places[0]])
    call = quick or instruction.function
    if quick is None and instruction.attributes:
        call = functools.partial(call, **instruction.attributes)
    return Step(instruction, call, quick is not None, *places)


def _last_uses(
    read: Sequence[tuple[int, ...]], written: Sequence[tuple[int, ...]], kept: Sequence[int]
) -> list[tuple[int, ...]]:
    """For each step the slots that no later one reads, those of `kept` apart."""
    seen = bytearray(kept)
    emptied = []
    for inputs, outputs in zip(reversed(read), reversed(written), strict=True):
        here = []
        for slot in inputs + outputs:
            if not seen[slot]:
                seen[slot] = True
                here.append(slot)
        emptied.append(tuple(here))
    return emptied[::-1]


def _spare(
    needed: Sequence[Instruction],
    read: Sequence[tuple[int, ...]],
    written: Sequence[tuple[int, ...]],
    kept: Sequence[int],
) -> bytearray:
    """By slot: whether the one operator that reads it may take its memory for a result."""
    reads = [0] * len(kept)
    for inputs in read:
        for slot in inputs:
            reads[slot] += 1
    spare = bytearray(len(kept))
    for instruction, outputs in zip(needed, written, strict=True):
        if instruction.op_type in MAKES_NEW_MEMORY and not instruction.domain and outputs:
            spare[outputs[0]] = reads[outputs[0]] == 1 and not kept[outputs[0]]
    return spare


def _is_integer(value: torch.Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())
