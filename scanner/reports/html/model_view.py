"""A stored report of a model as the template shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scanner.reports.arrays import StoredArrays, open_arrays
from scanner.reports.html import chart, pictures
from scanner.reports.html.clean_images import CleanImages
from scanner.reports.html.null import FittedNull, fit_null
from scanner.reports.html.pictures import Picture
from scanner.reports.html.words import (
    VERDICTS,
    DetectorWords,
    VerdictWords,
    detector_words,
)
from scanner.reports.stored import StoredResult

Floats = npt.NDArray[np.float32]

SHOWN_SOURCES = 10
SHOWN_TRIGGERS = 20  # of the classes that are not suspected, the smallest


@dataclass(frozen=True)
class Stamped:
    """A clean image, the same with the trigger, and what changed."""

    source: str
    clean: Picture
    stamped: Picture
    change: Picture


@dataclass(frozen=True)
class Trigger:
    """What a detector found for one target class, in pictures."""

    target_class: int
    pictures: tuple[Picture, ...]
    stamped: tuple[Stamped, ...] = ()


@dataclass(frozen=True)
class Source:
    """One source class's part in a trigger.

    Attributes:
        index: the class.
        weight: w, None where it has none.
        fraction: share of its images that the trigger carries; None where it was not measured.
    """

    index: int
    weight: float | None
    fraction: float | None


@dataclass(frozen=True)
class DetectorView:
    """One detector's evidence.

    Attributes:
        result: the stored entry.
        suspects: triggers of the suspected and accused classes.
        others: triggers of the other classes, for comparison.
        sources: the suspect's source classes, heaviest first.
        equal_sources: all weigh the same.
    """

    result: Mapping[str, Any]
    words: DetectorWords
    chart: chart.Chart
    null: FittedNull | None
    suspects: tuple[Trigger, ...]
    others: tuple[Trigger, ...]
    sources: tuple[Source, ...]
    equal_sources: bool


@dataclass(frozen=True)
class ModelView:
    """One model.

    Attributes:
        anchor: its id in the page.
        report: the stored REPORT.
        missing: why there are no pictures; None where there are.
        extra_flags: flags that are not among the reasons.
        file: the name of the file it was read from.
    """

    anchor: str
    report: Mapping[str, Any]
    words: VerdictWords
    detectors: tuple[DetectorView, ...]
    missing: str | None
    extra_flags: tuple[Mapping[str, str], ...]
    file: str


def view_model(
    result: StoredResult, anchor: str, clean: CleanImages | None, every_trigger: bool
) -> ModelView:
    """A stored report with its charts and pictures.

    Args:
        anchor: an id that no other part of the page has.
        clean: images to stamp triggers on.
        every_trigger: show those of the classes that are not suspected too.
    """
    report = result.content
    with open_arrays(result) as (arrays, missing):
        views = tuple(
            _view_detector(report, detector, arrays, clean, every_trigger)
            for detector in report["detectors"]
        )
    return ModelView(
        anchor=anchor,
        report=report,
        words=VERDICTS[report["verdict"]],
        detectors=views,
        missing=missing if views else None,
        extra_flags=tuple(flag for flag in report["flags"] if flag not in report["reasons"]),
        file=result.file.name,
    )


def _view_detector(
    report: Mapping[str, Any],
    detector: Mapping[str, Any],
    arrays: StoredArrays,
    clean: CleanImages | None,
    every_trigger: bool,
) -> DetectorView:
    null = fit_null(detector)
    tested = detector["statistics"]
    wanted = {*report["target_classes"], *([tested["suspect"]] if tested else [])}
    ranked = sorted(detector["classes"], key=lambda c: -(c["statistic"] or 0.0))
    shown = [c for c in ranked if c["target_class"] in wanted]
    rest = [c for c in ranked if c["target_class"] not in wanted] if every_trigger else []
    sources = _sources(shown[0]) if shown else ()
    return DetectorView(
        result=detector,
        words=detector_words(detector["name"]),
        chart=chart.draw(detector, null),
        null=null,
        suspects=tuple(_triggers(report, detector["name"], shown, arrays, clean)),
        others=tuple(_triggers(report, detector["name"], rest[:SHOWN_TRIGGERS], arrays, None)),
        sources=sources[:SHOWN_SOURCES],
        equal_sources=len({s.weight for s in sources if s.weight}) < 2,
    )


def _sources(searched: Mapping[str, Any]) -> tuple[Source, ...]:
    weights, fractions = searched["source_weights"], searched["source_fractions"]
    sources = [
        Source(
            index,
            weights[index] if index < len(weights) else None,
            fractions[index] if index < len(fractions) else None,
        )
        for index in range(max(len(weights), len(fractions)))
        if index != searched["target_class"]
    ]
    return tuple(sorted(sources, key=lambda s: (-(s.weight or 0.0), -(s.fraction or 0.0))))


def _triggers(
    report: Mapping[str, Any],
    detector: str,
    classes: Sequence[Mapping[str, Any]],
    arrays: StoredArrays,
    clean: CleanImages | None,
) -> Iterator[Trigger]:
    """The classes' triggers, as far as there are arrays of them."""
    for searched in classes:
        target = searched["target_class"]
        place = (detector, f"target_{target}")
        perturbation = pictures.drawable(arrays.floats(*place, "perturbation", rank=3))
        mask = pictures.drawable(arrays.floats(*place, "mask", rank=2), rank=2)
        pattern = pictures.drawable(arrays.floats(*place, "pattern", rank=3))
        image = pictures.drawable(arrays.floats(*place, "image", rank=3))
        made: list[Picture] = []
        stamped: tuple[Stamped, ...] = ()
        if perturbation is not None:
            what = f"Perturbation to class {target}"
            meaning = "; mid-gray is no change"
            made.append(pictures.change_picture(perturbation, what, meaning))
            stamped = _stamp(report, searched, perturbation, None, clean)
        if mask is not None and pattern is not None and pattern.shape[1:] == mask.shape:
            made += _mask_and_pattern(mask, pattern, target)
            stamped = _stamp(report, searched, pattern, mask, clean)
        if image is not None:
            words = f"Image on which the margin of class {target} is largest"
            made.append(pictures.picture(image, words, words))
        if made:
            yield Trigger(target, tuple(made), stamped)


def _mask_and_pattern(mask: Floats, pattern: Floats, target: int) -> list[Picture]:
    gray = np.full_like(pattern, 0.5)
    both = pictures.stamp_mask_pattern(gray, mask, pattern)
    meaning = "; white is replaced, black is kept"
    words = f"Pattern through the mask to class {target}, on mid-gray"
    alone = f"Pattern to class {target}, whole"
    return [
        pictures.mask_picture(mask, f"Mask to class {target}", meaning),
        pictures.picture(pattern, alone, f"{alone}; only what the mask lets through counts"),
        pictures.picture(both, words, words),
    ]


def _stamp(
    report: Mapping[str, Any],
    searched: Mapping[str, Any],
    trigger: Floats,
    mask: Floats | None,
    clean: CleanImages | None,
) -> tuple[Stamped, ...]:
    """The trigger on clean images of its heaviest source classes."""
    if clean is None:
        return ()
    stamped = []
    for source, image in clean.choose(report, searched, trigger.shape):
        if mask is None:
            result = pictures.stamp_additive(image, trigger)
        else:
            result = pictures.stamp_mask_pattern(image, mask, trigger)
        of = f" of class folder {source}" if source else ""
        goal = f"the trigger to class {searched['target_class']}"
        stamped.append(
            Stamped(
                source=source,
                clean=pictures.picture(image, "Clean", f"Clean image{of}"),
                stamped=pictures.picture(result, "With the trigger", f"The same{of} with {goal}"),
                change=pictures.change_picture(result - image, "Change"),
            )
        )
    return tuple(stamped)
