"""From scores to an answer: thresholds, flags and whether the folder is a finding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scanner.results import Note, NotRun
from scanner.samples.config import DETECTORS, LOW, SamplesConfig
from scanner.samples.results import (
    FOUND,
    INCONCLUSIVE,
    NOT_FOUND,
    DetectorThreshold,
    Finding,
    FlaggedClass,
    Sample,
    Summary,
)
from scanner.samples.scoring import Scores
from scanner.samples.thresholds import (
    Rejections,
    benjamini_hochberg,
    conformal_p_values,
    excess_p_value,
    fewest_clean_images,
    rank_of_level,
    threshold_of,
)

Floats = npt.NDArray[np.float64]
FEW_CLEAN = 100  # below, the share of clean images that the level flags is known only roughly


class Judged(NamedTuple):
    """Everything that the scores say.

    Attributes:
        flagged: (N,) booleans.
        flags: what the result must be read with.
    """

    samples: list[Sample]
    thresholds: dict[str, DetectorThreshold]
    not_run: list[NotRun]
    finding: Finding
    summary: Summary
    flagged: npt.NDArray[np.bool_]
    flags: list[Note]


def judge(
    clean: Scores,
    suspects: Scores,
    settings: Mapping[str, Mapping[str, Any]],
    not_run: Sequence[NotRun],
    config: SamplesConfig,
) -> Judged:
    """Compare the suspects' scores with the clean ones.

    Args:
        settings: of each detector that ran.
        not_run: detectors that could not.
    """
    missing = list(not_run)
    thresholds: dict[str, DetectorThreshold] = {}
    p_values: dict[str, Floats] = {}
    for name, scores in suspects.by_detector.items():
        calibration = clean.by_detector.get(name)
        if calibration is None:
            continue
        if len(calibration) < fewest_clean_images(config.level):
            missing.append(NotRun(name, "few_clean_images", _too_few(len(calibration), config)))
            continue
        seconds = clean.seconds[name] + suspects.seconds[name]
        thresholds[name] = _threshold(name, calibration, settings[name], seconds, config)
        sign = _sign(name)
        p_values[name] = conformal_p_values(sign * scores, sign * calibration)
    deciding = next((name for name in config.detectors if name in thresholds), None)
    p = p_values[deciding] if deciding else np.full(len(suspects.files), np.nan)
    flagged = p <= config.level + 1e-12
    clean_images = thresholds[deciding].clean_images if deciding else 0
    rejections = benjamini_hochberg(p, clean_images, config.level) if deciding else None
    finding = _finding(deciding, p, flagged, clean_images, missing, config)
    return Judged(
        samples=_samples(suspects, thresholds, p_values, flagged, p, rejections),
        thresholds=thresholds,
        not_run=missing,
        finding=finding,
        summary=_summary(suspects, flagged, rejections),
        flagged=flagged,
        flags=_flags(suspects, deciding, p, clean_images, rejections),
    )


def _sign(name: str) -> int:
    """What scores are multiplied by, so that small ones are suspicious."""
    return 1 if DETECTORS[name] == LOW else -1


def _too_few(images: int, config: SamplesConfig) -> str:
    needed = fewest_clean_images(config.level)
    return f"{images} clean images calibrate, level {config.level:g} needs {needed}"


def _threshold(
    name: str,
    calibration: Floats,
    settings: Mapping[str, Any],
    seconds: float,
    config: SamplesConfig,
) -> DetectorThreshold:
    sign = _sign(name)
    found = threshold_of(sign * calibration, config.gamma, config.level)
    return DetectorThreshold(
        suspicious=DETECTORS[name],
        clean_images=found.clean_images,
        mean=sign * found.mean,
        standard_deviation=found.standard_deviation,
        by_gamma=None if found.by_gamma is None else sign * found.by_gamma,
        false_alarms_by_gamma=found.false_alarms_by_gamma,
        by_level=sign * found.by_level,
        settings=settings,
        seconds=round(seconds, 3),
    )


def _finding(
    deciding: str | None,
    p: Floats,
    flagged: npt.NDArray[np.bool_],
    clean_images: int,
    not_run: Sequence[NotRun],
    config: SamplesConfig,
) -> Finding:
    """The answer; a detector that was asked for and could not run forbids a clean one."""
    images, count = int((~np.isnan(p)).sum()), int(flagged.sum())
    gaps = tuple(Note(one.code, f"{one.name}: {one.message}") for one in not_run)
    if deciding is None or images == 0:
        nothing = Note("no_calibrated_score", "no suspect image has a score with a p-value")
        return Finding(INCONCLUSIVE, deciding, images, reasons=(nothing, *gaps))
    share = rank_of_level(config.level, clean_images) / (clean_images + 1)
    p_value = excess_p_value(count, images, clean_images, config.level)
    what = (
        f"{deciding} flags {count} of {images} images, a clean folder has {images * share:.1f} in "
        f"the mean and so many with probability {p_value:.2g}"
    )
    reasons: tuple[Note, ...] = (Note("flagged_images", what),)
    verdict_word = FOUND if p_value <= config.finding_significance else NOT_FOUND
    if verdict_word == NOT_FOUND and gaps:
        verdict_word, reasons = INCONCLUSIVE, (*reasons, *gaps)
    return Finding(
        verdict_word,
        deciding,
        images,
        count,
        images * share,
        p_value,
        config.level,
        config.finding_significance,
        reasons,
    )


def _samples(
    suspects: Scores,
    thresholds: Mapping[str, DetectorThreshold],
    p_values: Mapping[str, Floats],
    flagged: npt.NDArray[np.bool_],
    p: Floats,
    rejections: Rejections | None,
) -> list[Sample]:
    names = list(suspects.by_detector)
    beyond: dict[str, list[bool | None]] = {}
    for name, threshold in thresholds.items():
        scores, limit = suspects.by_detector[name], threshold.by_gamma
        beyond[name] = _beyond(name, scores, limit)
    rejected: list[bool | None] = [None] * len(p)
    if rejections is not None:
        most = -1.0 if rejections.largest_p is None else rejections.largest_p
        rejected = [bool(value <= most) for value in p]
    return [
        Sample(
            file=file,
            predicted=int(suspects.predicted[i]),
            scores={name: _finite(suspects.by_detector[name][i]) for name in names},
            p_values={
                name: _finite(p_values[name][i]) if name in p_values else None for name in names
            },
            beyond_gamma={name: beyond[name][i] if name in beyond else None for name in names},
            flagged=bool(flagged[i]),
            rejected=rejected[i],
        )
        for i, file in enumerate(suspects.files)
    ]


def _beyond(name: str, scores: Floats, limit: float | None) -> list[bool | None]:
    if limit is None:
        return [None] * len(scores)
    sign = _sign(name)
    return [bool(sign * s <= sign * limit) if math.isfinite(s) else None for s in scores]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _summary(
    suspects: Scores, flagged: npt.NDArray[np.bool_], rejections: Rejections | None
) -> Summary:
    classes = []
    for label in np.unique(suspects.predicted[flagged]):
        of_class = suspects.predicted == label
        count = int(flagged[of_class].sum())
        classes.append(FlaggedClass(int(label), int(of_class.sum()), count))
    return Summary(
        images=len(suspects.files) + len(suspects.corrupt),
        scored=len(suspects.files),
        unreadable=tuple(suspects.corrupt),
        resized=suspects.resized,
        resumed=suspects.resumed,
        flagged=int(flagged.sum()),
        rejected=None if rejections is None else rejections.images,
        fewest_rejections=None if rejections is None else rejections.fewest,
        classes=tuple(sorted(classes, key=lambda one: -one.flagged)),
    )


def _flags(
    suspects: Scores,
    deciding: str | None,
    p: Floats,
    clean_images: int,
    rejections: Rejections | None,
) -> list[Note]:
    flags = []
    if suspects.corrupt:
        names = ", ".join(suspects.corrupt[:5])
        more = f" and {len(suspects.corrupt) - 5} more" if len(suspects.corrupt) > 5 else ""
        flags.append(Note("unreadable_suspects", f"suspect images not readable: {names}{more}"))
    if suspects.resized:
        what = f"{suspects.resized} suspect images had another size; scaling may blur a trigger"
        flags.append(Note("resized_suspects", what))
    if deciding is None:
        return flags
    if clean_images < FEW_CLEAN:
        what = f"{clean_images} clean images calibrate; {FEW_CLEAN} or more make it reliable"
        flags.append(Note("few_clean_images", what))
    lost = int(np.isnan(p).sum())
    if lost:
        flags.append(Note("no_score", f"{lost} images have no finite score of {deciding}"))
    if rejections is None:
        what = f"{clean_images} clean images are too few for a false discovery rate: none is given"
        flags.append(Note("no_false_discovery_rate", what))
    elif rejections.fewest > 1:
        what = (
            f"with {clean_images} clean images none of {len(p)} can be rejected unless "
            f"{rejections.fewest} or more have the smallest p-value"
        )
        flags.append(Note("coarse_p_values", what))
    return flags
