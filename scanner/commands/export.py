"""`bdscan export`: a torch module as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanner import output
from scanner.commands.options import Format, one_of
from scanner.config import PreprocessingOptions
from scanner.exit_codes import ExitCode
from scanner.options import numbers, parse_image_size


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
    one_of("--format", format, ("text", "json"))
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
