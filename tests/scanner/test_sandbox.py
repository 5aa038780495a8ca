"""The walls around a process: what they refuse, what they let through, and what is said of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scanner import kernel_filters, sandbox
from scanner.sandbox import SandboxLimits, closed_environment, is_up, limits_for
from tests.conftest import ROOT
from tests.scanner.scans import environment

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the walls are Linux's")

HEAD = """
import os, resource, socket, sys
from pathlib import Path
from scanner import kernel_filters, sandbox
folder, outside = Path(sys.argv[1]), Path(sys.argv[2])
def tried(way):
    try:
        way()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "ok"
"""


def inside(program: str, folder: Path) -> str:
    """What a program prints that runs in a process of its own; `outside` is a file beside it."""
    (folder / "own").mkdir(exist_ok=True)
    (folder / "outside").write_text("secret")
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program, folder / "own", folder / "outside"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@linux
def test_system_calls_are_refused_with_an_error_and_no_more() -> None:
    program = (
        "kernel_filters.refuse_calls()\n"
        "print(tried(socket.socket), tried(os.setsid), tried(os.getpid), tried(socket.socketpair))"
    )
    done = inside(program, Path(os.environ.get("TMPDIR", "/tmp")))
    assert done == "PermissionError PermissionError ok ok"


@linux
@pytest.mark.skipif(not kernel_filters.landlock_version(), reason="the kernel has no Landlock")
def test_writing_is_refused_outside_of_the_folder(tmp_path: Path) -> None:
    program = (
        "kernel_filters.refuse_writing([folder], [Path(os.devnull)])\n"
        "print(tried(lambda: outside.write_text('x')), tried(outside.unlink),\n"
        "      tried(lambda: (folder / 'a').write_text('x')), tried((folder / 'a').unlink),\n"
        "      tried(lambda: Path(os.devnull).write_text('x')), tried(outside.read_text))"
    )
    assert inside(program, tmp_path) == "PermissionError PermissionError ok ok ok ok"
    assert (tmp_path / "outside").read_text() == "secret"


@linux
def test_a_namespace_has_no_network(tmp_path: Path) -> None:
    program = (
        "try:\n    kernel_filters.leave_network()\n"
        "except kernel_filters.UnavailableError:\n    print('unavailable')\n    sys.exit()\n"
        "print([name for _, name in socket.if_nameindex()], tried(outside.read_text), os.getuid())"
    )
    done = inside(program, tmp_path)
    if done == "unavailable":
        pytest.skip("this system allows no namespaces")
    assert done == f"['lo'] ok {os.getuid()}"


@linux
@pytest.mark.skipif(os.getuid() != 0, reason="only a superuser has powers to lay down")
def test_powers_are_laid_down(tmp_path: Path) -> None:
    program = (
        "kernel_filters.drop_capabilities()\n"
        "print(tried(lambda: os.setuid(12345)), tried(outside.read_text))"
    )
    assert inside(program, tmp_path) == "PermissionError ok"


@linux
def test_resources_are_bounded(tmp_path: Path) -> None:
    program = (
        "sandbox.enter(sandbox.SandboxLimits(10**8, 3, 1000), folder)\n"
        "print(tried(lambda: bytearray(2 * 10**8)), tried(lambda: bytearray(10**7)),\n"
        "      tried(lambda: (folder / 'a').write_bytes(bytes(2000))),\n"
        "      resource.getrlimit(resource.RLIMIT_CPU)[0], os.environ['HOME'] == str(folder))"
    )
    seconds = 3 * sandbox.cores() + 1
    assert inside(program, tmp_path) == f"MemoryError ok OSError {seconds} True"


def test_the_environment_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = closed_environment(tmp_path, 3)
    assert "secret" not in found.values()
    assert found["HOME"] == found["TMPDIR"] == str(tmp_path)
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("1", "3")
    assert str(ROOT) in found["PYTHONPATH"].split(os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert closed_environment(tmp_path, 3)["OMP_NUM_THREADS"] == "2"


def test_limits_by_default_and_as_asked_for() -> None:
    whole, shared = limits_for(None, None), limits_for(None, None, jobs=4)
    assert whole.seconds is None
    assert whole.memory_bytes == pytest.approx(0.8 * sandbox.machine_memory(), rel=1e-6)
    assert shared.memory_bytes == pytest.approx(whole.memory_bytes / 4, rel=1e-6)
    asked = limits_for(10**9, 60, grace=5)
    assert asked == SandboxLimits(memory_bytes=10**9, seconds=65)


@linux
def test_a_process_group_is_found_measured_and_ended() -> None:
    program = "x = bytearray(b'x') * 10**8; print(len(x), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert sandbox.members_of(process.pid) == [process.pid]
        assert 1e8 < sandbox.memory_of(process.pid) < 2e8
        sandbox.kill_group(process.pid)
        assert process.wait(10) == -9
    assert sandbox.memory_of(process.pid) == 0
    assert sandbox.members_of(process.pid) == []
    sandbox.kill_group(process.pid)  # nobody is there: no error


@linux
def test_the_probe_tells_which_walls_hold() -> None:
    found = sandbox.probe()
    assert set(found) == {"network", "files", "memory", "powers"}
    if kernel_filters.landlock_version():
        assert found["files"] == f"Landlock {kernel_filters.landlock_version()}"
    assert is_up(found["network"])
    assert "RLIMIT_DATA" in found["memory"]


def test_a_wall_that_is_missing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(kernel_filters.UnavailableError, match="pdp11"):
        kernel_filters.refuse_calls()
    with pytest.raises(kernel_filters.UnavailableError, match="pdp11"):
        kernel_filters.drop_capabilities()


def test_doctor_tells_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scanner", "doctor", "--format", "json"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = json.loads(done.stdout)["containment"]
    assert set(told) >= {"child_processes"}
    assert all(isinstance(text, str) and text for text in told.values())
