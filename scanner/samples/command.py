"""`bdscan samples`: a model and two folders in, a report out, exit code back."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from converters import ConverterError
from scanner import output
from scanner.classifier import choose_device
from scanner.clean_set import CleanSetLoader, find_clean_images, read_labels
from scanner.errors import BdscanError, UsageError
from scanner.exit_codes import ExitCode
from scanner.preprocessing_sources import read_preprocessing_file
from scanner.reports.console import ReportConsole
from scanner.samples.config import SamplesConfig
from scanner.samples.pipeline import SamplesRun
from scanner.samples.progress import Silent
from scanner.samples.report import print_report
from scanner.samples.results import FOUND, NOT_FOUND, SamplesReport, error_document, to_json
from scanner.samples.suspects import find_suspects
from scanner.store import prepare_folder, write_whole

DEFAULT_OUT_DIR = Path("bdscan-results")


def run_samples(
    model: Path,
    clean_dir: Path,
    suspect_dir: Path,
    config: SamplesConfig,
    format: str,
    out_dir: Path | None,
    pictures: Path | None,
    batch_images: int | None,
    watcher: Silent,
) -> ExitCode:
    """Judge a folder of images; print and store the report.

    Raises:
        BdscanError: there is no report; with `--format json` a document that says why is printed.
    """
    try:
        report, saved = _judge(
            model, clean_dir, suspect_dir, config, out_dir, pictures, batch_images, watcher
        )
    except BdscanError as error:
        if format == "json":
            output.print_json(error_document(error.reason, " ".join(str(error).split())))
        raise
    code = exit_code(report)
    if not saved and out_dir is not None and code is ExitCode.NO_BACKDOOR_FOUND:
        code = ExitCode.INCOMPLETE
    _print(report, format, code)
    return code


def exit_code(report: SamplesReport) -> ExitCode:
    """1 for a finding, 0 for none, else 2."""
    if report.finding.verdict == FOUND:
        return ExitCode.BACKDOOR_FOUND
    if report.finding.verdict == NOT_FOUND:
        return ExitCode.NO_BACKDOOR_FOUND
    return ExitCode.INCOMPLETE


def _judge(
    model: Path,
    clean_dir: Path,
    suspect_dir: Path,
    config: SamplesConfig,
    out_dir: Path | None,
    pictures: Path | None,
    batch_images: int | None,
    watcher: Silent,
) -> tuple[SamplesReport, bool]:
    """(the report, whether its files were written)."""
    if not model.is_file():
        raise UsageError(f"model {model} {'is no file' if model.exists() else 'does not exist'}")
    _check(config)
    suspects = find_suspects(suspect_dir)
    loader = CleanSetLoader(find_clean_images(clean_dir))
    if pictures is not None:
        prepare_folder(pictures)
    folder = _result_folder(out_dir)
    run = SamplesRun(model, loader, suspects, config, watcher, folder, pictures, batch_images)
    try:
        report = run.run()
    except ConverterError as error:
        raise BdscanError(f"{model}: {error}", error.reason) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise BdscanError(
            f"{model}: out of memory; a smaller --batch-size may fit", "out_of_memory"
        ) from error
    except OSError as error:
        if os.environ.get("BDSCAN_DEBUG"):
            raise
        raise BdscanError(f"a file can't be read or written: {error}", "file_error") from error
    finally:
        watcher.end()
    return _save(report, folder)


def _check(config: SamplesConfig) -> None:
    """Find out before the model is read what can't work with any."""
    choose_device(config.device)
    if config.labels is not None:
        read_labels(config.labels)
    if config.preprocessing.file is not None:
        read_preprocessing_file(Path(config.preprocessing.file))


def _save(report: SamplesReport, folder: Path | None) -> tuple[SamplesReport, bool]:
    if folder is None or "json" not in report.files:
        return report, folder is not None
    text = json.dumps(to_json(report), allow_nan=False, indent=1, sort_keys=True)
    path = folder / report.files["json"]["name"]
    try:
        write_whole(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    except OSError as error:
        output.complain(f"{report.model.path}: results could not be written to {folder}: {error}")
        files = {name: fact for name, fact in report.files.items() if name != "json"}
        return replace(report, files=files), False
    return report, True


def _print(report: SamplesReport, format: str, code: ExitCode) -> None:
    content = to_json(report)
    if format == "json":
        output.print_json(content)
    elif format == "jsonl":
        for one in content.pop("samples"):
            output.print_text(json.dumps(one, allow_nan=False))
        output.print_text(json.dumps(content, allow_nan=False))
    else:
        console = ReportConsole(highlight=False, soft_wrap=not sys.stdout.isatty())
        try:
            print_report(console, report, code)
        except OSError:
            output.ignore_stdout()


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
