"""One model's scan: what is done in which order, from the file to the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from converters import OnnxClassifier, check_parity, prepare_classifier, read_model
from scanner import describe
from scanner.classifier import Classifier
from scanner.clean_set import CleanSet, CleanSetLoader
from scanner.config import ScanConfig
from scanner.corroboration import corroborate
from scanner.detectors.l_red import PatternEstimate, estimate_patterns
from scanner.detectors.misclassification import GroupMisclassification
from scanner.errors import UsageError
from scanner.open_model import OutOfTimeError, check_time, load_clean_set, open_classifier, sample
from scanner.plan import plan_scan
from scanner.progress import Watcher
from scanner.reliability import accompanying_flags, forbidding_flags, model_flags
from scanner.remeasure import class_result
from scanner.results import (
    INCONCLUSIVE,
    Arrays,
    Corroboration,
    DetectorResult,
    ModelReport,
    Note,
    NotRun,
    Statistics,
)
from scanner.verdict import decide, evaluate_statistics

DETECTOR = "l_red"

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Ready(NamedTuple):
    """What the search works on.

    Attributes:
        images, labels: (M, C, H, W) in [0, 1] and (M,), all classified as labelled.
        targets: the putative target classes.
    """

    classifier: Classifier
    images: Images
    labels: Labels
    targets: tuple[int, ...]


@dataclass
class ModelScan:
    """One model's scan; `run` is its order, the methods are its steps."""

    path: Path
    loader: CleanSetLoader
    config: ScanConfig
    watcher: Watcher
    deadline: float | None = None
    known: ModelReport | None = None  # what the steps so far found out
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.config.max_seconds is not None:
            self.deadline = time.monotonic() + self.config.max_seconds

    def run(self, report: ModelReport) -> ModelReport:
        """The report; `inconclusive` if time runs out on the way to the search."""
        self.known = report
        try:
            onnx = self._import()
            self.known = replace(report, model=describe.classifier(onnx, str(self.path)))
            report, ready = self._prepare(onnx, self.known)
            self.watcher.begin(report)
            if ready is not None:
                report = self._search(report, ready)
        except OutOfTimeError as error:
            note = Note(error.reason, str(error))
            report = replace(
                self.known, verdict=INCONCLUSIVE, reasons=(note,), not_run=(_not_run(note),)
            )
        return replace(report, timings=self.seconds)

    @contextmanager
    def _step(self, name: str, what: str) -> Iterator[None]:
        """Tell what is being done, unless time is up, and note how long it took.

        Raises:
            OutOfTimeError: the deadline has passed.
        """
        if self.seconds:  # the first step is always done: a report says at least which model it was
            check_time(self.deadline, f"{what} was begun")
        self.watcher.preparing(f"{self.path}: {what}")
        begun = time.monotonic()
        yield
        self.seconds[f"{name}_seconds"] = round(time.monotonic() - begun, 3)

    def _import(self) -> OnnxClassifier:
        with self._step("import", "reading the model"):
            file = read_model(self.path, self.config.limits)
            size = self.config.image_size or self.loader.common_size()
            return prepare_classifier(file, self.config.output, size)

    def _prepare(
        self, onnx: OnnxClassifier, report: ModelReport
    ) -> tuple[ModelReport, Ready | None]:
        """The report as far as it goes without a search, and what to search unless that is vain."""
        with self._step("clean_set", "reading the clean images"):
            clean = load_clean_set(onnx, self.loader, self.config)
            targets = self._targets(onnx.class_count)
        with self._step("classification", "classifying the clean images"):
            opened = open_classifier(onnx, clean, self.config, self.deadline)
        classifier = opened.classifier
        self.seconds["preprocessing_seconds"] = opened.preprocessing_seconds
        with self._step("parity", "comparing the engines"):
            compared = classifier.inputs(clean.images[sample(clean.images)])
            parity = check_parity(onnx, compared, classifier.session)
        labels, chosen, counts = self._choose(clean, opened.predicted, onnx.class_count)
        used = np.bincount(labels[chosen], minlength=onnx.class_count)
        fatal = forbidding_flags(
            onnx, clean, classifier.preprocessing, opened.accuracy, used, targets
        )
        other = [*model_flags(onnx, parity), *accompanying_flags(clean, used, targets)]
        where = str(self.loader.folder.path)
        stopping = [note for note in fatal if note.code != "few_classes"]
        report = replace(
            report,
            verdict=INCONCLUSIVE,
            reasons=tuple(fatal),
            flags=(*fatal, *other),
            not_run=(_not_run(stopping[0]),) if stopping else (),
            clean_set=describe.clean_set(clean, where, opened.accuracy, counts),
            preprocessing=describe.preprocessing(onnx, classifier.preprocessing),
            parity=describe.parity(parity),
            device=opened.device,
        )
        if stopping:
            return report, None
        return report, Ready(classifier, clean.images[chosen], labels[chosen], targets)

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

    def _search(self, report: ModelReport, ready: Ready) -> ModelReport:
        """Run L-RED, corroborate its suspect, and decide."""
        config, begun = self.config, time.monotonic()
        classifier, images, labels, targets = ready
        plan = plan_scan(classifier, images, labels, targets, config)
        self.watcher.planned(plan)
        objective = GroupMisclassification(
            classifier, images, labels, targets, plan.batch_images, self.deadline
        )
        estimates = estimate_patterns(objective, config.l_red, self.watcher.searching)
        classes = tuple(
            class_result(classifier, images, labels, e, plan.batch_images) for e in estimates
        )
        statistics = evaluate_statistics(classes, config.verdict)
        corroboration, spent = self._corroborate(ready, estimates, statistics, plan.batch_images)
        doubts = list(report.reasons)
        if corroboration is not None and not corroboration.corroborated and self._is_late():
            message = "time ran out before the suspect class was corroborated"
            doubts.append(Note("time_limit", message))
        verdict, accused, reasons = decide(
            classes, statistics, corroboration, doubts, classifier.class_count
        )
        self.seconds["search_seconds"] = round(time.monotonic() - begun, 3)
        detector = DetectorResult(
            name=DETECTOR,
            settings=describe.settings(config.l_red),
            classes=classes,
            statistics=statistics,
            corroboration=corroboration,
            image_gradients=objective.image_gradients + spent,
            seconds=self.seconds["search_seconds"],
        )
        return replace(
            report,
            verdict=verdict,
            target_classes=accused,
            reasons=reasons,
            detectors=(detector,),
            arrays={DETECTOR: {e.target_class: _arrays(e) for e in estimates if e.norm > 0}},
        )

    def _corroborate(
        self,
        ready: Ready,
        estimates: list[PatternEstimate],
        statistics: Statistics | None,
        batch_images: int,
    ) -> tuple[Corroboration | None, int]:
        """(what corroboration says of the suspect, image gradients); without one (None, 0)."""
        if statistics is None or not (statistics.significant and statistics.large):
            return None, 0
        return corroborate(
            ready.classifier,
            ready.images,
            ready.labels,
            estimates,
            statistics.suspect,
            self.config,
            batch_images,
            self.deadline,
        )

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


def _not_run(why: Note) -> NotRun:
    return NotRun(DETECTOR, why.code, why.message)


def _arrays(estimate: PatternEstimate) -> Arrays:
    return Arrays(estimate.perturbation, estimate.source_weights, estimate.trace)
