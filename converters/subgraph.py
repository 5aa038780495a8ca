"""Graphs within graphs: the branches of If and the bodies of Loop and Scan.

A subgraph sees the tensors of the graphs around it by their names. Here they are named as what
they are, inputs: `Subgraph.captured` lists them, and the instruction that holds the subgraph reads
them like any other. So whatever sorts, folds or frees tensors need not look inside.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from onnx import AttributeProto, GraphProto, NodeProto

from converters.errors import ModelFormatError
from converters.instructions import Instruction
from converters.validation import Limits
from converters.values import Value

MAX_STEPS = 100_000  # instructions that all loops of a graph may run together, in one run

_DEFAULT = Limits()
_limits: ContextVar[Limits] = ContextVar("limits", default=_DEFAULT)
_steps_left: ContextVar[int | None] = ContextVar("steps_left", default=None)


class EmptyResult(NamedTuple):
    """The declared type of one trip's result, for a loop that makes no trip."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Subgraph:
    """A graph inside of an operator, ready to run.

    Attributes:
        inputs, outputs: names within the subgraph.
        captured: names of the outer tensors that the node's subgraphs read; the same for all of a
            node's subgraphs. They are the node's last inputs, in this order.
        instructions: in topological order.
        empty_results: for each output its declared type, None where it is not declared in full.
        max_steps: how many instructions one call of the node may run.
        max_trips: how often a loop may run the subgraph.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    instructions: tuple[Instruction, ...]
    empty_results: tuple[EmptyResult | None, ...]
    max_steps: int
    max_trips: int

    @functools.cached_property
    def steps(self) -> tuple[tuple[Instruction, tuple[str, ...]], ...]:
        """The instructions that an output needs, each with the tensors nobody reads after it."""
        read = set(self.outputs)
        steps = []
        for instruction in reversed(self.instructions):
            made = {name for name in instruction.outputs if name}
            if made & read:
                here = (made | set(instruction.inputs)) - read - set(self.captured) - {""}
                steps.append((instruction, tuple(sorted(here))))
                read |= here
        return tuple(reversed(steps))

    def split(self, given: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """A node's inputs as (those that the file lists, those captured)."""
        own = len(given) - len(self.captured)
        return list(given[:own]), list(given[own:])

    def run(self, inputs: Sequence[Value], captured: Sequence[Value]) -> tuple[Value, ...]:
        """The outputs.

        Raises:
            ValueError: another number of inputs than the subgraph has.
            ModelFormatError: see `counted_steps`.
            UnsupportedModelError: see `Instruction.run`.
        """
        _count(len(self.steps) + 1)
        if len(inputs) != len(self.inputs):
            raise ValueError(f"a subgraph of {len(self.inputs)} inputs is given {len(inputs)}")
        values = dict(zip(self.captured, captured, strict=True))
        values.update(zip(self.inputs, inputs, strict=True))
        for instruction, last_used in self.steps:
            results = instruction.run(values)
            values.update((n, r) for n, r in zip(instruction.outputs, results, strict=False) if n)
            for name in last_used:
                del values[name]
        return tuple(values[name] for name in self.outputs)


@contextlib.contextmanager
def within_limits(limits: Limits) -> Iterator[None]:
    """Let graphs that are built in here keep these limits: `depth` now, `trips` at every run."""
    token = _limits.set(limits)
    try:
        yield
    finally:
        _limits.reset(token)


def limits_in_force() -> Limits:
    """Those of the innermost `within_limits`, the default ones outside of any."""
    return _limits.get()


@contextlib.contextmanager
def counted_steps(limit: int) -> Iterator[None]:
    """Let what is run in here run so many instructions, loops within loops together.

    Within another such block that one's limit holds, so that a loop of loops is bounded too.

    Raises:
        ModelFormatError: from `Subgraph.run`, over the limit.
    """
    if _steps_left.get() is not None:
        yield
        return
    token = _steps_left.set(limit)
    try:
        yield
    finally:
        _steps_left.reset(token)


def _count(steps: int) -> None:
    left = _steps_left.get()
    if left is None:
        return
    if left < steps:
        raise ModelFormatError(
            "a loop, with the loops in it, runs too many operators", "too_much_work"
        )
    _steps_left.set(left - steps)


def subgraphs_of(node: NodeProto) -> list[GraphProto]:
    """The graphs that a node's attributes hold."""
    graphs: list[GraphProto] = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            graphs.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            graphs += attribute.graphs
    return graphs


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if len(node.attribute):
            for graph in subgraphs_of(node):
                waiting += graph.node


def own_names(graph: GraphProto) -> set[str]:
    """The tensors that a graph defines itself: inputs, initializers and what its nodes compute."""
    names = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    return names | {name for node in graph.node for name in node.output}


def names_read(node: NodeProto) -> list[str]:
    """The tensors of its graph that a node reads, be it from within its subgraphs.

    Absent optional inputs have the name ''.

    Raises:
        ModelFormatError: subgraphs that are nested too deep.
    """
    names = list(node.input)
    if len(node.attribute):
        for graph in subgraphs_of(node):
            names += _names_from_outside(graph, 1)
    return names


def _names_from_outside(graph: GraphProto, depth: int) -> set[str]:
    check_depth(depth)
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for inner in subgraphs_of(node):
            names |= _names_from_outside(inner, depth + 1)
    return names - own_names(graph) - {""}


def check_depth(depth: int) -> None:
    """Refuse subgraphs that are nested too deep; the outermost graph has depth 0.

    Raises:
        ModelFormatError: they are.
    """
    limit = limits_in_force().depth
    if depth > limit:
        raise ModelFormatError(f"subgraphs are nested more than {limit} deep", "too_deep")
