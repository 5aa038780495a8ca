"""Which output holds one score for each class, and what kind of score it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from converters.errors import NotAnImageClassifierError
from converters.torch_graph import TensorType, TorchGraph

_PROBABILITY_TOLERANCE = 5e-3  # half precision rounds probabilities to 3 decimals

Step = tuple[Sequence[str], Sequence[str]]
"""What a node reads, and what it computes."""


class Choice(NamedTuple):
    """The output to use.

    Attributes:
        name: of the output.
        others: further outputs of one score for each class, that none is computed from either.
    """

    name: str
    others: tuple[str, ...] = ()


def choose_output_of(graph: TorchGraph, images: torch.Tensor) -> Choice:
    """`choose_output` for a graph that can be run.

    Raises:
        NotAnImageClassifierError: there is none; with the shapes of all outputs.
    """
    with torch.no_grad():
        results = dict(zip(graph.output_names, graph(images), strict=True))
    types = {
        name: TensorType(tuple(r.shape), r.dtype)
        for name, r in results.items()
        if isinstance(r, torch.Tensor)
    }
    given = graph.constant_names | set(graph.input_names)
    steps = [(i.inputs, i.outputs) for i in graph.instructions]
    return choose_output(types, steps, len(images), given)


def choose_output(
    outputs: Mapping[str, TensorType],
    steps: Sequence[Step],
    count: int,
    given: Iterable[str] = (),
) -> Choice:
    """The first output of one score for each class that no other such output is computed from.

    So embeddings that a model gives beside its scores are not taken for classes, and of logits and
    probabilities the latter are taken.

    Args:
        outputs: shape and type of each, in order.
        steps: the graph's nodes in topological order.
        count: how many images the shapes are for.
        given: tensors that are not computed.

    Raises:
        NotAnImageClassifierError: there is none; with the shapes of all outputs.
    """
    floats = {
        name: kind
        for name, kind in outputs.items()
        if kind.dtype.is_floating_point and name not in set(given)
    }
    candidates = [n for n, kind in floats.items() if _is_vector_each(kind.shape, count)]
    reads = {name: _ancestors(name, steps) for name in candidates}
    final = [n for n in candidates if not any(n in reads[o] for o in candidates if o != n)]
    if final:
        return Choice(final[0], tuple(final[1:]))
    shapes = ", ".join(f"{name} {list(kind.shape)}" for name, kind in outputs.items())
    if any(math.prod(kind.shape) == count for kind in floats.values()):
        raise NotAnImageClassifierError(f"one output class only: {shapes}")
    raise NotAnImageClassifierError(f"no output of one score for each class: {shapes}")


def _ancestors(name: str, steps: Sequence[Step]) -> set[str]:
    """The tensors that a tensor is computed from."""
    wanted = {name}
    for inputs, outputs in reversed(steps):
        if wanted.intersection(filter(None, outputs)):
            wanted.update(inputs)
    return wanted - {name}


def _is_vector_each(shape: Sequence[int], count: int) -> bool:
    """Whether the shape is (count, K), give or take dimensions of size 1, with K >= 2."""
    if len(shape) < 2 or shape[0] != count:
        return False
    return math.prod(shape[1:]) == max(shape[1:]) >= 2


def is_activation(activation: str, logits: torch.Tensor, scores: torch.Tensor) -> bool:
    """Whether `scores` are the softmax or sigmoid of `logits`, taken over each image's classes."""
    if len(logits) != len(scores) or logits.numel() != scores.numel():
        return False
    raw, last = (t.reshape(len(t), -1).double() for t in (logits, scores))
    finite = raw.isfinite().all(1)
    raw, last = raw[finite], last[finite]
    expected = raw.softmax(1) if activation == "softmax" else raw.sigmoid()
    return len(raw) > 0 and bool(((expected - last).abs() <= _PROBABILITY_TOLERANCE).all())


def is_distribution(scores: torch.Tensor) -> bool:
    """Whether each image's scores are probabilities that add up to 1."""
    rows = scores.reshape(len(scores), -1).double()
    rows = rows[rows.isfinite().all(1)]
    near_one = (rows.sum(1) - 1).abs() <= _PROBABILITY_TOLERANCE
    return len(rows) > 0 and bool((rows >= 0).all() and near_one.all())
