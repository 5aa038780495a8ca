"""The arms of a scan: each searches all target classes in its own way, for one statistic each."""

from __future__ import annotations

from collections.abc import Callable

from scanner.arms.base import Progress, Ready, Searched
from scanner.arms.margin import MAXIMUM_MARGIN, search_margins
from scanner.arms.pairs import PAIR_ARMS
from scanner.arms.transferability import EXPECTED_TRANSFERABILITY, search_transfers
from scanner.arms.trigger import TRIGGER_ARMS, TriggerArm
from scanner.config import ScanConfig

Search = Callable[[Ready, ScanConfig, Progress | None], Searched]

WITH_TRIGGERS: dict[str, TriggerArm] = {**TRIGGER_ARMS, **PAIR_ARMS}
"""The arms whose triggers can be tried on images that they were not made from."""

_SEARCHES: dict[str, Search] = {
    MAXIMUM_MARGIN: search_margins,
    EXPECTED_TRANSFERABILITY: search_transfers,
    **{name: arm.search for name, arm in WITH_TRIGGERS.items()},
}


def search(
    name: str, ready: Ready, config: ScanConfig, progress: Progress | None = None
) -> Searched:
    """Run the arm of that name."""
    return _SEARCHES[name](ready, config, progress)


__all__ = ["WITH_TRIGGERS", "Ready", "Searched", "TriggerArm", "search"]
