"""One model's scan: what is done in which order, from the file to the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from converters import OnnxClassifier, check_parity, prepare_classifier, read_model
from scanner import describe
from scanner.arms import WITH_TRIGGERS, Ready, Searched, search
from scanner.clean_set import CleanSet, CleanSetLoader
from scanner.config import ScanConfig
from scanner.corroboration import corroborate
from scanner.errors import UsageError
from scanner.gradient_checks import FORBIDDING, gradient_checks, robust_model
from scanner.half_batch import with_half_batch
from scanner.open_model import OutOfTimeError, check_time, load_clean_set, open_classifier, sample
from scanner.plan import batch_size, plan_scan
from scanner.progress import Watcher
from scanner.reliability import accompanying_flags, forbidding_flags, model_flags
from scanner.results import INCONCLUSIVE, DetectorResult, ModelReport, Note, NotRun
from scanner.verdict import decide, singled_out, suspects

Labels = npt.NDArray[np.int64]


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
                self.known, verdict=INCONCLUSIVE, reasons=(note,), not_run=self._not_run(note)
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
        if not stopping:
            with self._step("gradients", "checking the gradients"):
                checked = gradient_checks(classifier, clean.images[chosen], labels[chosen])
            fatal += [note for note in checked if note.code in FORBIDDING]
            other += [note for note in checked if note.code not in FORBIDDING]
        report = replace(
            report,
            verdict=INCONCLUSIVE,
            reasons=tuple(fatal),
            flags=(*fatal, *other),
            not_run=self._not_run(stopping[0]) if stopping else (),
            clean_set=describe.clean_set(clean, where, opened.accuracy, counts),
            preprocessing=describe.preprocessing(onnx, classifier.preprocessing),
            parity=describe.parity(parity),
            device=opened.device,
        )
        if stopping:
            return report, None
        images, kept = clean.images[chosen], labels[chosen]
        batch_images = batch_size(classifier)
        return report, Ready(classifier, images, kept, targets, batch_images, self.deadline)

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
            used = correct[: self.config.images_for(class_count)]
            chosen.append(used)
            counts.append((len(of_class), len(correct), len(used)))
        return labels, np.concatenate(chosen), counts

    def _search(self, report: ModelReport, ready: Ready) -> ModelReport:
        """Run every detector, corroborate what they suspect, and decide."""
        begun = time.monotonic()
        plan = plan_scan(ready, self.config)
        self.watcher.planned(plan)
        found = []
        for name in self.config.detectors:
            searched, batch = with_half_batch(partial(self._run, name, ready), ready.batch_images)
            ready = ready._replace(batch_images=batch)
            found.append(searched)
        detectors, late = self._corroborate(ready, found)
        doubts = [*report.reasons, *([late] if late else [])]
        verdict, accused, reasons = decide(detectors, doubts, ready.classifier.class_count)
        self.seconds["search_seconds"] = round(time.monotonic() - begun, 3)
        return replace(
            report,
            flags=(*report.flags, *_robustness(detectors, ready)),
            verdict=verdict,
            target_classes=accused,
            reasons=reasons,
            detectors=detectors,
            arrays={s.result.name: s.arrays for s in found},
        )

    def _run(self, name: str, ready: Ready, batch_images: int) -> Searched:
        def progress(done: int, whole: int, evaluations: int) -> None:
            self.watcher.searching(name, done, whole, evaluations)

        return search(name, ready._replace(batch_images=batch_images), self.config, progress)

    def _corroborate(
        self, ready: Ready, found: Sequence[Searched]
    ) -> tuple[tuple[DetectorResult, ...], Note | None]:
        """(the detectors with their suspects' corroboration, a note if it came too late)."""
        detectors = [s.result for s in found]
        for suspect in suspects(detectors):
            for index in _witnesses(found, suspect, detectors):
                result, begun = detectors[index], time.monotonic()
                arm, estimates = WITH_TRIGGERS[result.name], found[index].estimates
                tried, spent = corroborate(arm, ready, estimates, suspect, self.config)
                detectors[index] = replace(
                    result,
                    corroboration=tried,
                    image_gradients=result.image_gradients + spent,
                    seconds=round(result.seconds + time.monotonic() - begun, 3),
                )
        tried_all = [d.corroboration for d in detectors if d.corroboration is not None]
        late = None
        if tried_all and not any(c.corroborated for c in tried_all) and self._is_late():
            late = Note("time_limit", "time ran out before the suspect class was corroborated")
        return tuple(detectors), late

    def _not_run(self, why: Note) -> tuple[NotRun, ...]:
        return tuple(NotRun(name, why.code, why.message) for name in self.config.detectors)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


def _witnesses(
    found: Sequence[Searched], suspect: int, detectors: Sequence[DetectorResult]
) -> list[int]:
    """Indices of the searches whose triggers to the suspect are tried: those that single it out,
    else the one in which it is farthest from the others, of those that single out no class and have
    not been tried (`detectors`)."""
    ratios = {}
    for index, searched in enumerate(found):
        triggers = {e.target_class for e in searched.estimates if e.found}
        values = {c.target_class: c.statistic for c in searched.result.classes if c.statistic}
        if suspect in triggers and suspect in values:
            ratios[index] = values[suspect] / float(np.median(list(values.values())))
    own = [index for index in ratios if suspect in singled_out(found[index].result)]
    free = [
        i for i in ratios if not singled_out(found[i].result) and not detectors[i].corroboration
    ]
    return own or sorted(free, key=lambda index: -ratios[index])[:1]


def _robustness(detectors: Sequence[DetectorResult], ready: Ready) -> tuple[Note, ...]:
    """Whether L-RED's norms are so large that nothing can be said."""
    norms = [c.norm for d in detectors if d.name == "l_red" for c in d.classes if c.norm]
    return robust_model(norms, int(np.prod(ready.classifier.image_shape))) if norms else ()
