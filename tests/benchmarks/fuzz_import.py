"""Mutation fuzzer of the import: every mutant is refused with a reason, or both engines agree.

Small models are made at run time and changed by bytes (`mutations.mutate_bytes`) and by structure
(`mutations.mutate_structure`). A worker process loads each mutant; it is started anew where it
dies or hangs. Deaths inside of ONNX Runtime are counted apart; any other death, a hang, an
exception that is no refusal, or memory above the bound is a finding and is kept.

    python -m tests.benchmarks.fuzz_import --mutants 100000 --commands 1000 --out FILE.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.record import write
from tests.converters.hostile.client import Worker
from tests.converters.hostile.mutations import mutate
from tests.converters.hostile.seeds import Seed, seeds

SECONDS, BYTES = 10.0, 10**9
_WRITE_EVERY = 500
_OUTCOMES = ("refused", "loaded", "onnxruntime_crash")


@dataclass
class Tally:
    """What became of the mutants so far."""

    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    crashed_operators: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    most_seconds: float = 0.0
    most_bytes: int = 0

    def add(self, index: int, seed: Seed, answer: dict[str, Any]) -> bool:
        """Count an answer; return whether it is a finding."""
        outcome = answer["outcome"]
        self.outcomes[outcome] += 1
        seconds, memory = answer.get("seconds", 0.0), answer.get("memory", 0)
        self.most_seconds = max(self.most_seconds, seconds)
        self.most_bytes = max(self.most_bytes, memory)
        if outcome == "refused":
            self.reasons[answer["reason"]] += 1
        if outcome == "onnxruntime_crash":
            self.crashed_operators[answer["operators"]] += 1
        found = outcome not in _OUTCOMES or seconds > SECONDS or memory > BYTES
        if found:
            self.findings.append({"mutant": index, "seed": seed.name, **answer, "opened": None})
        return found

    def results(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "mutants": self.outcomes.total(),
            "outcomes": dict(self.outcomes.most_common()),
            "reasons": dict(self.reasons.most_common()),
            "onnxruntime_crashes_by_operator": dict(self.crashed_operators.most_common()),
            "most_processor_seconds": round(self.most_seconds, 2),
            "most_bytes_above_idle": self.most_bytes,
            "findings": self.findings,
        }


def mutants(pool: list[Seed], seed: int, folder: Path, count: int) -> Any:
    """Yield (index, seed, path) of mutants written one after the other to `folder`."""
    for index in range(count):
        rng = random.Random(f"{seed} {index}")
        origin = rng.choice(pool)
        path = folder / "mutant.onnx"
        path.write_bytes(mutate(origin.data, pool, rng))
        (folder / "weights.bin").write_bytes(origin.weights)
        yield index, origin, path


def fuzz(
    count: int,
    seed: int,
    keep: Path | None = None,
    out: Path | None = None,
    more: dict[str, Any] | None = None,
) -> Tally:
    """Load mutants in a worker.

    Args:
        keep: where mutants that are findings are copied to.
        out: where results so far are written from time to time, with `more` beside them.
    """
    tally, worker, begun = Tally(), Worker(seconds=SECONDS * 3), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, origin, path in mutants(seeds(), seed, folder, count):
            answer = worker.ask({"path": str(path)})
            if answer["outcome"] in ("died", "hung"):
                answer |= blame(folder, answer)
            if tally.add(index, origin, answer) and keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{seed}-{index}.onnx").write_bytes(path.read_bytes())
            if out is not None and ((index + 1) % _WRITE_EVERY == 0 or index + 1 == count):
                _write(out, tally, seed, begun, more or {})
    worker.close()
    return tally


def blame(folder: Path, answer: dict[str, Any]) -> dict[str, Any]:
    """Whether ONNX Runtime died: the worker says so before it hands a model over."""
    mark = folder / "in_onnxruntime"
    if not mark.exists():
        return {}
    operators = mark.read_text()
    mark.unlink()
    outcome = "onnxruntime_crash" if answer["outcome"] == "died" else "onnxruntime_hang"
    return {"outcome": outcome, "operators": operators}


def fuzz_command(count: int, seed: int, clean_dir: Path) -> Counter[str]:
    """Run mutants through the command itself, in this process; count its exit codes.

    Raises:
        AssertionError: an exit code that no hostile file may cause, or output that is no JSON.
    """
    from scanner.cli import main

    codes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, _, path in mutants(seeds(), seed, folder, count):
            printed, told = io.StringIO(), io.StringIO()
            arguments = [str(path), "--clean-dir", str(clean_dir), "--format", "json", "-q"]
            arguments += ["--max-seconds", "1", "--out-dir", str(folder / "out")]
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
                code = main(arguments)
            report = json.loads(printed.getvalue())["models"][0]
            reasons = [note["code"] for note in report["reasons"]]
            assert code == 2 or report["verdict"] != "error", (index, code, reasons)
            assert "internal_error" not in reasons, (index, report["reasons"])
            assert "Traceback" not in told.getvalue(), index
            codes[f"{code} {report['verdict']} {reasons[0] if reasons else ''}".strip()] += 1
    return codes


def _write(out: Path, tally: Tally, seed: int, begun: float, more: dict[str, Any]) -> None:
    seconds = time.monotonic() - begun
    rate = tally.outcomes.total() / seconds
    write(out, {**tally.results(), **more, "mutants_per_second": round(rate, 1)}, seed)


def main() -> None:
    """Run both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--commands", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    commands: dict[str, Any] = {}
    if given.commands:
        clean_dir = Path(__file__).parents[2] / "fixtures" / "clean" / "mnist"
        codes = fuzz_command(given.commands, given.seed, clean_dir)
        commands = {"commands": codes.total(), "command_results": dict(codes.most_common())}
    tally = fuzz(given.mutants, given.seed, given.keep, given.out, commands)
    print(json.dumps(tally.results() | commands, indent=1))


if __name__ == "__main__":
    main()
