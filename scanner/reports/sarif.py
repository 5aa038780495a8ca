"""Reports as SARIF 2.1.0, the format that code hosts show as alerts.

SARIF was made for source lines, a verdict is about a binary file. With an anchor, a manifest that
pins the models (a lock file, a CSV, a DVC file), the alert stands on the line that pins the model,
so that the change that brings a vendor's new file in is what is annotated.

Levels and `security-severity` say how loudly a host should speak of a verdict; they measure
nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote_from_bytes

from scanner.output import printable
from scanner.results import BACKDOOR_FOUND, ERROR, INCONCLUSIVE, NO_BACKDOOR_FOUND, SKIPPED

VERSION = "2.1.0"
SCHEMA_URI = "https://json.schemastore.org/sarif-2.1.0.json"
MAX_MANIFEST_BYTES = 1 << 26


@dataclass(frozen=True)
class _Rule:
    """One kind of alert."""

    id: str
    name: str
    level: str
    severity: str
    short: str
    full: str
    help: str


_RULES = {
    BACKDOOR_FOUND: _Rule(
        "BDS001",
        "BackdoorFound",
        "error",
        "9.0",
        "The model hides a backdoor",
        "One class is reached by an abnormally small trigger, which also works on images it was "
        "not made from.",
        "Do not deploy the model. Ask its vendor for another one or for an explanation, and look "
        "at the trigger in the report.",
    ),
    INCONCLUSIVE: _Rule(
        "BDS002",
        "Inconclusive",
        "warning",
        "5.0",
        "No verdict on the model",
        "The evidence for a backdoor is half there, or something forbids a verdict.",
        "The reasons say what is missing: more clean images, other preprocessing, or a second look "
        "by a person. This is no clean bill.",
    ),
    ERROR: _Rule(
        "BDS003",
        "NotScanned",
        "warning",
        "5.0",
        "The model could not be scanned",
        "The file could not be read, is not supported, or is no image classifier.",
        "Nothing is known about this model. The reason says what to change.",
    ),
}
_RULE_ORDER = tuple(_RULES)


@dataclass(frozen=True)
class Anchor:
    """A manifest that pins models, one on a line.

    Attributes:
        uri: where alerts point to.
        lines: its text by line, without line ends.
    """

    uri: str
    lines: tuple[str, ...]

    def find(self, model: Mapping[str, Any]) -> tuple[int, int, int] | None:
        """(line, first column, column after the last), from 1, of what pins a model; else None.

        The digest pins it best, then its path as given, then its file name; columns count UTF-16
        code units, as SARIF does where nothing else is said.
        """
        path = PurePath(model["path"])
        digest, names = model["sha256"], dict.fromkeys((str(path), path.as_posix(), path.name))
        patterns = [re.compile(re.escape(digest), re.IGNORECASE)] if digest else []
        # A name must stand alone: "net.onnx" does not pin "other-net.onnx" or "old/net.onnx".
        patterns += [
            re.compile(rf"(?<![\w./\\-]){re.escape(n)}(?![\w/\\-]|\.\w)") for n in names if n
        ]
        for pattern in patterns:
            for number, line in enumerate(self.lines, 1):
                found = pattern.search(line)
                if found:
                    before, through = line[: found.start()], line[: found.end()]
                    return number, 1 + _utf16_length(before), 1 + _utf16_length(through)
        return None


def read_anchor(path: Path) -> Anchor:
    """Read a manifest.

    Raises:
        OSError: it can't be read, or is too large to be one.
    """
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise OSError(0, f"larger than {MAX_MANIFEST_BYTES} bytes")
    text = path.read_bytes().decode("utf-8-sig", "replace")
    return Anchor(to_uri(str(path)), tuple(re.split(r"\r\n|\n|\r", text)))


def to_sarif(reports: Sequence[Mapping[str, Any]], anchor: Anchor | None = None) -> dict[str, Any]:
    """Reports (each a REPORT as in JSON) as one SARIF log.

    Every model is an artifact with its digest and verdict. An alert stands for each accused target
    class, for each inconclusive model and for each that could not be scanned; the latter are told
    as notifications too, and make the run unsuccessful, so that no alert is never mistaken for a
    clean bill.
    """
    artifacts = [_artifact(report) for report in reports]
    results = [
        result
        for index, report in enumerate(reports)
        for result in _results(report, index, artifacts[index]["location"], anchor)
    ]
    if not any(result["suppressions"] for result in results):
        for result in results:  # SARIF wants the property on every result, or on none
            del result["suppressions"]
    driver: dict[str, Any] = {
        "name": "bdscan",
        "rules": [_descriptor(rule) for rule in _RULES.values()],
    }
    versions = {report["tool"].get("version", "") for report in reports} - {""}
    if len(versions) == 1:
        driver["version"] = versions.pop()
    return {
        "$schema": SCHEMA_URI,
        "version": VERSION,
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "utf16CodeUnits",
                "invocations": [_invocation(reports)],
                "artifacts": artifacts,
                "results": results,
            }
        ],
    }


def to_uri(path: str) -> str:
    """A path as a URI reference: relative stays relative, absolute becomes file://."""
    pure = PurePath(path)
    try:
        quoted = quote_from_bytes(os.fsencode(pure.as_posix()))
    except UnicodeEncodeError:  # no file has such a name; a result may state it all the same
        quoted = quote_from_bytes(printable(pure.as_posix()).encode())
    if not pure.is_absolute():
        return quoted
    return f"file://{quoted}" if quoted.startswith("/") else f"file:///{quoted}"


def fingerprint(report: Mapping[str, Any], rule: str, target: int | None) -> str:
    """The same for the same file, rule and target class, whatever the path or the time."""
    model = report["model"]
    subject = model["sha256"] or model["path"]
    text = f"{subject}\n{rule}\n{target}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _artifact(report: Mapping[str, Any]) -> dict[str, Any]:
    model = report["model"]
    artifact: dict[str, Any] = {
        "location": {"uri": to_uri(model["path"])},
        "roles": ["analysisTarget"],
        "properties": {"verdict": report["verdict"], "targetClasses": report["target_classes"]},
    }
    if model["bytes"] is not None:
        artifact["length"] = model["bytes"]
    if model["sha256"]:
        artifact["hashes"] = {"sha-256": model["sha256"]}
    return artifact


def _results(
    report: Mapping[str, Any], index: int, location: Mapping[str, str], anchor: Anchor | None
) -> list[dict[str, Any]]:
    """A model's alerts: one for each accused class, else one for its verdict, else none."""
    rule = _RULES.get(report["verdict"])
    if rule is None:
        return []
    of_model = {"artifactLocation": {**location, "index": index}, "region": _region((1, 1, 1))}
    pinned = anchor.find(report["model"]) if anchor else None
    place = of_model
    if anchor and pinned:
        place = {"artifactLocation": {"uri": anchor.uri}, "region": _region(pinned)}
    return [
        {
            "ruleId": rule.id,
            "ruleIndex": _RULE_ORDER.index(report["verdict"]),
            "level": rule.level,
            "message": {"text": _message(report, target)},
            "locations": [{"physicalLocation": place}],
            **({"relatedLocations": [{"id": 1, "physicalLocation": of_model}]} if pinned else {}),
            "partialFingerprints": {
                "modelRuleTargetClass/v1": (digest := fingerprint(report, rule.id, target)),
                "primaryLocationLineHash": f"{digest[:16]}:1",  # the one that GitHub reads
            },
            "suppressions": _suppressions(report, target),
            "properties": {"verdict": report["verdict"], "targetClass": target},
        }
        for target in report["target_classes"] or [None]
    ]


def _suppressions(report: Mapping[str, Any], target: int | None) -> list[dict[str, Any]]:
    """The waivers in force for a verdict, or for one of the classes that it accuses."""
    return [
        {
            "kind": "external",
            "status": "accepted",
            "justification": _plain(waived["reason"]),
            "properties": {"expires": waived["expires"]},
        }
        for waived in report.get("waivers", ())
        if not waived["expired"]
        and (
            waived["verdict"] == report["verdict"]
            or (target is not None and waived["target_class"] == target)
        )
    ]


def _region(place: tuple[int, int, int]) -> dict[str, int]:
    line, start, end = place
    return {"startLine": line, "startColumn": start, "endLine": line, "endColumn": end}


def _message(report: Mapping[str, Any], target: int | None) -> str:
    to = "" if target is None else f", target class {target}"
    reasons = "; ".join(note["message"] for note in report["reasons"])
    line = f"{report['model']['path']}: {report['verdict']}{to}. {reasons}"
    return _plain(line)


def _plain(text: str) -> str:
    """Text that SARIF takes as it is: no placeholder, no link, no control character."""
    text = printable(text).replace("\\", "\\\\").replace("{", "{{").replace("}", "}}")
    return text.replace("[", "\\[").replace("]", "\\]")


def _descriptor(rule: _Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.short},
        "fullDescription": {"text": rule.full},
        "help": {"text": rule.help},
        "defaultConfiguration": {"level": rule.level},
        "properties": {
            "security-severity": rule.severity,
            "tags": ["security", "machine-learning", "backdoor"],
        },
    }


def _invocation(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    started = sorted(r["started"] for r in reports if r["started"])
    finished = sorted(r["finished"] for r in reports if r["finished"])
    failed = [r for r in reports if r["verdict"] in (ERROR, SKIPPED)]
    return {
        "executionSuccessful": not any(r["verdict"] == ERROR for r in reports),
        "toolExecutionNotifications": [
            {
                "level": "error" if r["verdict"] == ERROR else "note",
                "message": {"text": _message(r, None)},
                "locations": [
                    {"physicalLocation": {"artifactLocation": {"uri": to_uri(r["model"]["path"])}}}
                ],
            }
            for r in failed
        ],
        **({"startTimeUtc": started[0]} if started else {}),
        **({"endTimeUtc": finished[-1]} if finished else {}),
        "properties": {
            verdict: sum(r["verdict"] == verdict for r in reports)
            for verdict in (BACKDOOR_FOUND, INCONCLUSIVE, ERROR, SKIPPED, NO_BACKDOOR_FOUND)
        },
    }


def _utf16_length(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
