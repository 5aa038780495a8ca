"""`bdscan config`: what a scan would be run with, and where each value comes from."""

from __future__ import annotations

from typing import Any

from scanner import output
from scanner.commands.options import ConfigFile, Isolated, with_settings
from scanner.commands.scan import load_settings
from scanner.exit_codes import ExitCode
from scanner.results import plain
from scanner.settings import Value
from scanner.settings_file import SettingsFile
from scanner.settings_table import SETTINGS
from scanner.waivers import Waiver, subject


@with_settings
def config(config: ConfigFile = None, isolated: Isolated = False, **given: Any) -> int:
    """Show the settings of a scan, merged of flags, environment, file and defaults.

    Give it the flags that you would give to the scan.
    """
    values, file = load_settings(given, config, isolated)
    if values["format"].value in ("json", "jsonl"):
        output.print_json(_as_json(values, file))
    else:
        output.print_text("\n".join(map(output.printable, _lines(values, file))))
    return ExitCode.NO_BACKDOOR_FOUND


def _lines(values: dict[str, Value], file: SettingsFile) -> list[str]:
    width = max(len(setting.name) for setting in SETTINGS)
    lines = [f"file: {file.path or 'none'}"]
    for setting in SETTINGS:
        found = values[setting.name]
        shown = ",".join(found.texts) or _shown(found.value) or setting.default_text or "none"
        lines.append(f"{setting.name:{width}} = {shown}  ({found.origin})")
    return lines + [_waiver_line(waiver) for waiver in file.waivers]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _waiver_line(waiver: Waiver) -> str:
    waived = waiver.waived
    state = "expired" if waived.expired else "until"
    digests = ", ".join(digest[:12] for digest in sorted(waiver.sha256))
    return f"waiver of {subject(waived)} for {digests} {state} {waived.expires}: {waived.reason}"


def _as_json(values: dict[str, Value], file: SettingsFile) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, found in values.items():
        value = list(found.texts) if name == "limit" else plain(found.value)
        settings[name] = {"value": value, "origin": found.origin}
    return {
        "file": None if file.path is None else str(file.path),
        "settings": settings,
        "waivers": [
            {"sha256": sorted(waiver.sha256), **plain(waiver.waived)} for waiver in file.waivers
        ],
    }
