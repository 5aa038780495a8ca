"""The process that scans: it imports the engines once, then makes a copy of itself for each model.

    python -P -m scanner.worker_process CONTROL ENTRY

CONTROL is the number of a socket to the parent, ENTRY the `module:function` that scans. The first
process serves: it reads no byte of any vendor, so that its copies start clean; it watches the copy
that scans, ends it where it takes too much memory or time, and ends with its parent. The copy puts
up the walls of `scanner.sandbox` around itself before it opens the model, and answers through a
pipe in messages of `scanner.transport`. Only the parent's tasks come as pickles, which go from
trusted to untrusted.
"""

from __future__ import annotations

import errno
import gc
import os
import pickle
import pkgutil
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from scanner import kernel_filters, sandbox, transport
from scanner.child_failures import DISK_FULL, OUT_OF_MEMORY
from scanner.clean_set import CleanFolder
from scanner.config import ScanConfig
from scanner.sandbox import SandboxLimits

SCAN = "scanner.worker_process:scan_one"
HEADER = struct.Struct("<Q")  # length of the pickle after it; two file descriptors come along

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POLL_SECONDS = 0.05
_POLLS_PER_LISTING = 10  # how often the copy's memory is looked at for each listing of its children
_PROGRESS_SECONDS = 0.1
_ENGINES = ("scanner.scanning", "h5py", "torch._dynamo", "torch.fx.experimental.symbolic_shapes")


@dataclass(frozen=True)
class Task:
    """One model to scan.

    Attributes:
        path: the model, absolute or relative to the folder that the command runs in.
        folder: the clean set's.
        config: of the scan.
        limits: of the copy that does it.
    """

    path: Path
    folder: CleanFolder
    config: ScanConfig
    limits: SandboxLimits


Send = Callable[[str, Any], None]
Entry = Callable[[Task, Send, BinaryIO], None]


def scan_one(task: Task, send: Send, arrays: BinaryIO) -> None:
    """Scan a model, tell how it goes on, and answer with the report."""
    from scanner.clean_set import CleanSetLoader
    from scanner.scanning import scan_model

    watcher: Any = Relay(send)
    report = scan_model(task.path, CleanSetLoader(task.folder), task.config, watcher)
    send("report", transport.write_report(report, arrays))


class Relay:
    """A `scanner.progress.Watcher` that sends each call as a message: (method, arguments)."""

    def __init__(self, send: Send) -> None:
        self._send, self._last = send, 0.0

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*arguments: Any) -> None:
            if name == "searching":  # there are many of these, and none is of weight
                if time.monotonic() - self._last < _PROGRESS_SECONDS:
                    return
                self._last = time.monotonic()
            self._send("progress", [name, *map(_without_arrays, arguments)])

        return tell


def _without_arrays(value: Any) -> Any:
    """A report's arrays stay where they are."""
    if getattr(value, "arrays", None):
        return replace(value, arrays={})
    return value


def main() -> None:
    """Serve until the parent closes its end."""
    control, entry = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    scan: Entry = pkgutil.resolve_name(entry)
    for module in _ENGINES if entry == SCAN else ():
        __import__(module)
    Image.init()
    gc.collect()
    gc.freeze()  # so that a copy shares these pages for good
    number = 0
    while received := _receive(control):
        task, events, arrays = received
        number += 1
        folder = Path(tempfile.gettempdir()) / str(number)
        folder.mkdir(mode=0o700)
        begun = time.monotonic()
        pid = os.fork()
        if not pid:
            _copy(scan, task, control, events, arrays, folder)
        os.close(events)
        os.close(arrays)
        control.sendall(transport.pack("begun", pid))
        ended = _watch(pid, task.limits, control, begun)
        shutil.rmtree(folder, ignore_errors=True)
        if ended is None:
            break
        control.sendall(transport.pack("ended", ended))
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)  # the parent may be gone


def _receive(control: socket.socket) -> tuple[Task, int, int] | None:
    """The next task, and the copy's ends of the pipe and of the file for arrays."""
    while True:
        header, handles, _, _ = socket.recv_fds(control, HEADER.size, 2)
        if header and not handles:  # "stop" for a copy that has ended on its own
            continue
        break
    if len(header) < HEADER.size or len(handles) < 2:
        return None
    (size,) = HEADER.unpack(header)
    data = bytearray()
    while len(data) < size:
        part = control.recv(min(size - len(data), 1 << 20))
        if not part:
            return None
        data += part
    task: Task = pickle.loads(data)
    return task, handles[0], handles[1]


def _watch(
    pid: int, limits: SandboxLimits, control: socket.socket, begun: float
) -> dict[str, Any] | None:
    """Wait for the copy's end, or bring it about.

    Returns:
        "status" as of `os.waitpid`, "stopped" ("memory", "time" or "": nobody did) and "memory",
        the most bytes that were seen; None if the parent is gone.
    """
    stopped, most, polls, alone = "", 0, 0, [pid]
    alive, end = True, os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    handles: list[Any] = [control] if end is None else [control, end]
    while alive and not _has_ended(pid):
        readable, _, _ = select.select(handles, [], [], _POLL_SECONDS)
        if polls % _POLLS_PER_LISTING == 0:
            alone = sandbox.members_of(pid) or [pid]
        polls += 1
        used = sum(map(sandbox.memory_of, alone))
        most = max(most, used)
        if used > limits.memory_bytes:
            stopped = stopped or "memory"
        elif limits.seconds is not None and time.monotonic() - begun > limits.seconds:
            stopped = stopped or "time"
        if control in readable:
            alive = bool(control.recv(1))  # any byte says: stop
            stopped = stopped or "parent"
        if stopped:
            sandbox.kill_group(pid)
    sandbox.kill_group(pid)  # what it started ends with it; its number is its own until waitpid
    status = os.waitpid(pid, 0)[1]
    if end is not None:
        os.close(end)
    return {"status": status, "stopped": stopped, "memory": most} if alive else None


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it stays there to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _copy(
    scan: Entry, task: Task, control: socket.socket, events: int, arrays: int, folder: Path
) -> None:
    """What the copy does; it does not return."""
    status = 1
    try:
        server = os.getppid()
        control.close()
        os.setsid()
        kernel_filters.die_with_parent(signal.SIGKILL)
        if os.getppid() != server:
            return  # it ended before
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1) if os.environ.get("BDSCAN_DEBUG") else (0, 1, 2):
            os.dup2(nowhere, stream)
        sandbox.enter(task.limits, folder)
        with os.fdopen(arrays, "wb") as file:

            def send(kind: str, content: Any) -> None:
                data = memoryview(transport.pack(kind, content))
                while data:
                    data = data[os.write(events, data) :]

            scan(task, send, file)
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    except BaseException as error:
        status = DISK_FULL if getattr(error, "errno", None) in _NO_ROOM else 1
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
