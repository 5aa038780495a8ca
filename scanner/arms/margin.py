"""The arm that needs no image and ends with none: see `scanner.detectors.maximum_margin`."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

from scanner.arms.base import Progress, Ready, Searched, detector_result
from scanner.config import ScanConfig
from scanner.detectors.maximum_margin import MarginEstimate, estimate_margins
from scanner.published import published_test
from scanner.results import Arrays, ClassResult

MAXIMUM_MARGIN = "maximum_margin"


def search_margins(ready: Ready, config: ScanConfig, progress: Progress | None) -> Searched:
    """Search the largest margin of every target class; needs no images."""
    begun = time.monotonic()
    settings = config.maximum_margin
    estimates = estimate_margins(
        ready.classifier,
        ready.targets,
        settings,
        config.seed,
        ready.batch_images,
        ready.deadline,
        progress,
    )
    classes = [_margin_result(e) for e in estimates]
    spent = sum(e.gradient_evaluations for e in estimates)
    seconds = time.monotonic() - begun
    result = detector_result(MAXIMUM_MARGIN, asdict(settings), classes, config, spent, seconds)
    result = replace(result, published=published_test(MAXIMUM_MARGIN, classes, config.verdict))
    arrays = {e.target_class: Arrays(trace=e.trace, image=e.image) for e in estimates}
    return Searched(result, arrays, ())


def _margin_result(estimate: MarginEstimate) -> ClassResult:
    """A class whose margin never turns positive has no statistic: the model never predicts it."""
    alive = estimate.margin > 0
    return ClassResult(
        target_class=estimate.target_class,
        status="found" if alive else "censored",
        stop_reason=estimate.stop_reason,
        norm=None,
        statistic=estimate.margin if alive else None,
        gradient_evaluations=estimate.gradient_evaluations,
    )
