"""An ONNX graph as a differentiable torch module.

The graph is a flat list of instructions (`instructions`). There is no code generation and no
module per layer: running the graph is a loop that reads tensors by their ONNX name, calls the
operator's function and stores what it returns. So every intermediate tensor can be had by name
(`TorchGraph.features`), and names that are no Python identifiers do no harm.

Numbers of integer or boolean type (shapes, axes, indices) stay on the CPU whatever the device of
the weights, so that reading them never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from converters.instructions import Instruction, Tensors, needed_instructions

_KEPT_PROGRAMS = 8  # which instructions to run is remembered for that many sets of wanted tensors


class TensorType(NamedTuple):
    """What a tensor of a run was like."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Program(NamedTuple):
    """What it takes to compute some tensors.

    Attributes:
        constants: names of the constants that the steps or the caller read.
        steps: the instructions, each with the tensors that nobody reads after it.
    """

    constants: tuple[str, ...]
    steps: tuple[tuple[Instruction, tuple[str, ...]], ...]


class TorchGraph(torch.nn.Module):
    """A differentiable ONNX graph; called with the graph's inputs, it returns its outputs.

    Args:
        instructions: the graph's nodes in topological order, constants folded.
        constants: tensors by name that no input influences. Floating-point ones become buffers.
        input_names: the graph's inputs, without initializers, in order.
        output_names: the graph's outputs, in order.
        fast_instructions: the same graph with BatchNormalization folded; used wherever the wanted
            tensors exist in it. Defaults to `instructions`.
    """

    def __init__(
        self,
        instructions: Iterable[Instruction],
        constants: Mapping[str, torch.Tensor],
        input_names: tuple[str, ...],
        output_names: tuple[str, ...],
        fast_instructions: Iterable[Instruction] | None = None,
    ) -> None:
        super().__init__()
        self.instructions = tuple(instructions)
        self.fast_instructions = (
            self.instructions if fast_instructions is None else tuple(fast_instructions)
        )
        self.input_names = input_names
        self.output_names = output_names
        self._buffer_of: dict[str, str] = {}
        self._integers: Tensors = {}
        self._programs: dict[tuple[str, ...], Program] = {}
        for index, (name, tensor) in enumerate(constants.items()):
            if tensor.is_floating_point():
                self._buffer_of[name] = f"constant_{index}"
                self.register_buffer(self._buffer_of[name], tensor)
            else:
                self._integers[name] = tensor

    @property
    def constant_names(self) -> frozenset[str]:
        """Names of the tensors that no input influences."""
        return frozenset(self._buffer_of) | frozenset(self._integers)

    def constant(self, name: str) -> torch.Tensor:
        """A constant tensor on its present device.

        Raises:
            KeyError: no constant of that name.
        """
        if name in self._integers:
            return self._integers[name]
        return self.get_buffer(self._buffer_of[name])

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The graph's outputs, in order, for inputs in the order of `input_names`."""
        return self._run(self.output_names, inputs)

    def features(self, name: str, *inputs: torch.Tensor) -> torch.Tensor:
        """The tensor that the ONNX graph calls `name`, for the same inputs as `forward`.

        Only the instructions that `name` depends on are run.

        Raises:
            KeyError: the graph has no tensor of that name.
        """
        return self._run((name,), inputs)[0]

    def tensor_types(self, *inputs: torch.Tensor) -> dict[str, TensorType]:
        """Shape and type of every tensor that a run over these inputs reads or computes."""
        types: dict[str, TensorType] = {}
        self._run(self.output_names, inputs, types)
        return types

    def _run(
        self,
        wanted: tuple[str, ...],
        inputs: tuple[torch.Tensor, ...],
        types: dict[str, TensorType] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        if len(inputs) != len(self.input_names):
            raise ValueError(f"expected {len(self.input_names)} inputs, got {len(inputs)}")
        program = self._program(wanted)
        values: Tensors = {name: self.constant(name) for name in program.constants}
        values.update(zip(self.input_names, inputs, strict=True))
        if types is not None:
            _note_types(types, values)
        for instruction, last_used in program.steps:
            results = dict(zip(instruction.outputs, instruction.run(values), strict=False))
            results.pop("", None)
            values.update(results)
            if types is not None:
                _note_types(types, results)
            for name in last_used:
                del values[name]
        return tuple(values[name] for name in wanted)

    def _program(self, wanted: tuple[str, ...]) -> Program:
        if wanted not in self._programs:
            if len(self._programs) >= _KEPT_PROGRAMS:
                self._programs.clear()
            self._programs[wanted] = self._plan(wanted)
        return self._programs[wanted]

    def _plan(self, wanted: tuple[str, ...]) -> Program:
        constants = self.constant_names
        given = constants | set(self.input_names)
        made_fast = given | {name for i in self.fast_instructions for name in i.outputs}
        fast = made_fast.issuperset(wanted)
        needed = needed_instructions(
            self.fast_instructions if fast else self.instructions, set(wanted) - given
        )
        made = {name for i in needed for name in i.outputs if name}
        missing = set(wanted) - given - made
        if missing:
            raise KeyError(f"the graph has no tensor named {min(missing)!r}")
        steps: list[tuple[Instruction, tuple[str, ...]]] = []
        read = set(wanted)
        for instruction in reversed(needed):
            here = {name for name in (*instruction.inputs, *instruction.outputs) if name}
            steps.append((instruction, tuple(sorted(here - given - read))))
            read |= here
        return Program(tuple(sorted(constants & read)), tuple(reversed(steps)))


def _note_types(types: dict[str, TensorType], values: Mapping[str, torch.Tensor]) -> None:
    types.update((n, TensorType(tuple(v.shape), v.dtype)) for n, v in values.items())
