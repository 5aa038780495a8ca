"""The whole pipeline in one call: read, validate, rewrite, prove."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import onnx

from converters.model_file import read_model
from converters.onnx_classifier import OnnxClassifier
from converters.parity import check_parity, is_low_precision
from converters.prepare import prepare_classifier
from converters.validation import Limits


def load_classifier(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    output: str | None = None,
    image_size: tuple[int, int] | None = None,
    limits: Limits | None = None,
    parity_inputs: npt.NDArray[np.generic] | None = None,
) -> OnnxClassifier:
    """Read, validate and rewrite a model, and prove that both engines agree on it.

    Args:
        output: name of the output to use; default: see `prepare_classifier`.
        image_size: (height, width) for a model that leaves them free.
        parity_inputs: (N, ...) in the model's layout and type; default: seeded random images, 8, or
            20 for a model that is quantised or half-precision, whose last step may fall either
            way. Real images prove more: see `check_parity`.

    Raises:
        FileNotFoundError, ModelFormatError, UnsupportedModelError, NotAnImageClassifierError,
        ParityError: each with one line that says what and where.
    """
    classifier = prepare_classifier(read_model(source, limits), output, image_size)
    if parity_inputs is None:
        count = 20 if is_low_precision(classifier) else 8
        shape = (count, *classifier.image_input.shape)
        random = np.random.default_rng(0).random(shape, dtype=np.float32)
        pixels = random * (classifier.image_input.pixel_range_hint or 1)
        parity_inputs = pixels.astype(classifier.image_input.dtype)
    check_parity(classifier, parity_inputs)
    return classifier
