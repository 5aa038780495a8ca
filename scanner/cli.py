"""The command line. Standard output carries the report and nothing else.

torch and ONNX Runtime are imported by the commands, after the arguments are parsed, so that
`bdscan --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from scanner import output
from scanner.config import DETECTORS, LRedConfig, PreprocessingOptions, ScanConfig, VerdictConfig
from scanner.errors import BdscanError, UsageError
from scanner.exit_codes import EXPLANATION, ExitCode
from scanner.options import (
    numbers,
    parse_detectors,
    parse_image_size,
    parse_limits,
    parse_target_classes,
)

app = typer.Typer(
    help="Tell whether an image classifier in an ONNX file hides a backdoor.\n\n"
    "`bdscan MODEL... --clean-dir DIR` is `bdscan scan MODEL... --clean-dir DIR`.",
    epilog=EXPLANATION,
    add_completion=True,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's tables cut option names on a narrow terminal
)
COMMANDS = ("scan", "inspect", "export", "doctor")
_GLOBAL_OPTIONS = ("--help", "--version", "--install-completion", "--show-completion")

Format = Annotated[str, typer.Option("--format", help="text, json or jsonl.", metavar="FORMAT")]
ImageSize = Annotated[
    str | None, typer.Option(help="HEIGHTxWIDTH, for a model that leaves it free.")
]
OutputName = Annotated[
    str | None, typer.Option("--output", help="Name of the model's output to use.")
]
FileLimit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="Allow a model file more, such as nodes=200k; an unknown NAME lists all.",
    ),
]


class Terminated(BaseException):
    """SIGTERM arrived."""


@app.command(epilog=EXPLANATION)
def scan(
    models: Annotated[list[Path], typer.Argument(help="ONNX files, or folders of them.")],
    clean_dir: Annotated[
        Path, typer.Option(help="Clean images: DIR/<class>/<image>, or DIR/<image>.")
    ],
    format: Format = "text",
    out_dir: Annotated[
        Path | None, typer.Option(help="Where result files go.  [default: bdscan-results]")
    ] = None,
    target_classes: Annotated[
        str | None, typer.Option(help="Putative target classes, such as 0,3,5-9.  [default: all]")
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Bound on one model's scan; over it: inconclusive."),
    ] = None,
    detectors: Annotated[str, typer.Option(help="Searches to run.", metavar="NAME,...")] = ",".join(
        DETECTORS
    ),
    schedule: Annotated[
        str, typer.Option(help="Of l_red: fast, or paper: Algorithm 1 to the letter (slow).")
    ] = "fast",
    images_per_class: Annotated[
        int, typer.Option(min=1, help="Clean images of each class that the search uses.")
    ] = 8,
    labels: Annotated[
        Path | None, typer.Option(help="File with one class name per line, in class order.")
    ] = None,
    preprocess: Annotated[
        Path | None, typer.Option(help="JSON file: pixel_range, mean, std, channel_order.")
    ] = None,
    pixel_range: Annotated[
        float | None, typer.Option(help="1 or 255: the largest pixel before mean and std.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel, such as 0.5,0.5,0.5.")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, such as 0.5,0.5,0.5.")] = None,
    channel_order: Annotated[str | None, typer.Option(help="RGB or BGR.")] = None,
    image_size: ImageSize = None,
    output_name: OutputName = None,
    limit: FileLimit = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    significance: Annotated[
        float, typer.Option(min=0, max=1, help="Largest calibrated p-value that counts.")
    ] = 0.05,
    min_ratio_to_median: Annotated[
        float | None,
        typer.Option(help="Smallest r_max/median that counts.  [default: 2 to 3, by K]"),
    ] = None,
    min_ratio_to_second: Annotated[
        float, typer.Option(help="Smallest r_max/r_2 that counts.")
    ] = 1.6,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Report only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bars.")] = False,
) -> int:
    """Search each model for a backdoor and give a verdict."""
    _one_of("--format", format, ("text", "json", "jsonl"))
    _one_of("--schedule", schedule, ("fast", "paper"))
    config = ScanConfig(
        detectors=parse_detectors(detectors),
        l_red=LRedConfig(schedule=schedule),
        verdict=VerdictConfig(significance, min_ratio_to_median, min_ratio_to_second),
        preprocessing=PreprocessingOptions(
            pixel_range=pixel_range,
            mean=numbers("--mean", mean),
            std=numbers("--std", std),
            channel_order=channel_order,
            file=str(preprocess) if preprocess else None,
        ),
        limits=parse_limits(limit or ()),
        images_per_class=images_per_class,
        target_classes=parse_target_classes(target_classes),
        max_seconds=max_seconds,
        labels=str(labels) if labels else None,
        output=output_name,
        image_size=parse_image_size(image_size),
        device=device,
        seed=seed,
    )
    from scanner.command import run_scan
    from scanner.progress import Silent, Teller

    watcher = Silent() if quiet else Teller(bars=not no_progress, verbose=verbose)
    return run_scan(models, clean_dir, config, format, out_dir, watcher)


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    clean_dir: Annotated[
        Path | None, typer.Option(help="Clean images to find the preprocessing with.")
    ] = None,
    format: Format = "text",
    image_size: ImageSize = None,
    output_name: OutputName = None,
    limit: FileLimit = None,
) -> int:
    """Show a model's inputs, outputs, operators, unsupported ones and preprocessing."""
    _one_of("--format", format, ("text", "json"))
    if not model.exists():
        raise UsageError(f"model {model} does not exist")
    from converters import ConverterError
    from scanner.inspection import inspect_model

    config = ScanConfig(
        limits=parse_limits(limit or ()),
        output=output_name,
        image_size=parse_image_size(image_size),
    )
    try:
        facts = inspect_model(model, config, clean_dir)
    except ConverterError as error:
        raise BdscanError(f"{model}: {error}", error.reason) from error
    output.print_facts(facts, format)
    return ExitCode.INCOMPLETE if facts["problem"] else ExitCode.NO_BACKDOOR_FOUND


@app.command()
def export(
    factory: Annotated[
        str, typer.Argument(metavar="MODULE:FACTORY", help="FACTORY() gives your torch module.")
    ],
    weights: Annotated[
        Path, typer.Argument(help="safetensors, or a state dict that torch.save wrote.")
    ],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the images.")] = "224x224",
    channels: Annotated[int, typer.Option(min=1, help="3, or 1 for gray images.")] = 3,
    labels: Annotated[
        Path | None, typer.Option(help="File with one class name per line, in class order.")
    ] = None,
    preprocess: Annotated[
        Path | None, typer.Option(help="JSON file: pixel_range, mean, std, channel_order.")
    ] = None,
    pixel_range: Annotated[
        float | None, typer.Option(help="1 or 255: the largest pixel before mean and std.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel, such as 0.5,0.5,0.5.")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel, such as 0.5,0.5,0.5.")] = None,
    channel_order: Annotated[str | None, typer.Option(help="RGB or BGR.")] = None,
    format: Format = "text",
) -> int:
    """Write your own torch module with its weights as an ONNX file; nothing is unpickled."""
    _one_of("--format", format, ("text", "json"))
    options = PreprocessingOptions(
        pixel_range=pixel_range,
        mean=numbers("--mean", mean),
        std=numbers("--std", std),
        channel_order=channel_order,
        file=str(preprocess) if preprocess else None,
    )
    from scanner.exporting import export_module

    facts = export_module(
        factory,
        weights,
        out,
        channels=channels,
        image_size=parse_image_size(image_size) or (224, 224),
        preprocessing=options,
        class_names=labels,
    )
    output.print_facts(facts, format)
    return ExitCode.NO_BACKDOOR_FOUND


@app.command()
def doctor(format: Format = "text") -> int:
    """Show versions and which devices really work."""
    _one_of("--format", format, ("text", "json"))
    from scanner.doctor import examine

    facts = examine()
    output.print_facts(facts, format)
    return ExitCode.INCOMPLETE if facts["problems"] else ExitCode.NO_BACKDOOR_FOUND


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> int:
    if version:
        from scanner.describe import tool

        output.print_text(f"bdscan {tool()['version']}")
    return ExitCode.NO_BACKDOOR_FOUND


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{option} {value!r}: expected {', '.join(allowed)}")


def with_command(arguments: Sequence[str]) -> list[str]:
    """Put `scan` in front of arguments that name no command."""
    first = arguments[0] if arguments else "--help"
    if first in COMMANDS or first.split("=")[0] in _GLOBAL_OPTIONS:
        return list(arguments)
    return ["scan", *arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Nothing escapes: Python itself would exit with 1, which scripts read as "backdoor found".
    """
    try:
        output.prepare_streams()
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Terminated:
        return ExitCode.TERMINATED
    except BaseException:  # telling an error failed too
        return ExitCode.INCOMPLETE


def _run(given: list[str]) -> int:
    """`main`, with every error told."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if not given:
            app(["--help"], standalone_mode=False, prog_name="bdscan")
            return ExitCode.USAGE
        result: Any = app(with_command(given), standalone_mode=False, prog_name="bdscan")
        if result == ExitCode.INTERRUPTED:  # Typer turns Ctrl-C into this number
            raise KeyboardInterrupt
        return result if isinstance(result, int) else ExitCode.NO_BACKDOOR_FOUND
    except BdscanError as error:
        return output.fail(given, error.reason, str(error), error.exit_code)
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        return output.fail(given, "usage", message, ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return output.fail(given, "interrupted", "interrupted", ExitCode.INTERRUPTED)
    except Terminated:
        return output.fail(given, "terminated", "terminated", ExitCode.TERMINATED)
    except Exception as error:
        if os.environ.get("BDSCAN_DEBUG"):
            traceback.print_exc()
        message = f"internal error: {error!r}; set BDSCAN_DEBUG=1 to see where, and report it"
        return output.fail(given, "internal_error", message, ExitCode.INCOMPLETE)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
