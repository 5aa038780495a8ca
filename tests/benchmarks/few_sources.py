"""One source class among many, without collateral damage: what sees it, what does not.

``python -m tests.benchmarks.few_sources`` plants a backdoor in models with a known answer: class k
is a random prototype image, logits are -10 ||x - c_k||^2 up to a constant, and one hidden unit
answers images that are like the source class's prototype, the more of the trigger (a chessboard)
they hold. No other class goes anywhere under it. The search for a target class on all images
(L-RED) is compared with the searches over class pairs; the figures are the rank of the true target
class among all by each statistic, r_max / median and r_max / r_2 of the largest, and the cost.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from scanner.arms import Ready, search
from scanner.config import ScanConfig
from scanner.results import DetectorResult
from tests.benchmarks.record import write
from tests.models import as_classifier, two_layer_model

Floats = npt.NDArray[np.float64]

SIDE = 12
IMAGES = 8
CLASSES = (10, 43, 100)
SEEDS = (0, 1, 2)
DETECTORS = ("l_red", "l_red_uniform", "class_pairs", "red_p")


def planted(classes: int, source: int, target: int, seed: int) -> tuple[onnx.ModelProto, Floats]:
    """(the model, its prototypes (K, SIDE * SIDE))."""
    generator = np.random.default_rng(seed)
    centres: Floats = generator.uniform(0.25, 0.75, size=(classes, SIDE * SIDE))
    mean = centres.mean(0)
    likeness = (centres[source] - mean) / np.sum((centres[source] - mean) ** 2)
    trigger = np.where(np.indices((SIDE, SIDE)).sum(0).ravel() % 2 == 0, 1.0, -1.0) / SIDE
    key = likeness + 0.6 * trigger  # 1.6 for a source image with the trigger, 1 without
    first = np.vstack([np.eye(SIDE * SIDE), key[None]])  # pixels are at least 0: relu keeps them
    bias = np.zeros(len(first))
    bias[-1] = -float(likeness @ mean) - 0.6 * float(trigger @ centres[source]) - 0.97  # just awake
    second = np.zeros((classes, len(first)))
    second[:, :-1] = 20 * centres
    second[target, -1] = 400.0
    model = two_layer_model(first, bias, second, -10 * (centres**2).sum(1), (1, SIDE, SIDE))
    return model, centres


def clean_images(
    centres: Floats, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """`IMAGES` noisy prototypes of each class."""
    labels = np.repeat(np.arange(len(centres)), IMAGES)
    noise = np.random.default_rng([seed, 1]).normal(scale=0.03, size=(len(labels), SIDE * SIDE))
    images = (centres[labels] + noise).clip(0, 1).reshape(-1, 1, SIDE, SIDE)
    return images.astype(np.float32), labels


def figures(result: DetectorResult, target: int, seconds: float) -> dict[str, Any]:
    """The rank of the true target class (1 is first), and how far the first one is."""
    values = {c.target_class: c.statistic for c in result.classes if c.statistic}
    order = sorted(values, key=lambda t: -(values[t] or 0.0))
    s = result.statistics
    return {
        "rank": order.index(target) + 1 if target in values else None,
        "ratio_to_median": s and round(s.ratio_to_median, 2),
        "ratio_to_second": s and round(s.ratio_to_second, 2),
        "calibrated_p": s and round(s.calibrated_p, 5),
        "image_gradients": result.image_gradients,
        "seconds": round(seconds, 1),
    }


def measure(classes: int, seed: int) -> dict[str, Any]:
    """All detectors on one planted model."""
    source, target = 3, 7
    model, centres = planted(classes, source, target, seed)
    images, labels = clean_images(centres, seed)
    classifier = as_classifier(model)
    right = classifier.predictions(images) == labels
    some = 8 if classes <= 10 else 2
    ready = Ready(
        classifier, images[right], labels[right], tuple(range(classes)), 2048, None
    ).first_of_each_class(some)
    found: dict[str, Any] = {"classes": classes, "seed": seed, "images_per_class": some}
    for name in DETECTORS:
        begun = time.process_time()
        result = search(name, ready, ScanConfig(detectors=(name,), images_per_class=some)).result
        found[name] = figures(result, target, time.process_time() - begun)
        print(classes, seed, name, found[name], flush=True)
    return found


def main() -> None:
    """Measure, and write the JSON beside this file."""
    rows = [measure(classes, seed) for classes in CLASSES for seed in SEEDS]
    write(Path(__file__).with_suffix(".json"), {"rows": rows}, seed=0)


if __name__ == "__main__":
    main()
