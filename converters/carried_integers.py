"""Where a graph's quantised numbers may stay float tensors, and where they must become integers.

The quantised operators give float tensors that carry integers, so that gradients pass through
them (`converters.ops._quantization`). To most other operators such a tensor would be another
thing than the graph says: a quotient of integers is rounded, a sum of uint8 wraps around. So
before an operator that is not known to do the same on both, and at the graph's outputs, a Cast to
the declared integer type is put in; no gradient passes through it.

Images of an integer type are carried integers too: a caller may feed them as floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from onnx import TensorProto

from converters.errors import UnsupportedModelError
from converters.folding import unused_name
from converters.instructions import Instruction, Tensors
from converters.ops.constant import DTYPES
from converters.ops.quantized import MICROSOFT
from converters.subgraph import Subgraph

_ONNX_TYPES = {kind: number for number, kind in DTYPES.items()}
_ALL = slice(None)
_FIRST = slice(0, 1)

_MOVING: dict[str, slice] = {
    **dict.fromkeys(
        (
            "DepthToSpace",
            "Expand",
            "Flatten",
            "Gather",
            "GatherElements",
            "GatherND",
            "Identity",
            "MaxPool",
            "Pad",
            "ReduceMax",
            "ReduceMin",
            "Relu",
            "Reshape",
            "Slice",
            "SpaceToDepth",
            "Split",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
        ),
        _FIRST,
    ),
    "Clip": slice(0, 3),
    "Concat": _ALL,
    "Max": _ALL,
    "Min": _ALL,
    "Where": slice(1, 3),
}
"""Standard operators whose result holds numbers of these inputs, unchanged."""

_LOOKING = {"ArgMax", "ArgMin", "Shape", "Size"}
"""Standard operators that give the same integers for carried ones as for others."""


class _Quantised(NamedTuple):
    """What a quantised operator does with carried integers.

    Attributes:
        reads: the inputs that may be carried.
        type_of: the input whose type the first output has.
        kind: that type if the input is not there; None: it is a floating-point type.
    """

    reads: slice
    type_of: int | None = None
    kind: torch.dtype | None = None


_QUANTISED: dict[tuple[str, str], _Quantised] = {
    ("", "ConvInteger"): _Quantised(slice(0, 2), kind=torch.int32),
    ("", "DequantizeLinear"): _Quantised(_FIRST),
    ("", "DynamicQuantizeLinear"): _Quantised(slice(0), kind=torch.uint8),
    ("", "MatMulInteger"): _Quantised(slice(0, 2), kind=torch.int32),
    ("", "QLinearConv"): _Quantised(slice(0, 4, 3), 7),
    ("", "QLinearMatMul"): _Quantised(slice(0, 4, 3), 7),
    ("", "QuantizeLinear"): _Quantised(slice(0), 2, torch.uint8),
    (MICROSOFT, "DequantizeLinear"): _Quantised(_FIRST),
    (MICROSOFT, "DynamicQuantizeMatMul"): _Quantised(slice(1, 2)),
    (MICROSOFT, "MatMulIntegerToFloat"): _Quantised(slice(0, 2)),
    (MICROSOFT, "QGemm"): _Quantised(slice(0, 7, 3), 8),
    (MICROSOFT, "QLinearAdd"): _Quantised(slice(0, 4, 3), 7),
    (MICROSOFT, "QLinearAveragePool"): _Quantised(_FIRST, 4),
    (MICROSOFT, "QLinearConcat"): _Quantised(slice(2, None, 3), 1),
    (MICROSOFT, "QLinearGlobalAveragePool"): _Quantised(_FIRST, 4),
    (MICROSOFT, "QLinearLeakyRelu"): _Quantised(_FIRST, 4),
    (MICROSOFT, "QLinearMul"): _Quantised(slice(0, 4, 3), 7),
    (MICROSOFT, "QLinearSigmoid"): _Quantised(_FIRST, 4),
    (MICROSOFT, "QLinearSoftmax"): _Quantised(_FIRST, 4),
    (MICROSOFT, "QuantizeLinear"): _Quantised(slice(0), 2, torch.uint8),
}


def carry_integers(
    instructions: Iterable[Instruction],
    types: Mapping[str, torch.dtype],
    inputs: Iterable[str],
    outputs: tuple[str, ...],
) -> list[Instruction]:
    """The instructions with a Cast wherever carried integers must become integers.

    Args:
        instructions: in topological order.
        types: of the initializers and of the graph's inputs.
        inputs: the graph's inputs.
        outputs: the graph's outputs; those of integer type are given as such.

    Raises:
        UnsupportedModelError: integers are needed whose type can't be told.
    """
    carried = [name for name in inputs if types.get(name) in (torch.uint8, torch.int8)]
    instructions = list(instructions)
    if not carried and not _quantises(instructions):
        return instructions
    return _Pass(instructions, types, carried, outputs).result


def carry_weights(
    instructions: Iterable[Instruction], constants: Mapping[str, torch.Tensor]
) -> Tensors:
    """`constants` with what only quantised operators read as carried integers.

    So weights are converted once and not at every run, and live on the device of the others.
    """
    quantised: set[str] = set()
    otherwise: set[str] = set()
    for instruction in instructions:
        how = _QUANTISED.get(_key(instruction))
        if how is None:
            otherwise.update(instruction.inputs)
            continue
        read = set(_carried_positions(instruction, how))
        for position, name in enumerate(instruction.inputs):
            (quantised if position in read else otherwise).add(name)
    weights = {n for n in quantised - otherwise if n in constants}
    weights = {n for n in weights if not constants[n].is_floating_point()}
    return {name: v.float() if name in weights else v for name, v in constants.items()}


def _quantises(instructions: Iterable[Instruction]) -> bool:
    """Whether there are quantised operators, be it in subgraphs."""
    for instruction in instructions:
        if _key(instruction) in _QUANTISED:
            return True
        bodies = (v for v in instruction.attributes.values() if isinstance(v, Subgraph))
        if any(_quantises(body.instructions) for body in bodies):
            return True
    return False


class _Pass:
    """One run over a graph's instructions; `result` holds the new ones.

    Args:
        carried: the graph's inputs that are, or may be, carried integers.
    """

    def __init__(
        self,
        instructions: Iterable[Instruction],
        types: Mapping[str, torch.dtype],
        carried: Iterable[str],
        outputs: tuple[str, ...],
    ) -> None:
        old = list(instructions)
        self._types = dict(types)
        self._taken = set(types) | {n for i in old for n in (*i.inputs, *i.outputs)}
        self._outputs = set(outputs)
        self._cast: dict[str, str] = {}  # carried tensor -> the same as integers
        self._carried = {name: name for name in carried}
        self.result: list[Instruction] = []
        for instruction in old:
            self._step(instruction)

    def _step(self, instruction: Instruction) -> None:
        if any(isinstance(value, Subgraph) for value in instruction.attributes.values()):
            self.result.append(self._with_subgraphs(instruction))
        elif _key(instruction) in _QUANTISED or not self._carried.keys().isdisjoint(
            instruction.inputs
        ):
            self._carry(instruction)
        else:
            self._note_type(instruction)
            self.result.append(instruction)

    def _carry(self, instruction: Instruction) -> None:
        """Append an instruction that reads or gives carried integers."""
        moving = _MOVING.get(instruction.op_type) if not instruction.domain else None
        quantised = _QUANTISED.get(_key(instruction))
        may_carry = set(_carried_positions(instruction, quantised or moving))
        if _only_looks(instruction):
            may_carry = set(range(len(instruction.inputs)))
        names = list(instruction.inputs)
        source = None
        for position, name in enumerate(names):
            if name not in self._carried:
                continue
            if position in may_carry:
                names[position] = self._carried[name]
                source = source or name
            else:
                names[position] = self._as_integers(name, instruction)
        instruction = replace(instruction, inputs=tuple(names))
        gives = instruction.outputs[:1]
        if quantised is not None:
            carries, kind = self._result_type(instruction, quantised)
        else:
            carries, kind = moving is not None and source is not None, self._types.get(source or "")
            gives = instruction.outputs if instruction.op_type == "Split" else gives
        if carries:
            self._give(instruction, gives, kind)
        else:
            self._note_type(instruction)
            self.result.append(instruction)

    def _with_subgraphs(self, instruction: Instruction) -> Instruction:
        """The same with this pass run over its subgraphs, which may read carried integers.

        Those are only what the subgraphs capture and don't give on as it is; all else that goes in
        and out are integers.
        """
        bodies = {n: v for n, v in instruction.attributes.items() if isinstance(v, Subgraph)}
        captured = next(iter(bodies.values())).captured
        given_on = {name for body in bodies.values() for name in body.outputs}
        names, types, carried = list(instruction.inputs), {}, []
        own = len(names) - len(captured)
        for position, name in enumerate(names):
            inner = captured[position - own] if position >= own else ""
            if inner and name in self._types:
                types[inner] = self._types[name]
            if inner and name in self._carried and inner not in given_on:
                names[position] = self._carried[name]
                carried.append(inner)
            elif name in self._carried:
                names[position] = self._as_integers(name, instruction)
        for attribute, body in bodies.items():
            inside = _Pass(body.instructions, types, carried, body.outputs).result
            bodies[attribute] = replace(body, instructions=tuple(inside))
        attributes = {**instruction.attributes, **bodies}
        return replace(instruction, inputs=tuple(names), attributes=attributes)

    def _give(
        self, instruction: Instruction, gives: tuple[str, ...], kind: torch.dtype | None
    ) -> None:
        """Append an instruction whose outputs `gives` are carried integers of this type."""
        renamed = {name: self._new(f"{name}/carried") for name in gives if name in self._outputs}
        outputs = tuple(renamed.get(name, name) for name in instruction.outputs)
        self.result.append(replace(instruction, outputs=outputs))
        for name in filter(None, gives):
            self._carried[name] = renamed.get(name, name)
            if kind is not None:
                self._types[name] = kind
            if name in renamed:
                self._append_cast(name, name, instruction)

    def _result_type(
        self, instruction: Instruction, quantised: _Quantised
    ) -> tuple[bool, torch.dtype | None]:
        """Whether the first output is of integer type, and which, None if it can't be told."""
        given, position = instruction.inputs, quantised.type_of
        if position is not None and position < len(given) and given[position]:
            return True, self._types.get(given[position])
        declared = DTYPES.get(instruction.attributes.get("output_dtype", 0))
        floating = quantised.kind is None
        return not floating, None if floating else declared or quantised.kind

    def _note_type(self, instruction: Instruction) -> None:
        """Types of what may serve as a zero point."""
        kind: torch.dtype | None = None
        if instruction.domain or not instruction.outputs:
            return
        if instruction.op_type == "Constant":
            value = instruction.attributes.get("value")
            kind = None if value is None else value.dtype
        elif instruction.op_type == "Cast":
            kind = DTYPES.get(instruction.attributes.get("to", 0))
        if kind is not None:
            self._types[instruction.outputs[0]] = kind

    def _as_integers(self, name: str, reader: Instruction) -> str:
        """The name of a carried tensor's integers, which a Cast computes at first need."""
        if name in self._outputs:
            return name
        if name not in self._cast:
            self._cast[name] = self._new(f"{name}/integers")
            self._append_cast(name, self._cast[name], reader)
        return self._cast[name]

    def _append_cast(self, name: str, result: str, asking: Instruction) -> None:
        kind = self._types.get(name)
        if kind is None:
            raise UnsupportedModelError(
                f"{asking.describe()}: the integer type of tensor {name!r} can't be told"
            )
        to = {"to": _ONNX_TYPES[kind]}
        cast = Instruction("Cast", "", 13, "", (self._carried[name],), (result,), to)
        self.result.append(cast)
        self._types[result] = kind

    def _new(self, stem: str) -> str:
        name = unused_name(stem, self._taken)
        self._taken.add(name)
        return name


def _key(instruction: Instruction) -> tuple[str, str]:
    return instruction.domain, instruction.op_type


def _carried_positions(instruction: Instruction, how: _Quantised | slice | None) -> Iterable[int]:
    reads = how.reads if isinstance(how, _Quantised) else how
    return range(len(instruction.inputs))[reads] if reads is not None else ()


def _only_looks(instruction: Instruction) -> bool:
    if instruction.domain:
        return False
    to = instruction.attributes.get("to", TensorProto.UNDEFINED)
    floating = instruction.op_type == "Cast" and to in DTYPES and DTYPES[to].is_floating_point
    return floating or instruction.op_type in _LOOKING
