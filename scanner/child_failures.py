"""What is said of a scan whose child process did not answer: one line, and a report around it."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scanner.config import ScanConfig
from scanner.results import ERROR, ModelInfo, ModelReport, Note
from scanner.sandbox import SandboxLimits

OUT_OF_MEMORY = 77  # exit status of a child whose memory ended outside of a scan
DISK_FULL = 78  # of one that could not write its temporary files
CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})


def reason_of(
    ended: Mapping[str, Any] | None, limits: SandboxLimits, bad: Exception | None
) -> Note:
    """Why a child gave no report.

    Args:
        ended: "status", "stopped" and "memory" of it, as the process that watched it says (see
            `scanner.worker_process`); None if that died as well.
        bad: what was wrong with the child's messages, if anything was.
    """
    if ended is None:
        return Note("child_died", "the process that scans models died; somebody killed it")
    status, memory = int(ended["status"]), limits.memory_bytes / 1e9
    number, code = os.WTERMSIG(status), os.waitstatus_to_exitcode(status)
    if ended["stopped"] == "memory" or code == OUT_OF_MEMORY:
        message = f"stopped: the scan took more than {memory:.2g} GB of memory, its limit"
        return Note("child_out_of_memory", message)
    if ended["stopped"] == "time":
        return Note("child_timeout", f"stopped: the scan took more than {limits.seconds:.0f} s")
    if bad is not None:
        return Note("child_answer", f"stopped: the process that scans the model sent {bad}")
    if code == DISK_FULL:
        return Note("child_disk_full", "stopped: there is no room for temporary files")
    if code >= 0:
        return Note(
            "child_died", f"the process that scans the model ended without a report ({code})"
        )
    if number == signal.SIGXCPU:
        return Note("child_timeout", "stopped: the scan took all of its processor time")
    if number == signal.SIGKILL:
        message = "the process that scans the model was killed, maybe by a system out of memory"
        return Note("child_died", message)
    how = "crashed" if number in CRASHES else "was ended"
    name = signal.Signals(number).name
    return Note("child_died", f"the process that scans the model {how} ({name})")


def failed_report(path: Path, config: ScanConfig, started: datetime, why: Note) -> ModelReport:
    """The report of a model whose scan gave none: the verdict is `error`."""
    from scanner import describe  # it imports the engines

    finished = datetime.now(UTC)
    return ModelReport(
        model=_digest_at_most(path, config.limits.file_bytes),
        verdict=ERROR,
        reasons=(why,),
        tool=describe.tool(),
        environment=describe.environment(),
        configuration=describe.configuration(config),
        seed=config.seed,
        started=describe.utc(started),
        finished=describe.utc(finished),
        timings={"total_seconds": round((finished - started).total_seconds(), 3)},
    )


def _digest_at_most(path: Path, limit: int) -> ModelInfo:
    """The file's size, and its digest unless it is too large to be read at all."""
    from scanner import describe

    try:
        found = path.stat()
    except OSError:
        return ModelInfo(path=str(path))
    if stat.S_ISREG(found.st_mode) and found.st_size > limit:
        return ModelInfo(path=str(path), bytes=found.st_size)
    return describe.unreadable_model(path)
