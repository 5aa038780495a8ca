"""The nodes of an ONNX graph as a flat list of calls of operator functions (`registry`)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from converters import ops  # noqa: F401  (importing it fills the registry)
from converters.errors import ModelFormatError, UnsupportedModelError
from converters.registry import OperatorFunction, bind, lookup, normal_domain

Tensors = dict[str, torch.Tensor]

_BLOCKED_DOMAIN = "com.microsoft.nchwc"  # ONNX Runtime's, of weights laid out for one processor
_LISTS = (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


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

    @functools.cached_property
    def function(self) -> OperatorFunction:
        """The registered function. Looked up, not held: not all of them can be pickled."""
        function = lookup(self.domain, self.op_type, self.opset)
        if function is None:
            raise UnsupportedModelError(f"{self.describe()}: no such operator")
        return function

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "function"}

    def run(self, values: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Call the operator on the named tensors of `values`.

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
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UnsupportedModelError(f"{self.describe()} failed: {first_line}") from error
        results = result if isinstance(result, tuple) else (result,)
        if any(self.outputs[len(results) :]):
            raise UnsupportedModelError(f"{self.describe()} has only {len(results)} outputs")
        return results

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
        if needed_names.intersection(name for name in instruction.outputs if name):
            needed_names.update(instruction.inputs)
            needed.append(instruction)
    return needed[::-1]


def build_instructions(model: onnx.ModelProto) -> list[Instruction]:
    """The nodes of a topologically sorted model as instructions.

    Raises:
        UnsupportedModelError: operators without a function, all of them at once, by name, version
            and count; or attributes that an operator does not know.
    """
    opsets = {normal_domain(o.domain): o.version for o in model.opset_import}
    # A function of the file's own may bear a standard operator's name and do something else.
    own = {(normal_domain(f.domain), f.name) for f in model.functions}
    functions = []
    unsupported: Counter[str] = Counter()
    for node in model.graph.node:
        domain = normal_domain(node.domain)
        opset = opsets.get(domain)
        function = None if opset is None else lookup(domain, node.op_type, opset)
        subgraph = any(a.type in _SUBGRAPHS for a in node.attribute)
        if function is None or subgraph or (domain, node.op_type) in own:
            unsupported[operator_label(domain, node.op_type, opset)] += 1
        else:
            functions.append(function)
    if unsupported:
        lines = tuple(f"{label} ({count})" for label, count in sorted(unsupported.items()))
        blocked = any(label.startswith(f"{_BLOCKED_DOMAIN}.") for label in unsupported)
        advice = "; they suit one processor: give the un-optimised file" if blocked else ""
        raise UnsupportedModelError(f"unsupported operators: {', '.join(lines)}{advice}", lines)
    return [
        _instruction(node, opsets[normal_domain(node.domain)], function)
        for node, function in zip(model.graph.node, functions, strict=True)
    ]


def operator_label(domain: str, op_type: str, opset: int | None) -> str:
    """`Domain.Name-opset`, the domain left out for standard operators."""
    prefix = f"{domain}." if domain else ""
    return f"{prefix}{op_type}-{opset if opset is not None else '?'}"


def _instruction(node: NodeProto, opset: int, function: OperatorFunction) -> Instruction:
    try:
        attributes = {a.name: attribute_value(a) for a in node.attribute}
        attributes = bind(function, attributes, len(node.output))
    except ValueError as error:
        name = node.name or (node.output[0] if node.output else "")
        raise UnsupportedModelError(f"node {name!r} ({node.op_type}): {error}") from error
    return Instruction(
        op_type=node.op_type,
        domain=normal_domain(node.domain),
        opset=opset,
        node_name=node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
    )


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
        return tensor_from_proto(value)
    if attribute.type in _LISTS:
        return tuple(v.decode("utf-8") if isinstance(v, bytes) else v for v in value)
    return value


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
