"""What a scan says, as frozen values: these dataclasses are the JSON report.

`to_json` turns them into plain dictionaries. A number that is not finite becomes null; the flags
say why.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scanner.evidence import (
    Arrays,
    ClassResult,
    Corroboration,
    DetectorResult,
    MappingResult,
    PublishedTest,
    Statistics,
    ThresholdTest,
)

SCHEMA_VERSION = "1"

NO_BACKDOOR_FOUND = "no_backdoor_found"
BACKDOOR_FOUND = "backdoor_found"
INCONCLUSIVE = "inconclusive"
ERROR = "error"
SKIPPED = "skipped"
VERDICTS = (NO_BACKDOOR_FOUND, BACKDOOR_FOUND, INCONCLUSIVE, ERROR, SKIPPED)


@dataclass(frozen=True)
class Note:
    """A reason for the verdict, or a reliability flag.

    Attributes:
        code: short machine-readable word.
        message: one sentence for people.
    """

    code: str
    message: str


@dataclass(frozen=True)
class NotRun:
    """A detector that gave no evidence.

    Attributes:
        name: the detector's.
        code, message: why, as in `Note`.
    """

    name: str
    code: str
    message: str


@dataclass(frozen=True)
class Tensor:
    """A graph input or output: name, element type and shape (text for a free dimension)."""

    name: str
    type: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """The model file. Everything but `path` is None where the file could not be read so far.

    Attributes:
        sha256: of the file's bytes.
        external_data: sha256 of each external data file, by name.
        final_activation: what the graph applied to the logits: "softmax", "sigmoid", "none".
        differentiable: whether there is a gradient; without one only forward passes can be run.
        rewrites: what was changed before the scan, in words.
    """

    path: str
    sha256: str | None = None
    bytes: int | None = None
    ir_version: int | None = None
    opset: int | None = None
    producer: str | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    class_count: int | None = None
    final_activation: str | None = None
    differentiable: bool | None = None
    rewrites: tuple[str, ...] = ()
    external_data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CleanClass:
    """How many clean images of one class were read, classified rightly, and used."""

    class_index: int
    images: int
    correct: int
    used: int


@dataclass(frozen=True)
class CleanSetInfo:
    """The clean set as this model saw it.

    Attributes:
        digest: sha256 over the names and bytes of all files.
        label_rule: how folders were mapped to classes.
        images: images read.
        corrupt: files that could not be read.
        resized: images that had another size.
        misclassified: images that the model does not classify as labelled; they are not used.
        accuracy: share classified as labelled, None for a flat folder.
        classes: the counts for each class.
    """

    path: str
    digest: str
    label_rule: str
    images: int
    corrupt: tuple[str, ...]
    resized: int
    misclassified: int
    accuracy: float | None
    classes: tuple[CleanClass, ...]


@dataclass(frozen=True)
class PreprocessingInfo:
    """The preprocessing used, where each value came from, and what the search saw."""

    pixel_range: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str
    layout: str
    image_size: tuple[int, int]
    origins: Mapping[str, str]
    candidates: Mapping[str, float]


@dataclass(frozen=True)
class ParityInfo:
    """How far ONNX Runtime and torch differ on the clean images (see `converters.parity`)."""

    images: int
    max_difference: float
    argmax_agreement: float
    loose: bool
    training_agreement: float | None = None


@dataclass(frozen=True)
class Waived:
    """What somebody has accepted about a model, for a time (see `scanner.waivers`).

    Attributes:
        verdict: the verdict accepted, or None.
        target_class: the accused class accepted, or None.
        reason: why.
        expires: the last day on which it holds, as in "2027-01-31".
        expired: that day was over when the model was scanned, so it counts as none.
    """

    verdict: str | None
    target_class: int | None
    reason: str
    expires: str
    expired: bool


@dataclass(frozen=True)
class ModelReport:
    """One model's report. `arrays` (detector -> target class -> arrays) goes to HDF5, not JSON."""

    model: ModelInfo
    verdict: str
    target_classes: tuple[int, ...] = ()
    reasons: tuple[Note, ...] = ()
    flags: tuple[Note, ...] = ()
    detectors: tuple[DetectorResult, ...] = ()
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
    waivers: tuple[Waived, ...] = ()
    suppressed: bool = False  # by waivers: the verdict stands, the exit code passes over it
    schema_version: str = SCHEMA_VERSION
    arrays: Mapping[str, Mapping[int, Arrays]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ScanReport:
    """The reports of all models of one call."""

    models: tuple[ModelReport, ...]
    schema_version: str = SCHEMA_VERSION

    @property
    def summary(self) -> dict[str, int]:
        """How many models got each verdict; the five add up to the number of models."""
        return {verdict: sum(m.verdict == verdict for m in self.models) for verdict in VERDICTS}


def to_json(report: ModelReport | ScanReport) -> dict[str, Any]:
    """A report as plain dictionaries, lists, numbers and text; no NaN and no infinity."""
    if isinstance(report, ScanReport):
        return {
            "schema_version": report.schema_version,
            "models": [to_json(model) for model in report.models],
            "summary": report.summary,
        }
    content: dict[str, Any] = plain(dataclasses.replace(report, arrays={}))
    del content["arrays"]
    return content


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as dictionaries and lists; not finite as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


__all__ = [
    "BACKDOOR_FOUND",
    "ERROR",
    "INCONCLUSIVE",
    "NO_BACKDOOR_FOUND",
    "SCHEMA_VERSION",
    "SKIPPED",
    "VERDICTS",
    "Arrays",
    "ClassResult",
    "CleanClass",
    "CleanSetInfo",
    "Corroboration",
    "DetectorResult",
    "MappingResult",
    "ModelInfo",
    "ModelReport",
    "NotRun",
    "Note",
    "ParityInfo",
    "PreprocessingInfo",
    "PublishedTest",
    "ScanReport",
    "Statistics",
    "Tensor",
    "ThresholdTest",
    "Waived",
    "plain",
    "to_json",
]
