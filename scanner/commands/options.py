"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from scanner.errors import UsageError

Format = Annotated[str, typer.Option("--format", help="text, json or jsonl.", metavar="FORMAT")]
ImageSize = Annotated[
    str | None, typer.Option(help="HEIGHTxWIDTH, for a model that leaves it free.")
]
OutputName = Annotated[
    str | None, typer.Option("--output", help="Name of the model's output to use.")
]
FileLimit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="Allow a model file more, such as nodes=200k; an unknown NAME lists all.",
    ),
]


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the words allowed."""
    if value not in allowed:
        raise UsageError(f"{option} {value!r}: expected {', '.join(allowed)}")
