"""Waivers: verdicts on models that somebody has accepted for a time, with a reason.

A waiver never changes a verdict and never hides one: the report shows both, and only the exit code
passes over the model. It holds for the very bytes that it names, and to the end of its last day
(UTC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from scanner.digests import is_digest
from scanner.errors import UsageError
from scanner.results import BACKDOOR_FOUND, ERROR, INCONCLUSIVE, ModelInfo, ModelReport, Waived
from scanner.settings import nearest

KEYS = ("sha256", "verdict", "target_class", "reason", "expires")
VERDICTS = (BACKDOOR_FOUND, INCONCLUSIVE, ERROR)


@dataclass(frozen=True)
class Waiver:
    """One accepted verdict.

    Attributes:
        sha256: of the model file and of its external data, lower case.
        waived: what is accepted, why and how long.
    """

    sha256: frozenset[str]
    waived: Waived


def read_waivers(tables: Any, where: str, today: date) -> tuple[Waiver, ...]:
    """The waivers of a configuration file.

    Args:
        tables: a list of tables with the keys `KEYS`, either `verdict` or `target_class`.
        where: the file's name, for errors.
        today: the day in UTC; a waiver of an earlier day is marked as expired.

    Raises:
        UsageError: anything that is not so.
    """
    if not isinstance(tables, list):
        raise UsageError(f"{where}: waivers: expected [[waivers]] with {', '.join(KEYS)}")
    return tuple(
        _read(table, f"{where}: waiver {number}", today) for number, table in enumerate(tables, 1)
    )


def _read(table: Any, where: str, today: date) -> Waiver:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: expected a table with {', '.join(KEYS)}")
    for key in table:
        if key not in KEYS:
            near = nearest(key, KEYS, cutoff=0.6)
            hint = f"did you mean {near!r}?" if near else f"expected {', '.join(KEYS)}"
            raise UsageError(f"{where}: unknown key {key!r}; {hint}")
    reason = table.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise UsageError(f"{where}: reason: expected why the verdict is accepted")
    expires = _date(table.get("expires"), where)
    return Waiver(
        sha256=_digests(table.get("sha256"), where),
        waived=Waived(
            verdict=_verdict(table, where),
            target_class=table.get("target_class"),
            reason=reason.strip(),
            expires=expires.isoformat(),
            expired=expires < today,
        ),
    )


def _digests(value: Any, where: str) -> frozenset[str]:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(text, str) and is_digest(text) for text in listed):
        raise UsageError(f"{where}: sha256: expected 64 hexadecimal digits, or a list of such")
    return frozenset(text.lower() for text in listed)


def _verdict(table: Mapping[str, Any], where: str) -> str | None:
    verdict, target = table.get("verdict"), table.get("target_class")
    if (verdict is None) == (target is None):
        raise UsageError(f"{where}: expected either verdict or target_class")
    if target is not None:
        if not isinstance(target, int) or isinstance(target, bool) or target < 0:
            raise UsageError(f"{where}: target_class: expected a class number")
        return None
    if verdict not in VERDICTS:
        raise UsageError(f"{where}: verdict: expected {', '.join(VERDICTS)}")
    return str(verdict)


def _date(value: Any, where: str) -> date:
    """A date of TOML, or a text such as "2027-01-31"."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: expires: expected a date such as 2027-01-31") from None


def waive(report: ModelReport, waivers: Sequence[Waiver]) -> ModelReport:
    """The report with the waivers that are meant for it; the verdict stays as it is.

    It is `suppressed` if those in force cover the verdict, or every class that it accuses.
    """
    digests = all_digests(report.model)
    meant = tuple(
        waiver.waived
        for waiver in waivers
        if digests and digests <= waiver.sha256 and _is_about(waiver.waived, report)
    )
    in_force = [waived for waived in meant if not waived.expired]
    whole = any(waived.verdict == report.verdict for waived in in_force)
    classes = {waived.target_class for waived in in_force}
    each = bool(report.target_classes) and classes.issuperset(report.target_classes)
    return replace(report, waivers=meant, suppressed=whole or each)


def _is_about(waived: Waived, report: ModelReport) -> bool:
    if waived.verdict is not None:
        return waived.verdict == report.verdict
    return waived.target_class in report.target_classes


def all_digests(model: ModelInfo) -> frozenset[str]:
    """sha256 of the model file and of its external data; empty if the file could not be read."""
    if model.sha256 is None:
        return frozenset()
    return frozenset({model.sha256, *model.external_data.values()})


def subject(waived: Waived) -> str:
    """What a waiver is about: `target class 3`, or the verdict."""
    return waived.verdict or f"target class {waived.target_class}"
