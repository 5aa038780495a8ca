"""What flags, environment, configuration file and defaults make of a scan's settings.

A setting `a_b` is the flag `--a-b`, the variable `BDSCAN_A_B` of the environment and the key `a_b`
of a configuration file; a flag beats the environment, that beats the file, that the default. The
table is `scanner.settings_table`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.config import ScanConfig
from scanner.errors import UsageError
from scanner.options import parse_limits
from scanner.settings_table import NAMES, PREFIX, SETTINGS, Setting, default_of

DEFAULT = "default"


@dataclass(frozen=True)
class Value:
    """A setting's value, the texts that stated it, and where: "default", "flag --seed", ..."""

    value: Any
    origin: str = DEFAULT
    texts: tuple[str, ...] = ()


def merge(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Mapping[str, tuple[str, ...]],
    file_path: Path | None = None,
) -> dict[str, Value]:
    """Every setting's value with its origin.

    Args:
        flags: by name: text, a list of texts, or whether a switch is on; None: not given.
        environment: all variables; those of other names are passed over.
        file: texts by name, from `scanner.settings_file`.
        file_path: that file.

    Raises:
        UsageError: a text that can't be read, or a variable that nearly is a setting's.
    """
    refuse_nearly(
        (name.removeprefix(PREFIX).lower() for name in environment if name.startswith(PREFIX)),
        NAMES,
        "environment: {0} is no setting: did you mean {1}?",
        lambda name: PREFIX + name.upper(),
    )
    values = {}
    for setting in SETTINGS:
        given, variable = flags.get(setting.name), environment.get(setting.variable)
        if given is not None:
            texts = tuple(map(str, given)) if isinstance(given, (list, tuple)) else (str(given),)
            found = _read(setting, texts, setting.flag, f"flag {setting.flag}")
        elif variable:
            texts = tuple(variable.split(",")) if setting.many else (variable,)
            found = _read(setting, texts, setting.variable, f"environment {setting.variable}")
        elif setting.name in file and file_path is not None:
            texts = tuple(map(_locator(setting, file_path), file[setting.name]))
            found = _read(setting, texts, f"{file_path}: {setting.name}", f"file {file_path}")
        else:
            found = Value(default_of(setting))
        values[setting.name] = found
    return values


def _locator(setting: Setting, file: Path) -> Callable[[str], str]:
    """How a text of a configuration file is seen from the working directory."""
    locate = setting.locate
    return (lambda text: locate(file.parent, text) if text else text) if locate else str


def _read(setting: Setting, texts: tuple[str, ...], where: str, origin: str) -> Value:
    if setting.name == "limit":
        return Value(parse_limits(texts, where), origin, texts)
    if setting.many:
        return Value(tuple(setting.read(where, text) for text in texts), origin, texts)
    if len(texts) > 1:
        texts = (",".join(texts),)
    return Value(setting.read(where, texts[0] if texts else ""), origin, texts)


def refuse_nearly(
    given: Iterable[str], known: Collection[str], message: str, shown: Callable[[str], str] = str
) -> None:
    """Refuse a name that is none of the known ones, but so near to one that it is a slip.

    Raises:
        UsageError: `message` with the name and the known one.
    """
    for name in given:
        near = nearest(name, known)
        if name not in known and near is not None:
            raise UsageError(message.format(shown(name), shown(near)))


def nearest(name: str, known: Collection[str], cutoff: float = 0.8) -> str | None:
    """The known name that a name was probably meant to be; None if there is none."""
    return next(iter(difflib.get_close_matches(name, known, 1, cutoff)), None)


def scan_config(values: Mapping[str, Value]) -> ScanConfig:
    """The configuration that the settings make."""
    stated = {
        setting.field: values[setting.name].value
        for setting in SETTINGS
        if setting.field and values[setting.name].origin != DEFAULT
    }
    return with_fields(ScanConfig(), stated)


def with_fields(config: ScanConfig, stated: Mapping[str, Any]) -> ScanConfig:
    """A configuration with the fields of these dotted names changed."""
    changes: dict[str, Any] = {}
    for path, value in stated.items():
        parent, _, name = path.rpartition(".")
        if parent:
            section = changes.get(parent, getattr(config, parent))
            changes[parent] = dataclasses.replace(section, **{name: value})
        else:
            changes[name] = value
    return dataclasses.replace(config, **changes)


def origins(values: Mapping[str, Value]) -> dict[str, str]:
    """Where each field of the configuration comes from, by its dotted name, and the clean set."""
    of_fields = {s.field: values[s.name].origin for s in SETTINGS if s.field}
    return {**of_fields, "clean_dir": values["clean_dir"].origin}
