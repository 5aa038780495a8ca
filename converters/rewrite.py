"""Passes over a validated ModelProto. Each changes the model in place and says what it needs.

`converters.prepare` runs them on a copy of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import TypeVar

import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from converters.errors import ModelFormatError, NotAnImageClassifierError
from converters.subgraph import check_depth, names_read, subgraphs_of

_Message = TypeVar("_Message", onnx.ModelProto, NodeProto, ValueInfoProto)

MAX_IR_VERSION = 13  # what ONNX Runtime 1.31 reads; the IR versions up to 14 only add data types
_INITIALIZERS_ARE_NO_INPUTS = 4  # the first IR version in which inputs need not list them

# Operators between a final Softmax and the graph's output that don't change which class wins.
_PASS_THROUGH = {"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout"}


def graph_inputs(model: onnx.ModelProto) -> list[ValueInfoProto]:
    """The inputs that a caller feeds: IR version 3 lists initializers among the inputs too."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in initializers]


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes in topological order (some optimisers write them in any order).

    Those of subgraphs too, and a subgraph's node comes after what is read within it.

    Raises:
        ModelFormatError: a cycle, or a tensor that nothing computes; subgraphs that are nested too
            deep.
    """
    _sort_graph(model.graph, ())


def _sort_graph(graph: GraphProto, outer: tuple[set[str], ...]) -> None:
    """`outer`: the tensors known around this graph, by graph from the outermost inwards."""
    check_depth(len(outer))
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {""}
    made = known.copy()
    if not _is_sorted(graph.node, made, outer):
        _sort(graph, known, outer)
        made.update(*(node.output for node in graph.node))
    for value in graph.output:
        if value.name not in made and not _is_known(value.name, outer):
            raise ModelFormatError(f"nothing computes tensor {value.name!r}", "missing_tensor")
    if any(len(node.attribute) and subgraphs_of(node) for node in graph.node):
        for node in graph.node:
            for inner in subgraphs_of(node):
                _sort_graph(inner, (*outer, known))
            known.update(node.output)


def _is_sorted(nodes: Iterable[NodeProto], known: set[str], outer: tuple[set[str], ...]) -> bool:
    """Whether each node comes after what it reads; `known` is filled up."""
    for node in nodes:
        names = names_read(node)
        if not known.issuperset(names) and not all(
            n in known or _is_known(n, outer) for n in names
        ):
            return False
        known.update(node.output)
    return True


def _is_known(name: str, outer: tuple[set[str], ...]) -> bool:
    return any(name in names for names in outer)


def _sort(graph: GraphProto, known: set[str], outer: tuple[set[str], ...]) -> None:
    """Put one graph's nodes in topological order; `known` are its inputs and initializers."""
    reads = [{name for name in names_read(node) if name not in known} for node in graph.node]
    made = {name for node in graph.node for name in node.output}
    for names in reads:
        for name in [name for name in names if name not in made]:
            if not _is_known(name, outer):
                raise ModelFormatError(f"nothing computes tensor {name!r}", "missing_tensor")
            names.remove(name)
    order = _topological_order(graph.node, reads)
    if len(order) < len(graph.node):
        stuck = min(set(range(len(graph.node))) - set(order))
        name = next(filter(None, graph.node[stuck].output), "")
        raise ModelFormatError(f"tensor {name!r} is part of a cycle, or depends on one", "cycle")
    _replace_nodes(graph, [graph.node[i] for i in order])


def _topological_order(nodes: Sequence[NodeProto], reads: Sequence[set[str]]) -> list[int]:
    """Indices of all nodes that can be run, each after what it reads, otherwise as they were.

    Args:
        reads: for each node the tensors of other nodes that it reads.
    """
    waiting: dict[str, list[int]] = {}
    missing = [len(names) for names in reads]
    for index, names in enumerate(reads):
        for name in names:
            waiting.setdefault(name, []).append(index)
    ready = [index for index, count in enumerate(missing) if count == 0]  # a heap: it is sorted
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for name in nodes[index].output:
            for reader in waiting.pop(name, []):
                missing[reader] -= 1
                if missing[reader] == 0:
                    heapq.heappush(ready, reader)
    return order


def clamp_ir_version(model: onnx.ModelProto) -> None:
    """Label the model with an IR version that ONNX Runtime reads."""
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)


def drop_initializers_from_inputs(model: onnx.ModelProto) -> None:
    """List only what a caller feeds as inputs, so that engines may fold the initializers."""
    kept = [copied(value) for value in graph_inputs(model)]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, _INITIALIZERS_ARE_NO_INPUTS)


def keep_output(model: onnx.ModelProto, name: str) -> None:
    """Drop the other outputs, and the nodes that only they need.

    Precondition: topological order.

    Raises:
        NotAnImageClassifierError: no output of that name.
    """
    names = _names(model.graph.output)
    if name not in names:
        raise NotAnImageClassifierError(f"no output {name!r}; the graph has: {', '.join(names)}")
    set_outputs(model, (name,))
    drop_unneeded_nodes(model)


def drop_unneeded_nodes(model: onnx.ModelProto) -> None:
    """Drop the nodes that no output needs. Precondition: topological order."""
    needed, nodes = set(_names(model.graph.output)), []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(filter(None, names_read(node)))
            nodes.append(node)
    if len(nodes) < len(model.graph.node):
        _replace_nodes(model.graph, nodes[::-1])


def find_logits(model: onnx.ModelProto, output: str) -> tuple[str, str]:
    """The tensor that may hold the logits of `output`, and what the graph does to it in the end.

    Walks back from `output` over operators that only rearrange, to a final Softmax or Sigmoid, and
    returns its input. LogSoftmax counts as logits: it differs from them by a constant per image.

    Precondition: topological order. The caller must prove the result by numbers: whether the
    Softmax runs over the classes depends on shapes.

    Returns:
        (tensor name, one of "softmax", "sigmoid", "none").
    """
    name = output
    for node in reversed(model.graph.node):
        if name not in node.output:
            continue
        if node.op_type in ("Softmax", "Sigmoid") and node.input:
            return node.input[0], node.op_type.lower()
        if node.op_type not in _PASS_THROUGH or not node.input:
            break
        name = node.input[0]
    return output, "none"


def set_outputs(model: onnx.ModelProto, names: tuple[str, ...]) -> None:
    """Make `names` the graph's outputs, of whatever type and shape they turn out to have."""
    del model.graph.output[:]
    model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names))
    del model.graph.value_info[:]


def set_input_shape(model: onnx.ModelProto, shape: tuple[int | str, ...]) -> None:
    """Declare the first input's shape; a text is a free dimension of that name."""
    value = graph_inputs(model)[0]
    elem_type = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(value.name, elem_type, shape))
    del model.graph.value_info[:]


def is_float(elem_type: int) -> bool:
    """Whether an ONNX element type is a floating-point number that images can be fed as."""
    return elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _names(values: Iterable[ValueInfoProto]) -> list[str]:
    return [value.name for value in values]


def _replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    copies = [copied(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def copied(message: _Message) -> _Message:
    """A message that outlives the list that holds it now."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
