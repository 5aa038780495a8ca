"""A killed run is taken up again: nothing is computed twice, and the scores are the same."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from scanner.samples.partial import Part, PartialRun, run_key
from tests.models import save_clean_set, save_model, stated, template_images, template_model
from tests.scanner.samples.folders import report_of, samples
from tests.scanner.scans import start

STEPS = 120  # enough to be killed half way


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    tmp = tmp_path_factory.mktemp("tiny")
    model = save_model(template_model(6, metadata=stated()), tmp / "model.onnx")
    images, labels = template_images(6, 12)
    clean = save_clean_set(images[::2], labels[::2], tmp / "clean")
    return model, clean, save_clean_set(images[1::2], labels[1::2], tmp / "suspects")


def test_a_run_goes_on_after_kill_9(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, clean, suspects = tiny
    options = ["--batch-size", 4, "--steps", STEPS, "--format", "json"]
    out = tmp_path / "killed"
    process = start(
        "samples",
        model,
        "--clean-dir",
        clean,
        "--suspect-dir",
        suspects,
        "--out-dir",
        out,
        *options,
        cwd=tmp_path,
    )
    chunks = 2 * 36 // 4
    try:
        deadline = time.monotonic() + 120
        while len(list(out.glob(".*.partial/*.npz"))) < chunks // 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob(".*.partial/*.npz")}
    assert chunks // 2 <= len(kept) < chunks
    assert not list(out.glob("*.json"))

    second = samples(model, clean, suspects, tmp_path, "--out-dir", out, *options)
    whole = samples(model, clean, suspects, tmp_path, "--out-dir", tmp_path / "whole", *options)
    resumed, undisturbed = report_of(second), report_of(whole)
    assert second.code == whole.code
    assert resumed["samples"] == undisturbed["samples"]
    assert resumed["thresholds"]["cd_p"]["mean"] == undisturbed["thresholds"]["cd_p"]["mean"]
    of_suspects = sum(name.startswith("suspect") for name in kept)
    assert resumed["summary"]["resumed"] == 4 * of_suspects
    assert undisturbed["summary"]["resumed"] == 0
    assert not list(out.glob(".*"))  # the chunks are gone once the result is there
    assert len(list(out.glob("*.json"))) == len(list(out.glob("*.h5"))) == 1


def test_chunks_come_back_as_they_were(tmp_path: Path) -> None:
    partial = PartialRun(tmp_path / "parts")
    partial.open()
    assert partial.load("suspect", 3) is None
    part = Part(
        files=("a.png", "b/c.png"),
        predicted=np.array([1, 2]),
        scores={"cd_p": np.array([0.5, np.nan])},
        masks={"cd_p": np.ones((2, 3, 3), np.float32)},
        features=np.zeros((2, 5), np.float32),
        corrupt=("d.png",),
        resized=1,
        seconds={"cd_p": 0.25},
    )
    partial.save("suspect", 3, part)
    found = partial.load("suspect", 3)
    assert found is not None
    assert (found.files, found.corrupt, found.resized) == (part.files, part.corrupt, 1)
    np.testing.assert_array_equal(found.scores["cd_p"], part.scores["cd_p"])
    np.testing.assert_array_equal(found.masks["cd_p"], part.masks["cd_p"])
    assert found.features is not None
    assert found.features.shape == (2, 5)
    without = partial.load("suspect", 3, masks=False)
    assert without is not None
    assert without.masks == {}
    partial.path("suspect", 3).write_bytes(partial.path("suspect", 3).read_bytes()[:200])
    assert partial.load("suspect", 3) is None  # damaged: it is computed again
    partial.remove()
    assert not (tmp_path / "parts").exists()


def test_another_configuration_is_another_run() -> None:
    first = run_key({"seed": 0, "model": "a"})
    assert first == run_key({"model": "a", "seed": 0})
    assert first != run_key({"seed": 1, "model": "a"})
