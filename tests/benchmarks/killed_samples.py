"""`kill -9` half way through 2,000 MNIST images on the shipped LeNet-5, then again.

`python -m tests.benchmarks.killed_samples --data DIR`: the second run must end with the scores of
an undisturbed one, to the last bit, and must not compute what the first one had.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from fixtures.data import encode_png
from fixtures.data_formats import read_pack
from tests.benchmarks.record import write
from tests.conftest import ROOT
from tests.scanner.scans import start

SEED = 0
MODEL = ROOT / "fixtures" / "models" / "mnist_lenet5_attacked.onnx"
CLEAN = ROOT / "fixtures" / "clean" / "mnist"


def begin(suspects: Path, out: Path, steps: int) -> Any:
    """`bdscan samples` as a process of its own."""
    return start(
        "samples", MODEL, "--clean-dir", CLEAN, "--suspect-dir", suspects, "--out-dir", out,
        "--steps", steps, "--format", "json", "-q", cwd=out.parent,
    )  # fmt: skip


def finish(process: Any) -> tuple[dict[str, Any], float]:
    """(its report, seconds)."""
    begun = time.monotonic()
    out, err = process.communicate()
    assert process.returncode in (0, 1), err
    return json.loads(out), round(time.monotonic() - begun, 1)


def main() -> None:
    """Kill, take up again, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    images = read_pack(options.data / "mnist.h5", "test").images[: options.count]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        suspects = folder / "suspects"
        suspects.mkdir()
        for number, image in enumerate(images):
            (suspects / f"{number:05d}.png").write_bytes(encode_png(image))
        process = begin(suspects, folder / "killed", options.steps)
        half = -(-options.count // 64) // 2
        while len(list((folder / "killed").glob(".*.partial/suspect-*.npz"))) < half:
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kept = len(list((folder / "killed").glob(".*.partial/suspect-*.npz")))
        resumed, second = finish(begin(suspects, folder / "killed", options.steps))
        whole, undisturbed = finish(begin(suspects, folder / "whole", options.steps))
    results = {
        "images": options.count,
        "steps": options.steps,
        "chunks_kept_by_the_killed_run": kept,
        "images_not_computed_again": resumed["summary"]["resumed"],
        "seconds_of_the_second_run": second,
        "seconds_of_an_undisturbed_run": undisturbed,
        "same_samples_to_the_last_bit": resumed["samples"] == whole["samples"],
        "verdict": whole["finding"]["verdict"],
    }
    print(results)
    assert results["same_samples_to_the_last_bit"]
    write(Path(__file__).with_suffix(".json"), results, SEED)


if __name__ == "__main__":
    main()
