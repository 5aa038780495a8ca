"""Options that several commands share, and those that the table of settings makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from scanner.errors import UsageError
from scanner.settings_table import SETTINGS, Setting, default_of

Format = Annotated[str, typer.Option("--format", help="text, json or jsonl.", metavar="FORMAT")]
ImageSize = Annotated[
    str | None, typer.Option(help="HEIGHTxWIDTH, for a model that leaves it free.")
]
OutputName = Annotated[
    str | None, typer.Option("--output-name", help="Name of the model's output to use.")
]
FileLimit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="Allow a model file more, such as nodes=200k; an unknown NAME lists all.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="BDSCAN_CONFIG",
        show_envvar=False,
        help="Settings and waivers.  [default: bdscan.toml, or [tool.bdscan] of pyproject.toml]",
    ),
]
Isolated = Annotated[
    bool, typer.Option("--isolated", help="Read no configuration file of the working directory.")
]


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of the words allowed."""
    if value not in allowed:
        raise UsageError(f"{option} {value!r}: expected {', '.join(allowed)}")


def with_settings(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command one option for each setting; it gets them as `**given`, None: not given."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    named = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            setting.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(setting),
        )
        for setting in SETTINGS
    ]
    command.__signature__ = inspect.Signature([*named, *options])  # type: ignore[attr-defined]
    return command


def _annotation(setting: Setting) -> Any:
    """What Typer makes the option of. Values stay text: `scanner.settings` reads all sources."""
    short = [setting.short] if setting.short else []
    default = setting.default_text or _default_text(default_of(setting))
    hint = f"{setting.help}  [default: {default}]" if default else setting.help
    if not setting.metavar:
        flag = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return Annotated[bool | None, typer.Option(*short, flag, help=hint)]
    option = typer.Option(*short, setting.flag, metavar=setting.metavar, help=hint)
    return Annotated[list[str] | None if setting.many else str | None, option]


def _default_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None or isinstance(value, bool) else str(value)
