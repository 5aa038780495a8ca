"""Stored results read back: reports of models and of sample sets, from JSON and JSONL files.

A result is our own file, but it quotes a vendor's, and it may have lain anywhere since: it is
checked against the schema before it is used, and it names no file outside its own folder.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from scanner import schema

MODEL = "model"
SAMPLES = "samples"
SUFFIXES = (".json", ".jsonl")
MAX_BYTES = 1 << 30  # of one result file; an audit of a thousand models has some 50 MB


class UnreadableResultError(Exception):
    """A result that can't be read, is none, or is not beside what it names. One line."""


@dataclass(frozen=True)
class StoredResult:
    """One result as it was stored.

    Attributes:
        kind: "model" (a REPORT of a scan) or "samples" (a document of `bdscan samples`).
        content: the JSON, valid under its schema.
        file: where it was read.
        sha256: of that file's bytes; None where the result is only a part of the file.
    """

    kind: str
    content: Mapping[str, Any]
    file: Path
    sha256: str | None = None

    def beside(self, entry: str) -> bytes | None:
        """The bytes of the file that `files[entry]` names; None where the result names none.

        Only a plain file in the result's own folder is opened, and only bytes of the digest that
        the result states are returned.

        Raises:
            UnreadableResultError: another name, no such file, or another digest.
        """
        named = self.content.get("files", {}).get(entry)
        if not named:
            return None
        name, digest = named["name"], named.get("sha256")
        if name in ("", ".", "..") or any(c in name for c in "/\\\0:"):
            raise UnreadableResultError(f"{entry}: the result names a file outside its folder")
        try:
            content = _read_plain_file(self.file.parent / name)
        except OSError as error:
            raise UnreadableResultError(f"{name}: {error.strerror or error}") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise UnreadableResultError(f"{name} is not the file that the result was stored with")
        return content


def _read_plain_file(path: Path) -> bytes:
    """Read a file that is neither a link nor a device."""
    no_follow, no_block = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)  # not Windows
    handle = os.open(path, os.O_RDONLY | no_follow | no_block)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "not a plain file")
        return file.read()


def find_files(paths: Iterable[Path]) -> list[tuple[Path, bool]]:
    """The JSON and JSONL files that the paths name, once each, in order.

    Returns:
        (file, whether it was named itself) for each; folders give what lies directly in them.

    Raises:
        FileNotFoundError: a path that does not exist.
    """
    found: dict[Path, bool] = {}
    for path in paths:
        if path.is_dir():
            for file in sorted(path.iterdir()):
                if file.suffix in SUFFIXES and not file.name.startswith(".") and file.is_file():
                    found.setdefault(file, False)
        elif path.exists():
            found[path] = True
        else:
            raise FileNotFoundError(path)
    return list(found.items())


def read_results(file: Path, named: bool = True) -> Iterator[StoredResult | UnreadableResultError]:
    """Every result in a file; what can't be read comes as the error, and the rest goes on.

    Args:
        named: the user named the file. In a folder, JSON that is no result of ours is passed over.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UnreadableResultError(f"{file}: larger than {MAX_BYTES} bytes")
        content = file.read_bytes()
    except OSError as error:
        yield UnreadableResultError(f"{file}: {error.strerror or error}")
        return
    except UnreadableResultError as error:
        yield error
        return
    digest = hashlib.sha256(content).hexdigest()
    if file.suffix != ".jsonl":
        yield from _parts(content, file, str(file), digest, named)
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield from _parts(line, file, f"{file}:{number}", None, True)


def _parts(
    content: bytes, file: Path, where: str, digest: str | None, named: bool
) -> Iterator[StoredResult | UnreadableResultError]:
    """The results in one JSON value: itself, or the models of a document."""
    try:
        value = json.loads(content, parse_constant=_refuse)
    except RecursionError:
        yield UnreadableResultError(f"{where}: nested too deeply")
        return
    except ValueError as error:
        yield UnreadableResultError(f"{where}: no JSON: {error}")
        return
    if not isinstance(value, dict) or "schema_version" not in value:
        if named:
            yield UnreadableResultError(f"{where}: no result of bdscan (no schema_version)")
        return
    models = value.get("models")
    parts = models if isinstance(models, list) else [value]
    whole = digest if parts == [value] else None
    if "error" in value:
        yield UnreadableResultError(f"{where}: the run ended with an error: {_told(value)}")
        parts = models if isinstance(models, list) else []
    for index, part in enumerate(parts):
        place = where if len(parts) == 1 else f"{where}: model {index + 1}"
        try:
            yield StoredResult(_kind(part, place), part, file, whole)
        except UnreadableResultError as error:
            yield error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _told(document: Mapping[str, Any]) -> str:
    error = document["error"]
    return str(error.get("message")) if isinstance(error, dict) else str(error)


def _kind(value: Any, place: str) -> str:
    """Which kind of result a JSON value is, after checking it against that kind's schema."""
    kind = SAMPLES if isinstance(value, dict) and "samples" in value else MODEL
    error = next(_validator(kind).iter_errors(value), None)
    if error is not None:
        at = "/".join(map(str, error.absolute_path)) or "the top"
        message = error.message if len(error.message) < 200 else f"{error.message[:200]}..."
        raise UnreadableResultError(f"{place}: no valid result: at {at}: {message}")
    return kind


@functools.cache
def _validator(kind: str) -> Draft202012Validator:
    """One validator for each kind; making it costs more than using it."""
    name = {MODEL: "report-1.schema.json", SAMPLES: "samples-1.schema.json"}[kind]
    text = resources.files(schema).joinpath(name).read_text(encoding="utf-8")
    return Draft202012Validator({"$ref": "#/$defs/report", "$defs": json.loads(text)["$defs"]})


def model_reports(results: Sequence[StoredResult]) -> list[Mapping[str, Any]]:
    """The contents of the results that are models' reports."""
    return [result.content for result in results if result.kind == MODEL]
