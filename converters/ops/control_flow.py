"""Branches and loops. Gradients flow through the branch taken and through every trip.

Their subgraphs are `converters.subgraph.Subgraph`; what those capture comes as the last inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from converters.errors import ModelFormatError
from converters.ops._values import one_axis
from converters.registry import op
from converters.subgraph import Subgraph, counted_steps
from converters.values import Value, size_of

MAX_GROWTH_BYTES = 2**27  # what a loop's results may take beside _GROWTH times what it reads
_GROWTH = 16

Tensors = list[torch.Tensor]
Values = list[Value]
Given = Sequence[Value]


@op("If")
def if_(
    condition: torch.Tensor,
    *captured: Value,
    then_branch: Subgraph,
    else_branch: Subgraph,
) -> tuple[Any, ...]:
    """What the first branch gives if the condition holds, else what the second one gives."""
    branches = _checked(then_branch), _checked(else_branch)
    return branches[0 if _truth(condition) else 1].run((), captured)


@op("Loop")
def loop(*given: Value, body: Subgraph) -> tuple[Any, ...]:
    """At most M trips through the body, as long as its condition holds; then state and results.

    Inputs: M, condition (both optional), the state's first values. The body maps (trip, condition,
    state) to (condition, state, results to stack).
    """
    own, captured = _checked(body).split(given)
    own += [None] * (2 - len(own))
    count, condition, state = own[0], own[1], own[2:]
    last = None if count is None else _number(count)
    going = condition is None or _truth(condition)
    trips = _Trips(body, 1 + len(state), own, captured)
    with counted_steps(body.max_steps):
        while going and (last is None or len(trips) < last):
            at = (torch.tensor(len(trips)), torch.tensor(going))
            proceed, *state = trips.run((*at, *state))
            going = _truth(proceed)
            if condition is None and not going:
                raise ValueError("the body ends a loop without a condition: engines differ on it")
    return (*state, *(trips.stacked(i) for i in range(trips.result_count)))


@op("Scan", since=8)
def scan_8(
    lengths: torch.Tensor | None,
    *given: Value,
    body: Subgraph,
    num_scan_inputs: int,
    directions: Sequence[int] | None = None,
) -> tuple[torch.Tensor, ...]:
    """Trips over axis 1 for each entry of axis 0; results of shorter sequences end in zeros."""
    own, captured = _checked(body).split(given)
    states, sequences = _scan_inputs(own, num_scan_inputs)
    batch, longest = sequences[0].shape[:2]
    ends = [longest] * batch if lengths is None else [int(n) for n in lengths.tolist()]
    if not batch or len(ends) != batch or any(not 0 < end <= longest for end in ends):
        raise ValueError(f"sequence lengths {ends} for {batch} sequences of {longest}")
    entries = []
    with counted_steps(body.max_steps):
        for index, end in enumerate(ends):
            parts = [sequence[index, :end] for sequence in sequences]
            trips = _Trips(body, len(states), parts, captured)
            state = _scan(trips, [s[index] for s in states], parts, directions)
            results = [trips.stacked(i) for i in range(trips.result_count)]
            entries.append([*_tensors(state), *(_filled(r, longest) for r in results)])
    return tuple(torch.stack(column) for column in zip(*entries, strict=True))


@op("Scan", since=9)
def scan(
    *given: Value,
    body: Subgraph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """One trip through the body for each slice of the last inputs; then state and results.

    The body maps (state, slices) to (state, results to stack). Direction 1 reads, or stacks, from
    the end.
    """
    own, captured = _checked(body).split(given)
    state, sequences = _scan_inputs(own, num_scan_inputs)
    axes = _each(scan_input_axes, num_scan_inputs)
    moved = [x.movedim(one_axis(a, x.ndim), 0) for x, a in zip(sequences, axes, strict=True)]
    trips = _Trips(body, len(state), own, captured)
    with counted_steps(body.max_steps):
        last = _scan(trips, state, moved, scan_input_directions)
    out_axes = _each(scan_output_axes, trips.result_count)
    reverse = _each(scan_output_directions, trips.result_count)
    results = (trips.stacked(i, out_axes[i], reverse[i]) for i in range(trips.result_count))
    return (*last, *results)


def _scan(
    trips: _Trips, first: Tensors, sequences: Tensors, directions: Sequence[int] | None
) -> Values:
    """Make a trip for each entry of the sequences' first axis; the state after the last one."""
    state: Values = [*first]
    counts = {len(sequence) for sequence in sequences}
    if len(counts) != 1:
        raise ValueError(f"sequences of different lengths: {sorted(counts)}")
    reverse = _each(directions, len(sequences))
    last = counts.pop() - 1
    for trip in range(last + 1):
        places = [last - trip if back else trip for back in reverse]
        slices = [sequence[at] for sequence, at in zip(sequences, places, strict=True)]
        state = trips.run((*state, *slices))
    return state


class _Trips:
    """The trips through one loop's body, and the results that they leave behind.

    Args:
        kept: how many of the body's outputs go into the next trip; the others are results.
        own: what the loop's node reads without `captured`.
    """

    def __init__(self, body: Subgraph, kept: int, own: Given, captured: Given) -> None:
        if len(body.outputs) < kept:
            raise ValueError(f"the body has {len(body.outputs)} outputs, expected {kept} or more")
        self.result_count = len(body.outputs) - kept
        self._body, self._kept, self._captured = body, kept, captured
        read = (*own, *captured)
        tensors = (t for t in read if isinstance(t, torch.Tensor))
        self._like = next((t for t in tensors if t.is_floating_point()), None)
        self._bytes_left = MAX_GROWTH_BYTES + _GROWTH * _size(read)
        self._results: list[Tensors] = []

    def __len__(self) -> int:
        return len(self._results)

    def run(self, inputs: Sequence[Value]) -> Values:
        """Make a trip; returns what goes into the next one.

        Raises:
            ModelFormatError: too many trips, or results that are too large.
        """
        most = self._body.max_trips
        if len(self) >= most:
            raise ModelFormatError(f"more than {most} trips", "trip_count")
        outputs = self._body.run(inputs, self._captured)
        state, results = outputs[: self._kept], outputs[self._kept :]
        self._results.append(_tensors(results))
        self._bytes_left -= _size(results)
        if _size(state) > self._bytes_left:
            raise ModelFormatError(
                f"the loop's results grow too large after {len(self)} trips", "result_too_large"
            )
        return list(state)

    def stacked(self, position: int, axis: int = 0, reverse: int = 0) -> torch.Tensor:
        """A result of all trips along a new axis, the last trip first if `reverse`.

        Raises:
            ValueError: no trip was made and what one would give is not declared.
        """
        if self._results:
            column = [results[position] for results in self._results]
            rank = column[0].ndim + 1
            return torch.stack(column[::-1] if reverse else column, one_axis(axis, rank))
        declared = self._body.empty_results[self._kept + position]
        if declared is None:
            raise ValueError("no trip is made, and the shape of a result is not declared in full")
        shape = list(declared.shape)
        shape.insert(one_axis(axis, len(shape) + 1), 0)
        device = (
            None
            if self._like is None or not declared.dtype.is_floating_point
            else (self._like.device)
        )
        return torch.empty(shape, dtype=declared.dtype, device=device)


def _scan_inputs(own: Given, sequence_count: int) -> tuple[Tensors, Tensors]:
    """A Scan's inputs as (state, sequences)."""
    values = _tensors(own)
    if not 0 < sequence_count <= len(values):
        raise ValueError(f"{sequence_count} scan inputs among {len(values)} inputs")
    return values[:-sequence_count], values[-sequence_count:]


def _checked(body: object) -> Subgraph:
    if not isinstance(body, Subgraph):
        raise ValueError("an attribute that must be a graph is none")
    return body


def _tensors(values: Given) -> Tensors:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if len(tensors) < len(values):
        raise ValueError("an input or a result of the body is absent, or no tensor")
    return tensors


def _each(values: Sequence[int] | None, count: int) -> Sequence[int]:
    """An optional list attribute with one number for each of `count` tensors; default: zeros."""
    if values is not None and len(values) != count:
        raise ValueError(f"{len(values)} axes or directions for {count} tensors")
    return [0] * count if values is None else values


def _truth(value: Value) -> bool:
    if not isinstance(value, torch.Tensor):
        raise ValueError("a condition that is no tensor")
    if value.numel() != 1 or value.dtype != torch.bool:
        raise ValueError(f"a condition of type {value.dtype} and shape {list(value.shape)}")
    return bool(value.item())


def _number(value: Value) -> int:
    if not isinstance(value, torch.Tensor):
        raise ValueError("a trip count that is no tensor")
    if value.numel() != 1 or value.is_floating_point():
        raise ValueError(f"a trip count of type {value.dtype} and shape {list(value.shape)}")
    return int(value.item())


def _size(values: Given) -> int:
    return sum(map(size_of, values))


def _filled(result: torch.Tensor, length: int) -> torch.Tensor:
    """A result with zeros at its end, so many that its first axis has this length."""
    missing = result.new_zeros(length - len(result), *result.shape[1:])
    return torch.cat([result, missing]) if len(missing) else result
