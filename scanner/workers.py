"""Scans in child processes, which take what vendors' files may do; this process reads none of them.

Each of N workers is a process of `scanner.worker_process` and one copy of it for each model. What
the copies send is checked by `scanner.transport`. A copy that dies, hangs, takes too much or sends
nonsense is one report with the verdict `error`. All of it runs in the thread of the caller, so
that Ctrl-C and SIGTERM end it at once, and everything that was started with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from scanner import transport
from scanner.child_failures import failed_report, reason_of
from scanner.clean_set import CleanSetLoader
from scanner.config import ScanConfig
from scanner.contained_scan import Assignment, ContainedScan
from scanner.results import ModelReport
from scanner.sandbox import SandboxLimits, closed_environment, cores, limits_for
from scanner.transport import BadAnswerError
from scanner.worker_process import HEADER, SCAN, Task

if typing.TYPE_CHECKING:
    from scanner.progress import Watcher

_COMMAND = (sys.executable, "-P", "-m", "scanner.worker_process")
_CHUNK = 1 << 20


def can_contain() -> bool:
    """Whether this system has what workers need: `fork`, and sockets that carry files."""
    return hasattr(os, "fork") and hasattr(socket, "send_fds")


def scan_contained(
    path: Path,
    loader: CleanSetLoader,
    config: ScanConfig,
    watcher: Watcher,
    limits: SandboxLimits | None = None,
) -> ModelReport:
    """`scanner.scanning.scan_model` in a child process; `Workers` is faster for several models.

    Args:
        limits: of the child; None: 80 % of the machine's memory, and `config.max_seconds` and a
            grace, if it has any.
    """
    with Workers(1, limits) as workers:
        ((_, report),) = workers.scan([Assignment(path, loader, config, watcher)])
    return report


class Workers:
    """Processes that scan, side by side; a context manager, which ends them.

    Args:
        jobs: how many models are scanned at a time.
        limits: of each; None: `limits_for` each assignment's `max_seconds`.
        entry: `module:function` that scans (see `scanner.worker_process.Entry`).
        threads: of each one's engines; None: an equal share of the cores. Sums differ in the last
            bits with it, so results are the same bit for bit only for the same number.

    The processes start, and import the engines, at once.
    """

    def __init__(
        self,
        jobs: int = 1,
        limits: SandboxLimits | None = None,
        entry: str = SCAN,
        threads: int | None = None,
    ) -> None:
        self._limits, self._jobs = limits, jobs
        self._workers: list[_Worker] = []
        for _ in range(jobs):
            self._workers.append(_Worker(threads or max(1, cores() // jobs), entry))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, and remove their folders."""
        for worker in self._workers:
            worker.stop()

    def scan(
        self, assignments: Iterable[Assignment | ModelReport], in_order: bool = True
    ) -> Iterator[tuple[int, ModelReport]]:
        """Scan all models; the next assignment is asked for when a worker is free.

        Args:
            assignments: a report among them is what is known of a model without a scan, and is
                passed on.
            in_order: give the reports in that order; False: as they end.

        Yields:
            (number of the assignment, from 0; its report).
        """
        held: dict[int, ModelReport] = {}
        following = 0
        for number, report in self._run(enumerate(assignments)):
            if not in_order:
                yield number, report
                continue
            held[number] = report
            while following in held:
                yield following, held.pop(following)
                following += 1

    def _run(
        self, waiting: Iterator[tuple[int, Assignment | ModelReport]]
    ) -> Iterator[tuple[int, ModelReport]]:
        """The scans as they end."""
        busy: dict[_Worker, int] = {}
        try:
            while True:
                for worker in self._workers:
                    if worker in busy:
                        continue
                    for number, given in waiting:
                        if isinstance(given, Assignment):
                            busy[worker] = number
                            worker.begin(given, self._limits_of(given))
                            break
                        yield number, given
                if not busy:
                    return
                for worker in _wait_for(busy):
                    report = worker.advance()
                    if report is not None:
                        yield busy.pop(worker), report
        finally:
            for worker in busy:  # the caller wants no more
                worker.abandon()

    def _limits_of(self, given: Assignment) -> SandboxLimits:
        limits = given.limits or self._limits
        return limits or limits_for(None, given.config.max_seconds, self._jobs)


def _wait_for(workers: Iterable[_Worker]) -> list[_Worker]:
    """The workers that have something to say, of those that have a scan."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            for handle in worker.handles():
                selector.register(handle, selectors.EVENT_READ, worker)
        ready = [key.data for key, _ in selector.select()]
    return list(dict.fromkeys(ready))


class _Worker:
    """One process of `scanner.worker_process`, and the scan that it is at."""

    def __init__(self, threads: int, entry: str) -> None:
        self._threads, self._entry = threads, entry
        self._scan: ContainedScan | None = None
        self._start()

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bdscan-"))
        self._unpacker = transport.Unpacker()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno()), self._entry],
                env=closed_environment(self._folder, self._threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if os.environ.get("BDSCAN_DEBUG") else subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which ends that
            )

    def handles(self) -> Sequence[int]:
        """What to wait for."""
        assert self._scan is not None
        control = self._control.fileno()
        return (self._scan.events, control) if self._scan.open else (control,)

    def begin(self, given: Assignment, limits: SandboxLimits) -> None:
        """Give it a model to scan; a process that is gone is replaced."""
        task = Task(given.path, given.loader.folder, given.config, limits)
        data = pickle.dumps(task)
        for attempt in range(2):
            events, theirs = os.pipe()
            os.set_blocking(events, False)
            arrays = tempfile.TemporaryFile()  # noqa: SIM115 - the report's arrays stay in it
            self._scan = ContainedScan(given, limits, events, typing.cast(BinaryIO, arrays))
            try:
                handles = [theirs, arrays.fileno()]
                socket.send_fds(self._control, [HEADER.pack(len(data))], handles)
                self._control.sendall(data)
                return
            except OSError:
                self._drop_scan()
                self.stop()
                self._start()
                if attempt:
                    raise
            finally:
                os.close(theirs)

    def advance(self) -> ModelReport | None:
        """Take what has come; the report, if the scan has ended."""
        scan = self._scan
        assert scan is not None
        self._read_events(scan)
        try:
            said = self._control.recv(_CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            said = b""
        told = dict(self._unpacker.feed(said))
        scan.pid = told.get("begun", scan.pid)
        if said and "ended" not in told:
            return None
        if said:
            while self._read_events(scan):  # whoever could write has ended
                pass
        else:
            self.stop()
            self._start()
        self._drop_scan()
        scan.given.watcher.end()
        if scan.report is not None and scan.bad is None:
            return scan.report
        why = reason_of(told.get("ended"), scan.limits, scan.bad)
        return failed_report(scan.given.path, scan.given.config, scan.started, why)

    def _read_events(self, scan: ContainedScan) -> bool:
        """Whether there was something; the copy is ended at the first thing that is no message."""
        try:
            return scan.read()
        except BadAnswerError as error:
            scan.bad = error
            with contextlib.suppress(OSError):
                self._control.send(b"s")
            return True

    def _drop_scan(self) -> None:
        if self._scan is not None:
            os.close(self._scan.events)
            self._scan = None

    def abandon(self) -> None:
        """End the process in the middle of a scan."""
        scan = self._scan
        self.stop()
        if scan is not None:
            scan.given.watcher.end()

    def stop(self) -> None:
        """End the process, its copy, and what that started."""
        self._control.close()  # it ends its copy, then itself
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its copy ends with it
            code = self._process.wait()
        if code and self._scan is not None and self._scan.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._scan.pid, signal.SIGKILL)  # what the copy had started
        self._drop_scan()
        shutil.rmtree(self._folder, ignore_errors=True)
