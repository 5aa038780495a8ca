"""`bdscan report`: what it writes, what it refuses, and what it exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scanner.reports.made import SHA, make_report, samples_content, store_samples, stored
from tests.scanner.scans import bdscan, environment, here


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with two results of scans and one of samples."""
    folder = tmp_path / "results"
    folder.mkdir()
    stored(make_report(), folder)
    stored(make_report(verdict="no_backdoor_found", target_classes=(), seed=1), folder)
    store_samples(folder, samples_content())
    return folder


def test_all_three_are_written_and_the_verdicts_do_not_matter(results: Path) -> None:
    cwd = results.parent
    (cwd / "models.lock").write_text(f"\nnet {SHA}\n", encoding="utf-8")
    done = bdscan(
        "report", results, "--html", "out.html", "--sarif", "out.sarif",
        "--sarif-anchor", "models.lock", "--cyclonedx", "out.cdx.json", cwd=cwd,
    )  # fmt: skip
    assert (done.code, done.out, done.err) == (0, "", "")
    assert (cwd / "out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    [run] = json.loads((cwd / "out.sarif").read_text(encoding="utf-8"))["runs"]
    [alert] = run["results"]
    where = alert["locations"][0]["physicalLocation"]
    assert (where["artifactLocation"]["uri"], where["region"]["startLine"]) == ("models.lock", 2)
    document = json.loads((cwd / "out.cdx.json").read_text(encoding="utf-8"))
    assert len(document["components"]) == 2


def test_a_broken_result_is_told_the_rest_is_written_and_the_code_is_2(results: Path) -> None:
    (results / "broken.json").write_text('{"schema_version": "1"', encoding="utf-8")
    done = here("report", results, "--html", "out.html", cwd=results.parent)
    assert done.code == 2
    [line] = done.err.splitlines()
    assert "broken.json" in line
    page = (results.parent / "out.html").read_text(encoding="utf-8")
    assert "broken.json" in page
    assert "vendor/net.onnx" in page


def test_with_nothing_readable_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("junk", encoding="utf-8")
    done = here("report", "x.json", "--html", "out.html", cwd=tmp_path)
    assert done.code == 2
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("results",),
        ("gone.json", "--html", "out.html"),
        ("empty", "--html", "out.html"),
        ("results", "--html", "gone/out.html"),
        ("results", "--html", "out.html", "--sarif-anchor", "models.lock"),
        ("results", "--sarif", "out.sarif", "--sarif-anchor", "gone.lock"),
        ("results", "--html", "out.html", "--clean-dir", "gone"),
        ("results", "--html", "out.x", "--sarif", "out.x"),
        ("results", "--html", "-", "--sarif", "-"),
        ("results", "--html", "results/samples.json"),
        ("results", "--html", "empty"),
    ],
)
def test_wrong_usage_is_one_line_and_code_4(results: Path, arguments: tuple[str, ...]) -> None:
    (results.parent / "empty").mkdir()
    before = (results / "samples.json").read_bytes()
    done = here("report", *arguments, cwd=results.parent)
    assert done.code == 4
    assert len(done.err.splitlines()) == 1
    assert (results / "samples.json").read_bytes() == before
    assert not (results.parent / "out.html").exists()


def test_a_dash_is_standard_output(results: Path) -> None:
    done = here("report", results, "--sarif", "-", cwd=results.parent)
    assert done.code == 0
    assert json.loads(done.out)["version"] == "2.1.0"


def test_nothing_half_written_is_left(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (results.parent / "out.html").write_text("old", encoding="utf-8")

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scanner.reports.files.os.replace", refuse)
    done = here("report", results, "--html", "out.html", cwd=results.parent)
    assert done.code == 4
    assert "No space left" in done.err
    assert sorted(p.name for p in results.parent.iterdir()) == ["out.html", "results"]
    assert (results.parent / "out.html").read_text(encoding="utf-8") == "old"


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no /dev/stdout")
def test_a_device_is_written_to_and_stays(results: Path) -> None:
    done = bdscan("report", results, "--cyclonedx", "/dev/stdout", cwd=results.parent)
    assert json.loads(done.out)["specVersion"] == "1.6"
    assert Path("/dev/stdout").exists()


def test_files_are_readable_as_the_umask_says(results: Path) -> None:
    old = os.umask(0o027)
    try:
        here("report", results, "--html", "out.html", cwd=results.parent)
    finally:
        os.umask(old)
    assert (results.parent / "out.html").stat().st_mode & 0o777 == 0o640


def test_clean_images_of_another_scan_are_told_and_not_shown(results: Path, shipped: Path) -> None:
    clean = shipped / "clean" / "mnist"
    done = here("report", results, "--html", "o.html", "--clean-dir", clean, cwd=results.parent)
    assert done.code == 0
    assert "no model was scanned with it" in done.err
    assert "Stamped" not in (results.parent / "o.html").read_text(encoding="utf-8")


def test_the_engines_are_not_imported(results: Path) -> None:
    program = (
        "import sys; from scanner.cli import main; "
        f"main(['report', {str(results)!r}, '--html', 'x.html']); "
        "print(*{'torch', 'onnxruntime', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=results.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == ""
    assert (results.parent / "x.html").exists()
