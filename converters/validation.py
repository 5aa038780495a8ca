"""What a model file may not be: rules that every honest exporter keeps.

Parsers resolve broken files in different ways (which of two tensors of one name, which of two
versions of one operator set?), so a file that leaves room for that is refused, not repaired.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from converters.errors import ModelFormatError, UnsupportedModelError

_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


@dataclass(frozen=True)
class Limits:
    """What a model file may hold at most.

    Attributes:
        file_bytes: size of the file, and of each external data file, in bytes.
        nodes: nodes of the graph.
        tensor_bytes: declared bytes of all tensors together.
    """

    file_bytes: int = 2**31 - 1
    nodes: int = 100_000
    tensor_bytes: int = 2**33


def validate(model: onnx.ModelProto, limits: Limits) -> None:
    """Refuse what no exporter writes; external data need not be read yet.

    Raises:
        ModelFormatError: with what is wrong and where.
        UnsupportedModelError: sparse weights.
    """
    graph = model.graph
    if not graph.node:
        raise ModelFormatError("not an ONNX model: it has no graph, or a graph without nodes")
    if len(graph.node) > limits.nodes:
        raise ModelFormatError(f"{len(graph.node)} nodes; the limit is {limits.nodes}")
    if not graph.output:
        raise ModelFormatError("the graph has no outputs")
    if graph.sparse_initializer:
        raise UnsupportedModelError("sparse initializers are not supported")
    check_operator_sets(model.opset_import)
    check_texts((model.producer_name, model.producer_version), "the producer")
    _check_names(graph)
    _check_nodes(graph)
    _check_declared_sizes(model, limits)


def all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the model holds, also inside attributes, subgraphs and functions."""
    graphs: list[GraphProto] = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    nodes: list[NodeProto] = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
        for node in nodes:
            for attribute in node.attribute:
                yield from _tensors_of(attribute)
                graphs += _subgraphs(attribute)
        nodes = []


def check_raw_data(model: onnx.ModelProto) -> None:
    """Refuse tensors whose raw data is not exactly as long as their dimensions say.

    Precondition: no external data is left.

    Raises:
        ModelFormatError: naming the tensor.
    """
    for tensor in all_tensors(model):
        if not tensor.HasField("raw_data"):
            continue
        if any(len(getattr(tensor, field)) for field in _TYPED_FIELDS):
            raise ModelFormatError(f"tensor {tensor.name!r} holds its numbers twice")
        held, declared = len(tensor.raw_data), declared_bytes(tensor)
        if held != declared:
            raise ModelFormatError(
                f"tensor {tensor.name!r} declares {declared} bytes and holds {held}"
            )


def declared_bytes(tensor: TensorProto) -> int:
    """The bytes that a tensor's type and dimensions stand for.

    Raises:
        ModelFormatError: unknown data type.
    """
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError as error:
        raise ModelFormatError(
            f"tensor {tensor.name!r} has unknown data type {tensor.data_type}"
        ) from error
    count = int(math.prod(tensor.dims))
    bits = next((b for b in (2, 4) if dtype.itemsize == 1 and f"t{b}" in dtype.name), 8)
    return count * int(dtype.itemsize) if bits == 8 else -(-count * bits // 8)


def tensor_bytes(node: NodeProto) -> int:
    """The declared bytes of the tensors that a node's attributes hold, without its subgraphs."""
    return sum(declared_bytes(t) for a in node.attribute for t in _tensors_of(a))


def _tensors_of(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _subgraphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def check_operator_sets(imports: Iterable[onnx.OperatorSetIdProto]) -> None:
    """Refuse two versions of one operator set, or none at all.

    Raises:
        ModelFormatError: naming the operator set.
    """
    versions: dict[str, int] = {}
    for imported in imports:
        check_texts((imported.domain,), "an operator set's domain")
        domain = "" if imported.domain == "ai.onnx" else imported.domain
        if versions.setdefault(domain, imported.version) != imported.version:
            raise ModelFormatError(f"two versions of operator set {domain or 'ai.onnx'!r}")
    if not versions:
        raise ModelFormatError("the model imports no operator set")


def _check_names(graph: GraphProto) -> None:
    """Names are text, and no two inputs, two outputs or two initializers share one."""
    for what, values in (
        ("inputs", graph.input),
        ("outputs", graph.output),
        ("initializers", graph.initializer),
    ):
        names = [value.name for value in values]
        check_texts(names, f"a name among the {what}")
        if "" in names:
            raise ModelFormatError(f"a name among the {what} is empty")
        if len(set(names)) != len(names):
            raise ModelFormatError(f"two {what} have the same name")


def _check_nodes(graph: GraphProto) -> None:
    """Every tensor is assigned once, every attribute given once, every name is text."""
    assigned = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    check_nodes(graph.node, assigned)


def check_nodes(nodes: Iterable[NodeProto], given: Iterable[str]) -> None:
    """Refuse nodes that assign a tensor twice, or have two attributes of one name.

    Args:
        given: names of the tensors that are there before the nodes run.

    Raises:
        ModelFormatError: naming the tensor or the node.
    """
    assigned = set(given)
    for node in nodes:
        check_texts(
            (node.op_type, node.domain, node.name, node.overload, *node.input, *node.output),
            "a node's name or operator",
        )
        for name in filter(None, node.output):
            if name in assigned:
                raise ModelFormatError(f"tensor {name!r} is assigned more than once")
            assigned.add(name)
        attributes = [attribute.name for attribute in node.attribute]
        check_texts(attributes, "an attribute's name")
        if len(set(attributes)) != len(attributes):
            raise ModelFormatError(f"node {node.name!r} has two attributes of the same name")


def check_texts(texts: Iterable[object], what: str) -> None:
    """Refuse text that is not valid UTF-8, which protobuf hands out as bytes.

    Raises:
        ModelFormatError: saying what it is.
    """
    if not all(isinstance(text, str) for text in texts):
        raise ModelFormatError(f"{what} is not valid UTF-8")


def _check_declared_sizes(model: onnx.ModelProto, limits: Limits) -> None:
    total = 0
    for tensor in all_tensors(model):
        check_texts((tensor.name,), "a tensor's name")
        if any(dim < 0 for dim in tensor.dims):
            raise ModelFormatError(f"tensor {tensor.name!r} has a negative dimension")
        total += declared_bytes(tensor)
    if total > limits.tensor_bytes:
        raise ModelFormatError(f"{total} bytes of tensors; the limit is {limits.tensor_bytes}")
