"""What `bdscan samples` tells while it runs. Everything goes to standard error."""

from __future__ import annotations

import time

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from scanner.progress import SECONDS_BETWEEN_LINES, Teller, duration


class Silent:
    """Tells nobody."""

    def preparing(self, step: str) -> None:
        """A step before the first score."""

    def say(self, text: str) -> None:
        """A line."""

    def scoring(self, done: int, whole: int, resumed: int) -> None:
        """One more chunk is done: images done, images in all, images found done already."""

    def end(self) -> None:
        """The run has ended, one way or another."""


class SamplesTeller(Silent):
    """Lines on standard error, and a bar with an estimate if that is a terminal."""

    def __init__(self, bars: bool, verbose: bool = False) -> None:
        self._teller = Teller(bars, verbose)
        self._bar: Progress | None = None
        self._begun: tuple[float, int] | None = None  # when, and images done by then
        self._last_line = 0.0

    def preparing(self, step: str) -> None:
        self._teller.preparing(step)

    def say(self, text: str) -> None:
        self._teller.end()
        self._teller.say(text)

    def scoring(self, done: int, whole: int, resumed: int) -> None:
        now = time.monotonic()
        if self._begun is None or done == resumed:  # nothing was computed yet
            self._begun, self._last_line = (now, resumed), now
            self._teller.end()
        if self._teller.bars:
            self._draw(done, whole)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            begun, before = self._begun
            left = (now - begun) / max(done - before, 1) * (whole - done)
            self._teller.say(f"{done} of {whole} images done, about {duration(left)} left")

    def _draw(self, done: int, whole: int) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._teller.console,
                transient=True,
            )
            self._bar.add_task("images", total=whole)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done)

    def end(self) -> None:
        self._teller.end()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
