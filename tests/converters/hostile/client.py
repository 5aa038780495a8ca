"""Talks to a worker, and starts a new one where one died or hangs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


class Worker:
    """One worker process at a time.

    Attributes:
        restarts: how often it died or hung.
    """

    def __init__(
        self, module: str = "tests.converters.hostile.worker", seconds: float = 30
    ) -> None:
        self._module, self._seconds = module, seconds
        self._process: subprocess.Popen[str] | None = None
        self.restarts = 0

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer, or {"outcome": "died" or "hung", ...}."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self._seconds)
        line = process.stdout.readline() if ready else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        outcome = "died" if ready else "hung"
        self.restarts += 1
        code = self.close()
        return {"outcome": outcome, "reason": outcome, "text": f"exit code {code}"}

    def close(self) -> int:
        """End the process."""
        if self._process is None:
            return 0
        self._process.kill()
        code = self._process.wait()
        self._process = None
        return code

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        return self._process


def secrets(folder: Path) -> Path:
    """A file that no model may make anyone read."""
    folder.mkdir(exist_ok=True)
    path = folder / "secret.bin"
    path.write_bytes(SECRET)
    return path


SECRET = b"\x7f\x41canary--canary"
"""16 bytes, as long as the bias of `small_net`: as numbers they would fit."""
