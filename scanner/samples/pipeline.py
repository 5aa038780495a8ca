"""`bdscan samples` from the files to the report: what is done in which order."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from converters import OnnxClassifier, check_parity, prepare_classifier, read_model
from scanner import describe
from scanner.clean_set import CleanSet, CleanSetLoader
from scanner.errors import BdscanError
from scanner.open_model import Opened, load_clean_set, open_classifier, sample
from scanner.plan import batch_size
from scanner.preprocessing import UNVERIFIED
from scanner.reliability import chance_level, model_flags
from scanner.results import Note, NotRun
from scanner.samples.config import SamplesConfig
from scanner.samples.finishing import Finisher, finish, write_scores
from scanner.samples.judging import Judged, judge
from scanner.samples.partial import PartialRun, run_key
from scanner.samples.progress import Silent
from scanner.samples.results import INCONCLUSIVE, Finding, Sample, SamplesReport, Summary
from scanner.samples.scorers import Scorers, open_scorers
from scanner.samples.scoring import Scores, Work, score_all
from scanner.samples.suspects import SuspectFolder
from scanner.samples.thresholds import fewest_clean_images
from scanner.store import write_whole

CPU_BATCH, GPU_BATCH = 64, 512  # images whose masks are optimised together


@dataclass
class SamplesRun:
    """One model and one suspect folder.

    Attributes:
        out: the folder for result files and for what an interrupted run leaves; None: none are
            written, and a run can't be taken up again.
        pictures: the folder for pictures, or None.
        batch_images: images of a batch at most; None: by the device and the model's size.
    """

    path: Path
    loader: CleanSetLoader
    suspects: SuspectFolder
    config: SamplesConfig
    watcher: Silent
    out: Path | None = None
    pictures: Path | None = None
    batch_images: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> SamplesReport:
        """The report.

        Raises:
            BdscanError, ConverterError, FileNotFoundError: the model or the clean set can't be
                used, or there are too few clean images.
        """
        started = datetime.now(UTC)
        with self._step("import", "reading the model"):
            file = read_model(self.path, self.config.limits)
            size = self.config.image_size or self.loader.common_size()
            onnx = prepare_classifier(file, self.config.output, size)
        with self._step("clean_set", "reading and classifying the clean images"):
            clean = load_clean_set(onnx, self.loader, self.config.for_opening())
            opened = open_classifier(onnx, clean, self.config.for_opening())
        report = self._describe(onnx, clean, opened, describe.utc(started))
        self._tell(report)
        clean = _some(clean, self.config.max_clean_images)
        if report.finding.reasons:  # something forbids a verdict
            why = report.finding.reasons[0]
            idle = tuple(NotRun(name, why.code, why.message) for name in self.config.detectors)
            return self._end(replace(report, not_run=idle), started)
        self._enough(clean)
        with self._step("detectors", "opening the detectors"):
            files = self.suspects.files
            scorers = open_scorers(self.config, opened.classifier, clean.images, files)
        return self._end(self._score(report, scorers, clean), started)

    @contextmanager
    def _step(self, name: str, what: str) -> Iterator[None]:
        self.watcher.preparing(f"{self.path}: {what}")
        begun = time.monotonic()
        yield
        self.seconds[f"{name}_seconds"] = round(time.monotonic() - begun, 3)

    def _describe(
        self, onnx: OnnxClassifier, clean: CleanSet, opened: Opened, started: str
    ) -> SamplesReport:
        """The report as far as it goes without a score, with what forbids one as its reasons."""
        classifier = opened.classifier
        with self._step("parity", "comparing the engines"):
            compared = classifier.inputs(clean.images[sample(clean.images)])
            parity = check_parity(onnx, compared, classifier.session)
        fatal = _forbidding(opened, clean, onnx.class_count)
        labels = clean.labels if clean.labelled else opened.predicted
        right = labels == opened.predicted
        counts = [
            (int((labels == k).sum()), int((right & (labels == k)).sum()), int((labels == k).sum()))
            for k in range(onnx.class_count)
        ]
        return SamplesReport(
            model=describe.classifier(onnx, str(self.path)),
            suspect_dir=str(self.suspects.path),
            finding=Finding(INCONCLUSIVE, level=self.config.level, reasons=tuple(fatal)),
            summary=Summary(images=len(self.suspects.files)),
            flags=(*fatal, *model_flags(onnx, parity), *_clean_flags(clean)),
            clean_set=describe.clean_set(
                clean, str(self.loader.folder.path), opened.accuracy, counts
            ),
            preprocessing=describe.preprocessing(onnx, classifier.preprocessing),
            parity=describe.parity(parity),
            tool=describe.tool(),
            environment=describe.environment(),
            device=opened.device,
            configuration=describe.with_origins(self.config, SamplesConfig()),
            seed=self.config.seed,
            started=started,
        )

    def _enough(self, clean: CleanSet) -> None:
        needed = fewest_clean_images(self.config.level)
        if len(clean.images) < needed:
            raise BdscanError(
                f"clean set {self.loader.folder.path}: {len(clean.images)} usable images, "
                f"--level {self.config.level:g} needs {needed}; give more images or a larger level",
                "few_clean_images",
            )

    def _score(self, report: SamplesReport, scorers: Scorers, clean: CleanSet) -> SamplesReport:
        """Score everything, judge, and write the files."""
        size = min(batch_size(scorers.classifier), self._batch(scorers))
        key = self._key(report, scorers, size)
        stem = re.sub(r"[^\w.-]+", "_", self.path.stem, flags=re.ASCII)[:100] or "model"
        name = f"{stem}-{(report.model.sha256 or '')[:12]}-samples-{key}"
        with tempfile.TemporaryDirectory(prefix="bdscan-") as temporary:
            folder = Path(temporary) if self.out is None else self.out / f".{name}.partial"
            partial = PartialRun(folder)
            partial.open()
            work = Work(scorers, clean, self.suspects, size, partial)
            begun = time.monotonic()
            of_clean, of_suspects = score_all(work, self.watcher.scoring)
            self.seconds["scoring_seconds"] = round(time.monotonic() - begun, 3)
            judged = judge(of_clean, of_suspects, scorers.settings, scorers.not_run, self.config)
            with self._step("files", "writing the results"):
                report = self._finish(report, work, of_clean, of_suspects, judged, name)
            partial.remove()
        return report

    def _batch(self, scorers: Scorers) -> int:
        if self.batch_images is not None:
            return self.batch_images
        return CPU_BATCH if scorers.classifier.device.type == "cpu" else GPU_BATCH

    def _key(self, report: SamplesReport, scorers: Scorers, size: int) -> str:
        """Of everything that scores depend on: only the same run may go on with their chunks."""
        clean = report.clean_set
        read = [self.config.losses, self.config.frequency_classifier]
        facts: dict[str, Any] = {
            "model": report.model.sha256,
            "external_data": dict(report.model.external_data),
            "clean": clean.digest if clean else None,
            "suspects": [str(self.suspects.path.resolve()), self.suspects.digest()],
            "configuration": dataclasses.asdict(self.config),
            "preprocessing": dataclasses.asdict(report.preprocessing)
            if report.preprocessing
            else 0,
            "detectors": scorers.settings,
            "files": [hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in read if f],
            "batch": size,
            "environment": {**report.environment, **report.tool},
            "device": dict(report.device),
        }
        return run_key(facts)

    def _finish(
        self,
        report: SamplesReport,
        work: Work,
        clean: Scores,
        suspects: Scores,
        judged: Judged,
        name: str,
    ) -> SamplesReport:
        """The complete report, with the simplified triggers' rates and the HDF5 file."""
        deciding = judged.finding.detector
        finisher = Finisher(work, deciding, clean.predicted, judged.flagged)
        sha256 = report.model.sha256 or ""
        files: dict[str, Any] = {}
        found: list[tuple[dict[int, float | None], bool]] = []

        def write(path: Path | None) -> None:
            found.append(finish(finisher, path, self.pictures, sha256))
            if path is not None:
                write_scores(path, clean, suspects, judged.samples, judged.thresholds)

        if self.out is None:
            write(None)
        else:
            digest = write_whole(self.out / f"{name}.h5", write)
            files["h5"] = {"name": f"{name}.h5", "sha256": digest}
            files["json"] = {"name": f"{name}.json"}
        rates, left_out = found[-1]
        flags = [*report.flags, *judged.flags]
        if left_out:
            what = "the cognitive patterns of so many images are not stored: image times mask"
            flags.append(Note("patterns_left_out", what))
        return replace(
            report,
            finding=judged.finding,
            samples=tuple(_with_rate(s, i, rates) for i, s in enumerate(judged.samples)),
            thresholds=judged.thresholds,
            summary=judged.summary,
            flags=tuple(flags),
            not_run=tuple(judged.not_run),
            files=files,
        )

    def _tell(self, report: SamplesReport) -> None:
        clean = report.clean_set
        if clean is None:
            return
        accuracy = "no labels" if clean.accuracy is None else f"accuracy {clean.accuracy:.1%}"
        self.watcher.say(
            f"{self.path}: {accuracy} on {clean.images} clean images; "
            f"{len(self.suspects.files)} suspect images; on {report.device['torch']}"
        )

    def _end(self, report: SamplesReport, started: datetime) -> SamplesReport:
        finished = datetime.now(UTC)
        self.seconds["total_seconds"] = round((finished - started).total_seconds(), 3)
        return replace(report, finished=describe.utc(finished), timings=self.seconds)


def _with_rate(one: Sample, row: int, rates: dict[int, float | None]) -> Sample:
    return replace(one, simplified_trigger_rate=rates[row]) if row in rates else one


def _some(clean: CleanSet, at_most: int) -> CleanSet:
    """At most so many clean images, evenly spread (so over the classes too)."""
    if len(clean.images) <= at_most:
        return clean
    chosen = np.linspace(0, len(clean.images) - 1, at_most).round().astype(np.int64)
    return replace(
        clean,
        images=clean.images[chosen],
        labels=clean.labels[chosen],
        files=tuple(clean.files[i] for i in chosen),
    )


def _forbidding(opened: Opened, clean: CleanSet, class_count: int) -> list[Note]:
    """What makes every score meaningless."""
    flags = []
    accuracy = opened.accuracy
    if accuracy is not None and chance_level(accuracy, len(clean.labels), class_count):
        what = (
            f"accuracy {accuracy:.1%} on the clean set is near chance ({1 / class_count:.1%}): "
            "labels or preprocessing are wrong; give --labels or --preprocess"
        )
        flags.append(Note("accuracy_near_chance", what))
    if UNVERIFIED in opened.classifier.preprocessing.origins.values():
        what = "no labels to verify the preprocessing with; give class folders or --preprocess"
        flags.append(Note("preprocessing_unverified", what))
    return flags


def _clean_flags(clean: CleanSet) -> list[Note]:
    flags = []
    if clean.corrupt:
        names = ", ".join(clean.corrupt[:5])
        more = f" and {len(clean.corrupt) - 5} more" if len(clean.corrupt) > 5 else ""
        flags.append(Note("corrupt_images", f"clean images not readable: {names}{more}"))
    if clean.resized:
        flags.append(Note("resized_images", f"{clean.resized} clean images had another size"))
    return flags
