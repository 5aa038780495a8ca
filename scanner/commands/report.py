"""`bdscan report`: stored results as HTML, SARIF and CycloneDX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanner.errors import UsageError


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="Results of scan or samples: JSON, JSONL, or folders that hold some.",
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(help="Write one page that needs no network and no script.")
    ] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0.")] = None,
    sarif_anchor: Annotated[
        Path | None,
        typer.Option(help="A manifest: alerts stand on the line that pins the model."),
    ] = None,
    cyclonedx: Annotated[Path | None, typer.Option(help="Write a CycloneDX 1.6 document.")] = None,
    clean_dir: Annotated[
        list[Path] | None,
        typer.Option(help="Clean images, as scanned with, to stamp triggers on; repeatable."),
    ] = None,
) -> int:
    """Turn stored results into reports; `-` writes one to standard output.

    Exits with 0 when they are written, whatever the verdicts; with 2 if a result can't be read
    (the others are reported), with 4 on wrong usage.
    """
    outputs = {"html": html, "sarif": sarif, "cyclonedx": cyclonedx}
    if not any(outputs.values()):
        raise UsageError("nothing to write: give --html, --sarif or --cyclonedx with a file")
    if sarif_anchor is not None and sarif is None:
        raise UsageError("--sarif-anchor goes with --sarif")
    from scanner.reports.writing import write_reports

    return write_reports(results, outputs, sarif_anchor, clean_dir or ())
