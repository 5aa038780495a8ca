"""What a call is to scan: paths, patterns, folders and lists; each model once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scanner.errors import NothingToScanError, UsageError
from scanner.schema import validate
from scanner.targets import Target, find_targets
from tests.scanner.scans import TIMEOUT, Run, environment, start
from tests.scanner.vendors import save_vendor

CLEAN = Path("clean")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: models at two depths, a note, and links that lead out and back."""
    monkeypatch.chdir(tmp_path)
    for name in ("vendor/a.onnx", "vendor/deep/b.ONNX", "vendor/notes.txt", "other/c.onnx"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"bytes")
    (tmp_path / "vendor" / "link.onnx").symlink_to(tmp_path / "other" / "c.onnx")
    (tmp_path / "vendor" / "out").symlink_to(tmp_path / "other")
    (tmp_path / "vendor" / "deep" / "loop").symlink_to(tmp_path / "vendor")
    (tmp_path / "empty").mkdir()
    return tmp_path


def paths(*models: str, list_file: str | None = None, null: bool = False) -> list[str]:
    targets, _ = find_targets(models, list_file, null, CLEAN)
    return [str(target.path) for target in targets]


def of_list(text: str | bytes, name: str = "list.csv", clean: Path | None = CLEAN) -> list[Target]:
    content = text if isinstance(text, bytes) else text.encode()
    Path(name).write_bytes(content)
    return list(find_targets((), name, clean_dir=clean)[0])


def problems(targets: Sequence[Target]) -> list[str]:
    return ["" if target.problem is None else target.problem.code for target in targets]


# --- names on the command line ----------------------------------------------------------------


def test_folders_are_searched_and_their_links_are_not_followed(tree: Path) -> None:
    assert paths("vendor") == ["vendor/a.onnx", "vendor/deep/b.ONNX"]


def test_a_link_that_is_named_is_taken(tree: Path) -> None:
    assert paths("vendor/link.onnx") == ["vendor/link.onnx"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("vendor/*.onnx", ["vendor/a.onnx", "vendor/link.onnx"]),
        ("*/c.onnx", ["other/c.onnx"]),
        ("**/[ac].onnx", ["other/c.onnx", "vendor/a.onnx"]),
        ("vend?r", ["vendor/a.onnx", "vendor/deep/b.ONNX"]),
    ],
)
def test_a_quoted_pattern_is_what_the_shell_would_pass(
    pattern: str, expected: list[str], tree: Path
) -> None:
    assert paths(pattern) == expected
    assert paths(str(tree / pattern)) == [str(tree / name) for name in expected]


def test_a_file_with_signs_of_a_pattern_in_its_name_is_that_file(tree: Path) -> None:
    Path("a[1].onnx").write_bytes(b"")
    Path("a1.onnx").write_bytes(b"")
    assert paths("a[1].onnx") == ["a[1].onnx"]


def test_each_model_is_taken_once_in_the_order_named(tree: Path) -> None:
    named = ("other/c.onnx", "vendor", "./vendor/a.onnx", "other")
    assert paths(*named) == ["other/c.onnx", "vendor/a.onnx", "vendor/deep/b.ONNX"]


def test_names_that_give_nothing_beside_others_are_told(tree: Path) -> None:
    targets, empty = find_targets(["empty", "no*", "vendor/a.onnx"], None, False, CLEAN)
    assert len(targets) == 1
    assert empty == ("empty: no .onnx file in it", "no*: matches nothing")


@pytest.mark.parametrize("name", ["empty", "no*.onnx"])
def test_nothing_at_all_is_nothing_to_scan(name: str, tree: Path) -> None:
    with pytest.raises(NothingToScanError, match=r"no \.onnx file in"):
        paths(name)


def test_an_empty_list_is_nothing_to_scan(tree: Path) -> None:
    with pytest.raises(NothingToScanError):
        of_list("\n\n", "list.txt")


@pytest.mark.parametrize(
    ("models", "options", "word"),
    [
        (["nowhere.onnx"], {}, "does not exist"),
        ([], {}, "no model is named"),
        (["vendor"], {"null": True}, "-0 goes with"),
        (["vendor"], {"clean_dir": None}, "--clean-dir"),
        (["-"], {"list_file": "-"}, "once"),
        ([], {"list_file": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_wrong_usage(models: list[str], options: dict[str, Any], word: str, tree: Path) -> None:
    with pytest.raises(UsageError, match=word):
        find_targets(models, **{"clean_dir": CLEAN, **options})


def test_a_name_too_long_for_the_system_is_one_target_with_a_problem(tree: Path) -> None:
    targets, _ = find_targets(["x" * 5000, "vendor/a.onnx"], clean_dir=CLEAN)
    assert problems(targets) == ["unreadable_path", ""]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_can_not_be_listed_is_told(tree: Path) -> None:
    Path("vendor/deep").chmod(0)
    try:
        targets, _ = find_targets(["vendor"], clean_dir=CLEAN)
    finally:
        Path("vendor/deep").chmod(0o700)
    assert problems(targets) == ["", "unreadable_folder"]


# --- lists ------------------------------------------------------------------------------------


def test_a_plain_list_has_one_path_a_line_as_find_prints_them(tree: Path) -> None:
    (tree / "lists").mkdir()
    targets = of_list("vendor/a.onnx\r\n\nother\nnowhere.onnx\n", "lists/all.txt")
    assert [str(t.path) for t in targets] == ["vendor/a.onnx", "other/c.onnx", "nowhere.onnx"]
    assert problems(targets) == ["", "", "not_found"]
    assert targets[0].place == "lists/all.txt:1"


def test_names_that_end_with_nul_may_hold_anything(tree: Path) -> None:
    odd = "line\nend, and \udcff.onnx"
    Path(odd).write_bytes(b"")
    Path("list").write_bytes(os.fsencode(f"{odd}\0vendor/a.onnx\0"))
    assert paths(list_file="list", null=True) == [odd, "vendor/a.onnx"]


def test_rows_of_csv_say_their_own_clean_set_preprocessing_and_labels(tree: Path) -> None:
    text = "labels,Model, clean-dir,preprocess,vendor\nl.txt,a.onnx,imgs,p.json,Acme\n,b.onnx,,,\n"
    (tree / "audit").mkdir()
    for name in "ab":
        (tree / "audit" / f"{name}.onnx").write_bytes(b"")
    first, second = of_list(text, "audit/list.csv")
    folder = Path("audit")
    assert first == Target(
        folder / "a.onnx", folder / "imgs", folder / "p.json", folder / "l.txt", "audit/list.csv:2"
    )
    assert second == Target(folder / "b.onnx", place="audit/list.csv:3")


def test_absolute_paths_in_csv_stay_as_they_are(tree: Path) -> None:
    (target,) = of_list(f"model\n{tree}/vendor/a.onnx\n")
    assert target.path == tree / "vendor" / "a.onnx"


def test_csv_is_known_by_its_first_line_and_may_have_a_byte_order_mark(tree: Path) -> None:
    (target,) = of_list(b'\xef\xbb\xbf"model"\r\n"vendor/a.onnx"\r\n', "list")
    assert (target.path, target.problem) == (Path("vendor/a.onnx"), None)


def test_a_row_that_names_a_folder_or_a_pattern_gives_all_its_models(tree: Path) -> None:
    targets = of_list("model,clean_dir\nvendor,one\nother/*,two\nempty,three\n")
    assert [(str(t.path), str(t.clean_dir)) for t in targets] == [
        ("vendor/a.onnx", "one"),
        ("vendor/deep/b.ONNX", "one"),
        ("other/c.onnx", "two"),
        ("empty", "three"),
    ]
    assert problems(targets) == ["", "", "", "no_models"]


def test_one_bad_row_costs_only_itself(tree: Path) -> None:
    rows = ["vendor/a.onnx", '"never closed', "a,b,c", "vendor/nul\0.onnx", ",,", ",imgs"]
    targets = of_list("\n".join(["model,clean_dir", *rows, "other/c.onnx"]))
    expected = ["", "bad_row", "bad_row", "not_found", "bad_row", ""]
    assert problems(targets) == expected
    assert str(targets[1].path) == "list.csv:3"


def test_a_row_without_a_clean_set_is_skipped_unless_the_call_names_one(tree: Path) -> None:
    text = "model,clean_dir\nvendor/a.onnx,imgs\nother/c.onnx,\n"
    targets = of_list(text, clean=None)
    assert problems(targets) == ["", "no_clean_set"]
    assert targets[1].verdict == "skipped"
    assert problems(of_list(text)) == ["", ""]


def test_the_same_model_with_two_clean_sets_is_two_targets(tree: Path) -> None:
    row = "vendor/a.onnx,one\n"
    assert len(of_list(f"model,clean_dir\n{row}{row}vendor/a.onnx,two\n")) == 2


@pytest.mark.parametrize(
    ("header", "word"),
    [
        ("path,clean_dir", "no column 'model'"),
        ("model,clean_dri", "did you mean 'clean_dir'"),
        ("model,label", "did you mean 'labels'"),
        ("model,model", "two columns"),
        ("", "no column 'model'"),
    ],
)
def test_a_wrong_first_line_is_wrong_usage(header: str, word: str, tree: Path) -> None:
    with pytest.raises(UsageError, match=word):
        of_list(f"{header}\nvendor/a.onnx,imgs\n")


# --- through the command ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A list on standard input with one row of each kind, scanned from an audit's folder."""
    folder = tmp_path_factory.mktemp("audit")
    save_vendor(folder)
    rows = [
        "model,clean_dir,labels",
        "text.onnx,clean,",
        "nowhere.onnx,clean,",
        "good.onnx,nowhere,",
        "good.onnx,,",
        "good.onnx,clean,nowhere.txt",
        '"never closed',
        "good.onnx,clean,",
        "bad.onnx,clean,",
    ]
    options = ["--detectors", "l_red", "--format", "jsonl", "--output", "json=all.json"]
    options += ["--out-dir", "results"]
    done = subprocess.run(
        [sys.executable, "-m", "scanner", "-", *options],
        cwd=folder,
        env=environment(),
        input="\n".join(rows),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr), folder


def test_an_audit_goes_on_after_every_kind_of_bad_row(audited: tuple[Run, Path]) -> None:
    run, _ = audited
    assert run.code == 1, run.err
    reports = [json.loads(line) for line in run.out.splitlines()]
    for report in reports:
        validate(report)
    found = [(Path(r["model"]["path"]).name, r["verdict"], r["reasons"][0]) for r in reports]
    assert [(name, verdict) for name, verdict, _ in found] == [
        ("text.onnx", "error"),
        ("nowhere.onnx", "error"),
        ("good.onnx", "error"),
        ("good.onnx", "skipped"),
        ("good.onnx", "error"),
        ("standard input:7", "error"),
        ("good.onnx", "no_backdoor_found"),
        ("bad.onnx", "backdoor_found"),
    ]
    codes = [reason["code"] for _, _, reason in found[1:6]]
    assert codes == ["not_found", "bad_row", "no_clean_set", "bad_row", "bad_row"]
    assert "standard input:4" in found[2][2]["message"]
    assert "Traceback" not in run.err


def test_the_five_counts_add_up_to_the_targets(audited: tuple[Run, Path]) -> None:
    run, folder = audited
    document = json.loads((folder / "all.json").read_text(encoding="utf-8"))
    validate(document)
    summary = document["summary"]
    assert sum(summary.values()) == len(document["models"]) == len(run.out.splitlines()) == 8
    assert summary["error"] == 5
    assert run.err.splitlines()[-1].startswith("bdscan: 8 models: 1 no_backdoor_found, 1 backdoor")


def test_every_target_has_its_result_file(audited: tuple[Run, Path]) -> None:
    run, folder = audited
    names = sorted(json.loads(line)["files"]["json"]["name"] for line in run.out.splitlines())
    assert names == sorted(path.name for path in (folder / "results").glob("*.json"))
    assert len(set(names)) == 8


def test_a_line_is_written_as_each_model_ends(tmp_path: Path) -> None:
    save_vendor(tmp_path)
    slow = ["--schedule", "paper", "--detectors", "l_red", "--max-seconds", "60"]
    process = start(
        *["text.onnx", "good.onnx", "--clean-dir", "clean", *slow],
        *["--format", "jsonl", "--output", "jsonl=out.jsonl"],
        cwd=tmp_path,
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert process.poll() is None  # the second model takes a minute
        written = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143
    assert json.loads(first)["verdict"] == "error"
    assert written == first
