"""Hostile files through the command: exit code 2, one line, and a report with the right reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scanner.errors import UsageError
from scanner.options import parse_limits
from tests.conftest import ROOT
from tests.converters.hostile import bombs, elsewhere, structure
from tests.converters.hostile.client import SECRET, secrets
from tests.converters.hostile.kinds import KINDS
from tests.converters.onnx_models import small_net
from tests.scanner.scans import environment

MODULES = (bombs, elsewhere, structure)  # importing them fills KINDS
CLEAN = ROOT / "fixtures" / "clean" / "mnist"
CHOSEN = (
    "empty_file",
    "garbage",
    "millions_of_empty_nodes",
    "four_hundred_graphs_in_one_another",
    "cycle",
    "tensor_computed_twice",
    "dimension_minus_one",
    "terabytes_declared",
    "operator_name_that_is_no_text",
    "loop_without_end",
    "parent_folder",
    "hard_link",
    "named_pipe",
    "batch_of_a_million",
)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scanner", *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def test_hostile_files_are_reported_one_by_one(tmp_path: Path) -> None:
    secrets(tmp_path / "secret")
    paths = []
    for name in CHOSEN:
        folder = tmp_path / name
        folder.mkdir()
        secrets(tmp_path / "secret")
        paths.append(KINDS[name].make(folder))
    out = tmp_path / "out"
    done = run(*paths, "--clean-dir", CLEAN, "--format", "json", "-q", "--out-dir", out)
    assert done.returncode == 2
    reports = json.loads(done.stdout)["models"]
    assert len(reports) == len(CHOSEN)
    for name, report in zip(CHOSEN, reports, strict=True):
        assert report["verdict"] == "error"
        assert report["reasons"][0]["code"] in KINDS[name].reasons, name
        assert len(report["reasons"][0]["message"]) < 1000
    assert len(done.stderr.splitlines()) == len(CHOSEN)
    assert "Traceback" not in done.stderr
    written = done.stdout + done.stderr + "".join(p.read_text() for p in out.glob("*.json"))
    assert SECRET.decode("latin-1")[2:] not in written


def test_one_hostile_file_is_one_line(tmp_path: Path) -> None:
    path = KINDS["cycle"].make(tmp_path)
    done = run("inspect", path, "--format", "json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "cycle"
    assert len(done.stderr.splitlines()) == 1


def test_a_limit_can_be_raised_and_lowered() -> None:
    path = ROOT / "fixtures" / "models" / "mnist_lenet5_clean.onnx"
    limits = parse_limits(["nodes=5k", "file_bytes=2G", "computed_bytes=64M"])
    assert (limits.nodes, limits.file_bytes, limits.computed_bytes) == (5000, 2 * 10**9, 64 * 10**6)
    assert parse_limits([]) == type(limits)()
    done = run("inspect", path, "--limit", "nodez=5")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


WRONG = (
    "",
    "nodes",
    "nodes=",
    "nodes=-1",
    "nodes=0",
    "nodes=1.5",
    "x=1",
    "nodes=5K",
    "nodes=\u0661",
)


@pytest.mark.parametrize("text", [*WRONG, "nodes=9999999999999999999"])
def test_wrong_limits(text: str) -> None:
    with pytest.raises(UsageError, match="--limit"):
        parse_limits([text])


def test_a_limit_given_twice() -> None:
    with pytest.raises(UsageError, match="expected one value"):
        parse_limits(["nodes=5", "nodes=6"])


def test_an_input_of_an_unknown_type_is_reported_as_such(tmp_path: Path) -> None:
    model = small_net()
    model.graph.input[0].type.tensor_type.elem_type = -1
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    done = run(path, "--clean-dir", CLEAN, "--format", "json", "-q", "--out-dir", tmp_path / "out")
    assert done.returncode == 2
    (report,) = json.loads(done.stdout)["models"]
    assert report["reasons"][0]["code"] == "not_an_image_classifier"
    assert report["model"]["inputs"][0]["type"] == "unknown type -1"
