"""SARIF: valid under the schema, alerts for what needs one, and on the line that pins the model.

The schema beside this file is the official one, as published by SchemaStore
(sarif-2.1.0-rtm.5.json, Apache-2.0) and taken unchanged from Microsoft's jest-sarif 1.0.0-beta.0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import pytest

from scanner.reports.sarif import read_anchor, to_sarif, to_uri
from scanner.results import VERDICTS, ModelInfo, ModelReport, Note, to_json
from tests.scanner.reports.made import SHA, make_report

SCHEMA = json.loads(
    Path(__file__).with_name("sarif-2.1.0-rtm.5.schema.json").read_text(encoding="utf-8")
)


def report(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(to_json(make_report(**changes))))
    return content


def run(*reports: dict[str, Any], anchor: Path | None = None) -> dict[str, Any]:
    """The only run of a log, after its validation."""
    log = to_sarif(reports, read_anchor(anchor) if anchor else None)
    jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(log)
    [only] = log["runs"]
    assert isinstance(only, dict)
    return only


def test_the_schema_refuses_what_is_wrong() -> None:
    log = to_sarif([report()])
    log["runs"][0]["results"][0]["level"] = "terrible"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SCHEMA).validate(log)


@pytest.mark.parametrize(
    ("verdict", "rule", "level"),
    [
        ("backdoor_found", "BDS001", "error"),
        ("inconclusive", "BDS002", "warning"),
        ("error", "BDS003", "warning"),
    ],
)
def test_a_verdict_that_needs_attention_is_an_alert(verdict: str, rule: str, level: str) -> None:
    only = run(report(verdict=verdict, target_classes=()))
    [result] = only["results"]
    assert (result["ruleId"], result["level"]) == (rule, level)
    assert only["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == rule
    assert "the reason" in result["message"]["text"]


@pytest.mark.parametrize("verdict", ["no_backdoor_found", "skipped"])
def test_the_other_verdicts_are_none(verdict: str) -> None:
    only = run(report(verdict=verdict, target_classes=()))
    assert only["results"] == []
    assert only["artifacts"][0]["properties"]["verdict"] == verdict


def test_every_model_is_an_artifact_with_its_digest() -> None:
    artifacts = run(*(report(verdict=v) for v in VERDICTS))["artifacts"]
    assert [a["hashes"] for a in artifacts] == [{"sha-256": SHA}] * len(VERDICTS)


def test_no_model_at_all_is_a_valid_log() -> None:
    assert run()["results"] == []


def test_each_accused_class_is_an_alert_of_its_own() -> None:
    results = run(report(target_classes=(2, 4)))["results"]
    assert [r["properties"]["targetClass"] for r in results] == [2, 4]
    assert len({json.dumps(r["partialFingerprints"]) for r in results}) == 2


def test_what_was_not_scanned_makes_the_run_unsuccessful() -> None:
    [good] = run(report())["invocations"]
    assert good["executionSuccessful"] is True
    failed = run(report(), report(verdict="error"), report(verdict="skipped"))["invocations"][0]
    assert failed["executionSuccessful"] is False
    assert [n["level"] for n in failed["toolExecutionNotifications"]] == ["error", "note"]


def test_fingerprints_stay_when_only_path_and_time_change() -> None:
    elsewhere = ModelInfo("moved/net.onnx", SHA)
    first, moved, other = (
        run(report(**changes))["results"][0]["partialFingerprints"]
        for changes in (
            {},
            {"model": elsewhere, "finished": "2027-01-01T00:00:00Z"},
            {"model": ModelInfo("vendor/net.onnx", SHA[::-1])},
        )
    )
    assert first == moved
    assert not set(first.values()) & set(other.values())


def place(only: dict[str, Any]) -> tuple[str, int, int, int]:
    where = only["results"][0]["locations"][0]["physicalLocation"]
    region = where["region"]
    assert region["startLine"] == region["endLine"]
    uri = where["artifactLocation"]["uri"]
    return uri, region["startLine"], region["startColumn"], region["endColumn"]


def test_without_an_anchor_the_alert_stands_on_the_model() -> None:
    assert place(run(report())) == ("vendor/net.onnx", 1, 1, 1)


@pytest.mark.parametrize(
    ("manifest", "line", "start", "pinned"),
    [
        (f"# models\nvendor/net.onnx sha256:{SHA}\n", 2, 24, SHA),
        (f"a\r\nb\r\n{SHA.upper()}", 3, 1, SHA),
        (f"old/vendor/net.onnx\nother.onnx\npath: 'vendor/net.onnx', {SHA[:12]}", 3, 8, None),
        ("xnet.onnx\nnet.onnx.bak/x\n  - net.onnx\n", 3, 5, None),
        ("\U0001f600 net.onnx\n", 1, 4, None),  # an emoji is two UTF-16 code units
    ],
)
def test_the_anchor_is_the_line_that_pins_the_model(
    tmp_path: Path, manifest: str, line: int, start: int, pinned: str | None
) -> None:
    path = tmp_path / "models.lock"
    path.write_bytes(manifest.encode())
    uri, found, first, last = place(run(report(), anchor=path))
    assert (found, first) == (line, start)
    text = manifest.splitlines()[line - 1].encode("utf-16-le")[2 * (first - 1) : 2 * (last - 1)]
    expected = pinned or text.decode("utf-16-le")
    assert text.decode("utf-16-le").lower() == expected
    assert expected in (SHA, "vendor/net.onnx", "net.onnx")
    assert unquote(urlsplit(uri).path) == str(path)


def test_the_digest_pins_better_than_the_name(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    path.write_text(f"vendor/net.onnx\nrenamed.onnx {SHA}\n", encoding="utf-8")
    only = run(report(), anchor=path)
    assert place(only)[1] == 2
    related = only["results"][0]["relatedLocations"][0]["physicalLocation"]["artifactLocation"]
    assert related["uri"] == "vendor/net.onnx"


def test_a_model_that_no_line_pins_keeps_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "models.lock"
    path.write_text("something else\n", encoding="utf-8")
    assert place(run(report(), anchor=path))[0] == "vendor/net.onnx"


def test_hostile_text_is_neither_link_nor_placeholder() -> None:
    text = "[click](http://evil.example) {0} {{x}} \\ \x1b[31m\n\u202e"
    only = run(report(model=ModelInfo(text, SHA), reasons=(Note("c", text),)))
    message = only["results"][0]["message"]["text"]
    assert message.isprintable()
    undone = message.replace("\\[", "").replace("\\]", "").replace("{{", "").replace("}}", "")
    assert not set("[]{}") & set(undone)


@pytest.mark.parametrize(
    "path",
    [
        "a b/c#d?.onnx",
        "c:x.onnx",
        "../net.onnx",
        "/abs/ü.onnx",
        "\ud800.onnx",
        "a\udcffb.onnx",
        "%41",
    ],
)
def test_any_path_is_a_uri(path: str) -> None:
    uri = to_uri(path)
    assert uri.isascii()
    parts = urlsplit(uri)
    assert parts.scheme == ("file" if path.startswith("/") else "")
    assert not parts.query
    assert not parts.fragment
    if path.isprintable():
        assert unquote(parts.path) == path
    run(report(model=ModelInfo(path, SHA)))


def test_a_model_that_could_not_be_read_has_an_alert() -> None:
    content = to_json(ModelReport(ModelInfo("gone.onnx"), "error", reasons=(Note("c", "why"),)))
    [result] = run(json.loads(json.dumps(content)))["results"]
    assert result["message"]["text"] == "gone.onnx: error. why"
