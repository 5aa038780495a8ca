"""What the benchmarks of `bdscan samples` share: scoring images, and the usual measures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from converters import prepare_classifier, read_model
from scanner.classifier import Classifier
from scanner.clean_set import CleanSetLoader, decode_image, find_clean_images
from scanner.config import ScanConfig
from scanner.open_model import load_clean_set, open_classifier
from scanner.samples.config import DETECTORS, LOW, SamplesConfig
from scanner.samples.scorers import open_scorers

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
BATCH = 64


def open_model(model: Path, clean_dir: Path) -> Classifier:
    """A model under the preprocessing that `bdscan` finds with these clean images."""
    loader = CleanSetLoader(find_clean_images(clean_dir))
    onnx = prepare_classifier(read_model(model), None, loader.common_size())
    config = ScanConfig(device="cpu")
    return open_classifier(onnx, load_clean_set(onnx, loader, config), config).classifier


def read_images(folder: Path, shape: tuple[int, int, int], count: int | None, seed: int) -> Images:
    """So many images of a folder, drawn at random, in the order of their names."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg"))
    order = np.sort(np.random.default_rng(seed).permutation(len(files))[:count])
    return np.stack([decode_image(files[i], *shape)[0] for i in order])


def scores_of(
    names: tuple[str, ...], classifier: Classifier, clean: Images, images: Images, steps: int = 100
) -> dict[str, Floats]:
    """(N,) scores by each detector that scores an image by itself, small ones suspicious.

    Args:
        clean: what STRIP lays over, and what the scale of the outputs is measured on.
    """
    config = SamplesConfig(detectors=names, steps=steps, device="cpu")
    scorers = open_scorers(config, classifier, clean, ())
    parts: dict[str, list[Floats]] = {name: [] for name in scorers.by_batch}
    for start in range(0, len(images), BATCH):
        _, scored, _, _ = scorers.score(images[start : start + BATCH])
        for name in parts:
            sign = 1 if DETECTORS[name] == LOW else -1
            parts[name].append(sign * scored[name].scores)
    return {name: np.concatenate(values) for name, values in parts.items()}


def auroc(clean: Floats, triggered: Floats) -> float:
    """Area under the ROC curve; small scores are called triggered; ties count half."""
    ranks = rankdata(np.concatenate([triggered, clean]))[: len(triggered)]
    above = ranks.sum() - len(triggered) * (len(triggered) + 1) / 2
    return float(1 - above / (len(triggered) * len(clean)))


def auprc(clean: Floats, triggered: Floats, prevalence: float) -> float:
    """Area under the precision-recall curve (average precision) at a share of triggered images.

    The shares of both kinds below each threshold are weighted as if `prevalence` of all images were
    triggered, so that fewer clean images than that can be scored.
    """
    thresholds = np.unique(triggered)
    found = np.searchsorted(np.sort(triggered), thresholds, side="right") / len(triggered)
    wrong = np.searchsorted(np.sort(clean), thresholds, side="right") / len(clean)
    precision = prevalence * found / (prevalence * found + (1 - prevalence) * wrong)
    return float((np.diff(found, prepend=0.0) * precision).sum())


def rates_at_gamma(
    calibration: Floats, clean: Floats, triggered: Floats, gamma: float = 1.0
) -> tuple[float, float]:
    """(TPR, FPR) at the paper's threshold, mean - gamma * standard deviation of `calibration`."""
    threshold = calibration.mean() - gamma * calibration.std(ddof=1)
    return float((triggered <= threshold).mean()), float((clean <= threshold).mean())
