"""Names in graphs and in the graphs inside of them: each is text, assigned once, and computed.

Graphs of If, Loop and Scan see the names of the graphs around them.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, NodeProto, TensorProto

from converters.errors import ModelFormatError, UnsupportedModelError
from converters.held_tensors import subgraphs_of


@dataclass
class Scope:
    """One walk over a graph, what is known at the place where it is, and what was counted.

    Attributes:
        depth, trips: limits, see `Limits`.
        outside: for each graph around the present one, the names that it assigns at any time, and
            those that it has assigned so far.
        constants: integers of one entry that the graphs hold, by name.
        nodes, initializers: how many there were in all graphs.
    """

    depth: int
    trips: int
    outside: list[tuple[set[str], set[str]]] = field(default_factory=list)
    constants: dict[str, int] = field(default_factory=dict)
    nodes: int = 0
    initializers: int = 0

    def check_graph(self, graph: GraphProto) -> set[str]:
        """Check a graph; return the names that it reads from the graphs around it.

        Raises:
            ModelFormatError: naming the tensor or the node.
            UnsupportedModelError: sparse weights.
        """
        if len(self.outside) > self.depth:
            raise ModelFormatError(f"graphs lie more than {self.depth} deep", "too_deep")
        if graph.sparse_initializer:
            raise UnsupportedModelError("sparse initializers are not supported")
        given: set[str] = set()
        for what, values in (
            ("inputs", graph.input),
            ("outputs", graph.output),
            ("initializers", graph.initializer),
        ):
            names = [value.name for value in values]
            check_texts(names, f"a name among the {what}")
            if "" in names:
                raise ModelFormatError(f"a name among the {what} is empty", "invalid_text")
            # A graph inside of another may return one tensor twice; a model would be ambiguous.
            if len(set(names)) != len(names) and (what != "outputs" or not self.outside):
                raise ModelFormatError(f"two {what} have the same name", "ambiguous")
            given.update(names if what != "outputs" else ())
        self.initializers += len(graph.initializer)
        self.constants |= {t.name: _integer(t) for t in graph.initializer if _is_integer(t)}
        return check_body(graph.node, given, [value.name for value in graph.output], self)

    def check_trips(self, node: NodeProto) -> None:
        """Refuse a Loop that nothing but a constant number of trips ends, if that is too great."""
        if node.op_type != "Loop" or node.domain not in ("", "ai.onnx") or not node.input:
            return
        count = self.constants.get(node.input[0], 0)
        unconditional = len(node.input) < 2 or not node.input[1]
        if unconditional and count > self.trips:
            raise ModelFormatError(
                f"node {node.name!r} (Loop) makes {count} trips; the limit is {self.trips}",
                "trip_count",
            )


def check_body(
    nodes: Sequence[NodeProto], given: set[str], outputs: Iterable[str], scope: Scope
) -> set[str]:
    """Check the nodes of a graph or of a function.

    Args:
        given: names that are there before the nodes run.
        outputs: names that must be there in the end.

    Returns:
        The names that the nodes read from the graphs around them.

    Raises:
        ModelFormatError: naming the tensor or the node.
    """
    made = given | {name for node in nodes for name in node.output if name}
    assigned = set(given)
    free: set[str] = set()
    reads: list[set[str]] = []
    ordered = True
    scope.nodes += len(nodes)
    scope.outside.append((made, assigned))
    for node in nodes:
        _check_node_texts(node)
        scope.constants |= _constant(node)
        scope.check_trips(node)
        read = {name for name in node.input if name}
        for attribute in node.attribute:
            for graph in subgraphs_of(attribute):
                read |= scope.check_graph(graph)
        ordered &= read <= assigned
        reads.append(read)
        for name in filter(None, node.output):
            if any(name in before for _, before in scope.outside):
                raise ModelFormatError(
                    f"tensor {name!r} is assigned more than once", "duplicate_assignment"
                )
            assigned.add(name)
    scope.outside.pop()
    for name in (*(n for read in reads for n in read - made), *(n for n in outputs if n)):
        if name in made:
            continue
        if not any(name in names for names, _ in scope.outside):
            raise ModelFormatError(f"nothing computes tensor {name!r}", "missing_tensor")
        free.add(name)
    if not ordered:
        _check_order(nodes, reads)
    return free


def _check_order(nodes: Sequence[NodeProto], reads: Sequence[set[str]]) -> None:
    """Refuse nodes that can't be put into an order."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    order = graphlib.TopologicalSorter(
        {i: {maker[name] for name in read if name in maker} for i, read in enumerate(reads)}
    )
    try:
        order.prepare()
    except graphlib.CycleError as error:
        name = next(filter(None, nodes[error.args[1][0]].output), "")
        raise ModelFormatError(f"tensor {name!r} is part of a cycle", "cycle") from None


def check_texts(texts: Iterable[object], what: str) -> None:
    """Refuse text that is not valid UTF-8, which protobuf hands out as bytes.

    Raises:
        ModelFormatError: saying what it is.
    """
    if not all(isinstance(text, str) for text in texts):
        raise ModelFormatError(f"{what} is not valid UTF-8", "invalid_text")


def _check_node_texts(node: NodeProto) -> None:
    check_texts(
        (node.op_type, node.domain, node.name, node.overload, *node.input, *node.output),
        "a node's name or operator",
    )
    names = [attribute.name for attribute in node.attribute]
    check_texts(names, "an attribute's name")
    if len(set(names)) != len(names):
        raise ModelFormatError(
            f"node {node.name!r} has two attributes of the same name", "ambiguous"
        )
    if any(a.HasField("sparse_tensor") or a.sparse_tensors for a in node.attribute):
        raise UnsupportedModelError(f"node {node.name!r} holds a sparse tensor")


def _constant(node: NodeProto) -> dict[str, int]:
    """The integer that a Constant node gives, by the name of its output."""
    if node.op_type != "Constant" or len(node.output) != 1 or len(node.attribute) != 1:
        return {}
    value = node.attribute[0]
    if value.name == "value_int":
        return {node.output[0]: value.i}
    if value.name == "value" and value.HasField("t") and _is_integer(value.t):
        return {node.output[0]: _integer(value.t)}
    return {}


def _is_integer(tensor: TensorProto) -> bool:
    one = len(tensor.dims) == 0 or list(tensor.dims) == [1]
    held = len(tensor.raw_data) == 8 or len(tensor.int64_data) == 1
    return tensor.data_type == TensorProto.INT64 and one and held


def _integer(tensor: TensorProto) -> int:
    # Not by onnx's own reader, which would open the file of external data.
    if tensor.int64_data:
        return int(tensor.int64_data[0])
    return int.from_bytes(tensor.raw_data, "little", signed=True)
