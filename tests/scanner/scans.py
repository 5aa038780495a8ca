"""Running `bdscan` as users do: its exit code and its two streams.

`bdscan` starts a process. `here` calls `main` in this one, which saves the seconds that importing
torch takes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from scanner.cli import main
from scanner.schema import validate
from tests.conftest import ROOT

TIMEOUT = 240
DETECTORS = "l_red,mask_pattern,maximum_margin"
"""What the runs search with unless they say otherwise: all eight would take the suite minutes."""


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """Standard output as one JSON document, valid under the schema."""
        content: dict[str, Any] = json.loads(self.out, parse_constant=_refuse)
        validate(content)
        return content

    def reports(self) -> list[dict[str, Any]]:
        """The models' reports of a `--format json` run."""
        reports: list[dict[str, Any]] = self.document()["models"]
        return reports


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} in JSON")


def environment() -> dict[str, str]:
    """This process's, with the repository importable from anywhere and one thread each."""
    fixed = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return {"BDSCAN_DETECTORS": DETECTORS, **os.environ, **fixed}


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """`bdscan ARGUMENTS` in a folder, its streams captured."""
    return subprocess.Popen(
        [sys.executable, "-m", "scanner", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait(process: subprocess.Popen[str]) -> Run:
    """The end of a started run."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return Run(process.returncode, out, err)


def bdscan(*arguments: object, cwd: Path) -> Run:
    """Start and wait."""
    return wait(start(*arguments, cwd=cwd))


def here(*arguments: object, cwd: Path) -> Run:
    """`bdscan ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, handler = Path.cwd(), signal.getsignal(signal.SIGTERM)
    os.chdir(cwd)
    try:
        with (
            mock.patch.dict(os.environ, environment()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main([str(argument) for argument in arguments])
    finally:
        os.chdir(before)
        signal.signal(signal.SIGTERM, handler)
    return Run(int(code), out.getvalue(), err.getvalue())
