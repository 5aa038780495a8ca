"""From a validated file to a classifier that is ready for both engines.

Both engines get the same rewritten model, and the vendor's is kept so that `parity` can prove the
rewriting.
"""

from __future__ import annotations

import math

import onnx
import torch

from converters.batch_axis import (
    PROOF_BATCH,
    free_batch,
    run_in_batches,
    sample_images,
    with_baked_batch_size,
)
from converters.bounded import foreign_operators
from converters.budget import within_budget
from converters.class_output import Choice, choose_output_of, is_activation, is_distribution
from converters.collector import collector_off
from converters.convert import graph_of
from converters.errors import FORMAT_REASONS, ConverterError, UnsupportedModelError
from converters.forward_only import prepare_forward_only
from converters.half_precision import widen_half
from converters.image_input import ImageInput, find_image_input
from converters.inference_mode import Forced, force_inference
from converters.label_outputs import use_scores
from converters.model_file import ModelFile
from converters.onnx_classifier import OnnxClassifier
from converters.opset import fit_opset, must_convert
from converters.rewrite import (
    clamp_ir_version,
    copied,
    drop_initializers_from_inputs,
    drop_unneeded_nodes,
    find_logits,
    graph_inputs,
    keep_output,
    set_outputs,
    sort_nodes,
)
from converters.subgraph import within_limits
from converters.torch_graph import TensorType, TorchGraph
from converters.vendors_model import Vendors, in_training_mode, vendors_model, with_output


@within_budget
def prepare_classifier(
    file: ModelFile, output: str | None = None, image_size: tuple[int, int] | None = None
) -> OnnxClassifier:
    """`load_classifier` without the parity check.

    Args:
        output: name of the output to use; default: the first one of shape (N, K) that no other such
            output is computed from.
        image_size: (height, width) for a model that leaves them free.

    Raises:
        ModelFormatError, UnsupportedModelError, NotAnImageClassifierError: with one line that says
            what and where.
    """
    with within_limits(file.limits), collector_off():
        return _prepare(file, output, image_size)


def _prepare(
    file: ModelFile, output: str | None, image_size: tuple[int, int] | None
) -> OnnxClassifier:
    vendors = _vendors(file.proto, image_size)
    model = vendors.inlined
    if output is not None:
        keep_output(model, output)
    said = [*vendors.rewrites, *use_scores(model)]
    drop_unneeded_nodes(model)
    image_input = find_image_input(graph_inputs(model), image_size)
    try:
        reference = graph_of(model)
    except UnsupportedModelError as error:
        if error.reason in FORMAT_REASONS or not error.operators:
            raise  # over a limit, or broken: ONNX Runtime must not try either
        return _forward_only(file, vendors, model, image_input, said, error)
    image_input = with_baked_batch_size(model, reference, image_input)
    choice = choose_output_of(reference, sample_images(image_input, image_input.batch_size or 1))
    return _differentiable(file, vendors, model, image_input, said, choice)


def _vendors(proto: onnx.ModelProto, image_size: tuple[int, int] | None) -> Vendors:
    """The vendor's model sorted, labelled, converted and in inference mode.

    Raises:
        ModelFormatError, UnsupportedModelError, NotAnImageClassifierError: see `_convert`.
    """
    runnable = copied(proto)
    clamp_ir_version(runnable)
    sort_nodes(runnable)
    forced, converted = Forced(), ""
    if must_convert(runnable):
        forced = force_inference(runnable)  # the converter takes nothing else
        converted = _convert(runnable, image_size)
    return vendors_model(runnable, forced, converted)


def _convert(original: onnx.ModelProto, image_size: tuple[int, int] | None) -> str:
    """Convert the operator set in place, prove it on a few images, and say what was done.

    Raises:
        UnsupportedModelError: it can't be converted, or gives other numbers then.
    """
    vendors = copied(original)
    drop_initializers_from_inputs(vendors)
    image_input = find_image_input(graph_inputs(vendors), image_size)
    images = sample_images(image_input, image_input.batch_size or 1)
    before = graph_of(vendors)
    with torch.no_grad():
        ranks = {name: len(kind.shape) for name, kind in before.tensor_types(images).items()}
        done = fit_opset(original, ranks)
        after = graph_of(original)(images)
        for old, new in zip(before(images), after, strict=True):
            if old.shape != new.shape or not torch.allclose(old, new, 1e-3, 1e-5, equal_nan=True):
                raise UnsupportedModelError("converting the operator set changes the results")
    return done


def _differentiable(
    file: ModelFile,
    vendors: Vendors,
    model: onnx.ModelProto,
    image_input: ImageInput,
    said: list[str],
    choice: Choice,
) -> OnnxClassifier:
    """The classifier of a model that torch can run; `model` is rewritten in place."""
    logits_name, activation = find_logits(model, choice.name)
    set_outputs(model, (choice.name,))
    keep_output(model, choice.name)
    set_outputs(model, (logits_name, choice.name))
    as_given, batch_size, rewrites = free_batch(model, graph_of(model), image_input)
    wide = _in_float32(model)
    half = wide is not None and _computes_half(as_given, image_input, batch_size)
    network = wide or as_given
    images = sample_images(image_input, PROOF_BATCH)
    with torch.no_grad():
        results = run_in_batches(network, images, batch_size)
    if activation != "none" and is_activation(activation, results[0], results[-1]):
        rewrites.append(f"cut before the final {activation}")
    elif activation != "none":
        logits_name, activation = choice.name, "none"
        set_outputs(model, (choice.name,))
        network = _in_float32(model) or graph_of(model)
    raw = results[0] if activation != "none" else results[-1]
    original = with_output(vendors.runnable, choice.name)
    return OnnxClassifier(
        file=file,
        original=original,
        model=model,
        network=network,
        image_input=image_input,
        class_count=raw.numel() // PROOF_BATCH,
        logits_name=logits_name,
        output_name=choice.name,
        final_activation=activation,
        outputs_are_probabilities=is_distribution(raw),
        batch_size=batch_size,
        rewrites=(*said, *rewrites),
        other_outputs=choice.others,
        why_not_differentiable=_why_no_gradient(network, images[:1], batch_size),
        half_precision=half,
        training_mode_forced=vendors.forced != Forced(),
        numbers_per_image=_numbers_per_image(network, image_input, batch_size),
        batch_statistics=in_training_mode(original, vendors.forced),
    )


def _forward_only(
    file: ModelFile,
    vendors: Vendors,
    model: onnx.ModelProto,
    image_input: ImageInput,
    said: list[str],
    refusal: UnsupportedModelError,
) -> OnnxClassifier:
    """The classifier of a model that only ONNX Runtime can run.

    Raises:
        UnsupportedModelError: `refusal`, if ONNX Runtime can't either, or must not.
    """
    if foreign_operators(model.graph.node):
        raise refusal
    try:
        found = prepare_forward_only(model, image_input)
    except ConverterError as error:
        message = f"{refusal}; nor can ONNX Runtime alone be used: {error}"
        raise UnsupportedModelError(message, refusal.operators) from error
    return OnnxClassifier(
        file=file,
        original=found.original,
        model=found.model,
        network=None,
        image_input=image_input,
        class_count=found.class_count,
        logits_name=found.logits_name,
        output_name=found.choice.name,
        final_activation=found.final_activation,
        outputs_are_probabilities=found.outputs_are_probabilities,
        batch_size=found.batch_size,
        rewrites=(*said, *found.rewrites),
        other_outputs=found.choice.others,
        why_not_differentiable=str(refusal),
        training_mode_forced=vendors.forced != Forced(),
        batch_statistics=in_training_mode(found.original, vendors.forced),
    )


def _computes_half(graph: TorchGraph, image_input: ImageInput, batch_size: int | None) -> bool:
    """Whether a run reads or computes half precision; unused weights must not count."""
    types = _tensor_types(graph, image_input, batch_size)
    return any(kind.dtype in (torch.float16, torch.bfloat16) for kind in types.values())


def _numbers_per_image(graph: TorchGraph, image_input: ImageInput, batch_size: int | None) -> int:
    """How many numbers all tensors of a run have together, constants left out, for each image."""
    types = _tensor_types(graph, image_input, batch_size)
    computed = types.keys() - graph.constant_names
    return sum(math.prod(types[name].shape) for name in computed) // (batch_size or 1)


def _tensor_types(
    graph: TorchGraph, image_input: ImageInput, batch_size: int | None
) -> dict[str, TensorType]:
    with torch.no_grad():
        return graph.tensor_types(sample_images(image_input, batch_size or 1))


def _in_float32(model: onnx.ModelProto) -> TorchGraph | None:
    """The graph of a half-precision model, computed in float32; None for any other model."""
    wide = copied(model)
    return graph_of(wide) if widen_half(wide) else None


def _why_no_gradient(graph: TorchGraph, image: torch.Tensor, batch_size: int | None) -> str:
    """Why no gradient goes from the first output to the input; '' if one does."""
    image = image if image.is_floating_point() else image.float()
    scores = run_in_batches(graph, image.requires_grad_(), batch_size)[0]
    return "" if scores.requires_grad else "its scores are steps: they have no gradient"
