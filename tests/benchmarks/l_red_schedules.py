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

import torch

from scanner.config import LRedConfig
from scanner.detectors.l_red import PatternEstimate, estimate_patterns
from scanner.detectors.misclassification import GroupMisclassification
from tests.benchmarks.record import write
from tests.benchmarks.shipped import Loaded, load

MODELS = {  # model: (clean set, ranks by norm that are compared)
    "mnist_lenet5_attacked": ("mnist", (0, 1, 5)),
    "cifar10_cnn_attacked": ("cifar10", (0, 1)),
}


def run(loaded: Loaded, targets: list[int], schedule: str) -> tuple[list[PatternEstimate], float]:
    """(estimates, seconds) of one schedule."""
    objective = GroupMisclassification(*loaded, targets, 2048)
    begun = time.perf_counter()
    estimates = estimate_patterns(objective, LRedConfig(schedule=schedule))
    return estimates, time.perf_counter() - begun


def compare(name: str, clean: str, ranks: tuple[int, ...]) -> dict[str, Any]:
    """Norms and gradient evaluations of both schedules on some classes of one model."""
    loaded = load(name, clean)
    every, _ = run(loaded, list(range(loaded.classifier.class_count)), "fast")
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
