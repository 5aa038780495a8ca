"""How often `bdscan samples` flags clean images, and calls a clean folder a finding.

`python -m tests.benchmarks.false_alarms_samples --data DIR`: on models of the small fleet, clean
held-out images are scored once (a score depends on the image alone) and split twenty times at
random into calibration and suspect images. Goal: 5 % +- 1.5 flagged in the mean at level 5 %, and
at least 19 of 20 folders without a finding.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fixtures.data import ImageSet, encode_png
from fixtures.datasets import DataChoice, load_data
from scanner.samples.config import SamplesConfig
from scanner.samples.thresholds import conformal_p_values, excess_p_value
from tests.benchmarks.record import write
from tests.benchmarks.sample_scores import open_model, scores_of
from tests.conftest import ROOT

SEED = 0
SPLITS = 20
CALIBRATION = 200
LEVELS = (0.05, 0.01)
MODELS = {
    "cifar10-badnets": "cifar10",
    "cifar10-wanet": "cifar10",
    "cifar10-resnet-clean-0": "cifar10",
    "mnist-badnets": "mnist",
}
DETECTORS = ("cd_p", "confidence")


def measure(name: str, held_out: ImageSet, count: int) -> dict[str, Any]:
    """False alarms of each detector on one model."""
    generator = np.random.default_rng(SEED)
    chosen = np.sort(generator.permutation(len(held_out.labels))[:count])
    images, labels = held_out.images[chosen], held_out.labels[chosen]
    with tempfile.TemporaryDirectory() as temporary:
        for index in range(0, count, 5):
            path = Path(temporary) / str(labels[index]) / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_png(images[index]))
        path = ROOT / "fixtures" / "fleets" / "cpu-small" / f"{name}.onnx"
        classifier = open_model(path, Path(temporary))
    scores = scores_of(DETECTORS, classifier, images[:64], images)
    return {detector: _splits(values) for detector, values in scores.items()}


def _splits(scores: np.ndarray) -> dict[str, Any]:
    """Shares flagged, and findings, over the random splits."""
    generator = np.random.default_rng(SEED)
    significance = SamplesConfig().finding_significance
    result: dict[str, Any] = {
        "calibration_images": CALIBRATION,
        "suspect_images": len(scores) - CALIBRATION,
        "splits": SPLITS,
    }
    orders = [generator.permutation(len(scores)) for _ in range(SPLITS)]
    for level in LEVELS:
        shares, p_values = [], []
        for order in orders:
            known, suspects = scores[order[:CALIBRATION]], scores[order[CALIBRATION:]]
            flagged = conformal_p_values(suspects, known) <= level
            shares.append(float(flagged.mean()))
            count = int(flagged.sum())
            p_values.append(excess_p_value(count, len(suspects), CALIBRATION, level))
        result[f"level_{level:g}"] = {
            "mean_share_flagged": round(float(np.mean(shares)), 4),
            "smallest_and_largest_share": [round(min(shares), 4), round(max(shares), 4)],
            "folders_without_a_finding": int(np.sum(np.array(p_values) > significance)),
            "smallest_p_value": round(min(p_values), 4),
        }
    return result


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    held_out = {
        name: load_data(DataChoice(name, train_count=100), options.data).held_out
        for name in set(MODELS.values())
    }
    results = {}
    for name, data in MODELS.items():
        results[name] = measure(name, held_out[data], options.count)
        print(name, results[name]["cd_p"], flush=True)
        write(Path(__file__).with_suffix(".json"), {"models": results}, SEED)


if __name__ == "__main__":
    main()
