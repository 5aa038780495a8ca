"""Linux's own walls around the calling process, without privileges and for good.

seccomp refuses system calls (the network, other processes, the system's settings), Landlock refuses
writing to files, and a superuser's capabilities are laid down. Children inherit all of it. Each
function must be called while the process has one thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_SET_DEATH_SIGNAL, _SET_SECCOMP, _NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl
_FILTER = 2  # seccomp's mode
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF instructions on 32-bit words
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_OTHER_CALLS = 0x40000000  # numbers of x32, a second table of the same calls on x86-64

# (what AUDIT_ARCH_* calls the machine, column of the table below)
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_REFUSED_CALLS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "io_uring_setup": (425, 425),  # it would open sockets and files past this filter
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "setsid": (112, 157),  # whoever left the process group would outlive it
    "setpgid": (109, 154),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "chmod": (90, None),  # Landlock does not know of modes and owners
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
}

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on all machines
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_WRITES = _WRITE_FILE | sum(1 << bit for bit in range(4, 14))  # remove, make, rename across folders
_REFER = 1 << 13
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES_VERSION, _READ_ANY_FILE = 0x20080522, 1 << 2


class UnavailableError(Exception):
    """The system has no such wall; the text says why."""


def refuse_calls() -> None:
    """Let the system calls of the table above fail with EPERM, whoever makes them.

    Raises:
        UnavailableError: no Linux, another machine, or a kernel without seccomp.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        raise UnavailableError(f"no seccomp filter for {sys.platform} on {platform.machine()}")
    machine, column = _MACHINES[platform.machine()]
    numbers = [call[column] for call in _REFUSED_CALLS.values()]
    program = _program(machine, [number for number in numbers if number is not None])
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _forbid_new_privileges()
    _prctl(_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header, len(header)))


def _program(machine: int, refused: Iterable[int]) -> bytes:
    """The filter: 8 bytes an instruction (operation, jump if true, jump if not, number)."""
    lines = [
        (_LOAD, 0, 0, 4),  # the machine whose calls these are
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the call's number
        (_AT_LEAST, 0, 1, _OTHER_CALLS),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in refused:
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def landlock_version() -> int:
    """Which Landlock the kernel has; 0: none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(int(_library().syscall(_LANDLOCK_CREATE, None, 0, 1)), 0)


def refuse_writing(folders: Iterable[Path], files: Iterable[Path] = ()) -> int:
    """Let files be made, changed and removed below these folders alone; reading stays as it was.

    Newer kernels also refuse TCP, abstract sockets and signals to processes outside.

    Args:
        files: may be written to beside that, devices for one.

    Returns:
        The version of Landlock.

    Raises:
        UnavailableError: the kernel has none.
    """
    version = landlock_version()
    if not version:
        raise UnavailableError("the kernel has no Landlock, or it is switched off")
    known = _WRITES | (_TRUNCATE if version >= 3 else 0)
    known &= ~(0 if version >= 2 else _REFER)
    network, scope = 3 if version >= 4 else 0, 3 if version >= 6 else 0
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _landlock(_LANDLOCK_CREATE, struct.pack("QQQ", known, network, scope)[:size], size, 0)
    try:
        for path in folders:
            _allow(rules, path, known)
        for path in files:
            _allow(rules, path, known & (_WRITE_FILE | _TRUNCATE))
        _forbid_new_privileges()
        _landlock(_LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)
    return version


def _allow(rules: int, path: Path, accesses: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _landlock(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", accesses, handle), 0)
    finally:
        os.close(handle)


def drop_capabilities() -> None:
    """Lay a superuser's powers down, all but that of reading any file.

    Raises:
        UnavailableError: no Linux, or another machine.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _CAPSET:
        raise UnavailableError(f"no capabilities on {sys.platform} on {platform.machine()}")
    kept = _READ_ANY_FILE if os.geteuid() == 0 else 0
    header = struct.pack("Ii", _CAPABILITIES_VERSION, 0)
    _call(_CAPSET[platform.machine()], header, struct.pack("6I", kept, kept, 0, 0, 0, 0))


def leave_network() -> None:
    """Move to a network without any device, in a user namespace of its own.

    Raises:
        UnavailableError: no Linux, or the system allows unprivileged users no namespaces.
    """
    if not sys.platform.startswith("linux"):
        raise UnavailableError(f"no namespaces on {sys.platform}")
    user, group = os.geteuid(), os.getegid()
    if _library().unshare(_NEW_USER | _NEW_NETWORK):
        raise UnavailableError(f"unshare: {os.strerror(ctypes.get_errno())}")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)


def die_with_parent(signal_number: int) -> None:
    """Get a signal when the process that made this one ends, however it ends; Linux only."""
    if sys.platform.startswith("linux"):
        _prctl(_SET_DEATH_SIGNAL, signal_number, 0)


def _forbid_new_privileges() -> None:
    """No program started from here may gain any; without this both walls are refused."""
    _prctl(_NO_NEW_PRIVILEGES, 1, 0)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, first: int, second: ctypes.Array[ctypes.c_char] | int) -> None:
    argument = ctypes.c_ulong(second) if isinstance(second, int) else second
    zero = ctypes.c_ulong(0)
    if _library().prctl(option, ctypes.c_ulong(first), argument, zero, zero):
        raise UnavailableError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def _landlock(number: int, *arguments: int | bytes) -> int:
    return _call(number, *arguments)


def _call(number: int, *arguments: int | bytes) -> int:
    """A system call by its number.

    Raises:
        UnavailableError: it failed.
    """
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(_library().syscall(ctypes.c_long(number), *given))
    if result < 0:
        raise UnavailableError(f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result
