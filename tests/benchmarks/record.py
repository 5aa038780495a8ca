"""What every benchmark records beside its figures."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scanner.describe import environment


def machine() -> dict[str, str]:
    """Processor and cores, as the system names them."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {"processor": model, "cores": str(os.cpu_count())}


def write(path: Path, results: dict[str, Any], seed: int) -> None:
    """Write results with date, machine, versions and seed."""
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": environment(),
        "seed": seed,
        **results,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
