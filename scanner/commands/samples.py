"""`bdscan samples`: which images of a folder carry a trigger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scanner.commands.options import FileLimit, Format, ImageSize, OutputName, one_of
from scanner.config import PreprocessingOptions
from scanner.options import numbers, parse_image_size, parse_limits
from scanner.samples.config import DEFAULT_DETECTORS, DETECTORS, SamplesConfig, parse_detectors


def samples(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    clean_dir: Annotated[
        Path, typer.Option(help="Clean images: DIR/<class>/<image>, or DIR/<image>.")
    ],
    suspect_dir: Annotated[Path, typer.Option(help="The images to judge, at any depth.")],
    detectors: Annotated[
        str,
        typer.Option(
            help=f"Scores to compute, of {', '.join(DETECTORS)}; the first one decides.",
            metavar="NAME,...",
        ),
    ] = ",".join(DEFAULT_DETECTORS),
    level: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="Share of clean images that may be flagged.")
    ] = 0.05,
    gamma: Annotated[
        float, typer.Option(help="The paper's threshold is mean - gamma * standard deviation.")
    ] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Of Cognitive Distillation's search.")] = 100,
    features: Annotated[
        str | None, typer.Option(help="Tensor that cd_f and the feature scores look at.")
    ] = None,
    losses: Annotated[
        Path | None, typer.Option(help="Training losses of the suspect images, for abl.")
    ] = None,
    frequency_classifier: Annotated[
        Path | None, typer.Option(help="ONNX file of the spectra's classifier, for frequency.")
    ] = None,
    max_clean_images: Annotated[
        int, typer.Option(min=1, help="Clean images that calibrate, at most.")
    ] = 1000,
    save_images: Annotated[
        Path | None, typer.Option(help="Write each image's mask and cognitive pattern there.")
    ] = None,
    format: Format = "text",
    out_dir: Annotated[
        Path | None, typer.Option(help="Where result files go.  [default: bdscan-results]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images optimised together.  [default: by device]")
    ] = None,
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
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Report only.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bars.")] = False,
) -> int:
    """Judge images: which of them carry a trigger for the model, and where is it?

    0: no more are flagged than the level explains; 1: more are; 2: an error, too few clean images,
    or a detector that could not run. An interrupted run goes on where it stopped.
    """
    one_of("--format", format, ("text", "json", "jsonl"))
    config = SamplesConfig(
        detectors=parse_detectors(detectors),
        level=level,
        gamma=gamma,
        steps=steps,
        features=features,
        max_clean_images=max_clean_images,
        losses=str(losses) if losses else None,
        frequency_classifier=str(frequency_classifier) if frequency_classifier else None,
        preprocessing=PreprocessingOptions(
            pixel_range=pixel_range,
            mean=numbers("--mean", mean),
            std=numbers("--std", std),
            channel_order=channel_order,
            file=str(preprocess) if preprocess else None,
        ),
        limits=parse_limits(limit or ()),
        labels=str(labels) if labels else None,
        output=output_name,
        image_size=parse_image_size(image_size),
        device=device,
        seed=seed,
    )
    from scanner.samples.command import run_samples
    from scanner.samples.progress import SamplesTeller, Silent

    watcher = Silent() if quiet else SamplesTeller(bars=not no_progress, verbose=verbose)
    return run_samples(
        model,
        clean_dir,
        suspect_dir,
        config,
        format,
        out_dir,
        save_images,
        batch_size,
        watcher,
    )
