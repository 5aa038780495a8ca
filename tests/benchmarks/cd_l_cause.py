"""Why CD-L as published does not separate on small networks.

`python -m tests.benchmarks.cd_l_cause --images DIR` (DIR as for `tests.benchmarks.samples`): the L1
distance of logits is absolute, and a small network's logits are about twice as large for triggered
images as for clean ones. The same relative change then costs twice as much, while the mask costs
the same: triggered images keep the larger masks. Dividing each image's logits by their own standard
deviation undoes that; another alpha does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scanner.detectors import cognitive_distillation as cd
from tests.benchmarks.record import write
from tests.benchmarks.sample_scores import auroc, open_model, read_images
from tests.conftest import ROOT

SEED = 0
STEPS = 60
FLEET = ROOT / "fixtures" / "fleets" / "cpu-small"
MODELS = ("cifar10-blend", "cifar10-badnets", "cifar10-nashville")
SETTINGS = {  # (alpha, beta / (H * W), whether logits are divided by the image's own deviation)
    "as published": (0.01, 10 / 1024, False),
    "alpha .03": (0.03, 10 / 1024, False),
    "alpha .003": (0.003, 10 / 1024, False),
    "relative, alpha .002": (0.002, 3 / 1024, True),
    "relative, alpha .005": (0.005, 3 / 1024, True),
}


def measure(name: str, images: Path, count: int) -> dict[str, Any]:
    """AUROC of CD-L under each setting, and the scale of clean and triggered logits."""
    folder = images / name / "test"
    classifier = open_model(FLEET / f"{name}.onnx", folder / "clean")
    parts = [
        read_images(folder / group, classifier.image_shape, count, SEED)
        for group in ("clean", "triggered")
    ]
    pixels = np.concatenate(parts)
    logits = classifier.logits(pixels)
    deviation = logits.std(1)
    ordered = np.sort(logits, 1)
    margin = ordered[:, -1] - ordered[:, -2]
    scale = torch.from_numpy(deviation)[:, None]
    noise = torch.from_numpy(cd.noise_colours(pixels, STEPS, SEED))
    config = cd.DistillationConfig(steps=STEPS)
    result: dict[str, Any] = {
        "mean_deviation_of_logits": _both(deviation, count, np.mean),
        "median_margin": _both(margin, count, np.median),
        "settings": {},
    }

    def relative(x: torch.Tensor) -> torch.Tensor:
        return classifier.differentiable_logits(x) / scale

    for label, (alpha, smoothness, own_scale) in SETTINGS.items():
        outputs = relative if own_scale else classifier.differentiable_logits
        weights = cd.Weights(alpha, smoothness)
        masks = cd.distill(
            cd.CD_L, outputs, torch.from_numpy(pixels), noise, weights, config
        ).numpy()
        norms = cd.mask_scores(masks)
        result["settings"][label] = {
            "auroc": round(auroc(norms[:count], norms[count:]), 4),
            "median_norm": _both(norms, count, np.median),
            "correlation_with_deviation": round(float(np.corrcoef(norms, deviation)[0, 1]), 3),
        }
    return result


def _both(values: np.ndarray, count: int, of: Any) -> dict[str, float]:
    return {
        "clean": round(float(of(values[:count])), 3),
        "triggered": round(float(of(values[count:])), 3),
    }


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in MODELS:
        results[name] = measure(name, options.images, options.count)
        print(name, results[name], flush=True)
    content = {"steps": STEPS, "images_each": options.count, "models": results}
    write(Path(__file__).with_suffix(".json"), content, SEED)


if __name__ == "__main__":
    main()
