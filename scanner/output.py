"""Writing to standard output and standard error. Imports nothing heavy.

Whatever happens to the streams (closed, full, their reader gone), the scan goes on and the exit
code is that of the verdict: an exception at this point would end the process with 1, which means
"backdoor found". Text that comes from a vendor's file is made printable before it is shown.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from scanner.exit_codes import ExitCode
from scanner.results import VERDICTS

_documents = 0  # JSON documents on standard output so far; there must be exactly one
_promised = False  # a document is wanted, though the arguments do not say so


def prepare_streams() -> None:
    """Make both streams usable: a closed one goes nowhere, odd characters are escaped."""
    global _documents, _promised
    _documents, _promised = 0, False
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Text on one line without control characters, so that it can't forge a report's lines."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def promise_json() -> None:
    """Standard output will hold one JSON document: the environment or a file wants it."""
    global _promised
    _promised = True


def complain(message: str) -> None:
    """One line on standard error."""
    try:
        sys.stderr.write(f"bdscan: {printable(' '.join(message.split()))}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass  # nobody listens


def fail(arguments: Sequence[str], code: str, message: str, exit_code: ExitCode) -> ExitCode:
    """One line on standard error; with `--format json` a document on standard output too."""
    complain(message)
    if (_promised or wants_json(arguments)) and not _documents:
        print_json(
            {
                "schema_version": "1",
                "models": [],
                "summary": dict.fromkeys(VERDICTS, 0),
                "error": {"code": code, "message": " ".join(message.split())},
            }
        )
    return exit_code


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for a JSON document, readable even where they are wrong."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(a == "--format=json" or (a == "--format" and b == "json") for a, b in pairs)


def print_json(content: Any) -> None:
    """One document, indented, on standard output."""
    global _documents
    _documents += 1
    print_text(json.dumps(content, indent=1, allow_nan=False))


def print_text(text: str) -> None:
    """Text and a line end on standard output, at once."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        ignore_stdout()


def print_facts(facts: dict[str, Any], format: str) -> None:
    """Plain data as JSON, or as indented lines."""
    if format == "json":
        print_json(facts)
    else:
        print_text("\n".join(map(printable, _lines(facts, ""))))


def _lines(value: Any, indent: str) -> list[str]:
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  {', '.join(f'{k} {v}' for k, v in i.items())}" for i in item]
        else:
            shown = ", ".join(map(str, item)) if isinstance(item, list) else item
            lines.append(f"{indent}{key}: {'none' if shown in (None, '', {}) else shown}")
    return lines


def ignore_stdout() -> None:
    """Standard output can't be written (its reader is gone, its disk is full): drop the rest.

    The scan goes on: result files are written, and the exit code is what it would have been.
    """
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
