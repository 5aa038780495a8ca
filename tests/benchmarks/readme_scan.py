"""Seconds and peak memory of the scan in the README's first command, as a whole process.

    python -m tests.benchmarks.readme_scan

Beside it, in the same run, the same process without a search (`bdscan inspect` with the same clean
images), so that what is paid for imports, loading and preprocessing can be told from the search.
Writes readme_scan.json: medians of three runs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.record import write

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODEL = str(FIXTURES / "models" / "mnist_lenet5_attacked.onnx")
CLEAN = str(FIXTURES / "clean" / "mnist")
COMMANDS = {
    "scan": ["scan", MODEL, "--clean-dir", CLEAN, "--quiet"],
    "inspect": ["inspect", MODEL, "--clean-dir", CLEAN],
}
EXPECTED_EXIT = {"scan": 1, "inspect": 0}
RUNS = 3


def run_once(name: str, folder: str) -> tuple[float, float]:
    """(seconds, peak memory in MB) of one process."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "scanner", *COMMANDS[name]],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(FIXTURES.parent)},
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if os.waitstatus_to_exitcode(status) != EXPECTED_EXIT[name]:
        raise RuntimeError(f"bdscan {name} ended with status {status}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in COMMANDS:
            runs = [run_once(name, folder) for _ in range(RUNS)]
            results[name] = {
                "seconds": round(statistics.median(seconds for seconds, _ in runs), 2),
                "peak_megabytes": round(statistics.median(memory for _, memory in runs)),
            }
    results["scan_to_inspect_seconds"] = round(
        results["scan"]["seconds"] / results["inspect"]["seconds"], 2
    )
    write(Path(__file__).with_suffix(".json"), results, seed=0)


if __name__ == "__main__":
    main()
