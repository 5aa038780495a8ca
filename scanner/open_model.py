"""A model and its clean set, ready to run: images decoded, preprocessing found, engines open."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from converters import OnnxClassifier
from scanner.classifier import Classifier, choose_device, open_sessions
from scanner.clean_set import CleanSet, CleanSetLoader
from scanner.config import ScanConfig
from scanner.preprocessing import Preprocessing, resolve
from scanner.preprocessing_sources import class_names


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


def open_classifier(
    onnx: OnnxClassifier, clean: CleanSet, config: ScanConfig
) -> tuple[Classifier, dict[str, str]]:
    """The classifier under its resolved preprocessing, and where its engines run.

    Raises:
        UsageError: a device that is not there, or stated preprocessing that can't be used.
    """
    wanted, why = choose_device(config.device)
    session, runtime = open_sessions(onnx, wanted, strict=config.device != "auto")
    device = torch.device(wanted)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    onnx.graph.to(device)

    def logits_under(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
        return Classifier(onnx, preprocessing, session, device).logits(clean.images)

    preprocessing = resolve(
        onnx.file.proto,
        onnx.file.path,
        onnx.image_input.channels,
        config.preprocessing,
        clean.labels,
        logits_under,
    )
    where = {"requested": config.device, "torch": wanted, "onnxruntime": runtime, "why": why}
    return Classifier(onnx, preprocessing, session, device), where
