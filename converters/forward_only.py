"""Models that ONNX Runtime can run and torch can't differentiate: read for forward passes only.

Tree ensembles, support vector machines, and operators that have no function here. There is no
second engine to compare with, so what is proved is only that the rewriting changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch

from converters.batch_axis import PROOF_BATCH, sample_images
from converters.bounded import bounded_tensors
from converters.class_output import Choice, choose_output, is_activation, is_distribution
from converters.errors import UnsupportedModelError
from converters.image_input import ImageInput
from converters.ort_session import open_session, run_session
from converters.rewrite import find_logits, keep_output, set_input_shape, set_outputs

_BATCHES = (32, 8)  # tried for the run, from the fastest

Array = npt.NDArray[np.generic]


class ForwardOnly(NamedTuple):
    """A classifier for ONNX Runtime alone.

    Attributes:
        original: as given, for the declared batch size (1 where it is free), other outputs dropped.
        model: the same for `batch_size`; its first output is the logits.
        choice: the chosen output.
        logits_name, final_activation: see `OnnxClassifier`.
        class_count: K.
        outputs_are_probabilities: the output already is a distribution.
        batch_size: the one that the model is run at: its tensors' sizes are known for that one.
        rewrites: what was changed, in words.
    """

    original: onnx.ModelProto
    model: onnx.ModelProto
    choice: Choice
    logits_name: str
    final_activation: str
    class_count: int
    outputs_are_probabilities: bool
    batch_size: int
    rewrites: tuple[str, ...]


def prepare_forward_only(model: onnx.ModelProto, image_input: ImageInput) -> ForwardOnly:
    """Find a model's scores, the logits before them, and a batch size, with ONNX Runtime alone.

    Precondition: topological order, functions inlined, labels replaced by scores, no node that no
    output needs.

    Raises:
        UnsupportedModelError: ONNX Runtime can't run it, or nobody can tell beforehand how much
            memory that would take.
        NotAnImageClassifierError: no output of one score for each class.
    """
    declared = image_input.batch_size or 1
    choice = _choose(model, image_input, declared)
    pruned = _sized(model, image_input, declared, choice.name)
    logits_name, activation = find_logits(pruned, choice.name)
    set_outputs(pruned, (logits_name, choice.name))
    images = sample_images(image_input, PROOF_BATCH).numpy()
    expected = _run(pruned, images, declared)
    batch_size, rewrites = _free(pruned, image_input, images, declared, expected)
    first, last = (torch.from_numpy(expected[i].astype(np.float64)) for i in (0, -1))
    if activation != "none" and is_activation(activation, first, last):
        rewrites.append(f"cut before the final {activation}")
    else:
        logits_name, activation, first = choice.name, "none", last
    final = _sized(model, image_input, batch_size, choice.name)
    set_outputs(final, tuple(dict.fromkeys((logits_name, choice.name))))
    return ForwardOnly(
        original=_sized(model, image_input, declared, choice.name),
        model=final,
        choice=choice,
        logits_name=logits_name,
        final_activation=activation,
        class_count=first.numel() // PROOF_BATCH,
        outputs_are_probabilities=is_distribution(first),
        batch_size=batch_size,
        rewrites=tuple(rewrites),
    )


def _choose(model: onnx.ModelProto, image_input: ImageInput, count: int) -> Choice:
    """The output to use, by the shapes that all outputs have."""
    types = bounded_tensors(model, (count, *image_input.shape))
    outputs = {v.name: types[v.name] for v in model.graph.output if v.name in types}
    steps = [(node.input, node.output) for node in model.graph.node]
    return choose_output(outputs, steps, count)


def _sized(
    model: onnx.ModelProto, image_input: ImageInput, count: int, output: str
) -> onnx.ModelProto:
    """A copy for exactly this batch size, with this output only."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    keep_output(copy, output)
    set_input_shape(copy, (count, *image_input.shape))
    return copy


def _free(
    pruned: onnx.ModelProto,
    image_input: ImageInput,
    images: Array,
    declared: int,
    expected: list[Array],
) -> tuple[int, list[str]]:
    """A larger batch size than the declared one, if it is proved to give the same."""
    for count in _BATCHES:
        if count <= declared:
            break
        larger = onnx.ModelProto()
        larger.CopyFrom(pruned)
        set_input_shape(larger, (count, *image_input.shape))
        try:
            bounded_tensors(larger, (count, *image_input.shape))
            got = _run(larger, images, count)
        except UnsupportedModelError:
            continue
        if all(map(_same, got, expected)):
            return count, [f"run at batch size {count}"]
    return declared, [f"run at batch size {declared}"]


def _run(model: onnx.ModelProto, images: Array, batch_size: int) -> list[Array]:
    names = [value.name for value in model.graph.output]
    return run_session(open_session(model), names, images, batch_size)


def _same(got: Array, expected: Array) -> bool:
    if got.shape != expected.shape:
        return False
    bound = 1e-3 * np.abs(expected).max(initial=0)
    return bool(np.allclose(got, expected, rtol=0, atol=bound, equal_nan=True))
