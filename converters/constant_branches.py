"""An If whose condition no input influences is replaced by the branch that it always takes.

So what the branch does is open to all later passes, as if the If were not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper

from converters.errors import UnsupportedModelError
from converters.folding import fold_constants, unused_name
from converters.graph_builder import build_instructions
from converters.registry import normal_domain
from converters.subgraph import (
    all_nodes,
    limits_in_force,
    names_read,
    own_names,
    subgraphs_of,
)


def inline_constant_branches(model: onnx.ModelProto) -> None:
    """Replace each such If of the outermost graph, in place.

    Precondition: topological order; functions are inlined.
    """
    for _ in range(limits_in_force().depth):  # a branch may hold further ones
        taken = _branches_taken(model)
        if not taken:
            return
        _inline(model, taken)


def _branches_taken(model: onnx.ModelProto) -> dict[str, GraphProto]:
    """The branch that each If with a constant condition takes, by the name of its first output."""
    conditional = [node for node in model.graph.node if _is_if(node)]
    values = _constants(model, {node.input[0] for node in conditional}) if conditional else {}
    branches = {}
    for node in conditional:
        value = values.get(node.input[0])
        graphs = {a.name: a.g for a in node.attribute}
        if value is None or value.numel() != 1 or value.dtype != torch.bool:
            continue
        branch = graphs["then_branch" if value.item() else "else_branch"]
        if len(branch.output) == len(node.output) and not branch.sparse_initializer:
            branches[node.output[0]] = branch
    return branches


def _is_if(node: NodeProto) -> bool:
    return (
        node.op_type == "If"
        and not normal_domain(node.domain)
        and len(node.input) == 1
        and len(node.output) > 0
        and node.output[0] != ""
        and sorted(a.name for a in node.attribute if a.HasField("g"))
        == ["else_branch", "then_branch"]
    )


def _constants(model: onnx.ModelProto, wanted: set[str]) -> Mapping[str, torch.Tensor]:
    """The values of those wanted tensors, and some others, that no input influences."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    constant = {*initializers, ""}
    nodes = []
    for node in model.graph.node:
        if constant.issuperset(names_read(node)):
            constant.update(node.output)
            nodes.append(node)
    needed, steps = wanted & constant, []
    for node in reversed(nodes):
        if needed.intersection(filter(None, node.output)):
            needed.update(names_read(node))
            steps.append(node)
    part = onnx.ModelProto(opset_import=model.opset_import)
    part.graph.node.extend(reversed(steps))
    part.graph.initializer.extend(initializers[n] for n in sorted(needed & initializers.keys()))
    try:
        instructions, values = build_instructions(part)
        return fold_constants(instructions, values)[1]
    except UnsupportedModelError:
        return {}  # whoever reads the whole graph will say so


def _inline(model: onnx.ModelProto, branches: Mapping[str, GraphProto]) -> None:
    graph = model.graph
    inside = [g for node in all_nodes(graph.node) for g in subgraphs_of(node)]
    taken = own_names(graph).union(*(own_names(g) for g in inside))
    nodes: list[NodeProto] = []
    initializers: list[TensorProto] = []
    for node in graph.node:
        branch = branches.get(node.output[0]) if node.output else None
        if branch is None:
            nodes.append(_copy(node))
            continue
        names = {}
        for name in sorted(own_names(branch) - {""}):
            names[name] = unused_name(f"{node.output[0]}/{name}", taken)
            taken.add(names[name])
        for tensor in branch.initializer:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            copy.name = names[tensor.name]
            initializers.append(copy)
        nodes += [_renamed(inner, names) for inner in branch.node]
        for value, result in zip(branch.output, node.output, strict=True):
            source = names.get(value.name, value.name)
            nodes += [helper.make_node("Identity", [source], [result])] if result else []
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """A copy of a node, and of its subgraphs, that calls tensors otherwise."""
    copy = _copy(node)
    _rename_all([copy], names)
    return copy


def _rename_all(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for graph in subgraphs_of(node):
            own = own_names(graph)
            outer = {name: new for name, new in names.items() if name not in own}
            _rename_all(graph.node, outer)
            for value in graph.output:
                value.name = outer.get(value.name, value.name)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
