"""A model and its clean set, ready to run: images decoded, preprocessing found, engines open."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from converters import OnnxClassifier
from scanner.classifier import Classifier, choose_device, open_sessions
from scanner.clean_set import CleanSet, CleanSetLoader
from scanner.config import ScanConfig
from scanner.preprocessing import Preprocessing, resolve
from scanner.preprocessing_sources import class_names

SAMPLE_IMAGES = 128  # the preprocessing search and the parity check look at no more


def sample(images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Indices of at most `SAMPLE_IMAGES` images, evenly spread (so over the classes too)."""
    return np.arange(0, len(images), -(-len(images) // SAMPLE_IMAGES))


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
        predicted: (N,) its class for every clean image, by ONNX Runtime.
        accuracy: share of clean images classified as labelled, None without labels.
    """

    classifier: Classifier
    device: dict[str, str]
    predicted: npt.NDArray[np.int64]
    accuracy: float | None


def open_classifier(onnx: OnnxClassifier, clean: CleanSet, config: ScanConfig) -> Opened:
    """Open both engines, find the preprocessing, and classify the clean images.

    Raises:
        UsageError: a device that is not there, or stated preprocessing that can't be used.
    """
    wanted, why = choose_device(config.device)
    session, runtime = open_sessions(onnx, wanted, strict=config.device != "auto")
    device = torch.device(wanted)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    onnx.graph.to(device)

    some = sample(clean.images)

    def logits_under(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
        return Classifier(onnx, preprocessing, session, device).logits(clean.images[some])

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
    predicted = classifier.predictions(clean.images)
    accuracy = float((predicted == clean.labels).mean()) if clean.labelled else None
    where = {"requested": config.device, "torch": wanted, "onnxruntime": runtime, "why": why}
    return Opened(classifier, where, predicted, accuracy)
