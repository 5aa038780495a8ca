"""How often Neural Cleanse's MAD index accuses a class of a clean model whose sizes are i.i.d.

    python -m tests.benchmarks.mad_false_alarms

For each K and each distribution of the K sizes: the share of models in which the smallest size has
an anomaly index above 2, and the index that 5 % of the models exceed. Ten seconds on one core;
writes mad_false_alarms.json.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scanner.detectors.neural_cleanse import ANOMALY_THRESHOLD, Floats, anomaly_index
from tests.benchmarks.record import write

CLASSES = (5, 10, 43, 100)
MODELS = 20_000
SEED = 0
NULLS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal, cv .2": lambda generator, k: generator.normal(1.0, 0.2, k).clip(min=0),
    "Gamma, shape 20": lambda generator, k: generator.gamma(20.0, size=k),
    "inverse of Gamma, shape 20": lambda generator, k: 1 / generator.gamma(20.0, size=k),
}


def measure(null: str, classes: int) -> dict[str, Any]:
    """False alarms over `MODELS` models, with the standard error."""
    generator = np.random.default_rng([SEED, classes])
    largest = np.array(
        [anomaly_index(NULLS[null](generator, classes)).max() for _ in range(MODELS)]
    )
    share = float((largest > ANOMALY_THRESHOLD).mean())
    return {
        "sizes": null,
        "classes": classes,
        "false_alarms": round(share, 4),
        "standard_error": round(float(np.sqrt(share * (1 - share) / MODELS)), 4),
        "index_of_5_percent": round(float(np.quantile(largest, 0.95)), 2),
    }


def main() -> None:
    rows = [measure(null, k) for null in NULLS for k in CLASSES]
    write(Path(__file__).with_suffix(".json"), {"models": MODELS, "rows": rows}, SEED)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
