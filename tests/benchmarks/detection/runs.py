"""Scans under several settings, each in a process of its own so that its memory can be told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.detection.targets import Target

RUNS: dict[str, list[str]] = {
    "default": [],
    "two_images": ["--images-per-class", "2"],
    "neural_cleanse": ["--detectors", "neural_cleanse"],
}
"""Options of each run, beside `--images-per-class` with the target's own number."""


def scan(target: Target, run: str) -> dict[str, Any]:
    """One scan's record: the report's detectors without traces, time, memory."""
    options = RUNS[run]
    if "--images-per-class" not in options:
        options = [*options, "--images-per-class", str(target.images)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scanner", target.model, "--clean-dir", target.clean_dir]
        command += ["--format", "jsonl", "--out-dir", folder, "-q", *options]
        begun = time.monotonic()
        output = Path(folder) / "out.jsonl"
        with output.open("w") as file, (Path(folder) / "err").open("w") as errors:
            process = subprocess.Popen(command, stdout=file, stderr=errors)
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        text, complaint = output.read_text(), (Path(folder) / "err").read_text()
    record = {
        "name": target.name,
        "run": run,
        "exit_code": os.waitstatus_to_exitcode(status),
        "wall_seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_megabytes": round(usage.ru_maxrss / 1024),
    }
    return record | (_kept(json.loads(text)) if text.strip() else {"complaint": complaint[-500:]})


def _kept(report: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "statistics", "corroboration", "threshold", "mapping", "published")
    detectors = [
        {key: detector.get(key) for key in (*keys, "image_gradients", "seconds")}
        | {"classes": [_class(c) for c in detector["classes"]]}
        for detector in report["detectors"]
    ]
    reasons = [reason["code"] for reason in report["reasons"]]
    flags = [flag["code"] for flag in report["flags"]]
    environment = {k: report["environment"][k] for k in ("python", "torch", "onnxruntime")}
    return {
        "sha256": report["model"]["sha256"],
        "class_count": report["model"]["class_count"],
        "verdict": report["verdict"],
        "accused": report["target_classes"],
        "accuracy": (report["clean_set"] or {}).get("accuracy"),
        "reasons": reasons,
        "flags": flags,
        "detectors": detectors,
        "timings": report["timings"],
        "environment": environment,
        "seed": report["seed"],
    }


def _class(result: dict[str, Any]) -> list[Any]:
    """[target class, norm, statistic, status]."""
    return [result["target_class"], result["norm"], result["statistic"], result["status"]]


def run_all(
    targets: Sequence[Target], runs: Sequence[str], out: Path, jobs: int
) -> Iterator[dict[str, Any]]:
    """Scan what `out` does not hold yet, and append each record as it is done."""
    done = set()
    if out.exists():
        done = {(r["name"], r["run"]) for r in map(json.loads, out.read_text().splitlines())}
    todo = [(t, run) for run in runs for t in targets if (t.name, run) not in done]
    with ThreadPoolExecutor(jobs) as pool, out.open("a") as file:
        for record in pool.map(lambda item: scan(*item), todo):
            file.write(json.dumps(record) + "\n")
            file.flush()
            yield record
