"""Which output holds one score for each class, and what kind of score it is."""

from __future__ import annotations

import torch

from converters.errors import NotAnImageClassifierError
from converters.instructions import needed_instructions
from converters.torch_graph import TorchGraph

_PROBABILITY_TOLERANCE = 5e-3  # half precision rounds probabilities to 3 decimals


def choose_output(graph: TorchGraph, images: torch.Tensor) -> str:
    """The first output of one score for each class that no other such output is computed from.

    So embeddings that a model gives beside its scores are not taken for classes, and of logits and
    probabilities the latter are taken.

    Raises:
        NotAnImageClassifierError: there is none; with the shapes of all outputs.
    """
    with torch.no_grad():
        results = dict(zip(graph.output_names, graph(images), strict=True))
    given = graph.constant_names | set(graph.input_names)
    floats = {n: r for n, r in results.items() if r.is_floating_point() and n not in given}
    candidates = [n for n, result in floats.items() if _is_vector_each(result, len(images))]
    for name in candidates:
        others = [other for other in candidates if other != name]
        readers = needed_instructions(graph.instructions, others)
        if not any(name in reader.inputs for reader in readers):
            return name
    shapes = ", ".join(f"{name} {list(result.shape)}" for name, result in results.items())
    if any(result.numel() == len(images) for result in floats.values()):
        raise NotAnImageClassifierError(f"one output class only: {shapes}")
    raise NotAnImageClassifierError(f"no output of one score for each class: {shapes}")


def _is_vector_each(result: torch.Tensor, count: int) -> bool:
    """Whether the shape is (count, K), give or take dimensions of size 1, with K >= 2."""
    if result.ndim < 2 or len(result) != count:
        return False
    return result[0].numel() == max(result.shape[1:]) >= 2


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
