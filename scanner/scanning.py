"""Which models are scanned with which clean set; whatever is wrong with one of them is told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from converters import ConverterError, read_model
from scanner import describe
from scanner.classifier import choose_device
from scanner.clean_set import CleanSetLoader, find_clean_images, read_labels
from scanner.config import ScanConfig
from scanner.errors import BdscanError
from scanner.half_batch import is_out_of_memory
from scanner.model_scan import ModelScan
from scanner.preprocessing_sources import read_preprocessing_file
from scanner.progress import Silent, Watcher
from scanner.results import ERROR, ModelInfo, ModelReport, Note, ScanReport
from scanner.targets import find_targets


def scan(
    model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    clean_dir: str | os.PathLike[str],
    config: ScanConfig | None = None,
    watcher: Watcher | None = None,
) -> ScanReport:
    """Scan one or several models (files, or folders of ONNX files) with one clean set.

    Raises:
        UsageError: a path that does not exist, a clean set without images, a device that is not
            there. What is wrong with a single model is in its report instead.
        NothingToScanError: folders without ONNX files.
    """
    paths = [model] if isinstance(model, (str, os.PathLike)) else list(model)
    names = [os.fspath(path) for path in paths]
    targets, _ = find_targets(names, clean_dir=Path(clean_dir))
    loader = CleanSetLoader(find_clean_images(Path(clean_dir)))
    config = config or ScanConfig()
    check_config(config)
    watcher = watcher or Silent()
    return ScanReport(
        tuple(
            scan_model(target.path, loader, config, watcher)
            if target.problem is None
            else ModelReport(ModelInfo(str(target.path)), target.verdict, reasons=(target.problem,))
            for target in targets
        )
    )


def check_config(config: ScanConfig) -> None:
    """Find out before the first scan what can't work with any model.

    Raises:
        UsageError: a device that is not there, or a file that can't be read.
    """
    choose_device(config.device)
    if config.labels is not None:
        read_labels(config.labels)
    if config.preprocessing.file is not None:
        read_preprocessing_file(Path(config.preprocessing.file))


def scan_model(
    path: Path, loader: CleanSetLoader, config: ScanConfig, watcher: Watcher
) -> ModelReport:
    """Scan one model; whatever is wrong with it ends in a report with the verdict `error`.

    An option that does not fit this model ends so too, with the reason `usage`.
    """
    started = datetime.now(UTC)
    report = ModelReport(
        model=ModelInfo(path=str(path)),
        verdict=ERROR,
        tool=describe.tool(),
        environment=describe.environment(),
        configuration=describe.configuration(config),
        seed=config.seed,
        started=describe.utc(started),
    )
    try:
        report = ModelScan(path, loader, config, watcher).run(report)
    except (BdscanError, ConverterError, FileNotFoundError) as error:
        reason = getattr(error, "reason", "unreadable_model")
        report = replace(report, reasons=(Note(reason, str(error)),))
    except Exception as error:  # a hostile file must not stop the scan of the others
        if is_out_of_memory(error):
            message = "out of memory; fewer images per class or a smaller model may fit"
            report = replace(report, reasons=(Note("out_of_memory", message),))
        elif os.environ.get("BDSCAN_DEBUG"):
            raise
        else:
            problem = Note("internal_error", f"internal error: {error!r}")
            report = replace(report, reasons=(problem,))
    if report.verdict == ERROR:
        report = replace(report, model=_what_is_known(path, config))
    finished = datetime.now(UTC)
    seconds = (finished - started).total_seconds()
    return replace(
        report,
        finished=describe.utc(finished),
        timings={**report.timings, "total_seconds": round(seconds, 3)},
    )


def _what_is_known(path: Path, config: ScanConfig) -> ModelInfo:
    """The model's facts for the report of a failed scan, as far as the file can be read."""
    try:
        return describe.model(read_model(path, config.limits), str(path))
    except Exception:  # it failed before: whatever is wrong must not end the scan of the others
        return describe.unreadable_model(path)
