"""Stored results: what is read, what is refused, and that nothing leads out of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scanner.reports import arrays as stored_arrays
from scanner.reports.arrays import open_arrays
from scanner.reports.stored import (
    MODEL,
    SAMPLES,
    StoredResult,
    UnreadableResultError,
    find_files,
    read_results,
)
from scanner.results import ScanReport, to_json
from tests.scanner.reports.made import (
    in_memory,
    make_report,
    perturbation,
    problems,
    read_one,
    samples_content,
    store_samples,
    stored,
)


def write(path: Path, *values: Any) -> Path:
    path.write_text("\n".join(json.dumps(value) for value in values), encoding="utf-8")
    return path


def test_the_file_of_a_model_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    assert result.kind == MODEL
    assert result.content == json.loads(result.file.read_text(encoding="utf-8"))


def test_a_document_gives_each_of_its_models(tmp_path: Path) -> None:
    document = to_json(ScanReport((make_report(), make_report(seed=1))))
    results = list(read_results(write(tmp_path / "all.json", document)))
    assert [r.content["seed"] for r in results if isinstance(r, StoredResult)] == [0, 1]


def test_a_broken_line_is_told_with_its_number_and_the_others_go_on(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    line = json.dumps(to_json(make_report()))
    path.write_text(f'{line}\n{{"schema_version"\n\n[]\n{line}\n', encoding="utf-8")
    results = list(read_results(path))
    assert [type(r) for r in results].count(StoredResult) == 2
    told = [str(r) for r in results if isinstance(r, UnreadableResultError)]
    assert [line.split(": ")[0] for line in told] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"schema_version": NaN}', "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema_version": "1"}', "no valid result"),
        (b'{"schema_version": "1", "models": [{}]}', "no valid result"),
        (b'{"schema_version": "1", "models": [], "error": {"message": "full"}}', "full"),
        (b'{"schema_version": "1", "samples": [], "error": {"message": "full"}}', "full"),
        (b'{"schema_version": "1", "samples": 3}', "no valid result"),
        (b"3", "no result of bdscan"),
    ],
)
def test_what_is_no_result_is_told_on_one_line(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    [line] = problems(tmp_path / "x.json")
    assert word in line
    assert "\n" not in line


def test_a_value_that_the_schema_forbids_is_named(tmp_path: Path) -> None:
    content = to_json(make_report())
    content["verdict"] = "safe"
    [line] = problems(write(tmp_path / "x.json", content))
    assert "verdict" in line
    assert "safe" in line


def test_folders_give_results_and_pass_over_other_json(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    other = write(tmp_path / "truth.json", {"models": {}})
    (tmp_path / "folder.json").mkdir()
    files = dict(find_files([tmp_path]))
    assert set(files) == {result.file, other}
    assert problems(other, named=files[other]) == []
    assert len(problems(other, named=True)) == 1


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    file = stored(make_report(), tmp_path).file
    assert find_files([file, tmp_path, file]) == [(file, True)]


def test_a_missing_path_is_no_empty_list(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_files([tmp_path / "gone"])


def test_results_of_samples_are_told_apart(tmp_path: Path) -> None:
    assert store_samples(tmp_path, samples_content()).kind == SAMPLES


def test_arrays_come_back(tmp_path: Path) -> None:
    with open_arrays(stored(make_report(), tmp_path)) as (arrays, missing):
        assert missing is None
        read = arrays.floats("l_red", "target_2", "perturbation", rank=3)
    np.testing.assert_array_equal(read, perturbation(2))


@pytest.mark.parametrize(
    "path",
    [("l_red",), ("l_red", "target_9", "perturbation"), ("l_red", "target_2", "perturbation", "x")],
)
def test_what_is_not_there_is_none(tmp_path: Path, path: tuple[str, ...]) -> None:
    with open_arrays(stored(make_report(), tmp_path)) as (arrays, _):
        assert arrays.floats(*path, rank=3) is None
        assert arrays.texts(*path) is None
        assert arrays.integers(*path) == []
        assert arrays.item(*path, index=0, rank=2) is None


@pytest.mark.parametrize("name", ["../x.h5", "/etc/passwd", "a\\b.h5", "..", "c:x.h5", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    result = stored(make_report(), inside)
    real = result.content["files"]["h5"]
    shutil.copy(inside / real["name"], tmp_path / "x.h5")
    content = {**result.content, "files": {"h5": {**real, "name": name}}}
    with pytest.raises(UnreadableResultError, match="outside its folder"):
        StoredResult(MODEL, content, result.file).beside("h5")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    file = tmp_path / result.content["files"]["h5"]["name"]
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with open_arrays(result) as (arrays, missing):
        assert missing is not None
        assert arrays.floats("l_red", "target_2", "perturbation", rank=3) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    file = tmp_path / result.content["files"]["h5"]["name"]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UnreadableResultError, match="plain file"):
        result.beside("h5")


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    file = tmp_path / result.content["files"]["h5"]["name"]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with open_arrays(result) as (_, missing):
        assert missing is not None
        assert "not the file" in missing


def test_a_result_alone_says_what_is_missing(tmp_path: Path) -> None:
    result = stored(make_report(), tmp_path)
    name = result.content["files"]["h5"]["name"]
    (tmp_path / name).unlink()
    with open_arrays(result) as (_, missing):
        assert missing is not None
        assert name in missing
    with open_arrays(in_memory(make_report())) as (_, missing):
        assert missing == "the result has no arrays"


def hostile(folder: Path, kind: str) -> StoredResult:
    """A result whose HDF5 asks for something that it should not get, its digest right."""
    content = samples_content()
    secret = folder / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones((5, 4), np.float32)
    result = store_samples(folder, content)
    with h5py.File(folder / "samples.h5", "w") as file:
        if kind == "external link":
            file["x"] = h5py.ExternalLink(str(secret), "x")
        elif kind == "soft link":
            file["x"] = h5py.SoftLink("/y")
            file["y"] = np.ones((5, 4), np.float32)
        elif kind == "external storage":
            size = secret.stat().st_size
            file.create_dataset("x", (5, 4), "f4", external=[(str(secret), 0, size)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((5, 4), "f4")
            layout[:] = h5py.VirtualSource(str(secret), "x", (5, 4))
            file.create_virtual_dataset("x", layout)
        elif kind == "huge":
            shape = (stored_arrays.MAX_NUMBERS, 2)
            file.create_dataset("x", shape, "f4", chunks=(1024, 2), compression="gzip")
        elif kind == "not finite":
            file["x"] = np.full((5, 4), np.nan, np.float32)
        elif kind == "text":
            file.create_dataset("x", (5, 4), h5py.string_dtype())
    digest = hashlib.sha256((folder / "samples.h5").read_bytes()).hexdigest()
    content["files"] = {"h5": {"name": "samples.h5", "sha256": digest}}
    return StoredResult(SAMPLES, content, result.file)


KINDS = ("external link", "soft link", "external storage", "virtual", "huge", "not finite", "text")


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_arrays_are_not_read(tmp_path: Path, kind: str) -> None:
    with open_arrays(hostile(tmp_path, kind)) as (arrays, missing):
        assert missing is None
        assert arrays.floats("x", rank=2) is None


def test_bytes_that_are_no_hdf5_are_told(tmp_path: Path) -> None:
    (tmp_path / "junk.h5").write_bytes(b"junk")
    digest = hashlib.sha256(b"junk").hexdigest()
    content = {"files": {"h5": {"name": "junk.h5", "sha256": digest}}}
    with open_arrays(StoredResult(MODEL, content, tmp_path / "x.json")) as (_, missing):
        assert missing is not None
        assert "can't be read" in missing


def test_read_one_needs_exactly_one(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        read_one(write(tmp_path / "x.json", 3))
