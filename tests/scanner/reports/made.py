"""Results made for the tests, stored as a scan stores them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scanner.config import VerdictConfig
from scanner.reports.stored import MODEL, StoredResult, UnreadableResultError, read_results
from scanner.results import (
    BACKDOOR_FOUND,
    Arrays,
    ClassResult,
    CleanSetInfo,
    Corroboration,
    DetectorResult,
    ModelInfo,
    ModelReport,
    Note,
    NotRun,
    ParityInfo,
    PreprocessingInfo,
    to_json,
)
from scanner.store import save
from scanner.verdict import evaluate_statistics

SHA = "0123456789abcdef" * 4
NORMS = (3.3, 3.6, 0.3, 3.9, 4.2, 4.4)
SUSPECT = 2


def detector(
    name: str = "l_red", norms: Sequence[float] = NORMS, censored: Sequence[int] = ()
) -> DetectorResult:
    """A detector with a search for each norm; the smallest one's class is the suspect."""
    count = len(norms)
    classes = tuple(
        ClassResult(
            target_class=target,
            status="censored" if target in censored else "found",
            stop_reason="misclassification_fraction_reached",
            norm=norm,
            statistic=1 / norm,
            misclassification=0.95,
            runtime_difference=0,
            source_weights=tuple(0.0 if k == target else 1 / (k + 2) for k in range(count)),
            source_fractions=tuple(0.0 if k == target else 0.9 for k in range(count)),
            gradient_evaluations=7,
            images=16,
            clipped_share=0.1,
        )
        for target, norm in enumerate(norms)
    )
    return DetectorResult(
        name=name,
        settings={"schedule": "fast"},
        classes=classes,
        statistics=evaluate_statistics(classes, VerdictConfig()),
        corroboration=Corroboration(int(np.argmin(norms)), 0.9, 0.1, 0.5, True),
        image_gradients=700,
        seconds=1.5,
    )


def perturbation(target: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(C, 5, 4), its largest absolute value 0.1."""
    drawn = np.random.default_rng(target).normal(size=(channels, 5, 4))
    return (drawn * 0.1 / np.abs(drawn).max()).astype(np.float32)


def make_report(**changes: Any) -> ModelReport:
    """A backdoored model's report, with every part that a report can have."""
    found = detector()
    arrays = {
        target: Arrays(perturbation=perturbation(target), trace=np.zeros((2, 2)))
        for target in range(len(NORMS))
    }
    report = ModelReport(
        model=ModelInfo("vendor/net.onnx", SHA, 1000, 8, 17, "pytorch", class_count=len(NORMS)),
        verdict=BACKDOOR_FOUND,
        target_classes=(SUSPECT,),
        reasons=(Note("code", "the reason"),),
        flags=(Note("few_images", "the flag"),),
        detectors=(found,),
        not_run=(NotRun("maximum_margin", "no_gradient", "there is no gradient"),),
        clean_set=CleanSetInfo("imgs", "digest", "folder names, sorted", 16, (), 0, 0, 1.0, ()),
        preprocessing=PreprocessingInfo(1.0, (0.5,), (0.25,), "RGB", "NCHW", (5, 4), {}, {}),
        parity=ParityInfo(10, 1e-6, 1.0, False),
        tool={"name": "bdscan", "version": "0.1.0"},
        configuration={"seed": {"value": 0, "origin": "default"}},
        started="2026-01-02T03:04:05.000Z",
        finished="2026-01-02T03:05:05.000Z",
        arrays={"l_red": arrays},
    )
    return replace(report, **changes)


def stored(report: ModelReport, folder: Path) -> StoredResult:
    """A report written by `scanner.store.save` and read back."""
    saved = save(report, folder)
    return read_one(folder / saved.files["json"]["name"])


def read_one(file: Path) -> StoredResult:
    """The only result in a file."""
    [result] = read_results(file)
    assert isinstance(result, StoredResult), result
    return result


def problems(file: Path, named: bool = True) -> list[str]:
    """What can't be read in a file, as the lines that users see."""
    return [str(r) for r in read_results(file, named) if isinstance(r, UnreadableResultError)]


def in_memory(report: ModelReport, file: Path = Path("result.json")) -> StoredResult:
    """A report as if it had been read from a file, without arrays."""
    return StoredResult(MODEL, json.loads(json.dumps(to_json(report))), file)


def samples_content(files: Sequence[str] = ("a.png", "b.png", "c.png")) -> dict[str, Any]:
    """A document of `bdscan samples`: the second image is flagged."""
    samples = [
        {
            "file": file,
            "predicted": 3,
            "scores": {"cd_p": 10.0 * index, "strip": None},
            "p_values": {"cd_p": 0.01 if index == 1 else 0.5, "strip": None},
            "beyond_gamma": {"cd_p": index == 1, "strip": None},
            "flagged": index == 1,
            "rejected": None,
            "simplified_trigger_rate": 1.0 if index == 1 else None,
        }
        for index, file in enumerate(files)
    ]
    threshold = {
        "suspicious": "low",
        "clean_images": 20,
        "mean": 30.0,
        "standard_deviation": 2.0,
        "by_gamma": 28.0,
        "false_alarms_by_gamma": 0.1,
        "by_level": 27.0,
        "settings": {},
        "seconds": 1.0,
    }
    report = to_json(make_report())
    finding = {
        "verdict": "triggered_images_found",
        "detector": "cd_p",
        "images": len(samples),
        "flagged": 1,
        "expected": 0.1,
        "p_value": 0.001,
        "level": 0.05,
        "significance": 0.01,
        "reasons": [{"code": "flagged_images", "message": "why"}],
    }
    summary = {
        "images": len(samples),
        "scored": len(samples),
        "unreadable": ["broken.png"],
        "resized": 0,
        "resumed": 0,
        "flagged": 1,
        "rejected": None,
        "fewest_rejections": None,
        "classes": [{"class_index": 3, "images": len(samples), "flagged": 1}],
    }
    shared = ("model", "flags", "not_run", "clean_set", "preprocessing", "parity", "tool", "device")
    more = ("environment", "configuration", "seed", "started", "finished", "timings")
    return {
        **{name: report[name] for name in shared + more},
        "schema_version": "1",
        "suspect_dir": "suspects",
        "finding": finding,
        "samples": samples,
        "thresholds": {"cd_p": threshold, "strip": {**threshold, "suspicious": "high"}},
        "summary": summary,
        "files": {},
    }


def store_samples(folder: Path, content: dict[str, Any]) -> StoredResult:
    """A document of `bdscan samples` with its arrays, read back."""
    files = [sample["file"] for sample in content["samples"]]
    masks = np.linspace(0, 1, len(files) * 20, dtype=np.float32).reshape(-1, 5, 4)
    with h5py.File(folder / "samples.h5", "w") as file:
        group = file.create_group("samples/cd_p")
        group["mask"] = masks
        group["pattern"] = np.repeat(masks[:, None], 3, axis=1)
        group.create_dataset("file", data=files, dtype=h5py.string_dtype())
        group["simplified"] = np.ones((1, 3, 5, 4), np.float32)
        group["simplified_row"] = np.array([1])
    digest = hashlib.sha256((folder / "samples.h5").read_bytes()).hexdigest()
    content["files"] = {"h5": {"name": "samples.h5", "sha256": digest}}
    path = folder / "samples.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_one(path)
