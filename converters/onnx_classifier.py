"""From a validated file to a differentiable image classifier, any batch size, logits at hand.

Both engines get the same rewritten model, and the vendor's is kept so that `parity` can prove the
rewriting.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch

from converters.batch_axis import PROOF_BATCH, free_batch, run_in_batches, sample_images
from converters.class_output import choose_output, is_activation, is_distribution
from converters.convert import graph_of
from converters.errors import UnsupportedModelError
from converters.functions import inline_functions
from converters.image_input import ImageInput, find_image_input
from converters.model_file import ModelFile
from converters.opset import fit_opset, must_convert
from converters.rewrite import (
    clamp_ir_version,
    drop_initializers_from_inputs,
    find_logits,
    graph_inputs,
    keep_output,
    set_outputs,
    sort_nodes,
)
from converters.torch_graph import TorchGraph


@dataclass(frozen=True)
class OnnxClassifier:
    """An image classifier read from ONNX, ready for both engines.

    Attributes:
        file: the validated file as it came.
        original: the vendor's model, only sorted, and labelled or converted to an operator set so
            that ONNX Runtime reads it.
        model: the rewritten model; its first output is the logits.
        graph: the rewritten model in torch; called with one input tensor, its first output is the
            logits, its last one the vendor's output.
        image_input: what the input wants.
        class_count: K.
        logits_name, output_name: tensors of the logits and of the vendor's chosen output.
        final_activation: "softmax", "sigmoid" or "none": what turned logits into the output.
        outputs_are_probabilities: no logits could be found; the output already is a distribution.
        batch_size: the only batch size that the graph takes, None if it takes any.
        rewrites: what was changed, in words.
    """

    file: ModelFile
    original: onnx.ModelProto
    model: onnx.ModelProto
    graph: TorchGraph
    image_input: ImageInput
    class_count: int
    logits_name: str
    output_name: str
    final_activation: str
    outputs_are_probabilities: bool
    batch_size: int | None
    rewrites: tuple[str, ...]

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, ...) as `ImageInput.arrange` gives them -> (N, K) float32 logits; differentiable.

        Where the model only gives probabilities, their logarithm serves (it differs from the
        logits by a constant per image).
        """
        raw = run_in_batches(self.graph, inputs, self.batch_size)[0]
        return self.logits_of(raw)

    def logits_of(self, raw: torch.Tensor) -> torch.Tensor:
        """The first output of either engine as (N, K) float32 logits."""
        flat = raw.reshape(len(raw), -1).float()
        return flat.clamp_min(1e-30).log() if self.outputs_are_probabilities else flat


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
    original = _copy(file.proto)
    clamp_ir_version(original)
    sort_nodes(original)
    converted = _convert(original, image_size) if must_convert(original) else ""
    model = _copy(original)
    drop_initializers_from_inputs(model)
    inline_functions(model)
    if output is not None:
        keep_output(model, output)
    reference = graph_of(model)
    image_input = find_image_input(graph_inputs(model), image_size)
    output_name = choose_output(reference, sample_images(image_input, image_input.batch_size or 1))
    logits_name, activation = find_logits(model, output_name)

    keep_output(model, output_name)
    set_outputs(model, (logits_name, output_name))
    graph, batch_size, rewrites = free_batch(model, graph_of(model), image_input)
    rewrites = [*filter(None, [converted]), *rewrites]
    with torch.no_grad():
        images = sample_images(image_input, PROOF_BATCH)
        results = run_in_batches(graph, images, batch_size)
    if activation != "none" and is_activation(activation, results[0], results[-1]):
        rewrites.append(f"cut before the final {activation}")
    elif activation != "none":
        logits_name, activation = output_name, "none"
        set_outputs(model, (output_name,))
        graph = graph_of(model)
    raw = results[0] if activation != "none" else results[-1]
    return OnnxClassifier(
        file=file,
        original=original,
        model=model,
        graph=graph,
        image_input=image_input,
        class_count=raw.numel() // PROOF_BATCH,
        logits_name=logits_name,
        output_name=output_name,
        final_activation=activation,
        outputs_are_probabilities=is_distribution(raw),
        batch_size=batch_size,
        rewrites=tuple(rewrites),
    )


def _convert(original: onnx.ModelProto, image_size: tuple[int, int] | None) -> str:
    """Convert the operator set in place, prove it on a few images, and say what was done.

    Raises:
        UnsupportedModelError: it can't be converted, or gives other numbers then.
    """
    vendors = _copy(original)
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


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
