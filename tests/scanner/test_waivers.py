"""Waivers: what they cover, when they end, and that they are shown everywhere and hide nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from scanner.errors import UsageError
from scanner.reports.cyclonedx import to_cyclonedx
from scanner.reports.html.page import render_html
from scanner.reports.sarif import to_sarif
from scanner.results import ModelReport, Waived, to_json
from scanner.schema import validate
from scanner.waivers import read_waivers, subject, waive
from tests.scanner.reports.made import SHA, in_memory, make_report
from tests.scanner.scans import bdscan, here
from tests.scanner.vendors import digest, save_vendor

TODAY = date(2027, 1, 31)
OTHER = "f" * 64
SARIF_SCHEMA = Path(__file__).parent / "reports" / "sarif-2.1.0-rtm.5.schema.json"


def table(**changes: Any) -> dict[str, Any]:
    values = {"sha256": SHA, "target_class": 2, "reason": "ours", "expires": "2027-01-31"}
    values.update(changes)
    return {key: value for key, value in values.items() if value is not None}


def waived(report: ModelReport, *tables: dict[str, Any]) -> ModelReport:
    return waive(report, read_waivers(list(tables), "bdscan.toml", TODAY))


def finding(*targets: int) -> ModelReport:
    return make_report(target_classes=targets or (2,))


# --- reading ----------------------------------------------------------------------------------


def test_a_waiver_says_what_why_and_how_long() -> None:
    (waiver,) = read_waivers([table(sha256=SHA.upper())], "bdscan.toml", TODAY)
    assert waiver.sha256 == {SHA}
    assert waiver.waived == Waived(None, 2, "ours", "2027-01-31", False)
    assert subject(waiver.waived) == "target class 2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": None}, "64 hexadecimal"),
        ({"sha256": "abc"}, "64 hexadecimal"),
        ({"sha256": []}, "64 hexadecimal"),
        ({"reason": None}, "reason"),
        ({"reason": " "}, "reason"),
        ({"expires": None}, "2027-01-31"),
        ({"expires": "soon"}, "2027-01-31"),
        ({"expires": 2027}, "2027-01-31"),
        ({"target_class": None}, "either verdict or target_class"),
        ({"verdict": "error"}, "either verdict or target_class"),
        ({"target_class": -1}, "class number"),
        ({"target_class": True}, "class number"),
        ({"target_class": None, "verdict": "no_backdoor_found"}, "expected backdoor_found"),
        ({"expire": "2027-01-31"}, "did you mean 'expires'"),
    ],
)
def test_anything_else_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=r"bdscan\.toml: waiver 1") as caught:
        read_waivers([table(**changes)], "bdscan.toml", TODAY)
    assert words in str(caught.value)


def test_a_waiver_holds_through_its_last_day() -> None:
    days = {"2027-01-30": True, "2027-01-31": False, "2027-02-01": False}
    for expires, expired in days.items():
        for value in (expires, date.fromisoformat(expires)):
            (waiver,) = read_waivers([table(expires=value)], "f", TODAY)
            assert waiver.waived.expired is expired


# --- what is covered --------------------------------------------------------------------------


def test_a_waived_class_suppresses_and_leaves_the_verdict() -> None:
    report = waived(finding(), table())
    assert report.suppressed
    assert (report.verdict, report.target_classes) == ("backdoor_found", (2,))
    assert report.waivers == (Waived(None, 2, "ours", "2027-01-31", False),)
    validate(to_json(report))


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({"target_class": 3}, 0),
        ({"sha256": OTHER}, 0),
        ({"expires": "2027-01-30"}, 1),
        ({"target_class": None, "verdict": "inconclusive"}, 0),
    ],
)
def test_another_class_file_day_or_verdict_suppresses_nothing(
    changes: dict[str, Any], meant: int
) -> None:
    report = waived(finding(), table(**changes))
    assert not report.suppressed
    assert len(report.waivers) == meant


def test_every_accused_class_must_be_waived() -> None:
    assert not waived(finding(2, 4), table()).suppressed
    assert waived(finding(2, 4), table(), table(target_class=4)).suppressed
    whole = table(target_class=None, verdict="backdoor_found")
    assert waived(finding(2, 4), whole).suppressed


@pytest.mark.parametrize("verdict", ["inconclusive", "error"])
def test_other_verdicts_can_be_waived_by_name(verdict: str) -> None:
    report = make_report(verdict=verdict, target_classes=())
    assert waived(report, table(target_class=None, verdict=verdict)).suppressed
    assert not waived(report, table()).suppressed


def test_external_data_must_be_waived_too() -> None:
    model = replace(finding().model, external_data={"weights.bin": OTHER})
    report = replace(finding(), model=model)
    assert waived(report, table()).waivers == ()
    assert waived(report, table(sha256=[SHA, OTHER])).suppressed


def test_a_file_that_could_not_be_read_can_not_be_waived() -> None:
    model = replace(finding().model, sha256=None)
    assert waived(replace(finding(), model=model), table()).waivers == ()


# --- shown in every format --------------------------------------------------------------------

CLEAN = make_report(verdict="no_backdoor_found", target_classes=())
UNSURE = make_report(verdict="inconclusive", target_classes=())


def sarif(*reports: ModelReport) -> list[dict[str, Any]]:
    log = to_sarif([to_json(report) for report in reports])
    schema = json.loads(SARIF_SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft4Validator(schema).validate(log)
    results: list[dict[str, Any]] = log["runs"][0]["results"]
    return results


def test_sarif_suppresses_the_waived_class_alone() -> None:
    waived_one, other = sarif(waived(finding(2, 4), table(reason="see {ticket}")))
    (suppression,) = waived_one["suppressions"]
    assert suppression["kind"] == "external"
    assert suppression["status"] == "accepted"
    assert suppression["justification"] == "see {{ticket}}"
    assert suppression["properties"] == {"expires": "2027-01-31"}
    assert other["suppressions"] == []


def test_sarif_without_a_waiver_in_force_does_not_speak_of_suppressions() -> None:
    expired = waived(finding(), table(expires="2027-01-30"))
    assert ["suppressions" in result for result in sarif(expired, UNSURE)] == [False, False]


def test_html_shows_a_waiver_its_reason_and_its_end() -> None:
    page = render_html(
        [in_memory(waived(finding(), table(reason="<b>ours</b>"))), in_memory(CLEAN)]
    )
    assert "Backdoor found" in page
    assert "(suppressed)" in page
    assert "&lt;b&gt;ours&lt;/b&gt;" in page
    assert "Waived until 2027-01-31" in page
    old = render_html([in_memory(waived(finding(), table(expires="2027-01-30")))])
    assert "expired on 2027-01-30" in old
    assert "Suppressed" not in old


def test_cyclonedx_keeps_the_finding_and_tells_the_waiver() -> None:
    document = to_cyclonedx([in_memory(waived(finding(), table()))])
    assert len(document["vulnerabilities"]) == 1
    told = {p["name"]: p["value"] for p in document["components"][0]["properties"]}
    assert told["bdscan:waivers"] == "target class 2 waived until 2027-01-31: ours"
    assert told["bdscan:verdict"] == "backdoor_found"


# --- through the command ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vendor(tmp_path_factory.mktemp("waivers"))


OPTIONS = ("--clean-dir", "clean", "--detectors", "mask_pattern")


def waiver_file(folder: Path, expires: str) -> Path:
    path = folder / f"waivers-{expires}.toml"
    lines = [
        "[[waivers]]",
        f'sha256 = "{digest(folder / "bad.onnx")}"',
        "target_class = 3",
        'reason = "our own watermark"',
        f"expires = {expires}",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_waived_finding_is_shown_and_exits_with_0(folder: Path) -> None:
    own = waiver_file(folder, "2999-12-31")
    run = bdscan("bad.onnx", "good.onnx", *OPTIONS, "-q", "--config", own.name, cwd=folder)
    assert run.code == 0, run.err
    assert "verdict: backdoor_found (target class 3)" in run.out
    assert "waived until 2999-12-31: target class 3: our own watermark" in run.out
    assert "suppressed: the exit code passes over this verdict" in run.out
    assert "1 of them suppressed by waivers" in run.out
    assert "no clean bill" in run.out


def test_an_expired_waiver_counts_as_none_and_is_said(folder: Path) -> None:
    own = waiver_file(folder, "2020-01-01")
    run = here("bad.onnx", *OPTIONS, "-q", "--config", own.name, "--format=json", cwd=folder)
    assert run.code == 1
    assert "waiver of target class 3 expired on 2020-01-01" in run.err
    (report,) = run.reports()
    assert not report["suppressed"]
    assert report["waivers"][0]["expired"]


def test_a_file_that_is_found_tells_its_waivers_even_when_quiet(folder: Path) -> None:
    own = waiver_file(folder, "2999-12-31")
    found = own.rename(folder / "bdscan.toml")
    try:
        run = here("text.onnx", *OPTIONS, "-q", cwd=folder)
    finally:
        found.unlink()
    assert "bdscan.toml states waivers (1)" in run.err
