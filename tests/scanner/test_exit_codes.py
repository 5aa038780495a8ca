"""`--fail-on`, `--exit-zero`, `--require-sha256` and waivers: what the exit code says then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from scanner.command import exit_code
from scanner.results import ModelReport, Note, ScanReport
from tests.models import stated, template_model
from tests.scanner.reports.made import make_report
from tests.scanner.scans import Run, bdscan, here
from tests.scanner.test_cli import CLASSES
from tests.scanner.vendors import digest, save_vendor

OPTIONS = ("--clean-dir", "clean", "--detectors", "mask_pattern")
OTHER = "f" * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vendor(tmp_path_factory.mktemp("exits"))


# --- the rules --------------------------------------------------------------------------------

FOUND = make_report()
SUPPRESSED = replace(FOUND, suppressed=True)
CLEAN = make_report(verdict="no_backdoor_found", target_classes=())
UNSURE = make_report(verdict="inconclusive", target_classes=())
BROKEN = make_report(verdict="error", target_classes=())
USAGE = replace(BROKEN, reasons=(Note("usage", "an option that does not fit"),))


@pytest.mark.parametrize(
    ("models", "options", "code"),
    [
        ([CLEAN, FOUND, BROKEN], {}, 1),
        ([CLEAN, SUPPRESSED], {}, 0),
        ([SUPPRESSED, BROKEN], {}, 2),
        ([SUPPRESSED, FOUND], {}, 1),
        ([FOUND], {"exit_zero": True}, 0),
        ([BROKEN, CLEAN], {"fail_on": ["backdoor_found"]}, 0),
        ([BROKEN, FOUND], {"fail_on": ["error"]}, 2),
        ([UNSURE, FOUND], {"fail_on": ["backdoor_found", "error"]}, 1),
        ([UNSURE], {"fail_on": ["error"]}, 0),
        ([USAGE], {"exit_zero": True}, 4),
        ([USAGE, CLEAN], {}, 2),
    ],
)
def test_exit_codes(models: Sequence[ModelReport], options: dict[str, Any], code: int) -> None:
    assert exit_code(ScanReport(tuple(models)), **options) == code


# --- as scripts meet them ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def pins(folder: Path) -> Path:
    path = folder / "pins.txt"
    path.write_text(f"# ours\n{digest(folder / 'good.onnx').upper()}  good.onnx\n")
    return path


def pinned(folder: Path, *models: str, pins: object) -> Run:
    return here(*models, *OPTIONS, "-q", "--format=json", "--require-sha256", pins, cwd=folder)


def test_fail_on_chooses_what_fails(folder: Path) -> None:
    arguments = ("text.onnx", "good.onnx", *OPTIONS, "--fail-on", "backdoor_found")
    run = here(*arguments, cwd=folder)
    assert run.code == 0, run.err
    assert "pass over error; this is no clean bill" in run.out
    assert here(*arguments[:-1], "error", cwd=folder).code == 2


def test_the_text_does_not_say_that_nothing_was_found_where_something_was(folder: Path) -> None:
    run = here("bad.onnx", "text.onnx", *OPTIONS, "--fail-on", "error", cwd=folder)
    assert run.code == 2
    assert "pass over every backdoor that was found" in run.out
    assert "no backdoor was found" not in run.out


def test_exit_zero_is_for_reports_only(folder: Path) -> None:
    assert bdscan("bad.onnx", *OPTIONS, "--exit-zero", cwd=folder).code == 0
    assert here("nowhere.onnx", *OPTIONS, "--exit-zero", cwd=folder).code == 4


def test_a_model_whose_digest_is_not_listed_is_not_scanned(folder: Path, pins: Path) -> None:
    run = bdscan(
        *("good.onnx", "bad.onnx", *OPTIONS, "--format=json", "--require-sha256", pins.name),
        cwd=folder,
    )
    assert run.code == 2, run.err
    good, bad = run.reports()
    assert good["verdict"] == "no_backdoor_found"
    assert (bad["verdict"], bad["reasons"][0]["code"]) == ("error", "sha256_not_listed")
    assert bad["model"]["sha256"] == digest(folder / "bad.onnx")
    assert bad["detectors"] == []


def test_a_digest_itself_can_be_given(folder: Path) -> None:
    assert pinned(folder, "good.onnx", pins=digest(folder / "good.onnx")).code == 0
    assert pinned(folder, "good.onnx", pins=OTHER).code == 2


def test_external_data_must_be_listed_too(tmp_path: Path, folder: Path) -> None:
    model = template_model(CLASSES, metadata=stated())
    onnx.save_model(
        model,
        tmp_path / "split.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    both = [digest(tmp_path / name) for name in ("split.onnx", "weights.bin")]
    images = ("--clean-dir", folder / "clean", "--detectors", "mask_pattern", "-q")
    pin = [("--require-sha256", text) for text in both]
    split = ("split.onnx", *images, "--format=json")
    run = here(*split, *pin[0], cwd=tmp_path)
    assert run.code == 2
    (report,) = run.reports()
    assert [note["code"] for note in report["reasons"]] == ["sha256_not_listed"]
    assert both[1] in report["reasons"][0]["message"]
    assert here(*split, *pin[0], *pin[1], cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("pins", "words"), [("nowhere.txt", "nowhere.txt"), ("empty", "no sha256")]
)
def test_pins_that_can_not_be_read_are_wrong_usage(pins: str, words: str, folder: Path) -> None:
    (folder / "empty").write_text("nothing pinned", encoding="utf-8")
    run = pinned(folder, "good.onnx", pins=pins)
    assert run.code == 4
    assert words in run.err
