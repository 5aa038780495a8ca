"""An image classifier read from ONNX, as `prepare` makes it.

Both engines run the same rewritten model. Two things differ on purpose: torch computes
half-precision models in float32 (`half_precision`), and a model without a gradient has no torch
side (`forward_only`).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import torch

from converters.batch_axis import run_in_batches
from converters.errors import UnsupportedModelError
from converters.image_input import ImageInput
from converters.model_file import ModelFile
from converters.torch_graph import TorchGraph

_PASS_BYTES = 2**30
_MAX_BATCH = 256


@dataclass(frozen=True)
class OnnxClassifier:
    """An image classifier read from ONNX, ready for both engines.

    Attributes:
        file: the validated file as it came.
        original: the vendor's model, sorted, and labelled or converted to an operator set so that
            ONNX Runtime reads it; without other outputs; in inference mode.
        model: the rewritten model; its first output is the logits.
        network: the rewritten model in torch; called with one input tensor, its first output is
            the logits, its last one the vendor's output. None if torch can't run it.
        image_input: what the input wants.
        class_count: K.
        logits_name, output_name: tensors of the logits and of the vendor's chosen output.
        final_activation: "softmax", "sigmoid" or "none": what turned logits into the output.
        outputs_are_probabilities: no logits could be found; the output already is a distribution.
        batch_size: the only batch size that the model takes, None if it takes any.
        rewrites: what was changed, in words.
        other_outputs: outputs of one score for each class beside the chosen one.
        why_not_differentiable: why there is no gradient from logits to images; '' if there is one.
        half_precision: the vendor's logits come out of half precision; `network` is float32.
        training_mode_forced: BatchNormalization or Dropout was in training mode.
        numbers_per_image: about how many numbers a forward pass of torch holds for each image, if
            it keeps all that it computes; 0 if torch can't run the model.
        batch_statistics: `original` with BatchNormalization in training mode, as the vendor's file
            has it; None if it has none so.
    """

    file: ModelFile
    original: onnx.ModelProto
    model: onnx.ModelProto
    network: TorchGraph | None
    image_input: ImageInput
    class_count: int
    logits_name: str
    output_name: str
    final_activation: str
    outputs_are_probabilities: bool
    batch_size: int | None
    rewrites: tuple[str, ...]
    other_outputs: tuple[str, ...] = ()
    why_not_differentiable: str = ""
    half_precision: bool = False
    training_mode_forced: bool = False
    numbers_per_image: int = 0
    batch_statistics: onnx.ModelProto | None = None

    @property
    def differentiable(self) -> bool:
        """Whether a gradient goes from the logits to the images."""
        return not self.why_not_differentiable

    @property
    def graph(self) -> TorchGraph:
        """The rewritten model in torch.

        Raises:
            UnsupportedModelError: torch can't run it; see `why_not_differentiable`.
        """
        if self.network is None:
            raise UnsupportedModelError(self.why_not_differentiable)
        return self.network

    @property
    def largest_batch(self) -> int:
        """How many images a forward pass should hold at most, so that it takes about 1 GiB."""
        return max(1, min(_MAX_BATCH, _PASS_BYTES // (4 * max(self.numbers_per_image, 1))))

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, ...) as `ImageInput.arrange` gives them -> (N, K) float32 logits; differentiable.

        Where the model only gives probabilities, their logarithm serves (it differs from the
        logits by a constant per image).

        Raises:
            UnsupportedModelError: as `graph`.
        """
        raw = run_in_batches(self.graph, inputs, self.batch_size)[0]
        return self.logits_of(raw)

    def logits_of(self, raw: torch.Tensor) -> torch.Tensor:
        """The first output of either engine as (N, K) float32 logits."""
        flat = raw.reshape(len(raw), -1).float()
        return flat.clamp_min(1e-30).log() if self.outputs_are_probabilities else flat
