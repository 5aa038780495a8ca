"""From a model file and a clean set to a report: the order of a scan."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from converters import (
    ConverterError,
    check_parity,
    prepare_classifier,
    read_model,
)
from scanner import describe
from scanner.classifier import Classifier, choose_device
from scanner.clean_set import CleanSet, CleanSetLoader, find_clean_images, read_labels
from scanner.config import ScanConfig
from scanner.corroboration import corroborate
from scanner.detectors.l_red import PatternEstimate, estimate_patterns
from scanner.detectors.misclassification import GroupMisclassification
from scanner.errors import BdscanError, NothingToScanError, UsageError
from scanner.open_model import load_clean_set, open_classifier, sample
from scanner.plan import plan_scan
from scanner.preprocessing_sources import read_preprocessing_file
from scanner.progress import Silent, Watcher
from scanner.reliability import accompanying_flags, forbidding_flags
from scanner.remeasure import class_result
from scanner.results import (
    ERROR,
    INCONCLUSIVE,
    Arrays,
    DetectorResult,
    ModelInfo,
    ModelReport,
    Note,
    ScanReport,
)
from scanner.verdict import decide, evaluate_statistics

DETECTOR = "l_red"

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


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
    models = find_models([Path(path) for path in paths])
    loader = CleanSetLoader(find_clean_images(Path(clean_dir)))
    config = config or ScanConfig()
    check_config(config)
    watcher = watcher or Silent()
    return ScanReport(tuple(scan_model(path, loader, config, watcher) for path in models))


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


def find_models(paths: Sequence[Path]) -> list[Path]:
    """ONNX files among files and folders, each once; links inside folders are not followed.

    Raises:
        UsageError: a path that does not exist.
        NothingToScanError: no file and no folder with an ONNX file.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"model {path} does not exist")
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() == ".onnx")
            files = (p for p in inside if p.is_file() and not p.is_symlink())
            found.update(dict.fromkeys(sorted(files)))
        else:
            found[path] = None
    if not found:
        raise NothingToScanError(f"no .onnx file in {', '.join(map(str, paths))}")
    return list(found)


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
        report = _Scan(path, loader, config, watcher).run(report)
    except (BdscanError, ConverterError, FileNotFoundError) as error:
        reason = getattr(error, "reason", "unreadable_model")
        report = replace(report, reasons=(Note(reason, str(error)),))
    except (MemoryError, torch.OutOfMemoryError):
        message = "out of memory; fewer images per class or a smaller model may fit"
        report = replace(report, reasons=(Note("out_of_memory", message),))
    except Exception as error:  # a hostile file must not stop the scan of the others
        if os.environ.get("BDSCAN_DEBUG"):
            raise
        report = replace(report, reasons=(Note("internal_error", f"internal error: {error!r}"),))
    if report.verdict == ERROR:
        report = replace(report, model=_what_is_known(path))
    finished = datetime.now(UTC)
    seconds = (finished - started).total_seconds()
    return replace(
        report,
        finished=describe.utc(finished),
        timings={**report.timings, "total_seconds": round(seconds, 3)},
    )


def _what_is_known(path: Path) -> ModelInfo:
    """The model's facts for the report of a failed scan, as far as the file can be read."""
    try:
        return describe.model(read_model(path), str(path))
    except (ConverterError, OSError):
        return describe.unreadable_model(path)


@dataclass
class _Scan:
    """One model's scan; `run` is its order, the methods are its steps."""

    path: Path
    loader: CleanSetLoader
    config: ScanConfig
    watcher: Watcher
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.config.max_seconds is not None:
            self.deadline = time.monotonic() + self.config.max_seconds

    def run(self, report: ModelReport) -> ModelReport:
        config = self.config
        file = read_model(self.path)
        size = config.image_size or self.loader.common_size()
        onnx = prepare_classifier(file, config.output, size)
        info = describe.classifier(onnx, str(self.path))
        clean = load_clean_set(onnx, self.loader, config)
        targets = self._targets(onnx.class_count)
        opened = open_classifier(onnx, clean, config)
        classifier, accuracy = opened.classifier, opened.accuracy
        compared = classifier.inputs(clean.images[sample(clean.images)])
        parity = check_parity(onnx, compared, classifier.session)
        labels, chosen, counts = self._choose(clean, opened.predicted, onnx.class_count)
        used = np.bincount(labels[chosen], minlength=onnx.class_count)
        fatal = forbidding_flags(onnx, clean, classifier.preprocessing, accuracy, used, targets)
        report = replace(
            report,
            model=info,
            verdict=INCONCLUSIVE,
            reasons=tuple(fatal),
            flags=(*fatal, *accompanying_flags(clean, used, targets)),
            clean_set=describe.clean_set(clean, str(self.loader.folder.path), accuracy, counts),
            preprocessing=describe.preprocessing(onnx, classifier.preprocessing),
            parity=describe.parity(parity),
            device=opened.device,
        )
        self.watcher.begin(report)
        if any(note.code != "few_classes" for note in fatal):
            return report
        return self._search(report, classifier, clean.images[chosen], labels[chosen], targets)

    def _targets(self, class_count: int) -> tuple[int, ...]:
        targets = self.config.target_classes or tuple(range(class_count))
        wrong = [t for t in targets if not 0 <= t < class_count]
        if wrong:
            raise UsageError(f"--target-classes {wrong[0]}: the model has 0 to {class_count - 1}")
        return tuple(dict.fromkeys(targets))

    def _choose(
        self, clean: CleanSet, predicted: Labels, class_count: int
    ) -> tuple[Labels, Labels, list[tuple[int, int, int]]]:
        """(labels, indices of the images to use, (images, correct, used) for each class).

        Only images that the model classifies as labelled are used: the others are carried to
        some class for free.
        """
        labels = clean.labels if clean.labelled else predicted
        chosen, counts = [], []
        for k in range(class_count):
            of_class = np.flatnonzero(labels == k)
            correct = of_class[predicted[of_class] == k]
            used = correct[: self.config.images_per_class]
            chosen.append(used)
            counts.append((len(of_class), len(correct), len(used)))
        return labels, np.concatenate(chosen), counts

    def _search(
        self,
        report: ModelReport,
        classifier: Classifier,
        images: Images,
        labels: Labels,
        targets: tuple[int, ...],
    ) -> ModelReport:
        """Run L-RED, corroborate its suspect, and decide."""
        config, begun, deadline = self.config, time.monotonic(), self.deadline
        plan = plan_scan(classifier, images, labels, targets, config)
        self.watcher.planned(plan)
        objective = GroupMisclassification(
            classifier, images, labels, targets, plan.batch_images, deadline
        )
        estimates = estimate_patterns(objective, config.l_red, self.watcher.searching)
        classes = tuple(
            class_result(classifier, images, labels, e, plan.batch_images) for e in estimates
        )
        statistics = evaluate_statistics(classes, config.verdict)
        corroboration, spent, doubts = None, 0, list(report.reasons)
        if statistics is not None and statistics.significant and statistics.large:
            corroboration, spent = corroborate(
                classifier,
                images,
                labels,
                estimates,
                statistics.suspect,
                config,
                plan.batch_images,
                deadline,
            )
            if not corroboration.corroborated and _passed(deadline):
                message = "time ran out before the suspect class was corroborated"
                doubts.append(Note("time_limit", message))
        verdict, accused, reasons = decide(
            classes, statistics, corroboration, doubts, classifier.class_count
        )
        seconds = round(time.monotonic() - begun, 3)
        detector = DetectorResult(
            name=DETECTOR,
            settings=describe.settings(config.l_red),
            classes=classes,
            statistics=statistics,
            corroboration=corroboration,
            image_gradients=objective.image_gradients + spent,
            seconds=seconds,
        )
        return replace(
            report,
            verdict=verdict,
            target_classes=accused,
            reasons=reasons,
            detectors=(detector,),
            timings={"search_seconds": seconds},
            arrays={DETECTOR: {e.target_class: _arrays(e) for e in estimates if e.norm > 0}},
        )


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _arrays(estimate: PatternEstimate) -> Arrays:
    return Arrays(estimate.perturbation, estimate.source_weights, estimate.trace)
