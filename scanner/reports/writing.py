"""`bdscan report`: stored results in, reports out, exit code back. Nothing is scanned."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scanner import output
from scanner.errors import UsageError
from scanner.exit_codes import ExitCode
from scanner.reports.cyclonedx import to_cyclonedx
from scanner.reports.files import write_text
from scanner.reports.html.clean_images import (
    CleanImages,
    clean_images_of,
    open_clean_images,
)
from scanner.reports.html.page import render_html
from scanner.reports.sarif import Anchor, read_anchor, to_sarif
from scanner.reports.stored import (
    StoredResult,
    UnreadableResultError,
    find_files,
    model_reports,
    read_results,
)


def write_reports(
    paths: Sequence[Path],
    outputs: Mapping[str, Path | None],
    anchor_file: Path | None = None,
    clean_dirs: Sequence[Path] = (),
) -> ExitCode:
    """Read stored results and write the reports asked for.

    Args:
        paths: JSON and JSONL files, and folders of them.
        outputs: where "html", "sarif" and "cyclonedx" go; None: not wanted.
        anchor_file: a manifest for SARIF.
        clean_dirs: folders of clean images for HTML.

    Raises:
        UsageError: a path is missing or can't be written, or there is no result at all.
    """
    try:
        files = find_files(paths)
    except FileNotFoundError as error:
        raise UsageError(f"result {error} does not exist") from error
    if not files:
        raise UsageError(f"no results (*.json, *.jsonl) in {', '.join(map(str, paths))}")
    _refuse_overwriting([file for file, _ in files], outputs)
    anchor = _read_anchor(anchor_file)
    clean = [open_clean_images(folder) for folder in clean_dirs]
    results, problems = _read_all(files)
    for problem in problems:
        output.complain(problem)
    if not results:
        output.complain("no result could be read; nothing is written")
        return ExitCode.INCOMPLETE
    for images in clean:
        if not any(clean_images_of(report, [images]) for report in model_reports(results)):
            output.complain(f"{images.folder.path}: no model was scanned with it; not shown")
    _write_all(outputs, _makers(results, problems, anchor, clean))
    return ExitCode.INCOMPLETE if problems else ExitCode.NO_BACKDOOR_FOUND


def _read_all(files: Sequence[tuple[Path, bool]]) -> tuple[list[StoredResult], list[str]]:
    """Every result that can be read, and one line for each that can't."""
    results: list[StoredResult] = []
    problems: list[str] = []
    for file, named in files:
        for result in read_results(file, named):
            if isinstance(result, UnreadableResultError):
                problems.append(str(result))
            else:
                results.append(result)
    return results, problems


def _makers(
    results: Sequence[StoredResult],
    problems: Sequence[str],
    anchor: Anchor | None,
    clean: Sequence[CleanImages],
) -> dict[str, Callable[[], str]]:
    return {
        "html": lambda: render_html(results, problems, clean),
        "sarif": lambda: _json(to_sarif(model_reports(results), anchor)),
        "cyclonedx": lambda: _json(to_cyclonedx(results)),
    }


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _write_all(outputs: Mapping[str, Path | None], makers: Mapping[str, Callable[[], str]]) -> None:
    for kind, path in outputs.items():
        if path is None:
            continue
        try:
            write_text(path, makers[kind]())
        except OSError as error:
            raise UsageError(f"--{kind} {path} can't be written: {error.strerror}") from error


def _read_anchor(path: Path | None) -> Anchor | None:
    if path is None:
        return None
    try:
        return read_anchor(path)
    except OSError as error:
        raise UsageError(f"--sarif-anchor {path} can't be read: {error.strerror}") from error


def _refuse_overwriting(files: Sequence[Path], outputs: Mapping[str, Path | None]) -> None:
    """No report may take the place of a result, or of another report."""
    taken = {file.resolve() for file in files}
    for kind, path in outputs.items():
        if path is None or str(path) == "-":
            continue
        if path.resolve() in taken:
            raise UsageError(f"--{kind} {path} would overwrite a result or another report")
        taken.add(path.resolve())
    if sum(str(path) == "-" for path in outputs.values()) > 1:
        raise UsageError("only one report can go to standard output")
