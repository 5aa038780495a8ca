"""`bdscan inspect`: what is in a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanner import output
from scanner.commands.options import FileLimit, Format, ImageSize, OutputName, one_of
from scanner.config import ScanConfig
from scanner.errors import BdscanError, UsageError
from scanner.exit_codes import ExitCode
from scanner.options import parse_image_size, parse_limits


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
    one_of("--format", format, ("text", "json"))
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
