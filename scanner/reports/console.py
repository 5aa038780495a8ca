"""The report as people read it, on standard output."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scanner.exit_codes import ExitCode
from scanner.output import ignore_stdout, printable
from scanner.results import (
    BACKDOOR_FOUND,
    NO_BACKDOOR_FOUND,
    ClassResult,
    DetectorResult,
    ModelReport,
    PreprocessingInfo,
    ScanReport,
)
from scanner.waivers import subject

SHOWN_CLASSES = 20  # with more target classes, only those of smallest norm are listed
SHOWN_SOURCES = 5
_UNITS = {
    "mask_pattern": "mask pixels",
    "neural_cleanse": "mask pixels",
    "class_pairs": "times smaller",
    "red_p": "times smaller",
    "maximum_margin": "margin",
    "expected_transferability": "transferability",
}
_STYLES = {BACKDOOR_FOUND: "bold red", NO_BACKDOOR_FOUND: "bold green"}


class ReportConsole(Console):
    """A rich console on standard output that survives its reader.

    Rich itself would exit with 1 when the reader goes, and 1 means "backdoor found".
    """

    def on_broken_pipe(self) -> None:
        """Drop the rest of the output and go on."""
        ignore_stdout()

    def tell(self, text: str = "", style: str = "") -> None:
        """One line; what a vendor's file put into it can't start another or steer the terminal."""
        self.print(Text(printable(text), style=style))


def print_model(console: ReportConsole, report: ModelReport) -> None:
    """One model: what was fed to it, its target classes, the verdict and why."""
    model = report.model
    console.tell(model.path, "bold")
    if model.opset is not None:
        console.tell(
            f"  model          opset {model.opset}, {model.producer or 'no producer'}, "
            f"sha256 {(model.sha256 or '')[:12]}"
        )
    for rewrite in model.rewrites:
        console.tell(f"                 {rewrite}")
    _print_inputs(console, report)
    for detector in report.detectors:
        _print_classes(console, detector)
    _print_verdict(console, report)


def _print_inputs(console: ReportConsole, report: ModelReport) -> None:
    used, clean = report.preprocessing, report.clean_set
    if used is None or clean is None:
        return
    console.tell(f"  preprocessing  {describe_preprocessing(used)}")
    console.tell(f"  labels         {clean.label_rule}")
    accuracy = "unknown" if clean.accuracy is None else f"{clean.accuracy:.1%}"
    used_images = sum(c.used for c in clean.classes)
    where = report.device
    console.tell(f"  device         {where.get('torch', '?')} ({where.get('why', '?')})")
    console.tell(
        f"  clean set      {clean.images} images, {used_images} used, {len(clean.corrupt)} not "
        f"readable; accuracy {accuracy}"
    )


def describe_preprocessing(used: PreprocessingInfo) -> str:
    """What is fed to the model, and by which rule, on one line."""
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (used.mean, used.std))
    height, width = used.image_size
    origin = "; ".join(dict.fromkeys(v for v in used.origins.values() if v != "graph")) or "graph"
    return (
        f"pixels 0..{used.pixel_range:g} {used.channel_order} {used.layout} {height}x{width}, "
        f"mean {mean}, std {std} ({origin})"
    )


def _print_classes(console: ReportConsole, detector: DetectorResult) -> None:
    ranked = sorted(detector.classes, key=_most_suspicious_first)
    unit = _UNITS.get(detector.name, "norm")
    table = Table(
        title=" ".join([detector.name, *_schedule(detector)]),
        title_justify="left",
        show_edge=False,
        pad_edge=False,
        box=None,
    )
    with_triggers = any(c.source_weights for c in ranked)
    headings = ("target class", unit, *(("Q", "images") if with_triggers else ()))
    for heading in headings:  # evidence is never cut
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    weighted = any(_sources(c) for c in ranked)
    table.add_column("source classes by weight" if weighted else "")
    for result in ranked[:SHOWN_CLASSES]:
        why = "" if result.status == "found" else f"  [{result.stop_reason}]"
        q = f"{result.misclassification:.2f}" if result.misclassification is not None else ""
        details = (q, str(result.images)) if with_triggers else ()
        table.add_row(
            str(result.target_class), _size(result), *details, Text(_sources(result) + why)
        )
    console.print()
    console.print(table)
    if len(ranked) > SHOWN_CLASSES:
        console.tell(f"... and {len(ranked) - SHOWN_CLASSES} less suspicious target classes")
    _print_statistics(console, detector)


def _most_suspicious_first(result: ClassResult) -> tuple[float, float]:
    """Smallest norm, or largest statistic, first; those of which nothing is known last."""
    if result.norm is not None:
        return (0, result.norm)
    return (1, 0) if result.statistic is None else (0, -result.statistic)


def _schedule(detector: DetectorResult) -> list[str]:
    schedule = detector.settings.get("schedule")
    return [f"({schedule})"] if schedule else []


def _size(result: ClassResult) -> str:
    if result.norm is not None:
        return f"{'' if result.status == 'found' else '>'}{result.norm:.4g}"
    return "none" if result.statistic is None else f"{result.statistic:.4g}"


def _print_statistics(console: ReportConsole, detector: DetectorResult) -> None:
    _print_other_tests(console, detector)
    s = detector.statistics
    if s is None:
        return
    paper = f"{s.paper_p:.3g}" if s.log10_paper_p >= -300 else "<1e-300"
    console.tell(
        f"class {s.suspect}: calibrated p {s.calibrated_p:.3g} (needs < {s.significance:.2g}; "
        f"paper's p {paper}), r_max/median {s.ratio_to_median:.2f} (needs "
        f"{s.required_ratio_to_median:g}), r_max/r_2 {s.ratio_to_second:.2f} (needs "
        f"{s.required_ratio_to_second:g}); {detector.image_gradients:,} image gradients, "
        f"{detector.seconds:.1f} s"
    )


def _print_other_tests(console: ReportConsole, detector: DetectorResult) -> None:
    """Tests that stand beside that of the largest statistic."""
    if (t := detector.threshold) is not None:
        console.tell(
            f"class {t.suspect}: {t.value:.2f} (needs {t.threshold:g} and three times the median, "
            f"{t.median:.2f}); {detector.image_gradients:,} image gradients, "
            f"{detector.seconds:.1f} s"
        )
    if (m := detector.mapping) is not None:
        console.tell(
            f"under the trigger from class {m.source_class} to class {m.target_class} {m.rate:.0%} "
            f"of the images follow a one-to-one mapping of the classes"
        )
    if (p := detector.published) is not None and p.detected:
        console.tell(f"the paper's rule would accuse class {p.suspect}: {p.rule} {p.value:.3g}")


def _sources(result: ClassResult) -> str:
    """The source classes that count most; nothing where all count the same."""
    if len({w for w in result.source_weights if w > 0}) < 2:
        return ""
    weights = sorted(enumerate(result.source_weights), key=lambda pair: -pair[1])
    return ", ".join(f"{k}: {w:.2f}" for k, w in weights[:SHOWN_SOURCES] if w >= 0.005)


def _print_verdict(console: ReportConsole, report: ModelReport) -> None:
    console.print()
    line = Text("verdict: ")
    line.append(report.verdict, style=_STYLES.get(report.verdict, "bold yellow"))
    if report.target_classes:
        line.append(f" (target class {', '.join(map(str, report.target_classes))})")
    console.print(line)
    for reason in report.reasons:
        console.tell(f"  {reason.message}")
    for waived in report.waivers:
        state = "waiver, counts as none, expired on" if waived.expired else "waived until"
        console.tell(f"  {state} {waived.expires}: {subject(waived)}: {waived.reason}")
    if report.suppressed:
        console.tell("  suppressed: the exit code passes over this verdict")
    for detector in report.not_run:
        if detector.message not in {reason.message for reason in report.reasons}:
            console.tell(f"  {detector.name} was not run: {detector.message}")
        else:
            console.tell(f"  {detector.name} was not run: {detector.code}")
    for flag in report.flags:
        if flag not in report.reasons:
            console.tell(f"  note: {flag.message}")
    for kind, file in report.files.items():
        console.tell(f"  {kind}: {file['name']}")
    console.print()


def print_summary(console: ReportConsole, report: ScanReport, code: ExitCode) -> None:
    """The counts over several models, and what exit code 2 means where it is the answer."""
    if len(report.models) > 1:
        console.tell(summary_line(report))
    passed = {model.verdict for model in report.models} - {NO_BACKDOOR_FOUND}
    if code is ExitCode.INCOMPLETE:
        found = "no backdoor was found"
        if BACKDOOR_FOUND in passed:
            found = "waivers or --fail-on pass over every backdoor that was found"
        console.tell(
            f"exit code 2: {found}, but not every model could be judged; this is no clean bill"
        )
    if code is ExitCode.NO_BACKDOOR_FOUND and passed:
        verdicts = ", ".join(sorted(passed))
        console.tell(
            f"exit code 0: waivers, --fail-on or --exit-zero pass over {verdicts}; this is no "
            "clean bill"
        )


def summary_line(report: ScanReport) -> str:
    """The counts of the five verdicts, which add up to the number of models."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in report.summary.items())
    suppressed = sum(model.suppressed for model in report.models)
    waived = f"; {suppressed} of them suppressed by waivers" if suppressed else ""
    return f"{len(report.models)} models: {counts}{waived}"
