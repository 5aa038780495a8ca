"""What a model file may not be: rules that every honest exporter keeps.

Parsers resolve broken files in different ways (which of two tensors of one name, which of two
versions of one operator set?), so a file that leaves room for that is refused, not repaired.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import GraphProto, NodeProto

from converters.errors import FormatReason, ModelFormatError, NotAnImageClassifierError
from converters.held_tensors import all_tensors, declared_bytes, tensors_of
from converters.scopes import Scope, check_body, check_texts

__all__ = ["Limits", "check_nodes", "check_operator_sets", "check_texts", "tensor_bytes"]

PROOF_IMAGES = 3
"""How many images a model is run on at least, when it is prepared."""

_BATCH_IMAGES = 16  # of the largest size
_MAX_OPSET = 1_000  # versions are two-digit numbers


@dataclass(frozen=True)
class Limits:
    """What a model file may hold and ask for at most.

    Attributes:
        file_bytes: size of the file, and of each external data file, in bytes.
        nodes: nodes of the graph, of its subgraphs and of functions wherever they are called.
        initializers: weights by name, in the graph and its subgraphs.
        outputs: outputs of the graph.
        input_batch: the batch size that an input declares.
        input_numbers: numbers of one image of an input, as it declares them; a batch may have 16
            times as many.
        tensor_bytes: declared bytes of all tensors together.
        depth: how deep graphs lie in one another (the bodies of If, Loop and Scan).
        trips: how often a Loop or a Scan runs its body.
        computed_bytes: what is computed from constants, or by a run over an image or a few, and
            held at once (see `converters.budget`).
        work: multiply-adds of all that is computed to prepare a model, about ten images' runs; a
            file of few weights may use a sixteenth.
    """

    file_bytes: int = 2**31 - 1
    nodes: int = 100_000
    initializers: int = 100_000
    outputs: int = 100
    input_batch: int = 1024
    input_numbers: int = 2**22
    tensor_bytes: int = 2**33
    depth: int = 16
    trips: int = 1_000
    computed_bytes: int = 2**28
    work: int = 2**40


def validate(model: onnx.ModelProto, limits: Limits) -> None:
    """Refuse what no exporter writes; external data need not be read yet.

    Raises:
        ModelFormatError: with what is wrong and where.
        NotAnImageClassifierError: an input that is too large for images.
        UnsupportedModelError: sparse weights.
    """
    graph = model.graph
    if not graph.node:
        raise ModelFormatError(
            "not an ONNX model: it has no graph, or a graph without nodes", "incomplete"
        )
    _check_count("nodes", len(graph.node), limits.nodes, "too_many_nodes")
    if not graph.output:
        raise ModelFormatError("the graph has no outputs", "incomplete")
    _check_count("outputs", len(graph.output), limits.outputs, "too_many_outputs")
    check_operator_sets(model.opset_import)
    check_texts((model.producer_name, model.producer_version, graph.name), "the producer")
    _check_declared_sizes(model, limits)
    _check_graph(graph, limits)
    _check_inputs(graph, limits)


def tensor_bytes(node: NodeProto) -> int:
    """The declared bytes of the tensors that a node's attributes hold, without its subgraphs."""
    return sum(declared_bytes(t) for a in node.attribute for t in tensors_of(a))


def check_operator_sets(imports: Iterable[onnx.OperatorSetIdProto]) -> None:
    """Refuse two versions of one operator set, or none at all.

    Raises:
        ModelFormatError: naming the operator set.
    """
    versions: dict[str, int] = {}
    for imported in imports:
        check_texts((imported.domain,), "an operator set's domain")
        domain = "" if imported.domain == "ai.onnx" else imported.domain
        name = domain or "ai.onnx"
        if versions.setdefault(domain, imported.version) != imported.version:
            raise ModelFormatError(f"two versions of operator set {name!r}", "ambiguous")
        if not 0 < imported.version <= _MAX_OPSET:
            raise ModelFormatError(f"operator set {name!r} has version {imported.version}")
    if not versions:
        raise ModelFormatError("the model imports no operator set", "incomplete")


def check_nodes(
    nodes: Iterable[NodeProto],
    given: Iterable[str],
    limits: Limits | None = None,
    outputs: Iterable[str] = (),
) -> None:
    """Refuse nodes that assign a tensor twice, read what nothing computes, or run in circles.

    Args:
        given: names of the tensors that are there before the nodes run.
        outputs: names that must be there in the end.

    Raises:
        ModelFormatError: naming the tensor or the node.
    """
    limits = limits or Limits()
    check_body(list(nodes), set(given), outputs, Scope(limits.depth, limits.trips))


def _check_graph(graph: GraphProto, limits: Limits) -> None:
    """Names, nodes and weights of the graph and of the graphs inside of it."""
    scope = Scope(limits.depth, limits.trips)
    scope.check_graph(graph)
    _check_count("nodes", scope.nodes, limits.nodes, "too_many_nodes")
    _check_count("initializers", scope.initializers, limits.initializers, "too_many_initializers")


def _check_inputs(graph: GraphProto, limits: Limits) -> None:
    """Inputs are filled with images before anything else is known of the model."""
    held = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in held:
            continue
        batch, *sizes = [max(d.dim_value, 1) for d in value.type.tensor_type.shape.dim] or [1]
        image, limit = math.prod(sizes), limits.input_numbers
        if batch > limits.input_batch or image > limit or batch * image > _BATCH_IMAGES * limit:
            raise NotAnImageClassifierError(
                f"input {value.name!r} is too large: {[batch, *sizes]}", "input_too_large"
            )


def _check_count(what: str, count: int, limit: int, reason: FormatReason) -> None:
    if count > limit:
        raise ModelFormatError(f"{count} {what}; the limit is {limit}", reason)


def _check_declared_sizes(model: onnx.ModelProto, limits: Limits) -> None:
    total = 0
    for tensor in all_tensors(model):
        check_texts((tensor.name,), "a tensor's name")
        if any(dim < 0 for dim in tensor.dims):
            raise ModelFormatError(
                f"tensor {tensor.name!r} has a negative dimension", "negative_dimension"
            )
        total += declared_bytes(tensor)
    if total > limits.tensor_bytes:
        raise ModelFormatError(
            f"{total} bytes of tensors; the limit is {limits.tensor_bytes}", "weights_too_large"
        )
