"""`bdscan scan`: models in, reports out, exit code back."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from scanner import describe, output
from scanner.clean_set import CleanSetLoader, find_clean_images
from scanner.config import ScanConfig
from scanner.contained_scan import Assignment
from scanner.errors import UsageError
from scanner.exit_codes import ExitCode
from scanner.outputs import OutputWriter, open_anchor, parse_outputs
from scanner.progress import Watcher
from scanner.reports.console import ReportConsole, print_model, print_summary, summary_line
from scanner.results import (
    BACKDOOR_FOUND,
    ERROR,
    ModelInfo,
    ModelReport,
    Note,
    ScanReport,
    to_json,
)
from scanner.sandbox import limits_for
from scanner.scanning import check_config, scan_model
from scanner.settings import with_fields
from scanner.settings_table import FAILING
from scanner.store import prepare_folder, save
from scanner.targets import Target
from scanner.waivers import Waiver, all_digests, subject, waive
from scanner.workers import Workers, can_contain

DEFAULT_OUT_DIR = Path("bdscan-results")


@dataclass(frozen=True)
class Request:
    """What a call of `bdscan scan` asks for.

    Attributes:
        targets: what to scan.
        config: for every model that a list says nothing else about.
        origins: where each field of `config` comes from.
        clean_dir: for every model that names none.
        format: of standard output.
        out_dir: where result files go; None: the default folder if it can be written.
        outputs: texts of `--output`.
        sarif_anchor: a manifest.
        inputs: files, beside the models, that no output may take the place of.
        fail_on: verdicts that make the exit code 1 or 2.
        exit_zero: the verdicts do not matter.
        digests: the only sha256 that are scanned; None: all are.
        waivers: accepted verdicts.
        quiet: standard error gets errors only.
        jobs: how many models are scanned side by side, each in a process of its own.
        threads: of each; None: an equal share of the cores.
        max_memory: bytes for each; None: a share of the machine's.
    """

    targets: Sequence[Target]
    config: ScanConfig
    origins: Mapping[str, str] = field(default_factory=dict)
    clean_dir: Path | None = None
    format: str = "text"
    out_dir: Path | None = None
    outputs: Sequence[str] = ()
    sarif_anchor: Path | None = None
    inputs: Sequence[Path] = ()
    fail_on: Collection[str] = FAILING
    exit_zero: bool = False
    digests: frozenset[str] | None = None
    waivers: Sequence[Waiver] = ()
    quiet: bool = False
    jobs: int = 1
    threads: int | None = None
    max_memory: int | None = None


def run_scan(request: Request, watcher: Watcher) -> ExitCode:
    """Scan every model, print and store each report as it is done.

    Raises:
        UsageError: before anything is scanned.
    """
    check_config(request.config)
    targets = request.targets
    loaders = _Loaders(request.clean_dir)
    writer = _open_outputs(request)
    console = ReportConsole(highlight=False, soft_wrap=not sys.stdout.isatty())
    reports: list[ModelReport] = []
    unsaved, complete = False, False
    try:
        writer.open()
        for report in scan_targets(request, loaders, watcher):
            saved = _save(report, writer.folder)
            unsaved |= saved is None
            # The arrays are in the file, or nowhere: hundreds of models' would fill the memory.
            reports.append(replace(saved or report, arrays={}))
            writer.add(reports[-1])
            _print_one(reports[-1], request.format, console)
        complete = True
    finally:
        writer.close()
        if request.format == "json":  # an interrupt, too, leaves a document with what was done
            output.print_json(_document(reports, None if complete else len(targets)))
    whole = ScanReport(tuple(reports))
    code = exit_code(whole, request.fail_on, request.exit_zero)
    dirs = [t.clean_dir or request.clean_dir for t in targets]
    writer.finish(whole, code, [path for path in dirs if path is not None])
    lost = writer.failed or (unsaved and request.out_dir is not None)
    if lost and code is ExitCode.NO_BACKDOOR_FOUND:
        code = ExitCode.INCOMPLETE
    _print_end(whole, code, request, console)
    return code


def _open_outputs(request: Request) -> OutputWriter:
    """What `--output` asks for, proven to be writable, and the folder of result files."""
    inputs = [*request.inputs, *(target.path for target in request.targets)]
    outputs = parse_outputs(request.outputs, inputs)
    folder = _result_folder(request.out_dir)
    return OutputWriter(outputs, open_anchor(request.sarif_anchor, outputs), folder)


def _document(reports: Sequence[ModelReport], ended_early: int | None) -> dict[str, object]:
    """What `--format json` prints; after an interrupt with an `error` that says so."""
    document = to_json(ScanReport(tuple(reports)))
    if ended_early is not None:
        message = f"ended after {len(reports)} of {ended_early} models"
        document["error"] = {"code": "ended_early", "message": message}
    return document


class _Loaders:
    """The clean sets, each found once; only the last one's images are kept in memory."""

    def __init__(self, usual: Path | None) -> None:
        self.last: CleanSetLoader | None = None
        if usual is not None:
            self.of(usual)

    def of(self, folder: Path) -> CleanSetLoader:
        """The loader of a folder.

        Raises:
            UsageError: no such folder, or no image in it.
        """
        if self.last is None or self.last.folder.path != folder:
            self.last = CleanSetLoader(find_clean_images(folder))
        return self.last


@dataclass(frozen=True)
class Job:
    """A target that can be scanned: with which clean set and configuration."""

    target: Target
    loader: CleanSetLoader
    config: ScanConfig


def scan_targets(request: Request, loaders: _Loaders, watcher: Watcher) -> Iterator[ModelReport]:
    """One report for each target, whatever is wrong with it: in their order, or as they end."""
    targets = request.targets
    if not can_contain():
        for target in targets:
            yield finish(target, _scan_here(prepare(target, request, loaders), watcher), request)
        return

    def assignments() -> Iterator[Assignment | ModelReport]:
        for target in targets:
            job = prepare(target, request, loaders)
            if isinstance(job, Job):
                yield Assignment(target.path, job.loader, job.config, watcher)
            else:
                yield job

    limits = limits_for(request.max_memory, request.config.max_seconds, request.jobs)
    with Workers(request.jobs, limits, threads=request.threads) as workers:
        in_order = request.format != "jsonl"
        for number, report in workers.scan(assignments(), in_order=in_order):
            yield finish(targets[number], report, request)


def _scan_here(job: Job | ModelReport, watcher: Watcher) -> ModelReport:
    """A scan in this process, where the system has no processes to fork."""
    if isinstance(job, ModelReport):
        return job
    try:
        return scan_model(job.target.path, job.loader, job.config, watcher)
    finally:
        watcher.end()


def prepare(target: Target, request: Request, loaders: _Loaders) -> Job | ModelReport:
    """What is to be scanned for a target; the report, if no scan is begun."""
    config, _ = _of_target(target, request)
    folder = target.clean_dir or request.clean_dir
    if target.problem is not None or folder is None:
        problem = target.problem or Note("no_clean_set", "no clean set is named for it")
        return _not_scanned(target, config, problem, target.verdict)
    if request.digests is not None:
        known = describe.unreadable_model(target.path)
        if known.sha256 not in request.digests:
            return _not_scanned(target, config, _not_listed(known.sha256), model=known)
    try:
        if target.place:
            check_config(config)
        return Job(target, loaders.of(folder), config)
    except UsageError as error:
        return _not_scanned(target, config, Note("bad_row", f"{target.place}: {error}"))


def finish(target: Target, report: ModelReport, request: Request) -> ModelReport:
    """A report with what the scan itself does not know: pins, origins and waivers."""
    config, origins = _of_target(target, request)
    if request.digests is not None:
        # What was read counts: the file may have been changed since, and it may name other files.
        unlisted = sorted(all_digests(report.model) - request.digests)
        if unlisted:
            report = _not_scanned(target, config, _not_listed(unlisted[0]), model=report.model)
    told = {**describe.configuration(config, origins), "clean_dir": _clean_dir(target, request)}
    report = waive(replace(report, configuration=told), request.waivers)
    for waived in report.waivers:
        if waived.expired:
            end = f"expired on {waived.expires} and counts as none"
            output.complain(f"{target.path}: waiver of {subject(waived)} {end}")
    return report


def _clean_dir(target: Target, request: Request) -> dict[str, str | None]:
    """The clean set's folder as the report's configuration tells it."""
    if target.clean_dir is not None:
        return {"value": str(target.clean_dir), "origin": f"list {target.place}"}
    usual = None if request.clean_dir is None else str(request.clean_dir)
    return {"value": usual, "origin": request.origins.get("clean_dir", "given")}


def _of_target(target: Target, request: Request) -> tuple[ScanConfig, dict[str, str]]:
    """The configuration and its origins, with what a row of a list says."""
    stated = {"labels": target.labels, "preprocessing.file": target.preprocess}
    own = {name: str(path) for name, path in stated.items() if path is not None}
    origins = {**request.origins, **dict.fromkeys(own, f"list {target.place}")}
    return with_fields(request.config, own), origins


def _not_listed(digest: str | None) -> Note:
    what = "the file can't be read" if digest is None else f"sha256 {digest} is not listed"
    return Note("sha256_not_listed", f"{what}; --require-sha256 refuses it")


def _not_scanned(
    target: Target,
    config: ScanConfig,
    problem: Note,
    verdict: str = ERROR,
    model: ModelInfo | None = None,
) -> ModelReport:
    """The report of a target that no scan was begun for."""
    now = describe.utc(datetime.now(UTC))
    return ModelReport(
        model=model or ModelInfo(path=str(target.path)),
        verdict=verdict,
        reasons=(problem,),
        tool=describe.tool(),
        environment=describe.environment(),
        seed=config.seed,
        started=now,
        finished=now,
    )


def _save(report: ModelReport, folder: Path | None) -> ModelReport | None:
    """The report with its files written (or none wanted); None if they could not be written."""
    if folder is None:
        return report
    try:
        return save(report, folder)
    except (OSError, ValueError, RuntimeError) as error:  # h5py raises all of them
        output.complain(f"{report.model.path}: results could not be written to {folder}: {error}")
        return None


def exit_code(
    report: ScanReport, fail_on: Collection[str] = FAILING, exit_zero: bool = False
) -> ExitCode:
    """A finding beats everything; else anything but `no_backdoor_found` is incomplete.

    What waivers suppress and what is not in `fail_on` does not count; with `exit_zero` no verdict
    does. If an option fits none of the models, that is a usage error all the same.
    """
    codes = [{note.code for note in model.reasons} for model in report.models]
    if all(m.verdict == ERROR for m in report.models) and all(c == {"usage"} for c in codes):
        return ExitCode.USAGE
    counted = {m.verdict for m in report.models if not m.suppressed} & set(fail_on)
    if exit_zero or not counted:
        return ExitCode.NO_BACKDOOR_FOUND
    return ExitCode.BACKDOOR_FOUND if BACKDOOR_FOUND in counted else ExitCode.INCOMPLETE


def _print_one(report: ModelReport, format: str, console: ReportConsole) -> None:
    """A report on standard output; if that can't be written, the scan goes on without."""
    if report.verdict == "error" or report.verdict == "skipped":
        reasons = "; ".join(note.message for note in report.reasons)
        output.complain(f"{report.model.path}: {reasons}")
    if format == "text":
        try:
            print_model(console, report)
        except OSError:
            output.ignore_stdout()
    elif format == "jsonl":
        output.print_text(json.dumps(to_json(report), allow_nan=False))


def _print_end(whole: ScanReport, code: ExitCode, request: Request, console: ReportConsole) -> None:
    """The counts: on standard output where people read it, else on standard error."""
    if request.format == "text":
        try:
            print_summary(console, whole, code)
        except OSError:
            output.ignore_stdout()
    elif request.format == "jsonl" and len(whole.models) > 1 and not request.quiet:
        output.complain(summary_line(whole))


def _result_folder(out_dir: Path | None) -> Path | None:
    """The folder for result files; None if the default one can't be written."""
    if out_dir is not None:
        prepare_folder(out_dir)
        return out_dir
    try:
        prepare_folder(DEFAULT_OUT_DIR)
    except UsageError as error:
        output.complain(f"{error}; results are only printed")
        return None
    return DEFAULT_OUT_DIR
