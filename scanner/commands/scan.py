"""`bdscan scan`: search models for backdoors."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from scanner import output
from scanner.commands.options import ConfigFile, Isolated, with_settings
from scanner.digests import read_digests
from scanner.settings import DEFAULT, Value, merge, origins, scan_config
from scanner.settings_file import SettingsFile, read_settings_file
from scanner.targets import find_targets


@with_settings
def scan(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="ONNX files, folders of them, patterns in quotes such as '**/*.onnx', or - for a "
            "list on standard input.",
            show_default=False,
        ),
    ] = None,
    from_file: Annotated[
        str | None,
        typer.Option(
            "--from-file",
            metavar="LIST",
            help="Models, one a line, or CSV with the columns model, clean_dir, preprocess, "
            "labels (all but model may be left out); - is standard input.",
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="Names in the list end with NUL.")
    ] = False,
    config: ConfigFile = None,
    isolated: Isolated = False,
    **given: Any,
) -> int:
    """Search each model for a backdoor and give a verdict."""
    values, file = load_settings(given, config, isolated)
    wanted = {name: found.value for name, found in values.items()}
    if wanted["format"] == "json":
        output.promise_json()
    _tell_file(file, config, values["quiet"])
    digests = read_digests(wanted["require_sha256"]) if wanted["require_sha256"] else None
    clean_dir = _path(wanted["clean_dir"])
    targets, empty = find_targets(models or (), from_file, null, clean_dir)
    for line in empty:
        output.complain(line)
    read = [from_file, wanted["sarif_anchor"], *wanted["require_sha256"], file.path]
    from scanner.command import Request, run_scan
    from scanner.progress import Silent, Teller

    request = Request(
        targets=targets,
        config=scan_config(values),
        origins=origins(values),
        clean_dir=clean_dir,
        format=wanted["format"],
        out_dir=_path(wanted["out_dir"]),
        outputs=wanted["output"],
        sarif_anchor=_path(wanted["sarif_anchor"]),
        inputs=[Path(path) for path in read if path is not None],
        fail_on=wanted["fail_on"],
        exit_zero=wanted["exit_zero"],
        digests=digests,
        waivers=file.waivers,
        quiet=wanted["quiet"],
        jobs=wanted["jobs"],
        threads=wanted["threads"],
        max_memory=None if wanted["max_memory"] is None else wanted["max_memory"] << 20,
    )
    watcher = Silent()
    if not wanted["quiet"]:
        watcher = Teller(bars=wanted["progress"] and wanted["jobs"] == 1, verbose=wanted["verbose"])
    return run_scan(request, watcher)


def load_settings(
    flags: dict[str, Any], config: Path | None, isolated: bool
) -> tuple[dict[str, Value], SettingsFile]:
    """Every setting with its origin, and the configuration file that was read."""
    today = datetime.now(UTC).date()
    file = SettingsFile() if isolated else read_settings_file(config, today)
    return merge(flags, os.environ, file.texts, file.path), file


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _tell_file(file: SettingsFile, named: Path | None, quiet: Value) -> None:
    """Say which file was found, since whoever wrote the folder may have put it there.

    `--quiet` does not silence this where the file could turn a failing exit code into 0, or where
    it is the file that says so.
    """
    by_file = quiet.origin != DEFAULT and quiet.origin.startswith("file ")
    if file.passed_over is not None:
        output.complain(f"{file.passed_over}: [tool.bdscan] is not read: {file.path} goes first")
    if file.path is None or named is not None:
        return
    if not quiet.value or by_file or file.changes_exit_codes:
        found = [*file.texts, *([f"waivers ({len(file.waivers)})"] if file.waivers else [])]
        stated = ", ".join(found) or "nothing"
        output.complain(f"{file.path} states {stated} (--isolated reads no file)")
