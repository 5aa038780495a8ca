"""Writing a report where the user wants it: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from scanner import output


def write_text(path: Path, text: str) -> None:
    """Write to a temporary name, then rename; `-` is standard output.

    A device or a pipe is written to, never replaced. Characters that UTF-8 has not are escaped.

    Raises:
        OSError: it could not be written; nothing half-written is left.
    """
    content = text.encode("utf-8", "backslashreplace")
    if str(path) == "-":
        output.print_text(content.decode("utf-8").rstrip("\n"))
        return
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            stream.write(content)
        return
    handle, temporary = tempfile.mkstemp(dir=path.resolve().parent, prefix=".bdscan-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's are for their owner only
        os.replace(temporary, path.resolve())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
