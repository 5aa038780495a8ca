"""The shipped models and clean images, loaded as a scan with default settings does."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters import prepare_classifier, read_model
from scanner.classifier import Classifier
from scanner.clean_set import CleanSetLoader, find_clean_images
from scanner.config import ScanConfig
from scanner.open_model import load_clean_set, open_classifier

FIXTURES = Path(__file__).parents[2] / "fixtures"


class Loaded(NamedTuple):
    """A classifier with the images that a scan would use: (N, C, H, W) in [0, 1] and (N,)."""

    classifier: Classifier
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def load(name: str, clean: str, images_per_class: int = 8) -> Loaded:
    """Load `fixtures/models/<name>.onnx` with `fixtures/clean/<clean>`, on the CPU."""
    config = ScanConfig(device="cpu")
    onnx = prepare_classifier(read_model(FIXTURES / "models" / f"{name}.onnx"))
    loader = CleanSetLoader(find_clean_images(FIXTURES / "clean" / clean))
    clean_set = load_clean_set(onnx, loader, config)
    opened = open_classifier(onnx, clean_set, config)
    correct = opened.predicted == clean_set.labels
    chosen = np.concatenate(
        [
            np.flatnonzero(correct & (clean_set.labels == k))[:images_per_class]
            for k in range(onnx.class_count)
        ]
    )
    return Loaded(opened.classifier, clean_set.images[chosen], clean_set.labels[chosen])
