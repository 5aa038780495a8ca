"""A model's nodes as instructions, those of its subgraphs included."""

from __future__ import annotations

import functools
from collections import ChainMap, Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto

from converters import ops  # noqa: F401  (importing it fills the registry)
from converters.errors import UnsupportedModelError
from converters.instructions import (
    Instruction,
    Tensors,
    attribute_value,
    operator_label,
    tensor_from_proto,
    value_from_proto,
)
from converters.ops.constant import DTYPES
from converters.registry import OperatorFunction, bind, lookup, normal_domain, signature
from converters.subgraph import (
    MAX_STEPS,
    EmptyResult,
    Subgraph,
    all_nodes,
    check_depth,
    limits_in_force,
    own_names,
    subgraphs_of,
)

_BLOCKED_DOMAIN = "com.microsoft.nchwc"  # ONNX Runtime's, of weights laid out for one processor

_Scope = ChainMap[str, str]
"""What a name within a subgraph stands for; the outermost graph's names stand for themselves."""


def build_instructions(model: onnx.ModelProto) -> tuple[list[Instruction], Tensors]:
    """The nodes of a topologically sorted model as instructions, and its initializers.

    The constants of subgraphs are initializers like the others, under names of their own.

    Raises:
        UnsupportedModelError: operators without a function, all of them at once, by name, version
            and count; or attributes that an operator does not know.
        ModelFormatError: subgraphs that are nested too deep; or see `tensor_from_proto`.
    """
    operators = _operators(model)
    held = model.graph.initializer
    texts = [tensor for tensor in held if tensor.data_type == TensorProto.STRING]
    numbers = (tensor for tensor in held if tensor.data_type != TensorProto.STRING)
    constants = {tensor.name: tensor_from_proto(tensor) for tensor in numbers}
    builder = _Builder(model, operators, constants)
    instructions = [_text(tensor, tensor.name) for tensor in texts]
    instructions += [builder.instruction(node, None) for node in model.graph.node]
    return instructions, constants


class _Operator(NamedTuple):
    """The function for an operator, in a model that imports its domain at `opset`.

    Attributes:
        bare: a node without attributes calls the function with its inputs alone.
    """

    function: OperatorFunction
    domain: str
    opset: int
    bare: bool


def _operators(model: onnx.ModelProto) -> dict[tuple[str, str], _Operator]:
    """What computes each (domain, operator) that the model has, be it in subgraphs.

    Raises:
        UnsupportedModelError: see `build_instructions`.
    """
    opsets = {normal_domain(o.domain): o.version for o in model.opset_import}
    # A function of the file's own may bear a standard operator's name and do something else.
    own = {(normal_domain(f.domain), f.name) for f in model.functions}
    counts = Counter([(node.domain, node.op_type) for node in all_nodes(model.graph.node)])
    operators = {}
    unsupported: Counter[str] = Counter()
    for (written, op_type), count in counts.items():
        domain = normal_domain(written)
        opset = opsets.get(domain)
        function = None if opset is None else lookup(domain, op_type, opset)
        if opset is None or function is None or (domain, op_type) in own:
            unsupported[operator_label(domain, op_type, opset)] += count
        else:
            known = signature(function)
            bare = not known.required and not known.takes_n_outputs
            operators[written, op_type] = _Operator(function, domain, opset, bare)
    if unsupported:
        lines = tuple(f"{label} ({count})" for label, count in sorted(unsupported.items()))
        blocked = any(label.startswith(f"{_BLOCKED_DOMAIN}.") for label in unsupported)
        advice = "; they suit one processor: give the un-optimised file" if blocked else ""
        raise UnsupportedModelError(f"unsupported operators: {', '.join(lines)}{advice}", lines)
    return operators


class _Builder:
    """Turns nodes into instructions; puts the constants of subgraphs with those of the graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        operators: Mapping[tuple[str, str], _Operator],
        constants: Tensors,
    ) -> None:
        self._operators = operators
        self._constants = constants
        self._model = model

    @functools.cached_property
    def _taken(self) -> set[str]:
        """Every name in the model."""
        nodes = list(all_nodes(self._model.graph.node))
        graphs = [graph for node in nodes for graph in subgraphs_of(node)]
        names = {name for node in nodes for name in (*node.input, *node.output)}
        return names.union(*(own_names(graph) for graph in (self._model.graph, *graphs)))

    @functools.cached_property
    def _max_steps(self) -> int:
        """What each loop may run, so that all of them together stay within bounds."""
        loops = sum(node.op_type in ("Loop", "Scan") for node in all_nodes(self._model.graph.node))
        return MAX_STEPS // max(loops, 1)

    def instruction(self, node: NodeProto, scope: _Scope | None) -> Instruction:
        """A node as an instruction; `scope` is that of a subgraph."""
        op_type = node.op_type
        operator = self._operators[node.domain, op_type]
        inputs, outputs = tuple(node.input), tuple(node.output)
        if scope is not None:
            inputs = tuple(scope.get(name, name) for name in inputs)
        attributes: dict[str, Any] = {}
        try:
            if len(node.attribute):
                attributes, captured = self._attributes(node, scope)
                inputs += captured
            if attributes or not operator.bare:
                attributes = bind(operator.function, attributes, len(outputs))
        except ValueError as error:
            name = node.name or next(iter(outputs), "")
            raise UnsupportedModelError(f"node {name!r} ({op_type}): {error}") from error
        return Instruction(
            op_type, operator.domain, operator.opset, node.name, inputs, outputs, attributes
        )

    def _attributes(
        self, node: NodeProto, scope: _Scope | None
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A node's attributes, and the outer tensors that its subgraphs read."""
        attributes, graphs = {}, {}
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                graphs[attribute.name] = self._subgraph(attribute.g, scope)
            else:
                attributes[attribute.name] = attribute_value(attribute)
        captured = tuple(dict.fromkeys(n for graph in graphs.values() for n in graph.captured))
        for name, graph in graphs.items():
            attributes[name] = replace(graph, captured=captured)
        return attributes, captured

    def _subgraph(self, graph: GraphProto, outer: _Scope | None) -> Subgraph:
        """A subgraph, with what it alone captures."""
        around: _Scope = ChainMap() if outer is None else outer
        scope = around.new_child({name: name for name in own_names(graph)})
        check_depth(len(scope.maps) - 1)
        if graph.sparse_initializer:
            raise UnsupportedModelError("sparse initializers are not supported")
        instructions = []
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.STRING:
                instructions.append(_text(tensor, tensor.name))
            else:
                scope[tensor.name] = self._add_constant(tensor.name, tensor_from_proto(tensor))
        for node in graph.node:
            instruction = self.instruction(node, scope)
            plain = instruction.op_type == "Constant" and not instruction.domain
            value = instruction.run({})[0] if plain else None
            if isinstance(value, torch.Tensor):
                name = instruction.outputs[0]
                scope[name] = self._add_constant(name, value)
            else:
                instructions.append(instruction)
        held = {tensor.name for tensor in graph.initializer}
        given = tuple(v.name for v in graph.input if v.name not in held)
        outputs = tuple(scope.get(value.name, value.name) for value in graph.output)
        made = {name for i in instructions for name in i.outputs}.union(given)
        read = dict.fromkeys(name for i in instructions for name in i.inputs)
        read |= dict.fromkeys(outputs)
        return Subgraph(
            inputs=given,
            outputs=outputs,
            captured=tuple(name for name in read if name and name not in made),
            instructions=tuple(instructions),
            empty_results=tuple(_declared(value) for value in graph.output),
            max_steps=self._max_steps,
            max_trips=limits_in_force().trips,
        )

    def _add_constant(self, name: str, value: torch.Tensor) -> str:
        """Add a subgraph's constant to those of the graph; returns its name there."""
        unique = f"{name}/{len(self._taken)}"  # two branches often have constants of one name
        while unique in self._taken:
            unique += "-"
        self._taken.add(unique)
        self._constants[unique] = value
        return unique


def _text(tensor: TensorProto, name: str) -> Instruction:
    """What gives a tensor of texts: constants are numbers only."""
    return Instruction("Constant", "", 13, "", (), (name,), {"value": value_from_proto(tensor)})


def _declared(value: ValueInfoProto) -> EmptyResult | None:
    """The type that a subgraph's output is declared to have, None if it is not there in full."""
    kind = value.type.tensor_type
    if kind.elem_type not in DTYPES or not kind.HasField("shape"):
        return None
    if not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim):
        return None
    return EmptyResult(tuple(dim.dim_value for dim in kind.shape.dim), DTYPES[kind.elem_type])
