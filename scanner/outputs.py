"""`--output FORMAT=PATH`: the report in several formats at once, beside standard output."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from scanner import output
from scanner.errors import UsageError
from scanner.exit_codes import ExitCode
from scanner.reports.console import ReportConsole, print_model, print_summary
from scanner.reports.cyclonedx import to_cyclonedx
from scanner.reports.files import write_text
from scanner.reports.html.clean_images import CleanImages, open_clean_images
from scanner.reports.html.page import render_html
from scanner.reports.sarif import Anchor, read_anchor, to_sarif
from scanner.reports.stored import MODEL, StoredResult
from scanner.results import ModelReport, ScanReport, to_json

FORMATS = ("text", "json", "jsonl", "html", "sarif", "cyclonedx")
TEXT_WIDTH = 100


@dataclass(frozen=True)
class Output:
    """A report's format and the file that it is written to."""

    format: str
    path: Path


def parse_outputs(texts: Iterable[str], inputs: Iterable[Path]) -> tuple[Output, ...]:
    """`json=a.json` and the like; each file can be written and is none that is read.

    Args:
        inputs: files that the call reads.

    Raises:
        UsageError: anything else.
    """
    taken = {path.resolve() for path in inputs}
    outputs = []
    for text in texts:
        format, _, name = text.partition("=")
        if format not in FORMATS or not name:
            raise UsageError(
                f"--output {text!r}: expected FORMAT=PATH, FORMAT of {', '.join(FORMATS)}"
            )
        path = Path(name)
        if name == "-":
            raise UsageError(f"--output {text!r}: standard output is for --format; name a file")
        if path.resolve() in taken:
            raise UsageError(f"--output {text!r} would overwrite a file that is read or written")
        taken.add(path.resolve())
        _prove_writable(path, text)
        outputs.append(Output(format, path))
    return tuple(outputs)


def _prove_writable(path: Path, text: str) -> None:
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if path.exists():
            path.open("ab").close()
        if not path.exists() or path.is_file():  # a device is written to, never replaced
            with tempfile.NamedTemporaryFile(dir=path.resolve().parent, prefix=".bdscan-"):
                pass
    except OSError as error:
        raise UsageError(f"--output {text!r} can't be written: {error.strerror}") from error


def open_anchor(path: Path | None, outputs: Sequence[Output]) -> Anchor | None:
    """The manifest for SARIF.

    Raises:
        UsageError: it can't be read, or no SARIF is asked for.
    """
    if path is None:
        return None
    if not any(out.format == "sarif" for out in outputs):
        raise UsageError("--sarif-anchor goes with --output sarif=PATH")
    try:
        return read_anchor(path)
    except OSError as error:
        raise UsageError(f"--sarif-anchor {path} can't be read: {error.strerror}") from error


@dataclass
class OutputWriter:
    """Writes the outputs: JSONL as models end, the others when all have.

    Attributes:
        outputs: what to write.
        anchor: a manifest for SARIF.
        folder: where the models' result files lie; None if they are not stored.
        failed: an output could not be written.
    """

    outputs: Sequence[Output]
    anchor: Anchor | None = None
    folder: Path | None = None
    failed: bool = False
    _lines: dict[Path, IO[str]] = field(default_factory=dict)

    def open(self) -> None:
        """Begin the JSONL files."""
        for out in self.outputs:
            if out.format == "jsonl":
                with self._telling(out):
                    self._lines[out.path] = out.path.open("w", encoding="utf-8")

    def add(self, report: ModelReport) -> None:
        """One more model has ended."""
        for out in self.outputs:
            if out.path in self._lines:
                with self._telling(out):
                    line = json.dumps(to_json(report), allow_nan=False)
                    self._lines[out.path].write(line + "\n")
                    self._lines[out.path].flush()

    def finish(self, report: ScanReport, code: ExitCode, clean_dirs: Iterable[Path]) -> None:
        """All models have ended: write the rest."""
        makers = self._makers(report, code, clean_dirs)
        for out in self.outputs:
            if out.format != "jsonl":
                with self._telling(out):
                    write_text(out.path, makers[out.format](out))

    def close(self) -> None:
        """Close the JSONL files; after an interrupt, too."""
        for stream in self._lines.values():
            with suppress(OSError):
                stream.close()
        self._lines.clear()

    @contextmanager
    def _telling(self, out: Output) -> Iterator[None]:
        """An output that can't be written is told, and does not end the scan."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.failed = True
            stream = self._lines.pop(out.path, None)
            if stream is not None:
                with suppress(OSError):
                    stream.close()
            reason = getattr(error, "strerror", None) or error
            output.complain(f"--output {out.format}={out.path} can't be written: {reason}")

    def _makers(
        self, report: ScanReport, code: ExitCode, clean_dirs: Iterable[Path]
    ) -> Mapping[str, Callable[[Output], str]]:
        models = [to_json(model) for model in report.models]

        def stored() -> list[StoredResult]:
            return [self._stored(content) for content in models]

        return {
            "text": lambda out: _as_text(report, code),
            "json": lambda out: _as_json(to_json(report)),
            "html": lambda out: render_html(stored(), (), _open_clean(clean_dirs)),
            "sarif": lambda out: _as_json(to_sarif(models, self.anchor)),
            "cyclonedx": lambda out: _as_json(to_cyclonedx(stored(), out.path.resolve().parent)),
        }

    def _stored(self, content: Mapping[str, Any]) -> StoredResult:
        """A model's result as it lies in the folder; without a file if it is not there."""
        name = content["files"].get("json", {}).get("name")
        if self.folder is None or name is None:
            return StoredResult(MODEL, content, Path())
        path = self.folder / name
        return StoredResult(MODEL, content, path, hashlib.sha256(path.read_bytes()).hexdigest())


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _as_text(report: ScanReport, code: ExitCode) -> str:
    """The report as on standard output, without colour."""
    stream = io.StringIO()
    console = ReportConsole(
        file=stream, width=TEXT_WIDTH, highlight=False, soft_wrap=True, no_color=True
    )
    for model in report.models:
        print_model(console, model)
    print_summary(console, report, code)
    return stream.getvalue()


def _open_clean(folders: Iterable[Path]) -> list[CleanImages]:
    """The clean sets that can be read, each once."""
    sets = []
    for folder in dict.fromkeys(map(os.fspath, folders)):
        with suppress(UsageError, OSError):
            sets.append(open_clean_images(Path(folder)))
    return sets
