"""`bdscan.toml`, or `[tool.bdscan]` of `pyproject.toml`: settings and waivers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from scanner.errors import UsageError
from scanner.settings import nearest
from scanner.settings_table import NAMES
from scanner.waivers import Waiver, read_waivers

OWN_FILE = "bdscan.toml"
PROJECT_FILE = "pyproject.toml"
EXIT_CODE_SETTINGS = ("fail_on", "exit_zero")


@dataclass(frozen=True)
class SettingsFile:
    """What a configuration file states; nothing at all if there is none.

    Attributes:
        path: the file; None if there is none.
        texts: a setting's texts, by its name.
        waivers: in the order of the file.
        passed_over: another file that could have been read.
    """

    path: Path | None = None
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    waivers: tuple[Waiver, ...] = ()
    passed_over: Path | None = None

    @property
    def changes_exit_codes(self) -> bool:
        """Whether it may turn a failing exit code into 0."""
        return bool(self.waivers or set(EXIT_CODE_SETTINGS) & set(self.texts))


def read_settings_file(named: Path | None, today: date) -> SettingsFile:
    """The file that the user names; else the working directory's, if it has one.

    `bdscan.toml` goes before `pyproject.toml`, which counts only with `[tool.bdscan]`.

    Raises:
        UsageError: it can't be read, or holds what is no setting.
    """
    if named is not None:
        section = _section(named)
        if section is None:
            raise UsageError(f"{named} has no [tool.bdscan]")
        return _read(named, section, today)
    project = Path(PROJECT_FILE)
    of_project = _section(project) if project.is_file() else None
    own = Path(OWN_FILE)
    if own.is_file():
        section = _section(own) or {}
        return _read(own, section, today, None if of_project is None else project)
    return SettingsFile() if of_project is None else _read(project, of_project, today)


def _section(path: Path) -> dict[str, Any] | None:
    """The part of a file that is ours; None if it has none."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"configuration {path} can't be read: {error}") from error
    tool = content.get("tool")
    section = tool.get("bdscan") if isinstance(tool, dict) else None
    if path.name != PROJECT_FILE and (section is None or set(content) != {"tool"}):
        return content
    if section is not None and not isinstance(section, dict):
        raise UsageError(f"{path}: tool.bdscan: expected a table")
    return section


def _read(
    path: Path, section: Mapping[str, Any], today: date, passed_over: Path | None = None
) -> SettingsFile:
    texts: dict[str, tuple[str, ...]] = {}
    for key, value in section.items():
        name = key.replace("-", "_")
        if name == "waivers":
            continue
        if name not in NAMES:
            near = nearest(name, (*NAMES, "waivers"), cutoff=0.6)
            hint = f"did you mean {near!r}?" if near else "`bdscan config` lists all"
            raise UsageError(f"{path}: {key!r} is no setting; {hint}")
        if name in texts:
            raise UsageError(f"{path}: {name} is stated twice")
        texts[name] = _texts(value, f"{path}: {key}")
    waivers = read_waivers(section.get("waivers", []), str(path), today)
    return SettingsFile(path, texts, waivers, passed_over)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    """A value of TOML as the texts that a flag would be given."""
    if isinstance(value, dict):
        return tuple(f"{key}={_text(item, where)}" for key, item in value.items())
    if isinstance(value, list):
        return tuple(_text(item, where) for item in value)
    return (_text(value, where),)


def _text(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise UsageError(f"{where}: expected text, a number, true, false, or a list of them")
