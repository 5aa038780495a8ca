"""The nodes of an ONNX graph as a flat list of calls of operator functions (`registry`)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, TensorProto, numpy_helper

from converters.errors import ModelFormatError, UnsupportedModelError
from converters.registry import OperatorFunction, lookup
from converters.values import Text, Value

Tensors = dict[str, torch.Tensor]

_LISTS = (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)


@dataclass(frozen=True)
class Instruction:
    """One operator call: which operator, on which tensors, giving which tensors.

    Absent optional inputs and unused outputs have the name ''.

    Attributes:
        domain: of the operator, '' for ONNX's own.
        opset: version of the domain's operator set that the model imports.
    """

    op_type: str
    domain: str
    opset: int
    node_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def reading(self, inputs: tuple[str, ...]) -> Instruction:
        """The same with other inputs."""
        return Instruction(
            self.op_type,
            self.domain,
            self.opset,
            self.node_name,
            inputs,
            self.outputs,
            self.attributes,
        )

    @functools.cached_property
    def function(self) -> OperatorFunction:
        """The registered function. Looked up, not held: not all of them can be pickled."""
        function = lookup(self.domain, self.op_type, self.opset)
        if function is None:
            raise UnsupportedModelError(f"{self.describe()}: no such operator")
        return function

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "function"}

    def run(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """Call the operator on the named tensors of `values`; returns its outputs.

        Raises:
            UnsupportedModelError: the operator refused its inputs; the message names the node.
            torch.OutOfMemoryError: of a GPU; not the model's fault, a smaller batch may do.
        """
        arguments = [values[name] if name else None for name in self.inputs]
        try:
            result = self.function(*arguments, **self.attributes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a file may hand any nonsense to an operator
            raise self.failure(error) from error
        results = result if isinstance(result, tuple) else (result,)
        self.check_count(results)
        return results

    def failure(self, error: Exception) -> UnsupportedModelError:
        """The error that says that the operator failed."""
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        return UnsupportedModelError(f"{self.describe()} failed: {first_line}")

    def check_count(self, results: tuple[Value, ...]) -> None:
        """Refuse too few results for the outputs that the node has.

        Raises:
            UnsupportedModelError: naming the node.
        """
        if any(self.outputs[len(results) :]):
            raise UnsupportedModelError(f"{self.describe()} has only {len(results)} outputs")

    def describe(self) -> str:
        """The node as an error message names it."""
        name = self.node_name or next(filter(None, self.outputs), "")
        return f"node {name!r} ({self.op_type})"


def needed_instructions(
    instructions: Iterable[Instruction], wanted: Iterable[str]
) -> list[Instruction]:
    """The instructions, in order, that some tensor of `wanted` depends on."""
    needed_names, needed = set(wanted), []
    for instruction in reversed(list(instructions)):
        if not needed_names.isdisjoint(instruction.outputs):
            needed_names.update(instruction.inputs)
            needed_names.discard("")
            needed.append(instruction)
    return needed[::-1]


def operator_label(domain: str, op_type: str, opset: int | None) -> str:
    """`Domain.Name-opset`, the domain left out for standard operators."""
    prefix = f"{domain}." if domain else ""
    return f"{prefix}{op_type}-{opset if opset is not None else '?'}"


def attribute_value(attribute: AttributeProto) -> Any:
    """An attribute as Python sees it: str, int, float, tensor, or a tuple of one of them.

    Raises:
        ValueError: an attribute without a type, or text that is not valid UTF-8.
        ModelFormatError: see `tensor_from_proto`.
    """
    if attribute.type == AttributeProto.UNDEFINED:
        raise ValueError(f"attribute {attribute.name} has no type")
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, TensorProto):
        return value_from_proto(value)
    if attribute.type in _LISTS:
        return tuple(v.decode("utf-8") if isinstance(v, bytes) else v for v in value)
    return value


def value_from_proto(proto: TensorProto) -> torch.Tensor | Text:
    """A TensorProto's numbers, or its texts.

    Raises:
        ModelFormatError: see `tensor_from_proto`; texts that are not valid UTF-8.
    """
    if proto.data_type != TensorProto.STRING:
        return tensor_from_proto(proto)
    try:
        return np.array(numpy_helper.to_array(proto), dtype=object)
    except ValueError as error:
        raise ModelFormatError(f"tensor {proto.name!r} can't be read: {error}") from error


def tensor_from_proto(proto: TensorProto) -> torch.Tensor:
    """A TensorProto's numbers as a tensor of its own memory, on the CPU.

    Raises:
        ModelFormatError: a data type that torch has no counterpart of, or a wrong number of bytes.
    """
    try:
        array = np.array(numpy_helper.to_array(proto))
        if proto.data_type == TensorProto.BFLOAT16:  # numpy's bfloat16 is not torch's
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelFormatError(f"tensor {proto.name!r} can't be read: {error}") from error
