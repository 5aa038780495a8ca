"""The arm that asks what single images' perturbations do to the other images.

See `scanner.detectors.expected_transferability`. Its statistic is judged by itself, not against the
other classes, so it needs few of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from scanner.arms.base import Progress, Ready, Searched
from scanner.config import ScanConfig
from scanner.detectors.expected_transferability import (
    TransferEstimate,
    estimate_transferability,
    suspects,
    threshold,
)
from scanner.results import Arrays, ClassResult, DetectorResult, ThresholdTest

EXPECTED_TRANSFERABILITY = "expected_transferability"
MIN_REACHED = 0.8  # of the images; fewer, and a low ET says nothing


def search_transfers(ready: Ready, config: ScanConfig, progress: Progress | None) -> Searched:
    """Search the expected transferability of every target class."""
    begun = time.monotonic()
    estimates = estimate_transferability(
        ready.classifier,
        ready.images,
        ready.labels,
        ready.targets,
        config.transferability,
        config.seed,
        ready.batch_images,
        ready.deadline,
        progress,
    )
    result = DetectorResult(
        name=EXPECTED_TRANSFERABILITY,
        settings=asdict(config.transferability),
        classes=tuple(_class_result(e) for e in estimates),
        statistics=None,
        corroboration=None,
        image_gradients=sum(e.image_gradients for e in estimates),
        seconds=round(time.monotonic() - begun, 3),
        threshold=_test(estimates, ready.classifier.class_count),
    )
    return Searched(result, {e.target_class: _arrays(e) for e in estimates}, ())


def _test(estimates: Sequence[TransferEstimate], classes: int) -> ThresholdTest | None:
    known = [e for e in estimates if e.transferability is not None]
    if not known:
        return None
    rates = [e.transferability or 0.0 for e in known]
    return ThresholdTest(
        suspect=known[int(np.argmax(rates))].target_class,
        value=max(rates),
        threshold=threshold(classes),
        median=float(np.median(rates)),
        suspects=suspects(estimates, classes),
    )


def _class_result(estimate: TransferEstimate) -> ClassResult:
    known = estimate.transferability is not None
    enough = known and estimate.reached >= MIN_REACHED
    return ClassResult(
        target_class=estimate.target_class,
        status="found" if enough else "censored",
        stop_reason=estimate.stop_reason,
        norm=None,
        statistic=estimate.transferability,
        source_fractions=tuple(estimate.source_fractions.tolist()),
        gradient_evaluations=estimate.image_gradients,
        images=len(estimate.used),
    )


def _arrays(estimate: TransferEstimate) -> Arrays:
    norms = np.sort(estimate.norms)
    trace = np.stack([norms, np.arange(1, len(norms) + 1) / max(len(norms), 1)], axis=1)
    return Arrays(trace=trace[np.isfinite(norms)], perturbation=estimate.perturbation)
