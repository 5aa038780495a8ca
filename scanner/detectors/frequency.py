"""Frequency: triggers leave marks in an image's spectrum that natural images lack.

Y. Zeng, W. Park, Z. M. Mao, R. Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency
Perspective", ICCV 2021, section 4. Each channel goes through a type-II discrete cosine transform in
two dimensions, and a small classifier tells clean spectra from those of images with generated
triggers. It knows neither the model under test nor the attack.

The classifier is an ONNX file that `python -m fixtures.frequency_classifier` trains on clean images
of the size and channels to be judged. It is validated like any other file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from scipy.fft import dctn

from converters import ModelFormatError, UnsupportedModelError, open_session, read_model
from converters import run_session as run
from converters.rewrite import graph_inputs
from scanner.classifier import Images
from scanner.detectors.softmax_confidence import probabilities
from scanner.errors import UsageError

Floats = npt.NDArray[np.float64]

CLEAN, TRIGGERED = 0, 1
"""What the two logits of the classifier stand for."""

_BATCH = 256
_HOW = "`python -m fixtures.frequency_classifier --clean-dir DIR --out FILE` makes one"


@dataclass(frozen=True)
class FrequencyClassifier:
    """A classifier of spectra, ready to run.

    Attributes:
        path: the file.
        image_shape: (C, H, W) of the images that it judges.
        batch_size: the only batch size that it takes, or None.
        session: maps (N, C, H, W) coefficients to (N, 2) logits, clean and triggered.
    """

    path: Path
    image_shape: tuple[int, int, int]
    batch_size: int | None
    session: onnxruntime.InferenceSession


def cosine_coefficients(images: Images) -> npt.NDArray[np.float32]:
    """(N, C, H, W) images in [0, 1] -> their orthonormal 2-D DCT-II, channel by channel."""
    coefficients: npt.NDArray[np.float32] = dctn(images, type=2, axes=(2, 3), norm="ortho")
    return coefficients.astype(np.float32, copy=False)


def open_frequency_classifier(path: str | os.PathLike[str]) -> FrequencyClassifier:
    """Validate and open a classifier of spectra; its bytes are no more trusted than a model's.

    Raises:
        UsageError: no such file, no valid ONNX file, or not a classifier of spectra.
    """
    try:
        proto = read_model(path).proto
        shapes = _shapes(proto)
        session = open_session(proto)
    except (FileNotFoundError, ModelFormatError, UnsupportedModelError) as error:
        raise UsageError(f"frequency classifier {path}: {error}; {_HOW}") from error
    expected = len(shapes) == 2 and len(shapes[0]) == 4 and len(shapes[1]) == 2
    if not expected or 0 in shapes[0][1:] or shapes[1][1] != 2:
        raise UsageError(
            f"frequency classifier {path}: expected one input (N, C, H, W) and one output (N, 2), "
            f"found {shapes}; {_HOW}"
        )
    batch, channels, height, width = shapes[0]
    return FrequencyClassifier(Path(path), (channels, height, width), batch or None, session)


def frequency_scores(classifier: FrequencyClassifier, images: Images) -> Floats:
    """The probability that an image carries a trigger, by its spectrum alone. Large is suspicious.

    Args:
        images: (N, C, H, W) in [0, 1], as they are in their files: resizing changes the spectrum.

    Returns:
        (N,) in [0, 1].

    Raises:
        UsageError: the classifier is for images of another shape.
        UnsupportedModelError: it can't be run.
    """
    if images.shape[1:] != classifier.image_shape:
        raise UsageError(
            f"frequency classifier {classifier.path} is for images of (channels, height, width) "
            f"{classifier.image_shape}, not {images.shape[1:]}; {_HOW} for another size"
        )
    name = classifier.session.get_outputs()[0].name
    parts = [np.zeros((0, 2))]
    for start in range(0, len(images), _BATCH):
        feed = cosine_coefficients(images[start : start + _BATCH])
        logits = run(classifier.session, [name], feed, classifier.batch_size, _BATCH)[0]
        parts.append(logits.astype(np.float64))
    scores: Floats = probabilities(np.concatenate(parts))[:, TRIGGERED]
    return scores


def _shapes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Declared shapes of the inputs and outputs; 0 is a free dimension."""
    values = [*graph_inputs(model), *model.graph.output]
    return [tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values]
