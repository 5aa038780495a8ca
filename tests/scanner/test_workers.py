"""Scans in child processes: the same reports, and no child can harm or stop its parent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scanner import workers
from scanner.clean_set import CleanFolder, CleanSetLoader, find_clean_images
from scanner.config import ScanConfig
from scanner.progress import Silent
from scanner.results import ModelInfo, ModelReport, to_json
from scanner.sandbox import SandboxLimits
from scanner.scanning import scan_model
from scanner.schema import validate
from scanner.workers import Assignment, Workers, scan_contained
from tests.conftest import ROOT
from tests.converters.hostile import bombs, elsewhere, structure
from tests.converters.hostile.client import secrets
from tests.converters.hostile.kinds import KINDS
from tests.scanner.scans import environment

pytestmark = pytest.mark.skipif(not workers.can_contain(), reason="this system has no fork")

MODULES = (bombs, elsewhere, structure)  # importing them fills KINDS
ENTRIES = "tests.scanner.worker_entries"
MODEL = ROOT / "fixtures" / "models" / "mnist_lenet5_attacked.onnx"
CLEAN = ROOT / "fixtures" / "clean" / "mnist"
LIMITS = SandboxLimits(memory_bytes=10**9, seconds=60)
EMPTY = CleanSetLoader(CleanFolder(Path("."), (), (), ()))
QUICK = ScanConfig(detectors=("maximum_margin",), target_classes=(1, 8))


class Listener(Silent):
    """Remembers what it was told; `act` is called with each."""

    def __init__(self, act: Any = lambda name: None) -> None:
        self.told: list[tuple[str, tuple[Any, ...]]] = []
        self._act = act

    def _note(self, name: str, *arguments: Any) -> None:
        self.told.append((name, arguments))
        self._act(name)

    def preparing(self, step: str) -> None:
        self._note("preparing", step)

    def begin(self, report: ModelReport) -> None:
        self._note("begin", report)

    def planned(self, plan: Any) -> None:
        self._note("planned", plan)

    def searching(self, detector: str, done: int, whole: int, evaluations: int) -> None:
        self._note("searching", detector, done, whole, evaluations)

    def end(self) -> None:
        self._note("end")


def run(
    made: Workers, entry: str, limits: SandboxLimits | None = None
) -> tuple[ModelReport, Listener]:
    """What becomes of one model whose child runs a function of `worker_entries`."""
    listener, path = Listener(), Path(entry)
    ((number, report),) = made.scan([Assignment(path, EMPTY, ScanConfig(), listener, limits)])
    assert number == 0
    assert report.model.path == str(path)
    validate(to_json(report))
    return report, listener


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where temporary files of `hostile` lie."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def hostile(folder: Path) -> Iterator[Workers]:
    """A worker that does what the model is named after; its parent's environment has a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setattr("tempfile.tempdir", str(folder))
        made = Workers(1, LIMITS, f"{ENTRIES}:by_name")
    with made:
        yield made
    assert list(folder.iterdir()) == []


def code_of(report: ModelReport) -> str:
    assert report.verdict == "error"
    assert len(report.reasons) == 1
    return report.reasons[0].code


def comparable(report: ModelReport) -> dict[str, Any]:
    """A report without its times."""
    content = to_json(report)
    for name in ("started", "finished", "timings"):
        del content[name]
    for detector in content["detectors"]:
        del detector["seconds"]
    return content


def is_there(process: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def all_end(processes: list[int], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_there, processes)):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def loader() -> CleanSetLoader:
    return CleanSetLoader(find_clean_images(CLEAN))


@pytest.fixture(scope="module")
def in_process(loader: CleanSetLoader) -> ModelReport:
    return scan_model(MODEL, loader, QUICK, Silent())


@pytest.fixture(scope="module")
def honest() -> Iterator[Workers]:
    with Workers(1, LIMITS, threads=1) as made:
        yield made


def test_a_child_reports_what_this_process_does(
    in_process: ModelReport, loader: CleanSetLoader, honest: Workers
) -> None:
    listener = Listener()
    ((_, report),) = honest.scan([Assignment(MODEL, loader, QUICK, listener)])
    if Path("/proc/self/task").exists():  # to copy a process with threads is not safe
        threads = Path(f"/proc/{honest._workers[0]._process.pid}/task").iterdir()
        assert len(list(threads)) == 1
    assert comparable(report) == comparable(in_process)
    assert set(report.arrays) == set(in_process.arrays)
    for detector, targets in in_process.arrays.items():
        assert list(report.arrays[detector]) == list(targets)
        for target, arrays in targets.items():
            for field in dataclasses.fields(arrays):
                expected = getattr(arrays, field.name)
                found = getattr(report.arrays[detector][target], field.name)
                assert (found is None) == (expected is None)
                if expected is not None:
                    assert found.dtype == expected.dtype
                    np.testing.assert_array_equal(found, expected)
    names = [name for name, _ in listener.told]
    assert names[0] == "preparing"
    assert {"begin", "planned", "searching"} <= set(names)
    assert names[-1] == "end"
    (begun,) = next(values for name, values in listener.told if name == "begin")
    assert begun.clean_set == in_process.clean_set


def test_results_do_not_depend_on_the_number_of_children(
    in_process: ModelReport, loader: CleanSetLoader, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nonsense")
    targets = [Assignment(path, loader, QUICK, Silent()) for path in (MODEL, broken, MODEL)]
    with Workers(2, LIMITS, threads=1) as made:
        found = list(made.scan(targets))
    assert [number for number, _ in found] == [0, 1, 2]
    assert comparable(found[0][1]) == comparable(found[2][1]) == comparable(in_process)
    assert comparable(found[1][1]) == comparable(scan_model(broken, loader, QUICK, Silent()))


def test_reports_come_in_order_or_as_they_end() -> None:
    names = ["slow", "a", "b", "c"]
    unused: Any = None  # it would import the engines
    targets = [Assignment(Path(n), EMPTY, unused, Silent()) for n in names]
    with Workers(2, LIMITS, f"{ENTRIES}:slow_where_named_so") as made:
        in_order = [(n, r.model.path) for n, r in made.scan(targets)]
        as_they_end = [(n, r.model.path) for n, r in made.scan(targets, in_order=False)]
        known = [targets[0], ModelReport(model=ModelInfo(path="a"), verdict="skipped"), targets[2]]
        with_known = [(n, r.model.path) for n, r in made.scan(known)]
    assert in_order == list(enumerate(names))
    assert with_known == in_order[:3]
    assert sorted(as_they_end) == in_order
    assert as_they_end[0] != (0, "slow")


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("segfaults", "child_died", "SIGSEGV"),
        ("aborts", "child_died", "SIGABRT"),
        ("kills_itself", "child_died", "killed"),
        ("raises", "child_died", "without a report"),
        ("ends_without_a_word", "child_died", "without a report"),
        ("allocates_at_once", "child_out_of_memory", "1 GB"),
        ("sends_noise", "child_answer", "no ASCII"),
        ("sends_a_pickle", "child_answer", "no JSON"),
        ("announces_gigabytes", "child_answer", "a message of"),
        ("sends_without_end", "child_answer", "too many messages"),
        ("sends_deep_json", "child_answer", "no JSON"),
        ("reports_another_model", "child_answer", "another model"),
        ("reports_an_unknown_verdict", "child_answer", "no valid report"),
        ("calls_what_no_watcher_has", "child_answer", "unknown kind"),
        ("tells_progress_that_cannot_be_shown", "child_answer", "can't be read"),
    ],
)
def test_what_a_child_may_do_is_one_error(
    entry: str, code: str, message: str, hostile: Workers
) -> None:
    report, _ = run(hostile, entry)
    assert code_of(report) == code, report.reasons
    assert message in report.reasons[0].message


def test_a_child_that_loops_is_stopped_by_the_clock(hostile: Workers) -> None:
    begun = time.monotonic()
    report, listener = run(hostile, "loops", SandboxLimits(10**9, seconds=1))
    assert code_of(report) == "child_timeout"
    assert time.monotonic() - begun < 30
    assert [name for name, _ in listener.told] == ["preparing", "end"]


@pytest.mark.parametrize("entry", ["allocates", "allocates_in_a_process_of_its_own"])
def test_a_child_that_allocates_is_stopped(entry: str, hostile: Workers) -> None:
    report, _ = run(hostile, entry, SandboxLimits(7 * 10**8, seconds=60))
    assert code_of(report) == "child_out_of_memory"
    assert "0.7 GB" in report.reasons[0].message


def test_a_child_that_fills_the_disk_is_stopped(hostile: Workers, folder: Path) -> None:
    report, _ = run(hostile, "fills_the_disk", SandboxLimits(10**9, 60, file_bytes=10**7))
    assert code_of(report) == "child_disk_full"
    assert [p for p in folder.rglob("*") if p.is_file()] == []


def test_a_child_can_only_answer(hostile: Workers, tmp_path: Path) -> None:
    outside = tmp_path / "tries_to_get_out"
    outside.write_text("model")
    ((_, report),) = hostile.scan([Assignment(outside, EMPTY, ScanConfig(), Silent())])
    found = json.loads(report.reasons[0].message)
    variables, handles = found.pop("environment"), found.pop("handles")
    assert "AWS_SECRET_ACCESS_KEY" not in variables
    assert sum(name.startswith("pipe:") for name in handles) == 1
    assert not [name for name in handles if name.startswith("socket:")]
    allowed = {"own folder", "a program", "read the model"}
    assert {name for name, outcome in found.items() if outcome == "ok"} == allowed, found
    assert outside.read_text() == "model"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tries_to_get_out"]


def test_what_a_child_has_started_ends_with_it(hostile: Workers) -> None:
    report, _ = run(hostile, "leaves_a_process")
    assert all_end([int(report.reasons[0].message)])


@pytest.mark.parametrize(
    ("victim", "seed"), [*(("child", seed) for seed in range(4)), ("server", 0)]
)
def test_a_child_killed_at_a_random_moment(
    victim: str,
    seed: int,
    in_process: ModelReport,
    loader: CleanSetLoader,
    honest: Workers,
) -> None:
    moment = random.Random(f"{victim}{seed}").uniform(0, 0.6)
    worker = honest._workers[0]
    begun = time.monotonic()

    def kill(name: str) -> None:
        scan = worker._scan
        if name != "end" and scan is not None and scan.pid is not None:
            time.sleep(max(0, begun + moment - time.monotonic()))
            process = scan.pid if victim == "child" else worker._process.pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    targets = [
        Assignment(MODEL, loader, QUICK, Listener(kill)),
        Assignment(MODEL, loader, QUICK, Silent()),
    ]
    found = [report for _, report in honest.scan(targets)]
    if found[0].verdict == "error":
        assert code_of(found[0]) == "child_died"
        assert found[0].model.sha256 == in_process.model.sha256
    else:
        assert comparable(found[0]) == comparable(in_process)
    assert comparable(found[1]) == comparable(in_process)


DRIVER = """
import os, signal, sys
from pathlib import Path
from scanner.clean_set import CleanFolder, CleanSetLoader
from scanner.config import ScanConfig
from scanner.progress import Silent
from scanner.sandbox import SandboxLimits
from scanner.workers import Assignment, Workers

class Told(Silent):
    def preparing(self, step):
        print(step, flush=True)

class Terminated(BaseException):
    pass

def terminate(number, frame):
    raise Terminated

signal.signal(signal.SIGTERM, terminate)
loader = CleanSetLoader(CleanFolder(Path("."), (), (), ()))
with Workers(1, SandboxLimits(10**9, 60), "tests.scanner.worker_entries:" + sys.argv[1]) as made:
    config = ScanConfig() if sys.argv[1] == "by_name" else None  # it imports the engines
    targets = [Assignment(Path(name), loader, config, Told()) for name in sys.argv[2:]]
    for _, report in made.scan(targets):
        print(report.reasons[0].code, report.reasons[0].message)
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def start_driver(entry: str, folder: Path, *names: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, entry, *(names or ["m"])],
        env={**environment(), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_parent(number: signal.Signals, tmp_path: Path) -> None:
    with start_driver("leaves_a_process_and_hangs", tmp_path) as driver:
        assert driver.stdout is not None
        processes = [int(text) for text in driver.stdout.readline().split()]
        assert len(processes) == 3
        assert all(map(is_there, processes))
        driver.send_signal(number)
        driver.wait(20)
        assert all_end(processes)
    until = time.monotonic() + 5
    while list(tmp_path.glob("bdscan-*")) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(tmp_path.glob("bdscan-*")) == []


def test_what_a_child_sends_takes_little_memory(tmp_path: Path) -> None:
    names = ("sends_ten_million_lists", "sends_as_many_numbers_as_it_may")
    with start_driver("by_name", tmp_path, *names) as driver:
        out, _ = driver.communicate(timeout=60)
    first, second, memory = out.splitlines()
    assert first.startswith("child_answer")
    assert "values" in first
    assert second.startswith("child_answer")
    assert "no report" in second
    assert int(memory) < 10**6  # of 1024 bytes


HOSTILE = (
    "empty_file",
    "cycle",
    "terabytes_declared",
    "loop_without_end",
    "hard_link",
    "named_pipe",
    "loop_that_doubles",
    "random_numbers",
    "conv_pads",
    "concat_doubles",
)


def test_hostile_files_have_the_same_reasons_in_a_child(
    tmp_path: Path, loader: CleanSetLoader, honest: Workers
) -> None:
    targets = []
    for name in HOSTILE:
        folder = tmp_path / name
        folder.mkdir()
        secrets(tmp_path / "secret")
        targets.append(Assignment(KINDS[name].make(folder), loader, QUICK, Silent()))
    for number, report in honest.scan(targets):
        assert code_of(report) in KINDS[HOSTILE[number]].reasons, HOSTILE[number]


def test_one_model_in_a_child_by_a_plain_call(loader: CleanSetLoader, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nonsense")
    report = scan_contained(broken, loader, QUICK, Silent())
    assert comparable(report) == comparable(scan_model(broken, loader, QUICK, Silent()))


def test_importing_it_does_not_import_the_engines() -> None:
    program = (
        "import sys, scanner.workers; print({'torch', 'onnxruntime', 'onnx'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "set()"
