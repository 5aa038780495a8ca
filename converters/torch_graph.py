"""An ONNX graph as a differentiable torch module.

The graph is a flat list of instructions (`instructions`). There is no code generation and no
module per layer: running the graph is a loop that reads tensors by their number, calls the
operator's function and stores what it returns (`program`). So every intermediate tensor can be had
by its ONNX name (`TorchGraph.features`), and names that are no Python identifiers do no harm.

Numbers of integer or boolean type (shapes, axes, indices) stay on the CPU whatever the device of
the weights, so that reading them never waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple, Self

import torch

from converters.collector import collector_off
from converters.compilation import CompiledGraph
from converters.folding import copies
from converters.instructions import Instruction, Tensors, needed_instructions
from converters.memory_layout import laid_out, weights_to_lay_out
from converters.program import Program, write_program
from converters.subgraph import Subgraph
from converters.values import Value

_KEPT_PROGRAMS = 8  # which instructions to run is remembered for that many sets of wanted tensors


class TensorType(NamedTuple):
    """What a tensor of a run was like."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TorchGraph(torch.nn.Module):
    """A differentiable ONNX graph; called with the graph's inputs, it returns its outputs.

    Args:
        instructions: the graph's nodes in topological order, constants folded.
        constants: tensors by name that no input influences. Floating-point ones become buffers; the
            weights of convolutions may lie in another order in memory (`memory_layout`).
        input_names: the graph's inputs, without initializers, in order.
        output_names: the graph's outputs, in order.
        fast_instructions: the same graph with less to compute (`folding`); used wherever the wanted
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
        self._laid_out = weights_to_lay_out(self.fast_instructions, constants)
        self._lay_out()

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

    def forward(self, *inputs: Value) -> tuple[Value, ...]:
        """The graph's outputs, in order, for inputs in the order of `input_names`.

        Both are tensors, but where the graph has a sequence, a text or something optional.
        """
        return self._run(self.output_names, inputs)

    def features(self, name: str, *inputs: Value) -> torch.Tensor:
        """The tensor that the ONNX graph calls `name`, for the same inputs as `forward`.

        Only the instructions that `name` depends on are run.

        Raises:
            KeyError: the graph has no tensor of that name.
            TypeError: what bears that name is a sequence or a text.
        """
        value = self._run((name,), inputs)[0]
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name!r} is no tensor")
        return value

    def tensor_types(self, *inputs: Value) -> dict[str, TensorType]:
        """Shape and type of every tensor that a run over these inputs reads or computes."""
        types: dict[str, TensorType] = {}
        self._run(self.output_names, inputs, types)
        for instruction in filter(copies, self.instructions):  # folding leaves them out
            source, copy = instruction.inputs[0], instruction.outputs[0]
            if source in types:
                types.setdefault(copy, types[source])
        return types

    def compiled(self, backend: str | Callable[..., Any] = "inductor") -> CompiledGraph:
        """The same function by way of torch.compile: slow to start, faster afterwards.

        It pays in searches of hundreds of steps at one shape; see `CompiledGraph`. Graphs with
        branches or loops are not compiled.

        Args:
            backend: of torch.compile.
        """
        program = self._program(self.output_names)
        held = (value for step in program.steps for value in step.instruction.attributes.values())
        if any(isinstance(value, Subgraph) for value in held):
            return CompiledGraph(self, None, backend)

        def outputs(*inputs: Value) -> tuple[Value, ...]:
            slots = program.start(self._buffers, inputs)
            for step in program.steps:
                step.run_bare(slots)
            return program.results(slots)

        return CompiledGraph(self, outputs, backend)

    def _run(
        self,
        wanted: tuple[str, ...],
        inputs: tuple[Value, ...],
        types: dict[str, TensorType] | None = None,
    ) -> tuple[Value, ...]:
        if len(inputs) != len(self.input_names):
            raise ValueError(f"expected {len(self.input_names)} inputs, got {len(inputs)}")
        program = self._program(wanted)
        slots = program.start(self._buffers, inputs)
        if types is not None:
            _note_types(types, ((n, slots[s]) for n, s in program.slot_of.items()))
        for step in program.steps:
            results = step.run(slots)
            if types is not None:
                _note_types(types, zip(step.instruction.outputs, results, strict=False))
        return program.results(slots)

    def _program(self, wanted: tuple[str, ...]) -> Program:
        if wanted not in self._programs:
            if len(self._programs) >= _KEPT_PROGRAMS:
                self._programs.clear()
            self._programs[wanted] = self._plan(wanted)
        return self._programs[wanted]

    @collector_off()
    def _plan(self, wanted: tuple[str, ...]) -> Program:
        given = self.constant_names | set(self.input_names)
        made_fast = chain.from_iterable(i.outputs for i in self.fast_instructions)
        fast = given.union(made_fast).issuperset(wanted)
        needed = needed_instructions(
            self.fast_instructions if fast else self.instructions, set(wanted) - given
        )
        missing = (set(wanted) - given).difference(chain.from_iterable(i.outputs for i in needed))
        if missing:
            raise KeyError(f"the graph has no tensor named {min(missing)!r}")
        read = set(wanted).union(chain.from_iterable(i.inputs for i in needed))
        constants = {name: self.constant(name) for name in self.constant_names & read}
        return write_program(needed, constants, self._buffer_of, self.input_names, wanted)

    def _lay_out(self) -> None:
        for name in self._laid_out:
            buffer = self._buffer_of[name]
            self._buffers[buffer] = laid_out(self.get_buffer(buffer))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """What `to`, `cuda`, `double` and so on are made of."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._lay_out()
        self._programs.clear()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Programs hold functions that can't be pickled; they are written anew.
        return {**self.__dict__, "_programs": {}}


def _note_types(types: dict[str, TensorType], named: Iterable[tuple[str, Any]]) -> None:
    types.update(
        (n, TensorType(tuple(v.shape), v.dtype))
        for n, v in named
        if n and isinstance(v, torch.Tensor)
    )
