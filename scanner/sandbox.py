"""What a process that reads a vendor's bytes may use: memory, time, files, environment, no network.

The parts differ in how far systems have them; `enter` takes all that there are, and says which.
Imports nothing heavy: the engines come after it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scanner import kernel_filters
from scanner.kernel_filters import UnavailableError

GRACE_SECONDS = 120.0  # to prepare, to end the last pass, to write; `max_seconds` counts the rest
_MEMORY_SHARE = 0.8
_FILE_BYTES = 2**34  # of one file that a child writes: all arrays of a scan are one
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "nvidia*", "nvidia-caps/*", "kfd")
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")

_KEPT_VARIABLES = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME"}
    | {"VIRTUAL_ENV", "BDSCAN_DEBUG", "SYSTEMROOT"}
)
_KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "CUBLAS_", "CUDNN_", "TORCH_", "PYTORCH_", "MKL_CBWR")
_MISSING = "none: "
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class SandboxLimits:
    """What one child may use.

    Attributes:
        memory_bytes: of it and its children together: numbers held in memory, not files mapped.
        seconds: wall time; None: unlimited. Its processor time is bounded by as much for each core.
        file_bytes: size of any file that it writes.
    """

    memory_bytes: int
    seconds: float | None = None
    file_bytes: int = _FILE_BYTES


@dataclass(frozen=True)
class Walls:
    """Which walls stand around a process, in words; what is missing says why.

    Attributes:
        network: what keeps it from the network.
        files: what keeps it from writing elsewhere.
        memory: what bounds its memory.
        powers: what became of a superuser's.
    """

    network: str
    files: str
    memory: str
    powers: str


def limits_for(
    max_memory: int | None, max_seconds: float | None, jobs: int = 1, grace: float = GRACE_SECONDS
) -> SandboxLimits:
    """The limits of each of so many children that run side by side.

    Args:
        max_memory: bytes for each, None: 80 % of the machine for all together.
        max_seconds: what a scan bounds itself to; None: no bound on time.
    """
    memory = max_memory or int(_MEMORY_SHARE * machine_memory() / jobs)
    return SandboxLimits(memory, None if max_seconds is None else max_seconds + grace)


def machine_memory() -> int:
    """Bytes of memory that the machine, or the container around this process, has."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path("/sys/fs/cgroup", name).read_text()))
    return min(found)


def cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def closed_environment(folder: Path, threads: int) -> dict[str, str]:
    """The variables that engines need, and nothing else of what the user's shell holds.

    Args:
        folder: where temporary files and the home lie.
        threads: of each engine; fewer if the user's own variables say so.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    given = [os.environ.get(name, "") for name in _THREAD_VARIABLES]
    few = min([threads, *(int(text) for text in given if text.isdecimal() and int(text))])
    kept.update(dict.fromkeys(_THREAD_VARIABLES, str(few)))
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **kept,
        **_own_variables(folder),
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_CACHE_DISABLE": "1",  # it would write to the home
        "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime sends data to its maker otherwise
    }


def enter(limits: SandboxLimits, folder: Path) -> Walls:
    """Put up all walls around this process, which must have one thread; they can't be taken down.

    Args:
        folder: the only one that it may write to.
    """
    memory = _limit_resources(limits)
    os.environ.update(_own_variables(folder))
    tempfile.tempdir = None  # it is found once, and this process may be a copy of one that has
    network = _wall("seccomp", kernel_filters.refuse_calls)
    if network.startswith(_MISSING):
        network = _wall("namespace", kernel_filters.leave_network)
    powers = _wall("laid down", kernel_filters.drop_capabilities)
    version = kernel_filters.landlock_version()
    files = _wall(
        f"Landlock {version}", lambda: kernel_filters.refuse_writing([folder], _devices())
    )
    return Walls(network, files, memory, powers)


def is_up(wall: str) -> bool:
    """Whether a text of `Walls` tells of a wall, not of why there is none."""
    return not wall.startswith(_MISSING)


def _own_variables(folder: Path) -> dict[str, str]:
    return dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME"), str(folder))


def _wall(name: str, build: Callable[[], object]) -> str:
    """The wall's name; why there is none, if it can't be built."""
    try:
        build()
    except (UnavailableError, OSError) as error:
        return f"{_MISSING}{error}"
    return name


def _limit_resources(limits: SandboxLimits) -> str:
    """Bound what a single process may take; what bounds its memory, in words."""
    import resource

    held = memory_of(os.getpid(), "VmData:")
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_DATA: held + limits.memory_bytes,
    }
    if limits.seconds is not None:
        bounds[resource.RLIMIT_CPU] = math.ceil(limits.seconds * cores()) + 1
    for kind, wanted in bounds.items():
        soft, hard = resource.getrlimit(kind)
        most = min((n for n in (soft, hard) if n != resource.RLIM_INFINITY), default=wanted)
        resource.setrlimit(kind, (min(wanted, most), hard))
    if not Path("/proc/self/status").exists():
        return "RLIMIT_DATA"
    with contextlib.suppress(OSError):  # if the system is short of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    return "RLIMIT_DATA, and resident memory is watched"


def _devices() -> list[Path]:
    """Devices that engines write to; never a disk."""
    return [path for pattern in _DEVICES for path in Path("/dev").glob(pattern)]


def memory_of(process: int, *fields: str) -> int:
    """Bytes of a process's own memory, in RAM and swapped out; 0 where the system does not tell.

    Args:
        fields: of /proc/PID/status, to add up instead.
    """
    wanted, total = fields or ("RssAnon:", "RssShmem:", "VmSwap:"), 0
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(wanted):
                total += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return 0
    return total


def members_of(group: int) -> list[int]:
    """The processes of a process group; empty where the system does not tell."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (entry / "stat").read_text()
            if int(text.rpartition(")")[2].split()[2]) == group:
                found.append(int(entry.name))
    return found


def kill_group(process: int) -> None:
    """End a process and all of its group at once."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(process, signal.SIGKILL)


def probe() -> dict[str, str]:
    """Which walls this system has, found out by a process that puts them up and runs against them.

    Returns:
        The fields of `Walls`.
    """
    with tempfile.TemporaryDirectory(prefix="bdscan-") as folder:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "scanner.sandbox", folder],
            env=closed_environment(Path(folder), 1),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return dict.fromkeys(Walls.__dataclass_fields__, f"{_MISSING}the probe failed: {why}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run_against_the_walls(folder: Path) -> Walls:
    """Put them up; one that does not hold is said to be none."""
    outside = folder / "outside"
    outside.touch()
    (folder / "own").mkdir()
    walls = enter(SandboxLimits(2**30), folder / "own")
    if is_up(walls.network) and _reaches_the_network():
        walls = replace(walls, network=f"{_MISSING}{walls.network} does not hold")
    with contextlib.suppress(OSError):
        outside.write_text("x")
        if is_up(walls.files):
            walls = replace(walls, files=f"{_MISSING}{walls.files} does not hold")
    return walls


def _reaches_the_network() -> bool:
    """Whether a packet can be sent; to a name server's port, where no packet does harm."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("192.0.2.1", 53))  # an address kept free for documentation
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps(asdict(_run_against_the_walls(Path(sys.argv[1])))))
