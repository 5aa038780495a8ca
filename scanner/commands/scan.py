"""`bdscan scan`: search models for backdoors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanner.commands.options import FileLimit, Format, ImageSize, OutputName, one_of
from scanner.config import DETECTORS, LRedConfig, PreprocessingOptions, ScanConfig, VerdictConfig
from scanner.options import (
    numbers,
    parse_detectors,
    parse_image_size,
    parse_limits,
    parse_target_classes,
)


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
    one_of("--format", format, ("text", "json", "jsonl"))
    one_of("--schedule", schedule, ("fast", "paper"))
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
