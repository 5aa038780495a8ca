"""Held-out rates of the first corroboration at several margins, on backdoored and clean models.

    python -m tests.benchmarks.corroboration_margin

For the two classes of smallest norm of each shipped model: the share of held-out images that the
trigger carries at `margin` times its norm, and the best of the other classes' triggers at the same
norm. A few minutes on one core; writes corroboration_margin.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scanner.arms import WITH_TRIGGERS, Ready
from scanner.config import LRedConfig, ScanConfig
from scanner.corroboration import corroborate
from scanner.detectors.l_red import estimate_patterns
from scanner.detectors.misclassification import GroupMisclassification
from tests.benchmarks.record import write
from tests.benchmarks.shipped import load

MODELS = {
    "mnist_lenet5_attacked": "mnist",
    "mnist_lenet5_clean": "mnist",
    "cifar10_cnn_attacked": "cifar10",
    "cifar10_cnn_clean": "cifar10",
}
MARGINS = (1.0, 1.25, 1.5)
BATCH_IMAGES = 2048


def measure(name: str, clean: str) -> list[dict[str, Any]]:
    """A row for each of the two classes of smallest norm."""
    loaded = load(name, clean)
    every = range(loaded.classifier.class_count)
    ready = Ready(*loaded, tuple(every), BATCH_IMAGES, deadline=None)
    objective = GroupMisclassification(*loaded, every, BATCH_IMAGES)
    estimates = estimate_patterns(objective, LRedConfig())
    rows = []
    for suspect in sorted(estimates, key=lambda e: e.norm)[:2]:
        rates = {}
        for margin in MARGINS:
            result, _ = corroborate(
                WITH_TRIGGERS["l_red"], ready, estimates, suspect.target_class, ScanConfig(), margin
            )
            rates[str(margin)] = {
                "held_out_rate": round(result.held_out_rate, 3),
                "best_other_rate": round(result.best_other_rate, 3),
            }
        row = {"target_class": suspect.target_class, "norm": round(suspect.norm, 4)}
        rows.append({**row, "margins": rates})
    return rows


def main() -> None:
    torch.set_num_threads(1)
    results = {name: measure(name, clean) for name, clean in MODELS.items()}
    write(Path(__file__).with_suffix(".json"), {"models": results}, seed=0)


if __name__ == "__main__":
    main()
