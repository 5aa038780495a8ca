"""What a call is to scan: paths, patterns, folders and lists become targets, each once.

A wrong path on the command line ends the call; in a list it is a target with a problem, so that the
others are scanned. Paths in a CSV file are relative to that file's folder, since a manifest travels
with its models; those in a plain list or on standard input to the working directory, as `find`
prints them.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scanner.errors import NothingToScanError, UsageError
from scanner.results import ERROR, SKIPPED, Note
from scanner.settings import refuse_nearly

STANDARD_INPUT = "-"
COLUMNS = ("model", "clean_dir", "preprocess", "labels")
MODEL_SUFFIX = ".onnx"
_EXPECTED = f"columns: {', '.join(COLUMNS)}; all but model may be left out"
_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Target:
    """One model to scan, and what a row of a list says about it.

    Attributes:
        path: the model file.
        clean_dir, preprocess, labels: of this model alone; None: what the call says.
        place: row of the list, such as "vendors.csv:3"; "" for one of the command line.
        problem: why it can't be scanned; None if nothing is known against it.
        verdict: what it gets if there is a problem.
    """

    path: Path
    clean_dir: Path | None = None
    preprocess: Path | None = None
    labels: Path | None = None
    place: str = ""
    problem: Note | None = None
    verdict: str = ERROR

    def failing(self, code: str, message: str, verdict: str = ERROR) -> Target:
        """The same target with a problem."""
        return replace(self, problem=Note(code, message), verdict=verdict)


def find_targets(
    models: Sequence[str],
    list_file: str | None = None,
    null: bool = False,
    clean_dir: Path | None = None,
) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """(the targets in the order given, one line for each name that gave none).

    Args:
        models: files, folders, patterns with `*`, `?`, `[` and `**`; `-`: a list on standard input.
        list_file: a plain list, a CSV file with a column `model`, or `-`.
        null: the names of plain lists end with NUL instead of a line end.
        clean_dir: the clean set of targets that name none.

    Raises:
        UsageError: a model or list that does not exist, or no clean set for those that need one.
        NothingToScanError: no target at all.
    """
    lists = [list_file] if list_file is not None else []
    lists += [name for name in models if name == STANDARD_INPUT]
    names = [name for name in models if name != STANDARD_INPUT]
    _check_usage(names, lists, null)
    found: list[Target] = []
    empty: list[str] = []
    for name in names:
        of_name = list(_of_name(Target(Path(name))))
        if any(t.problem is not None and t.problem.code == "not_found" for t in of_name):
            raise UsageError(f"model {name} does not exist")
        if not of_name:
            empty.append(f"{name}: {_nothing_in(Path(name))}")
        found += of_name
    if clean_dir is None and found:
        raise UsageError("the models have no clean set: give --clean-dir DIR")
    for name in lists:
        found += _of_list(name, null, clean_dir)
    if not found:
        raise NothingToScanError(f"no .onnx file in {', '.join([*names, *lists])}")
    unique: dict[object, Target] = {}
    for target in found:
        key = (target.path, target.clean_dir, target.preprocess, target.labels)
        unique.setdefault(key, target)
    return tuple(unique.values()), tuple(empty)


def _check_usage(names: Sequence[str], lists: Sequence[str], null: bool) -> None:
    if not names and not lists:
        raise UsageError("no model is named: give files, folders, or --from-file LIST")
    if len(lists) > 1 and lists.count(STANDARD_INPUT) > 1:
        raise UsageError("standard input holds one list: give - once")
    if null and not lists:
        raise UsageError("-0 goes with --from-file LIST or -")


def _of_name(target: Target) -> Iterator[Target]:
    """The models that a target's path stands for: itself, those below it, or those it matches."""
    try:
        yield from _expanded(target)
    except OSError as error:  # a name that is too long, a folder that is closed to us
        yield target.failing("unreadable_path", f"{target.path}: {error.strerror}")


def _expanded(target: Target) -> Iterator[Target]:
    path = target.path
    if path.is_dir():
        yield from _in_folder(target)
    elif path.exists():
        yield target
    elif _MAGIC & set(str(path)):
        for match in _matches(path):
            yield from _of_name(replace(target, path=match))
    else:
        where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
        yield target.failing("not_found", f"model {path} does not exist{where}")


def _in_folder(target: Target) -> Iterator[Target]:
    """ONNX files at any depth, sorted; links are not followed, what can't be listed is told."""
    problems: list[OSError] = []
    files: list[Path] = []
    for folder, _, names in os.walk(target.path, onerror=problems.append, followlinks=False):
        paths = (Path(folder, n) for n in names if n.lower().endswith(MODEL_SUFFIX))
        files += [p for p in paths if p.is_file() and not p.is_symlink()]
    for path in sorted(files):
        yield replace(target, path=path)
    for error in problems:
        unread = replace(target, path=Path(error.filename))
        yield unread.failing("unreadable_folder", f"folder can't be listed: {error.strerror}")


def _matches(pattern: Path) -> list[Path]:
    """What a pattern matches, as the shell would pass it; `**` does not descend into links."""
    relative = pattern.relative_to(pattern.anchor) if pattern.anchor else pattern
    try:
        return sorted(Path(pattern.anchor or ".").glob(str(relative)))
    except (ValueError, OSError):  # a pattern that pathlib refuses, such as a**b
        return []


def _nothing_in(path: Path) -> str:
    return "no .onnx file in it" if path.is_dir() else "matches nothing"


def _of_list(name: str, null: bool, clean_dir: Path | None) -> list[Target]:
    """The targets of a list, in its order."""
    content = _read_list(name)
    shown = "standard input" if name == STANDARD_INPUT else name
    rows = None if null else _csv_rows(content, name, shown)
    if rows is None:
        rows = _plain_rows(content, null, shown)
        if clean_dir is None:
            raise UsageError(f"the models of {shown} have no clean set: give --clean-dir DIR")
    targets: list[Target] = []
    for row in rows:
        of_row = [row] if row.problem is not None else list(_of_name(row))
        targets += of_row or [row.failing("no_models", f"{row.path}: {_nothing_in(row.path)}")]
    return [_with_clean_set(target, clean_dir) for target in targets]


def _with_clean_set(target: Target, clean_dir: Path | None) -> Target:
    if target.problem is not None or target.clean_dir is not None or clean_dir is not None:
        return target
    message = f"{target.place} names no clean_dir, and no --clean-dir is given"
    return target.failing("no_clean_set", message, SKIPPED)


def _read_list(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
    except (OSError, ValueError, AttributeError) as error:  # standard input may be closed
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"list {name} can't be read: {reason}") from error


def _plain_rows(content: bytes, null: bool, shown: str) -> Iterator[Target]:
    """One path on each line; blank lines are passed over."""
    lines = content.split(b"\0") if null else content.split(b"\n")
    for number, line in enumerate(lines, 1):
        name = line if null else line.removesuffix(b"\r")
        if name.strip():
            yield Target(Path(os.fsdecode(name)), place=f"{shown}:{number}")


def _csv_rows(content: bytes, name: str, shown: str) -> Iterator[Target] | None:
    """The rows of a CSV list; None if it is none: its first line names no column `model`.

    Raises:
        UsageError: a file named .csv without that column, or a column that nearly is one of ours.
    """
    lines = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).splitlines()
    try:
        header = [cell.lower().replace("-", "_") for cell in _cells(lines[0] if lines else "")]
    except csv.Error:
        header = []
    if "model" not in header:
        if Path(name).suffix.lower() == ".csv":
            raise UsageError(f"{shown}: the first line names no column 'model' ({_EXPECTED})")
        return None
    refuse_nearly(header, COLUMNS, f"{shown}: column {{0!r}}: did you mean {{1!r}}?")
    twice = [column for column in COLUMNS if header.count(column) > 1]
    if twice:
        raise UsageError(f"{shown}: two columns are named {twice[0]!r}")
    # A pipe such as /dev/fd/63 has no folder where models could lie.
    folder = Path(name).parent if Path(name).is_file() else Path()
    return _rows(lines[1:], header, folder, shown)


def _cells(line: str) -> list[str]:
    """A line's cells. Each line is read by itself, so that a stray quote can't swallow the rest."""
    return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]


def _rows(
    lines: Iterable[str], header: Sequence[str], folder: Path, shown: str
) -> Iterator[Target]:
    """One target a row; a row that is wrong is a target with a problem."""
    for number, line in enumerate(lines, 2):
        place = f"{shown}:{number}"
        try:
            cells = _cells(line)
        except csv.Error as error:
            yield Target(Path(place), place=place).failing("bad_row", f"{place}: {error}")
            continue
        if any(cells):
            named = dict(zip(header, cells, strict=False))
            yield _of_row(named, len(cells) - len(header), folder, place)


def _of_row(cells: Mapping[str, str], surplus: int, folder: Path, place: str) -> Target:
    def located(column: str) -> Path | None:
        return folder / cells[column] if cells.get(column) else None

    model = located("model")
    target = Target(model or Path(place), place=place)
    if surplus > 0:
        return target.failing("bad_row", f"{place}: {surplus} cells more than the first line has")
    if model is None:
        return target.failing("bad_row", f"{place}: the column model is empty")
    return replace(
        target,
        clean_dir=located("clean_dir"),
        preprocess=located("preprocess"),
        labels=located("labels"),
    )
