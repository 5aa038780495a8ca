"""Models exported while they were trained: inference semantics instead, in both engines.

In training mode BatchNormalization normalizes by the batch at hand and Dropout drops at random;
then an image's class depends on its neighbours or on chance, and a scan of it means nothing. A
classifier is deployed for inference, so that is what is scanned. But a vendor could hide a network
in the difference: `parity` compares what batch statistics give with what is scanned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from converters.registry import normal_domain

_MODE_SINCE = 14  # from here BatchNormalization has the attribute training_mode
_TEST_FLAG_UNTIL = 6  # up to here BatchNormalization and Dropout have is_test
_DROPOUT_INPUT_SINCE = 12  # from here Dropout has the input training_mode
_STATISTICS_BEFORE_14 = 4  # further outputs that meant training mode, from 7 to 13


class Forced(NamedTuple):
    """What was in training mode.

    Attributes:
        normalizations: first outputs of the BatchNormalization nodes.
        dropouts: first outputs of the Dropout nodes.
    """

    normalizations: frozenset[str] = frozenset()
    dropouts: frozenset[str] = frozenset()

    def describe(self) -> str:
        """In words, empty if there was nothing."""
        kinds = (("BatchNormalization", self.normalizations), ("Dropout", self.dropouts))
        found = [f"{len(names)} {kind}" for kind, names in kinds if names]
        return f"{' and '.join(found)} in training mode: inference forced" if found else ""


def force_inference(model: onnx.ModelProto) -> Forced:
    """Take BatchNormalization and Dropout out of training mode, in place, in subgraphs too.

    The running statistics that a training BatchNormalization gives become the ones that it is
    given. A Dropout whose mode is computed, or is an input, counts as training.
    """
    opset = _opset(model)
    normalizations: set[str] = set()
    dropouts: set[str] = set()
    for graph in _graphs(model.graph):
        false = _false_constants(graph)
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes.append(node)
            if normal_domain(node.domain) or not node.output:
                continue
            if node.op_type == "BatchNormalization" and _normalizes_by_batch(node, opset):
                normalizations.add(node.output[0])
                nodes += _use_given_statistics(node, opset)
            elif node.op_type == "Dropout" and _drops(node, opset, false):
                dropouts.add(node.output[0])
                _stop_dropping(node, opset)
        if len(nodes) > len(graph.node):
            copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
            del graph.node[:]
            graph.node.extend(copies)
    return Forced(frozenset(normalizations), frozenset(dropouts))


def use_batch_statistics(model: onnx.ModelProto, names: frozenset[str]) -> None:
    """Put BatchNormalization nodes back into training mode, in place.

    Args:
        names: their first outputs. Precondition: operator set 7 or later.
    """
    opset = _opset(model)
    for graph in _graphs(model.graph):
        for node in graph.node:
            if node.op_type != "BatchNormalization" or node.output[0] not in names:
                continue
            count = 2 if opset >= _MODE_SINCE else _STATISTICS_BEFORE_14
            node.output.extend(f"{node.output[0]}/statistics_{i}" for i in range(count))
            if opset >= _MODE_SINCE:
                node.attribute.append(helper.make_attribute("training_mode", 1))


def _opset(model: onnx.ModelProto) -> int:
    return max((o.version for o in model.opset_import if not normal_domain(o.domain)), default=0)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its nodes."""
    waiting = [graph]
    while waiting:
        current = waiting.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.type == AttributeProto.GRAPH else []
                waiting += attribute.graphs


def _normalizes_by_batch(node: NodeProto, opset: int) -> bool:
    if opset >= _MODE_SINCE:
        return bool(_integer(node, "training_mode"))
    if opset <= _TEST_FLAG_UNTIL:
        return not _integer(node, "is_test")
    return any(node.output[1:])


def _use_given_statistics(node: NodeProto, opset: int) -> list[NodeProto]:
    """Force the node, and give the nodes that pass the given statistics on in its stead."""
    _drop_attribute(node, "training_mode")
    if opset <= _TEST_FLAG_UNTIL:
        _drop_attribute(node, "is_test")
        node.attribute.append(helper.make_attribute("is_test", 1))
    further = list(node.output[1:])
    del node.output[1:]
    given = list(node.input[3:5])  # mean and variance; saved ones come after them
    return [
        helper.make_node("Identity", [given[index % 2]], [name])
        for index, name in enumerate(further)
        if name and len(given) == 2
    ]


def _drops(node: NodeProto, opset: int, false: set[str]) -> bool:
    if opset <= _TEST_FLAG_UNTIL:
        return not _integer(node, "is_test")
    mode = node.input[2] if len(node.input) > 2 else ""
    return opset >= _DROPOUT_INPUT_SINCE and mode != "" and mode not in false


def _stop_dropping(node: NodeProto, opset: int) -> None:
    if opset <= _TEST_FLAG_UNTIL:
        _drop_attribute(node, "is_test")
        node.attribute.append(helper.make_attribute("is_test", 1))
    else:
        del node.input[2:]


def _false_constants(graph: GraphProto) -> set[str]:
    """Tensors of the graph that hold one number, 0."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            tensors |= dict.fromkeys(node.output, _attribute_tensor(node))
    return {
        name
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.BOOL
        and list(tensor.dims) in ([], [1])
        and not numpy_helper.to_array(tensor).any()
    }


def _attribute_tensor(node: NodeProto) -> TensorProto:
    return next((a.t for a in node.attribute if a.name == "value"), TensorProto())


def _integer(node: NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _drop_attribute(node: NodeProto, name: str) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            node.attribute.remove(attribute)
            return
