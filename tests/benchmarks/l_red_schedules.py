"""L-RED's `fast` schedule against `paper` (Algorithm 1, delta 1e-4), the named baseline.

    python -m tests.benchmarks.l_red_schedules

Both run on the classes of smallest, second smallest and median norm of the shipped attacked MNIST
model and on the smallest two of the attacked colour model, with the same images. About half an hour
on one core; writes l_red_schedules.json.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters import open_session, prepare_classifier, read_model
from scanner.classifier import Classifier
from scanner.clean_set import CleanSetLoader, find_clean_images
from scanner.config import LRedConfig, PreprocessingOptions
from scanner.detectors.l_red import PatternEstimate, estimate_patterns
from scanner.detectors.misclassification import GroupMisclassification
from scanner.preprocessing import resolve
from scanner.preprocessing_sources import class_names
from tests.benchmarks.record import write

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = {  # model: (clean set, ranks by norm that are compared)
    "mnist_lenet5_attacked": ("mnist", (0, 1, 5)),
    "cifar10_cnn_attacked": ("cifar10", (0, 1)),
}
IMAGES_PER_CLASS = 8


def load(name: str, clean: str) -> tuple[Classifier, Any, Any]:
    """(classifier, images, labels): the images that a scan with default settings uses."""
    onnx = prepare_classifier(read_model(FIXTURES / "models" / f"{name}.onnx"))
    wanted = onnx.image_input
    images = CleanSetLoader(find_clean_images(FIXTURES / "clean" / clean)).load(
        wanted.channels,
        wanted.height,
        wanted.width,
        onnx.class_count,
        class_names=class_names(onnx.original),
    )
    session, device = open_session(onnx.model), torch.device("cpu")
    preprocessing = resolve(
        onnx.original,
        None,
        wanted.channels,
        PreprocessingOptions(),
        images.labels,
        lambda p: Classifier(onnx, p, session, device).logits(images.images),
    )
    classifier = Classifier(onnx, preprocessing, session, device)
    correct = classifier.predictions(images.images) == images.labels
    chosen = np.concatenate(
        [
            np.flatnonzero(correct & (images.labels == k))[:IMAGES_PER_CLASS]
            for k in range(onnx.class_count)
        ]
    )
    return classifier, images.images[chosen], images.labels[chosen]


def run(
    loaded: tuple[Classifier, Any, Any], targets: list[int], schedule: str
) -> tuple[list[PatternEstimate], float]:
    """(estimates, seconds) of one schedule."""
    classifier, images, labels = loaded
    objective = GroupMisclassification(classifier, images, labels, targets, 2048)
    begun = time.perf_counter()
    estimates = estimate_patterns(objective, LRedConfig(schedule=schedule))
    return estimates, time.perf_counter() - begun


def compare(name: str, clean: str, ranks: tuple[int, ...]) -> dict[str, Any]:
    """Norms and gradient evaluations of both schedules on some classes of one model."""
    loaded = load(name, clean)
    every, _ = run(loaded, list(range(loaded[0].class_count)), "fast")
    ranked = sorted(every, key=lambda e: e.norm)
    targets = [ranked[rank].target_class for rank in ranks]
    fast, fast_seconds = run(loaded, targets, "fast")
    paper, paper_seconds = run(loaded, targets, "paper")
    rows = [
        {
            "target_class": f.target_class,
            "norm_fast": round(f.norm, 5),
            "norm_paper": round(p.norm, 5),
            "norm_ratio": round(f.norm / p.norm, 5),
            "gradients_fast": f.gradient_evaluations,
            "gradients_paper": p.gradient_evaluations,
        }
        for f, p in zip(fast, paper, strict=True)
    ]
    total = [sum(e.gradient_evaluations for e in estimates) for estimates in (paper, fast)]
    return {
        "classes": rows,
        "fewer_gradients": round(total[0] / total[1], 1),
        "largest_norm_ratio": max(row["norm_ratio"] for row in rows),
        "most_gradients_fast_any_class": max(e.gradient_evaluations for e in every),
        "same_smallest_class": min(fast, key=lambda e: e.norm).target_class
        == min(paper, key=lambda e: e.norm).target_class,
        "seconds_fast": round(fast_seconds, 2),
        "seconds_paper": round(paper_seconds, 2),
    }


def main() -> None:
    torch.set_num_threads(1)
    results = {name: compare(name, *settings) for name, settings in MODELS.items()}
    write(Path(__file__).with_suffix(".json"), {"models": results}, seed=0)


if __name__ == "__main__":
    main()
