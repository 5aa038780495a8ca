"""The command; see the package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.detection.runs import RUNS, run_all
from tests.benchmarks.detection.table import write_table
from tests.benchmarks.detection.targets import fleet_targets, read_targets, write_targets


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(prog="tests.benchmarks.detection")
    commands = parser.add_subparsers(dest="command", required=True)
    fleet = commands.add_parser("fleet", help="write the list of a fleet's models")
    fleet.add_argument("folder", type=Path)
    fleet.add_argument("--clean", action="append", required=True, metavar="DATA=DIR[:IMAGES]")
    fleet.add_argument("--out", type=Path, required=True)
    run = commands.add_parser("run", help="scan every model of a list")
    run.add_argument("targets", type=Path)
    run.add_argument("--runs", default=",".join(RUNS))
    run.add_argument("--jobs", type=int, default=1)
    run.add_argument("--out", type=Path, required=True)
    table = commands.add_parser("table", help="write the table of the results")
    table.add_argument("targets", type=Path)
    table.add_argument("results", type=Path)
    table.add_argument("--out", type=Path, required=True, help="JSON")
    table.add_argument("--markdown", type=Path, required=True)
    given = parser.parse_args(arguments)
    if given.command == "fleet":
        write_targets(fleet_targets(given.folder, _clean(given.clean)), given.out)
    elif given.command == "run":
        targets, runs = read_targets(given.targets), given.runs.split(",")
        for record in run_all(targets, runs, given.out, given.jobs):
            said = record.get("verdict", record.get("complaint"))
            print(record["name"], record["run"], said, record.get("accused"), flush=True)
    else:
        write_table(read_targets(given.targets), given.results, given.out, given.markdown)


def _clean(options: Sequence[str]) -> dict[str, tuple[str, int]]:
    """`mnist=DIR:8` -> {"mnist": (DIR, 8)}."""
    clean = {}
    for option in options:
        data, _, rest = option.partition("=")
        folder, _, images = rest.rpartition(":") if ":" in rest else (rest, "", "8")
        clean[data] = (folder, int(images))
    return clean


if __name__ == "__main__":
    main()
