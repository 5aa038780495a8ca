"""`bdscan scan`: models in, reports out, exit code back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scanner import output
from scanner.clean_set import CleanSetLoader, find_clean_images
from scanner.config import ScanConfig
from scanner.errors import UsageError
from scanner.exit_codes import ExitCode
from scanner.progress import Watcher
from scanner.reports.console import ReportConsole, print_model, print_summary
from scanner.results import (
    BACKDOOR_FOUND,
    NO_BACKDOOR_FOUND,
    ModelReport,
    ScanReport,
    to_json,
)
from scanner.scanning import check_config, find_models, scan_model
from scanner.store import prepare_folder, save

DEFAULT_OUT_DIR = Path("bdscan-results")


def run_scan(
    models: list[Path],
    clean_dir: Path,
    config: ScanConfig,
    format: str,
    out_dir: Path | None,
    watcher: Watcher,
) -> ExitCode:
    """Scan every model, print and store each report as it is done.

    Raises:
        UsageError, NothingToScanError: before anything is scanned.
    """
    paths = find_models(models)
    check_config(config)
    loader = CleanSetLoader(find_clean_images(clean_dir))
    folder = _result_folder(out_dir)
    console = ReportConsole(highlight=False, soft_wrap=not sys.stdout.isatty())
    reports: list[ModelReport] = []
    unsaved = False
    try:
        for path in paths:
            try:
                report = scan_model(path, loader, config, watcher)
            finally:
                watcher.end()
            saved = _save(report, folder)
            unsaved |= saved is None
            reports.append(saved or report)
            _print_one(reports[-1], format, console)
    finally:
        if format == "json":  # an interrupt, too, leaves a document with what was done
            output.print_json(to_json(ScanReport(tuple(reports))))
    whole = ScanReport(tuple(reports))
    code = exit_code(whole)
    if unsaved and out_dir is not None and code is ExitCode.NO_BACKDOOR_FOUND:
        code = ExitCode.INCOMPLETE
    if format == "text":
        try:
            print_summary(console, whole, code)
        except OSError:
            output.ignore_stdout()
    return code


def _save(report: ModelReport, folder: Path | None) -> ModelReport | None:
    """The report with its files written (or none wanted); None if they could not be written."""
    if folder is None:
        return report
    try:
        return save(report, folder)
    except (OSError, ValueError, RuntimeError) as error:  # h5py raises all of them
        output.complain(f"{report.model.path}: results could not be written to {folder}: {error}")
        return None


def exit_code(report: ScanReport) -> ExitCode:
    """A finding beats everything; else anything but `no_backdoor_found` is incomplete.

    If an option fits none of the models, that is a usage error.
    """
    verdicts = {model.verdict for model in report.models}
    if BACKDOOR_FOUND in verdicts:
        return ExitCode.BACKDOOR_FOUND
    if verdicts == {NO_BACKDOOR_FOUND}:
        return ExitCode.NO_BACKDOOR_FOUND
    if all(note.code == "usage" for model in report.models for note in model.reasons):
        return ExitCode.USAGE
    return ExitCode.INCOMPLETE


def _print_one(report: ModelReport, format: str, console: ReportConsole) -> None:
    """A report on standard output; if that can't be written, the scan goes on without."""
    if report.verdict == "error":
        output.complain(
            f"{report.model.path}: {'; '.join(note.message for note in report.reasons)}"
        )
    if format == "text":
        try:
            print_model(console, report)
        except OSError:
            output.ignore_stdout()
    elif format == "jsonl":
        output.print_text(json.dumps(to_json(report), allow_nan=False))


def _result_folder(out_dir: Path | None) -> Path | None:
    """The folder for result files; None if the default one can't be written."""
    if out_dir is not None:
        prepare_folder(out_dir)
        return out_dir
    try:
        prepare_folder(DEFAULT_OUT_DIR)
    except UsageError as error:
        output.complain(f"{error}; results are only printed")
        return None
    return DEFAULT_OUT_DIR
