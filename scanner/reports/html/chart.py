"""Geometry of the bar chart of a detector's statistic over the target classes.

One row for each class, the largest first, so that the suspect is on top and text stays readable on
a phone; below them the density of the fitted null on the same axis. The template draws it as SVG.
All lengths are in the SVG's user units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scanner.reports.html.null import FittedNull

WIDTH = 420.0
ROW = 20.0
LEFT = 76.0  # class names end here
RIGHT = 58.0  # values stand here
TOP = 30.0  # names of the two lines stand here
NULL_HEIGHT = 48.0
SHOWN_CLASSES = 20  # with more target classes the rest is one line of text
POINTS = 120  # of the density's outline


@dataclass(frozen=True)
class Bar:
    """One target class.

    Attributes:
        target_class: its index.
        value: the statistic; None where nothing is known of the class.
        censored: only an upper bound is known.
        suspect: the largest one.
        y, length: of the bar.
    """

    target_class: int
    value: float | None
    censored: bool
    suspect: bool
    y: float
    length: float


@dataclass(frozen=True)
class Line:
    """A vertical line: beyond it one of the two keys turns."""

    x: float
    value: float
    beyond_axis: bool


@dataclass(frozen=True)
class Chart:
    """A chart's geometry.

    Attributes:
        bars: the classes shown, largest statistic first.
        hidden: how many more there are.
        hidden_range: the smallest and largest statistic among those.
        significant, far: the two lines; None without a null.
        null_outline: the density as an SVG path; "" without a null.
        baseline: y of the axis under the density.
        ticks: (x, label) on the axis.
        height: of the whole.
    """

    bars: tuple[Bar, ...]
    hidden: int
    hidden_range: tuple[float, float] | None
    significant: Line | None
    far: Line | None
    null_outline: str
    rows_end: float
    baseline: float
    ticks: tuple[tuple[float, str], ...]
    height: float
    width: float = WIDTH
    left: float = LEFT
    right: float = WIDTH - RIGHT


def draw(detector: Mapping[str, Any], null: FittedNull | None) -> Chart:
    """The chart of a stored detector (a REPORT's entry under `detectors`)."""
    ranked = sorted(
        detector["classes"], key=lambda c: -np.inf if c["statistic"] is None else c["statistic"]
    )[::-1]
    shown, rest = ranked[:SHOWN_CLASSES], ranked[SHOWN_CLASSES:]
    known = [c["statistic"] for c in ranked if c["statistic"] is not None]
    end = _axis_end(max(known, default=0.0), null)
    tested = detector["statistics"]
    suspect = tested["suspect"] if tested else None
    rows_end = TOP + ROW * len(shown)
    baseline = rows_end + (NULL_HEIGHT if null else 4.0)
    hidden = [c["statistic"] for c in rest if c["statistic"] is not None]
    return Chart(
        bars=tuple(
            Bar(
                target_class=c["target_class"],
                value=c["statistic"],
                censored=c["status"] != "found",
                suspect=c["target_class"] == suspect,
                y=TOP + ROW * row,
                length=_x(max(c["statistic"] or 0.0, 0.0), end) - LEFT,
            )
            for row, c in enumerate(shown)
        ),
        hidden=len(rest),
        hidden_range=(min(hidden), max(hidden)) if hidden else None,
        significant=_line(null.significant_beyond, end) if null else None,
        far=_line(null.far_beyond, end) if null else None,
        null_outline=_outline(null, end, baseline) if null else "",
        rows_end=rows_end,
        baseline=baseline,
        ticks=tuple((_x(v, end), f"{v:.6g}") for v in _ticks(end)),
        height=baseline + 22.0,
    )


def _axis_end(largest: float, null: FittedNull | None) -> float:
    """The axis holds every bar and both lines, but no line may press the bars to nothing."""
    wanted = [largest]
    if null is not None:
        wanted += [min(v, 3 * largest) for v in (null.significant_beyond, null.far_beyond)]
    return max(wanted) * 1.02 or 1.0


def _x(value: float, end: float) -> float:
    return LEFT + (WIDTH - RIGHT - LEFT) * min(value / end, 1.0)


def _line(value: float, end: float) -> Line:
    return Line(_x(value, end), value, value > end)


def _outline(null: FittedNull, end: float, baseline: float) -> str:
    """The density as a closed path, scaled to the height kept for it."""
    low, high = null.middle
    fine = np.linspace(low / 2, high * 1.5, POINTS)  # a narrow one keeps its shape
    at = np.union1d(np.linspace(0.0, end, POINTS), fine[fine <= end])
    density = np.nan_to_num(null.density(at), posinf=0.0)
    height = (NULL_HEIGHT - 8.0) * density / (density.max() or 1.0)
    outline = [(at[0], 0.0), *zip(at, height, strict=True), (at[-1], 0.0)]
    return "M" + " L".join(f"{_x(x, end):.1f} {baseline - h:.1f}" for x, h in outline) + " Z"


def _ticks(end: float) -> list[float]:
    """Three to six round numbers from 0 on."""
    raw = end / 4
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    return [float(step * i) for i in range(int(end / step) + 1)]
