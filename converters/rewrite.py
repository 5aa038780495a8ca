"""Passes over a validated ModelProto. Each changes the model in place and says what it needs.

`converters.onnx_classifier` runs them on a copy of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import TypeVar

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from converters.errors import ModelFormatError, NotAnImageClassifierError

_Message = TypeVar("_Message", NodeProto, ValueInfoProto)

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

    Raises:
        ModelFormatError: a cycle, or a tensor that nothing computes.
    """
    graph = model.graph
    known = {v.name for v in graph.input} | {t.name for t in graph.initializer} | {""}
    made = known | {name for node in graph.node for name in node.output}
    for value in (*(name for node in graph.node for name in node.input), *_names(graph.output)):
        if value not in made:
            raise ModelFormatError(f"nothing computes tensor {value!r}")
    order = _topological_order(graph.node, known)
    if len(order) < len(graph.node):
        stuck = min(set(range(len(graph.node))) - set(order))
        name = next(filter(None, graph.node[stuck].output), "")
        raise ModelFormatError(f"tensor {name!r} is part of a cycle, or depends on one")
    if order != list(range(len(order))):
        _replace_nodes(model, [graph.node[i] for i in order])


def _topological_order(nodes: Sequence[NodeProto], known: set[str]) -> list[int]:
    """Indices of all nodes that can be run, each after what it reads, otherwise as they were."""
    waiting: dict[str, list[int]] = {}
    missing = []
    for index, node in enumerate(nodes):
        unknown = set(node.input) - known
        missing.append(len(unknown))
        for name in unknown:
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
    kept = [_copied(value) for value in graph_inputs(model)]
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
    needed, nodes = {name}, []
    for node in reversed(model.graph.node):
        if needed.intersection(filter(None, node.output)):
            needed.update(node.input)
            nodes.append(node)
    if len(nodes) < len(model.graph.node):
        _replace_nodes(model, nodes[::-1])


def find_logits(model: onnx.ModelProto, output: str) -> tuple[str, str]:
    """The tensor that may hold the logits of `output`, and what the graph does to it in the end.

    Walks back from `output` over operators that only rearrange, to a final Softmax or Sigmoid, and
    returns its input. LogSoftmax counts as logits: it differs from them by a constant per image.

    Precondition: topological order. The caller must prove the result by numbers: whether the
    Softmax runs over the classes depends on shapes.

    Returns:
        (tensor name, one of "softmax", "sigmoid", "none").
    """
    producer = {name: node for node in model.graph.node for name in node.output if name}
    node = producer.get(output)
    while node is not None and node.input and node.op_type in _PASS_THROUGH:
        node = producer.get(node.input[0])
    if node is not None and node.input and node.op_type in ("Softmax", "Sigmoid"):
        return node.input[0], node.op_type.lower()
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


def _replace_nodes(model: onnx.ModelProto, nodes: Iterable[NodeProto]) -> None:
    copies = [_copied(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _copied(message: _Message) -> _Message:
    """A message that outlives the list that holds it now."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
