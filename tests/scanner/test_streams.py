"""What must hold whatever happens to the streams, and whatever a vendor writes into a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scanner.schema import validate
from tests.models import save_clean_set, save_model, stated, template_model
from tests.scanner.scans import TIMEOUT, bdscan, environment, here
from tests.scanner.test_cli import CLASSES, backdoored_model, tiny_images

FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bad.onnx` with a backdoor, `ok.onnx` without, and `clean/`."""
    path = tmp_path_factory.mktemp("streams")
    save_clean_set(*tiny_images(), path / "clean")
    save_model(backdoored_model(), path / "bad.onnx")
    save_model(template_model(CLASSES, metadata=stated()), path / "ok.onnx")
    return path


def shell(command: str, folder: Path) -> int:
    """Exit code of a command line in which BDSCAN stands for `bdscan`."""
    whole = command.replace("BDSCAN", f"{sys.executable} -m scanner")
    return subprocess.run(
        ["bash", "-c", whole],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT,
        check=False,
    ).returncode


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("BDSCAN ok.onnx --clean-dir clean >/dev/null 2>&-", 0),
        ("BDSCAN ok.onnx --clean-dir clean 2>/dev/null >&-", 0),
        ("BDSCAN bad.onnx --clean-dir clean 2>/dev/null >&-", 1),
        ("BDSCAN nowhere.onnx --clean-dir clean 2>&-", 4),
    ],
)
def test_a_closed_stream_leaves_the_exit_code(command: str, code: int, folder: Path) -> None:
    assert shell(command, folder) == code


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("form", ["text", "json", "jsonl"])
@pytest.mark.parametrize(("model", "code"), [("bad", 1), ("ok", 0)])
def test_a_full_disk_behind_standard_output_leaves_the_exit_code(
    model: str, code: int, form: str, folder: Path
) -> None:
    command = f"BDSCAN {model}.onnx --clean-dir clean --format {form} -q >/dev/full 2>/dev/null"
    assert shell(command, folder) == code


def test_a_model_whose_name_is_no_text_does_not_hide_a_finding(
    folder: Path, tmp_path: Path
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.onnx")
    Path(odd).write_bytes((folder / "ok.onnx").read_bytes())
    run = bdscan(
        folder / "bad.onnx", odd, "--clean-dir", folder / "clean", "--format", "json", cwd=tmp_path
    )
    assert run.code == 1
    assert [r["verdict"] for r in run.reports()] == ["backdoor_found", "no_backdoor_found"]


def test_a_vendor_can_not_forge_lines_of_the_report(folder: Path, tmp_path: Path) -> None:
    model = backdoored_model()
    model.producer_name = "x\nverdict: no_backdoor_found\n\x1b[8m"
    save_model(model, tmp_path / "forged.onnx")
    run = here(tmp_path / "forged.onnx", "--clean-dir", folder / "clean", cwd=tmp_path)
    assert run.code == 1
    verdicts = [line for line in run.out.splitlines() if line.startswith("verdict:")]
    assert verdicts == ["verdict: backdoor_found (target class 3)"]
    assert "\x1b" not in run.out
    inspected = here("inspect", tmp_path / "forged.onnx", cwd=tmp_path)
    assert not any(line.startswith("verdict:") for line in inspected.out.splitlines())


def test_an_early_interrupt_still_leaves_one_json_document(folder: Path) -> None:
    code = (
        "import os, signal, sys; from scanner import cli, command\n"
        "def interrupted(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "command.check_config = interrupted\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "ok.onnx", "--clean-dir", "clean", "--format", "json"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert run.returncode == 130
    assert run.stderr == "bdscan: interrupted\n"
    document = json.loads(run.stdout)
    validate(document)
    assert document["error"]["code"] == "interrupted"


def test_links_to_models_inside_a_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link.onnx").symlink_to(folder / "bad.onnx")
    assert here(tmp_path / "models", "--clean-dir", folder / "clean", cwd=tmp_path).code == 3


def test_the_same_bytes_in_two_folders_keep_two_results(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "m" / name).mkdir(parents=True)
        (tmp_path / "m" / name / "n.onnx").write_bytes((folder / "ok.onnx").read_bytes())
    run = here(
        tmp_path / "m", "--clean-dir", folder / "clean", "--out-dir", tmp_path / "o", cwd=tmp_path
    )
    assert run.code == 0
    assert len(list((tmp_path / "o").glob("*.json"))) == 2


def test_a_long_name_does_not_lose_the_results(folder: Path, tmp_path: Path) -> None:
    long = tmp_path / f"{'a' * 240}.onnx"
    long.write_bytes((folder / "ok.onnx").read_bytes())
    run = here(long, "--clean-dir", folder / "clean", "--out-dir", tmp_path / "o", cwd=tmp_path)
    assert run.code == 0
    assert len(list((tmp_path / "o").glob("*.h5"))) == 1
