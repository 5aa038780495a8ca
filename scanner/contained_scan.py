"""A scan that a child process does, as its parent sees it: what it was asked, and what it sends."""

from __future__ import annotations

import os
import time
import typing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from scanner import transport
from scanner.clean_set import CleanSetLoader
from scanner.config import ScanConfig
from scanner.results import ModelReport
from scanner.sandbox import SandboxLimits
from scanner.transport import BadAnswerError

if typing.TYPE_CHECKING:
    from scanner.progress import Watcher

_CHUNK = 1 << 20
_MESSAGES = 1_000  # that a copy may send at once, and each second
_MESSAGES_PER_SECOND = 100


@dataclass(frozen=True)
class Assignment:
    """One model to scan.

    Attributes:
        path: the model.
        loader: its clean set.
        config: of its scan.
        watcher: who is told how it goes on; `end` is called, too.
        limits: of its child, None: those of the `Workers`.
    """

    path: Path
    loader: CleanSetLoader
    config: ScanConfig
    watcher: Watcher
    limits: SandboxLimits | None = None


class ContainedScan:
    """What is known here of a scan that a copy does."""

    def __init__(self, given: Assignment, limits: SandboxLimits, events: int, arrays: BinaryIO):
        self.given, self.limits, self.events, self.arrays = given, limits, events, arrays
        self.started, self.begun = datetime.now(UTC), time.monotonic()
        self.unpacker, self.messages = transport.Unpacker(), 0
        self.report: ModelReport | None = None
        self.bad: BadAnswerError | None = None
        self.pid: int | None = None
        self.open = True

    def read(self) -> bool:
        """Take what the copy has sent, without waiting; False at the end.

        Raises:
            BadAnswerError: it is not what a scan sends.
        """
        try:
            data = os.read(self.events, _CHUNK)
        except BlockingIOError:
            return False
        self.open = bool(data)
        if self.bad is None:
            for kind, content in self.unpacker.feed(data):
                self._take(kind, content)
        return self.open

    def _take(self, kind: str, content: Any) -> None:
        self.messages += 1
        allowed = _MESSAGES + _MESSAGES_PER_SECOND * (time.monotonic() - self.begun)
        if self.report is not None or self.messages > allowed:
            raise BadAnswerError("too many messages")
        if kind == "report":
            report = transport.read_report(content, self.arrays)
            if report.model.path != str(self.given.path):
                raise BadAnswerError("a report of another model")
            self.report = report
        elif kind == "progress":
            _pass_on(content, self.given.watcher)
        else:
            raise BadAnswerError(f"a message of kind {kind[:60]!r}")


def _pass_on(content: Any, watcher: Watcher) -> None:
    """Call a method of the watcher with what a copy called it with.

    Raises:
        BadAnswerError: there is no such method, or its arguments are of other types.
    """
    try:
        from scanner.progress import Watcher  # it imports the engines

        name, *values = content
        method = vars(Watcher).get(name) if isinstance(name, str) else None
        if method is None or name.startswith("_"):
            raise BadAnswerError("progress of an unknown kind")
        hints = [h for n, h in typing.get_type_hints(method).items() if n != "return"]
        if len(hints) != len(values):
            raise BadAnswerError(f"progress {name} with {len(values)} values")
        arguments = [transport.decode(h, v) for h, v in zip(hints, values, strict=True)]
    except (TypeError, ValueError) as error:
        raise BadAnswerError(f"progress that can't be read: {str(error)[:200]}") from error
    try:
        getattr(watcher, name)(*arguments)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BadAnswerError(f"progress that can't be shown: {str(error)[:200]}") from error
