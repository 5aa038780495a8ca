"""Folders of clean and triggered images for a shipped backdoored model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt

from fixtures.attacks.patches import BadNetsAttack
from scanner.clean_set import decode_image
from tests.conftest import ROOT
from tests.models import save_image
from tests.scanner.scans import Run, here

MODEL = ROOT / "fixtures" / "fleets" / "cpu-small" / "cifar10-badnets.onnx"
TARGET = 0  # of that model; its trigger is BadNets' 3x3 grid
CLEAN = ROOT / "fixtures" / "clean" / "cifar10"
SCHEMA = ROOT / "scanner" / "schema" / "samples-1.schema.json"
STEPS = 15

Images = npt.NDArray[np.float32]


def shipped_images() -> tuple[Images, list[str]]:
    """The 120 shipped CIFAR-10 images and their classes' names."""
    files = sorted(CLEAN.rglob("*.jpg"))
    return np.stack([decode_image(f, 3, 32, 32)[0] for f in files]), [f.parent.name for f in files]


def triggered(images: Images) -> Images:
    """With the model's trigger."""
    attack = BadNetsAttack((3, 32, 32), 0)
    return attack.trigger(images, np.random.default_rng(0))


def write(folder: Path, images: Images, prefix: str, classes: list[str] | None = None) -> Path:
    """`<folder>/<class>/<prefix><number>.png`."""
    for number, image in enumerate(images):
        inside = folder / classes[number] if classes else folder
        save_image(image, inside / f"{prefix}{number:03d}.png")
    return folder


def make_folders(tmp: Path) -> tuple[Path, Path, Path]:
    """(60 clean images, 30 other clean ones, these and 20 triggered ones)."""
    images, classes = shipped_images()
    clean = write(tmp / "clean", images[::2], "", classes[::2])
    rest = images[1::2]
    innocent = write(tmp / "innocent", rest[:30], "clean-")
    mixed = write(tmp / "mixed", rest[:30], "clean-")
    others = np.stack(
        [image for image, name in zip(rest, classes[1::2], strict=True) if name != "airplane"]
    )
    write(mixed, triggered(others[-20:]), "triggered-")
    return clean, innocent, mixed


def samples(model: Path, clean: Path, suspects: Path, cwd: Path, *more: object) -> Run:
    """`bdscan samples` in this process, with few steps."""
    return here(
        "samples",
        model,
        "--clean-dir",
        clean,
        "--suspect-dir",
        suspects,
        "--steps",
        STEPS,
        "-q",
        *more,
        cwd=cwd,
    )


def report_of(run: Run) -> dict[str, Any]:
    """The document of a `--format json` run, valid under the schema."""
    content: dict[str, Any] = json.loads(run.out)
    jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
    return content
