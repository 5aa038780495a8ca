"""What a scan's child process may do at worst, if a vendor's file had taken it over."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from scanner import transport
from scanner.results import ERROR, ModelInfo, ModelReport, Note
from scanner.worker_process import Send, Task

FOREVER = "import time; time.sleep(1000)"


def _answer(task: Task, send: Send, arrays: BinaryIO, message: str) -> None:
    """A valid report that says so."""
    info = ModelInfo(path=str(task.path))
    report = ModelReport(model=info, verdict=ERROR, reasons=(Note("told", message),))
    send("report", transport.write_report(report, arrays))


def _send_bytes(data: bytes) -> None:
    """Into everything that is open, the pipe to the parent among it."""
    for handle in range(3, 64):
        with contextlib.suppress(OSError):
            os.write(handle, data)


def answers(task: Task, send: Send, arrays: BinaryIO) -> None:
    _answer(task, send, arrays, str(task.path))


def slow_where_named_so(task: Task, send: Send, arrays: BinaryIO) -> None:
    time.sleep(0.5 if "slow" in task.path.name else 0)
    _answer(task, send, arrays, str(task.path))


def loops(task: Task, send: Send, arrays: BinaryIO) -> None:
    send("progress", ["preparing", "looping"])
    while True:
        pass


def allocates(task: Task, send: Send, arrays: BinaryIO) -> None:
    held = []
    while True:
        held.append(bytearray(b"x") * (8 << 20))


def allocates_in_a_process_of_its_own(task: Task, send: Send, arrays: BinaryIO) -> None:
    program = "import time\nx = bytearray(b'x') * (400 << 20)\ntime.sleep(1000)"
    processes = [subprocess.Popen([sys.executable, "-I", "-c", program]) for _ in range(3)]
    for process in processes:
        process.wait()


def allocates_at_once(task: Task, send: Send, arrays: BinaryIO) -> None:
    bytearray(1 << 45)


def fills_the_disk(task: Task, send: Send, arrays: BinaryIO) -> None:
    with open(os.path.join(os.environ["TMPDIR"], "file"), "wb") as file:
        while True:
            file.write(b"x" * (1 << 20))


def segfaults(task: Task, send: Send, arrays: BinaryIO) -> None:
    ctypes.string_at(0)


def aborts(task: Task, send: Send, arrays: BinaryIO) -> None:
    os.abort()


def raises(task: Task, send: Send, arrays: BinaryIO) -> None:
    raise ValueError("no")


def ends_without_a_word(task: Task, send: Send, arrays: BinaryIO) -> None:
    os._exit(0)


def kills_itself(task: Task, send: Send, arrays: BinaryIO) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sends_noise(task: Task, send: Send, arrays: BinaryIO) -> None:
    _send_bytes(struct.pack("<I", 1000) + os.urandom(1000))


def sends_a_pickle(task: Task, send: Send, arrays: BinaryIO) -> None:
    data = pickle.dumps(["report", Path("x")], protocol=0)
    _send_bytes(struct.pack("<I", len(data)) + data)


def announces_gigabytes(task: Task, send: Send, arrays: BinaryIO) -> None:
    _send_bytes(b"\xff" * 4096)
    time.sleep(1000)


def sends_without_end(task: Task, send: Send, arrays: BinaryIO) -> None:
    while True:
        send("progress", ["preparing", "x" * 1000])


def sends_deep_json(task: Task, send: Send, arrays: BinaryIO) -> None:
    data = b"[" * 1_000_000
    _send_bytes(struct.pack("<I", len(data)) + data)
    time.sleep(1000)


def sends_ten_million_lists(task: Task, send: Send, arrays: BinaryIO) -> None:
    data = b"[" + b"[]," * 10_000_000 + b"0]"
    _send_whole(data)


def sends_as_many_numbers_as_it_may(task: Task, send: Send, arrays: BinaryIO) -> None:
    count = transport.MAX_ITEMS - 10
    data = b'["report",[' + b"1e0," * count + b" " * (80_000_000 - 4 * count) + b"0]]"
    _send_whole(data)


def _send_whole(data: bytes) -> None:
    """A message to the pipe, the only thing open that is neither a file nor a socket."""
    message = memoryview(struct.pack("<I", len(data)) + data)
    for handle in range(3, 64):
        with contextlib.suppress(OSError):
            if "pipe" in os.readlink(f"/proc/self/fd/{handle}"):
                while message:
                    message = message[os.write(handle, message) :]


def reports_another_model(task: Task, send: Send, arrays: BinaryIO) -> None:
    report = ModelReport(model=ModelInfo(path="/etc/passwd"), verdict="no_backdoor_found")
    send("report", transport.write_report(report, arrays))


def reports_an_unknown_verdict(task: Task, send: Send, arrays: BinaryIO) -> None:
    report = ModelReport(model=ModelInfo(path=str(task.path)), verdict="safe")
    send("report", transport.write_report(report, arrays))


def calls_what_no_watcher_has(task: Task, send: Send, arrays: BinaryIO) -> None:
    send("progress", ["__class__"])
    time.sleep(1000)


def tells_progress_that_cannot_be_shown(task: Task, send: Send, arrays: BinaryIO) -> None:
    send("progress", ["searching", 3, "many", [], None])
    time.sleep(1000)


def leaves_a_process(task: Task, send: Send, arrays: BinaryIO) -> None:
    process = subprocess.Popen([sys.executable, "-I", "-c", FOREVER])
    send("progress", ["preparing", str(process.pid)])
    _answer(task, send, arrays, str(process.pid))


def leaves_a_process_and_hangs(task: Task, send: Send, arrays: BinaryIO) -> None:
    process = subprocess.Popen([sys.executable, "-I", "-c", FOREVER])
    send("progress", ["preparing", f"{os.getppid()} {os.getpid()} {process.pid}"])
    time.sleep(1000)


def tries_to_get_out(task: Task, send: Send, arrays: BinaryIO) -> None:
    """Answer with what each way out ended in."""
    outside = Path(str(task.path))
    ways: dict[str, Callable[[], Any]] = {
        "internet": lambda: socket.socket(socket.AF_INET),
        "internet 6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        "local socket": lambda: socket.socket(socket.AF_UNIX),
        "write": lambda: outside.write_text("x"),
        "create": lambda: outside.with_suffix(".new").touch(),
        "remove": lambda: outside.unlink(),
        "rename": lambda: outside.rename(outside.with_suffix(".moved")),
        "mode": lambda: outside.chmod(0o777),
        "own folder": lambda: Path(os.environ["TMPDIR"], "file").write_text("x"),
        "another process": lambda: os.kill(os.getppid(), 0),
        "leave the group": os.setsid,
        "a program": lambda: subprocess.run([sys.executable, "-I", "-c", ""], check=True),
        "read the model": lambda: outside.read_text(),
    }
    found: dict[str, Any] = {}
    for name, way in ways.items():
        try:
            way()
            found[name] = "ok"
        except OSError as error:
            found[name] = type(error).__name__
    found["environment"] = sorted(os.environ)
    found["handles"] = sorted(os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.exists())
    _answer(task, send, arrays, json.dumps(found))


def by_name(task: Task, send: Send, arrays: BinaryIO) -> None:
    """Do what the model is named after."""
    globals()[task.path.name](task, send, arrays)
