"""What a scan tells while it runs. Everything goes to standard error."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status

from scanner.output import printable
from scanner.plan import Plan
from scanner.reports.console import describe_preprocessing
from scanner.results import ModelReport

SECONDS_BETWEEN_LINES = 5.0


class Watcher(Protocol):
    """Who is told how a scan goes on."""

    def preparing(self, step: str) -> None:
        """A step before the search begins."""

    def begin(self, report: ModelReport) -> None:
        """The model is loaded: preprocessing, accuracy and flags are known."""

    def planned(self, plan: Plan) -> None:
        """The search is about to start."""

    def searching(self, detector: str, done: int, whole: int, evaluations: int) -> None:
        """One more lockstep iteration of a detector is done: so much of the whole."""

    def end(self) -> None:
        """The model's scan has ended, one way or another."""


class Silent:
    """Tells nobody."""

    def preparing(self, step: str) -> None: ...

    def begin(self, report: ModelReport) -> None: ...

    def planned(self, plan: Plan) -> None: ...

    def searching(self, detector: str, done: int, whole: int, evaluations: int) -> None: ...

    def end(self) -> None: ...


class _Console(Console):
    """Standard error that may be closed without ending the scan (rich would exit with 1)."""

    def on_broken_pipe(self) -> None:
        """Nobody listens: say no more."""
        self.quiet = True


class Teller(Silent):
    """Writes lines to standard error, and draws a bar if that is a terminal."""

    def __init__(self, bars: bool, verbose: bool = False) -> None:
        self.console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars = bars and sys.stderr.isatty()
        self.verbose = verbose
        self._bar: Progress | None = None
        self._status: Status | None = None
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """One line."""
        try:
            self.console.print(printable(text), markup=False)
        except (OSError, ValueError):
            self.console.quiet = True

    def preparing(self, step: str) -> None:
        """On a terminal what is being done stands in the last line; elsewhere `-v` tells it."""
        if self.bars:
            self._end_status()
            self._status = self.console.status(escape(printable(step)))
            self._status.start()
        elif self.verbose:
            self.say(step)

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def begin(self, report: ModelReport) -> None:
        self._end_status()
        used, clean = report.preprocessing, report.clean_set
        if used is None or clean is None:
            return
        accuracy = "no labels" if clean.accuracy is None else f"accuracy {clean.accuracy:.1%}"
        self.say(
            f"{report.model.path}: {accuracy} on {clean.images} clean images; labels: "
            f"{clean.label_rule}; on {report.device['torch']} ({report.device['why']})"
        )
        self.say(f"{report.model.path}: preprocessing {describe_preprocessing(used)}")
        if self.verbose and report.parity is not None:
            differs = f"engines differ by {report.parity.max_difference:.2g}"
            self.say(f"{report.model.path}: {'; '.join([differs, *report.model.rewrites])}")
            for name, candidate in used.candidates.items():
                self.say(f"{report.model.path}: under {name}: accuracy {candidate:.1%}")
        for flag in report.flags:
            self.say(f"{report.model.path}: {flag.code}: {flag.message}")

    def planned(self, plan: Plan) -> None:
        cost = "cost unknown beforehand (the paper's schedule)"
        if plan.image_gradients is not None and plan.seconds is not None:
            cost = f"about {plan.image_gradients:,} image gradients, {duration(plan.seconds)}"
        self.say(
            f"{', '.join(plan.detectors)}: {plan.target_classes} target classes, {plan.images} "
            f"images, {cost}"
        )
        if self.bars:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[evaluations]} gradients"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
        self._last_line = time.monotonic()

    def searching(self, detector: str, done: int, whole: int, evaluations: int) -> None:
        if self._bar is not None:
            if not self._bar.tasks or self._bar.tasks[-1].description != detector:
                self._bar.add_task(detector, total=whole, evaluations=0)
            task = self._bar.task_ids[-1]
            self._bar.update(task, completed=done, evaluations=evaluations)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"{detector}: {done} of {whole} done, {evaluations} gradients")

    def end(self) -> None:
        self._end_status()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
