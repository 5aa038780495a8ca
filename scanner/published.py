"""What the papers' own decision rules say, beside ours.

They are reported, never acted on: their false alarms are many (see `scanner.statistics` and
`scanner.detectors.neural_cleanse`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scanner.config import VerdictConfig
from scanner.detectors.neural_cleanse import ANOMALY_THRESHOLD, anomaly_index
from scanner.results import ClassResult, PublishedTest
from scanner.statistics import fit_gamma, log_order_statistic_p

_FEWEST = 3
_PAPERS = {
    "l_red": "L-RED, RED-A: order-statistic p-value",
    "l_red_uniform": "L-RED, RED-U: order-statistic p-value",
    "maximum_margin": "MM-BD: order-statistic p-value",
}


def published_test(
    name: str, classes: Sequence[ClassResult], config: VerdictConfig
) -> PublishedTest | None:
    """The rule of the paper that a detector is from; None where it has none or can't be applied."""
    found = [c for c in classes if c.status == "found" and c.statistic]
    if len(found) < _FEWEST:
        return None
    if name == "neural_cleanse":
        return _anomaly(found)
    if name not in _PAPERS:
        return None
    r = np.array([c.statistic for c in found], dtype=np.float64)
    suspect = found[int(r.argmax())].target_class
    return _order_statistic(_PAPERS[name], suspect, r, np.delete(r, r.argmax()), config)


def published_pairs_test(
    pairs: Sequence[tuple[int, int]], sizes: Sequence[float | None], config: VerdictConfig
) -> PublishedTest | None:
    """RED-P: the largest 1 / ||v_st|| of all pairs against a Gamma fitted to the pairs of the other
    target classes (Xiang, Miller, Kesidis, IEEE TNNLS 2022, as L-RED section 2.2 describes it)."""
    known = [(pair, 1 / size) for pair, size in zip(pairs, sizes, strict=True) if size]
    if len(known) < _FEWEST:
        return None
    (_, suspect), _ = max(known, key=lambda item: item[1])
    rest = np.array([r for (_, target), r in known if target != suspect])
    if len(rest) < _FEWEST:
        return None
    r = np.array([value for _, value in known])
    return _order_statistic("L-RED, RED-P: order-statistic p-value", suspect, r, rest, config)


def _order_statistic(
    rule: str,
    suspect: int,
    r: np.ndarray[tuple[int], np.dtype[np.float64]],
    null: np.ndarray[tuple[int], np.dtype[np.float64]],
    config: VerdictConfig,
) -> PublishedTest:
    shape, scale = fit_gamma(null)
    log_p = log_order_statistic_p(float(r.max()), float(shape), float(scale), len(r))
    p = float(np.exp(log_p))
    return PublishedTest(rule, suspect, p, config.significance, p < config.significance)


def _anomaly(found: Sequence[ClassResult]) -> PublishedTest:
    index = anomaly_index([c.norm or np.inf for c in found])
    largest = int(index.argmax())
    value = float(index[largest])
    return PublishedTest(
        "Neural Cleanse: MAD anomaly index",
        found[largest].target_class,
        value,
        ANOMALY_THRESHOLD,
        value > ANOMALY_THRESHOLD,
    )
