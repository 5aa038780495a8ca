"""A model and its clean set, ready to run: images decoded, preprocessing found, engines open."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from converters import OnnxClassifier
from scanner.classifier import Classifier, choose_device, open_sessions
from scanner.clean_set import CleanSet, CleanSetLoader
from scanner.config import ScanConfig
from scanner.errors import BdscanError
from scanner.preprocessing import Preprocessing, resolve
from scanner.preprocessing_sources import class_names

SAMPLE_IMAGES = 128  # the preprocessing search and the parity check look at no more
LOOPED_IMAGES = 48  # nor does the search where images are run one by one
CHUNKS = (256, 16)  # images between two looks at the clock; where they are run one by one


class OutOfTimeError(BdscanError):
    """The time that a scan may take is over before its search began."""

    reason = "time_limit"


def check_time(deadline: float | None, step: str) -> None:
    """Refuse to begin a step after the deadline, a time of `time.monotonic`.

    Raises:
        OutOfTimeError: naming the step.
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise OutOfTimeError(f"time ran out before {step}")


def sample(images: npt.NDArray[np.float32], at_most: int = SAMPLE_IMAGES) -> npt.NDArray[np.int64]:
    """Indices of at most so many images, evenly spread (so over the classes too)."""
    return np.arange(0, len(images), -(-len(images) // at_most))


def load_clean_set(onnx: OnnxClassifier, loader: CleanSetLoader, config: ScanConfig) -> CleanSet:
    """The clean images in the size and channels that the model takes, with its class indices.

    Raises:
        UsageError, CleanSetMismatchError: see `CleanSetLoader.load`.
    """
    wanted = onnx.image_input
    return loader.load(
        wanted.channels,
        wanted.height,
        wanted.width,
        onnx.class_count,
        config.labels,
        class_names(onnx.file.proto),
    )


class Opened(NamedTuple):
    """A classifier that can run, and what it says of the clean set.

    Attributes:
        classifier: under its resolved preprocessing.
        device: where its engines run, and why.
        preprocessing_seconds: what finding the preprocessing took.
        predicted: (N,) its class for every clean image, by ONNX Runtime.
        accuracy: share of clean images classified as labelled, None without labels.
    """

    classifier: Classifier
    device: dict[str, str]
    preprocessing_seconds: float
    predicted: npt.NDArray[np.int64]
    accuracy: float | None


def open_classifier(
    onnx: OnnxClassifier, clean: CleanSet, config: ScanConfig, deadline: float | None = None
) -> Opened:
    """Open both engines, find the preprocessing, and classify the clean images.

    Args:
        deadline: a time of `time.monotonic`; looked at between batches.

    Raises:
        OutOfTimeError: the deadline passed.
        UsageError: a device that is not there, or stated preprocessing that can't be used.
    """
    wanted, why = choose_device(config.device)
    session, runtime = open_sessions(onnx, wanted, strict=config.device != "auto")
    device = torch.device(wanted)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if onnx.network is not None:
        onnx.network.to(device)

    some = sample(clean.images, SAMPLE_IMAGES if onnx.batch_size is None else LOOPED_IMAGES)
    begun = time.monotonic()

    def logits_under(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
        classifier = Classifier(onnx, preprocessing, session, device)
        return _logits(classifier, clean.images[some], deadline, "the preprocessing was found")

    preprocessing = resolve(
        onnx.file.proto,
        onnx.file.path,
        onnx.image_input.channels,
        config.preprocessing,
        clean.labels[some],
        logits_under,
        onnx.image_input.pixel_range_hint,
    )
    classifier = Classifier(onnx, preprocessing, session, device)
    found = time.monotonic()
    logits = _logits(classifier, clean.images, deadline, "the clean images were classified")
    predicted: npt.NDArray[np.int64] = logits.argmax(1).astype(np.int64)
    accuracy = float((predicted == clean.labels).mean()) if clean.labelled else None
    where = {"requested": config.device, "torch": wanted, "onnxruntime": runtime, "why": why}
    return Opened(classifier, where, round(found - begun, 3), predicted, accuracy)


def _logits(
    classifier: Classifier, images: npt.NDArray[np.float32], deadline: float | None, step: str
) -> npt.NDArray[np.float32]:
    """`Classifier.logits`, with a look at the clock in between."""
    size = CHUNKS[classifier.onnx.batch_size is not None]
    parts = []
    for start in range(0, len(images), size):
        check_time(deadline, step)
        parts.append(classifier.logits(images[start : start + size]))
    return np.concatenate(parts)
