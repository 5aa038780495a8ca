"""The report of `bdscan samples` as people read it."""

from __future__ import annotations

from scanner.exit_codes import ExitCode
from scanner.reports.console import ReportConsole, describe_preprocessing
from scanner.samples.results import FOUND, NOT_FOUND, Sample, SamplesReport

SHOWN_IMAGES = 20
SHOWN_CLASSES = 5
_STYLES = {FOUND: "bold red", NOT_FOUND: "bold green"}


def print_report(console: ReportConsole, report: SamplesReport, code: ExitCode) -> None:
    """What was fed to the model, the thresholds, the flagged images and the answer."""
    console.tell(report.model.path, "bold")
    _print_inputs(console, report)
    for name, threshold in report.thresholds.items():
        side = "at most" if threshold.suspicious == "low" else "at least"
        paper = "-" if threshold.by_gamma is None else f"{threshold.by_gamma:.4g}"
        console.tell(
            f"  {name:<14} clean mean {threshold.mean:.4g}; p <= {report.finding.level:g} beyond "
            f"{threshold.by_level:.4g}; the paper's threshold {side} {paper}; "
            f"{threshold.clean_images} clean images, {threshold.seconds:.1f} s"
        )
    _print_flagged(console, report)
    for note in report.flags:
        console.tell(f"  flag           {note.code}: {note.message}")
    for one in report.not_run:
        console.tell(f"  not run        {one.name}: {one.message}")
    if "h5" in report.files:
        console.tell(f"  files          {report.files['json']['name']}, .h5")
    finding = report.finding
    console.tell(f"  verdict        {finding.verdict}", _STYLES.get(finding.verdict, "bold yellow"))
    for reason in finding.reasons:
        console.tell(f"                 {reason.message}")
    console.tell(f"exit code {int(code)}")


def _print_inputs(console: ReportConsole, report: SamplesReport) -> None:
    clean, used = report.clean_set, report.preprocessing
    if clean is not None:
        accuracy = "no labels" if clean.accuracy is None else f"accuracy {clean.accuracy:.1%}"
        console.tell(f"  clean set      {clean.path}: {clean.images} images, {accuracy}")
    if used is not None:
        console.tell(f"  preprocessing  {describe_preprocessing(used)}")
    done = report.summary
    lost = f", {len(done.unreadable)} not readable" if done.unreadable else ""
    console.tell(f"  suspects       {report.suspect_dir}: {done.images} images{lost}")


def _print_flagged(console: ReportConsole, report: SamplesReport) -> None:
    detector = report.finding.detector
    flagged = [one for one in report.samples if one.flagged]
    if detector is None or not flagged:
        return
    classes = ", ".join(
        f"{one.flagged} of {one.images} in class {one.class_index}"
        for one in report.summary.classes[:SHOWN_CLASSES]
    )
    console.tell(f"  flagged        {len(flagged)} of {report.summary.scored}: {classes}")
    ordered = sorted(flagged, key=lambda one: one.p_values[detector] or 0)
    for one in ordered[:SHOWN_IMAGES]:
        console.tell(f"    {one.file}  {_facts(one, detector)}")
    if len(ordered) > SHOWN_IMAGES:
        console.tell(f"    ... and {len(ordered) - SHOWN_IMAGES} more, see the JSON report")


def _facts(one: Sample, detector: str) -> str:
    p, rate = one.p_values[detector], one.simplified_trigger_rate
    carried = "" if rate is None else f", its pixels carry {rate:.0%} of clean images there"
    return f"class {one.predicted}, {detector} {one.scores[detector]:.4g}, p {p:.3g}{carried}"
