"""Writing to standard output and standard error. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from scanner.exit_codes import ExitCode

VERDICT_COUNTS = ("no_backdoor_found", "backdoor_found", "inconclusive", "error", "skipped")


def fail(arguments: Sequence[str], code: str, message: str, exit_code: ExitCode) -> ExitCode:
    """One line on standard error; with `--format json` a document on standard output too."""
    line = " ".join(message.split())
    sys.stderr.write(f"bdscan: {line}\n")
    if wants_json(arguments) and exit_code not in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        print_json(
            {
                "schema_version": "1",
                "models": [],
                "summary": dict.fromkeys(VERDICT_COUNTS, 0),
                "error": {"code": code, "message": line},
            }
        )
    return exit_code


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for a JSON document, readable even where they are wrong."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(a == "--format=json" or (a == "--format" and b == "json") for a, b in pairs)


def print_json(content: Any) -> None:
    """One document, indented, on standard output."""
    print_text(json.dumps(content, indent=1, allow_nan=False))


def print_text(text: str) -> None:
    """Text and a line end on standard output, at once."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        ignore_stdout()


def print_facts(facts: dict[str, Any], format: str) -> None:
    """Plain data as JSON, or as indented lines."""
    if format == "json":
        print_json(facts)
    else:
        print_text("\n".join(_lines(facts, "")))


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
    """The reader of standard output is gone (as `head` does): drop what is still written to it.

    The scan goes on: result files are written, and the exit code is what it would have been.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
