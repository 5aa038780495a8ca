"""What `bdscan samples` says, as frozen values: these dataclasses are its JSON report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from scanner.results import (
    CleanSetInfo,
    ModelInfo,
    Note,
    NotRun,
    ParityInfo,
    PreprocessingInfo,
    plain,
)

SCHEMA_VERSION = "1"

FOUND = "triggered_images_found"
NOT_FOUND = "no_triggered_images_found"
INCONCLUSIVE = "inconclusive"
ERROR = "error"
VERDICTS = (NOT_FOUND, FOUND, INCONCLUSIVE, ERROR)


@dataclass(frozen=True)
class Sample:
    """One suspect image.

    Attributes:
        file: its path, relative to the suspect folder.
        predicted: the class that the model predicts.
        scores: by detector; None where it is not finite. Which side is suspicious is said by the
            detector's threshold.
        p_values: conformal, by detector.
        beyond_gamma: by detector: whether the score is beyond the paper's threshold.
        flagged: whether the deciding detector's p-value is at most the level.
        rejected: whether Benjamini and Hochberg's procedure calls it triggered; None where that
            procedure can't reject anything.
        simplified_trigger_rate: for flagged images: of the clean images that the model predicts
            otherwise, the share that the simplified trigger (eq. 3) carries to this image's class.
    """

    file: str
    predicted: int
    scores: Mapping[str, float | None]
    p_values: Mapping[str, float | None]
    beyond_gamma: Mapping[str, bool | None]
    flagged: bool
    rejected: bool | None = None
    simplified_trigger_rate: float | None = None


@dataclass(frozen=True)
class DetectorThreshold:
    """What one detector's scores are compared with.

    Attributes:
        suspicious: "low" or "high": on which side scores are suspicious.
        clean_images: how many clean images calibrate.
        mean, standard_deviation: of their scores.
        by_gamma: the paper's threshold, mean - gamma * standard deviation ("high": +).
        false_alarms_by_gamma: share of the clean images beyond it.
        by_level: scores beyond it have a conformal p-value of at most the level.
        settings: of the detector.
        seconds: what the detector took, clean images included.
    """

    suspicious: str
    clean_images: int
    mean: float
    standard_deviation: float | None
    by_gamma: float | None
    false_alarms_by_gamma: float | None
    by_level: float
    settings: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Finding:
    """The answer for the folder as a whole.

    Attributes:
        verdict: one of `VERDICTS`.
        detector: the deciding one; None if none could run.
        images: suspect images that were scored.
        flagged: how many of them have a p-value of at most `level`.
        expected: how many a clean folder has in the mean.
        p_value: the probability of so many or more in a clean folder, the calibration's own
            uncertainty included; None without scores.
        significance: the largest p-value that is a finding.
        reasons: why the verdict is no other.
    """

    verdict: str
    detector: str | None = None
    images: int = 0
    flagged: int = 0
    expected: float | None = None
    p_value: float | None = None
    level: float = 0.05
    significance: float = 0.01
    reasons: tuple[Note, ...] = ()


@dataclass(frozen=True)
class FlaggedClass:
    """How many suspect images the model puts into one class, and how many of them are flagged."""

    class_index: int
    images: int
    flagged: int


@dataclass(frozen=True)
class Summary:
    """Counts over the folder.

    Attributes:
        images: files found.
        scored: images that were judged.
        unreadable: names of the files that could not be read.
        resized: images that had another size than the model's input.
        resumed: images whose scores an interrupted run had left.
        flagged, rejected: see `Sample`; `rejected` is None where nothing can be rejected.
        fewest_rejections: how many images must have the smallest attainable p-value before
            Benjamini and Hochberg's procedure can reject one.
        classes: by predicted class; only those with a flagged image.
    """

    images: int = 0
    scored: int = 0
    unreadable: tuple[str, ...] = ()
    resized: int = 0
    resumed: int = 0
    flagged: int = 0
    rejected: int | None = None
    fewest_rejections: int | None = None
    classes: tuple[FlaggedClass, ...] = ()


@dataclass(frozen=True)
class SamplesReport:
    """The report of one model and one suspect folder."""

    model: ModelInfo
    suspect_dir: str
    finding: Finding
    samples: tuple[Sample, ...] = ()
    thresholds: Mapping[str, DetectorThreshold] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    flags: tuple[Note, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    clean_set: CleanSetInfo | None = None
    preprocessing: PreprocessingInfo | None = None
    parity: ParityInfo | None = None
    tool: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    device: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    started: str = ""
    finished: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)
    schema_version: str = SCHEMA_VERSION


def to_json(report: SamplesReport) -> dict[str, Any]:
    """A report as plain dictionaries, lists, numbers and text; no NaN and no infinity."""
    return {f.name: plain(getattr(report, f.name)) for f in fields(report)}


def error_document(code: str, message: str) -> dict[str, Any]:
    """What `--format json` prints where there is no report."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": None,
        "samples": [],
        "thresholds": {},
        "summary": plain(Summary()),
        "finding": plain(Finding(ERROR, reasons=(Note(code, message),))),
        "error": {"code": code, "message": message},
    }
