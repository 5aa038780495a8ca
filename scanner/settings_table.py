"""The table of a scan's settings; a new one is one entry of `SETTINGS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanner.config import ScanConfig
from scanner.digests import is_digest
from scanner.options import (
    any_text,
    one_of,
    read_detectors,
    read_image_size,
    read_numbers,
    read_target_classes,
    real_number,
    some_of,
    whole_number,
    yes_or_no,
)
from scanner.results import BACKDOOR_FOUND, ERROR, INCONCLUSIVE, SKIPPED

FORMATS = ("text", "json", "jsonl")
FAILING = (BACKDOOR_FOUND, INCONCLUSIVE, ERROR, SKIPPED)
PREFIX = "BDSCAN_"


def in_folder(folder: Path, text: str) -> str:
    """A path that stands in a file of that folder, seen from the working directory."""
    return str(folder / text)


def _output_in_folder(folder: Path, text: str) -> str:
    format, equals, path = text.partition("=")
    return f"{format}={folder / path}" if equals and path else text


def _digest_file_in_folder(folder: Path, text: str) -> str:
    return text if is_digest(text) else str(folder / text)


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: as the key of a file; flag and variable follow from it.
        read: (where, text) -> value, see `scanner.options`.
        metavar: what stands for the value in the help; "" for a switch.
        help: one sentence.
        field: the field of `ScanConfig` that it sets, such as "l_red.schedule"; "" if it does not
            change a scan's result.
        default: its value where nothing states it, for those without a field.
        default_text: the default in words, where the value does not say it.
        many: may be stated several times; a list in a file, separated by commas in the
            environment. `read` is called for each one and the value is the tuple.
        locate: (folder of the configuration file, text) -> text, for paths.
        short: a one-letter flag.
    """

    name: str
    read: Callable[[str, str], Any]
    metavar: str
    help: str
    field: str = ""
    default: Any = None
    default_text: str = ""
    many: bool = False
    locate: Callable[[Path, str], str] | None = None
    short: str = ""

    @property
    def flag(self) -> str:
        """Its flag on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper()


SETTINGS = (
    Setting(
        "clean_dir",
        any_text,
        "DIR",
        "Clean images: DIR/<class>/<image>, or DIR/<image>.",
        locate=in_folder,
    ),
    Setting(
        "format",
        one_of(*FORMATS),
        "FORMAT",
        "Of standard output: text, json or jsonl.",
        default="text",
    ),
    Setting(
        "output",
        any_text,
        "FORMAT=PATH",
        "Write a report there too: text, json, jsonl, html, sarif or cyclonedx; repeatable.",
        many=True,
        locate=_output_in_folder,
    ),
    Setting(
        "sarif_anchor",
        any_text,
        "FILE",
        "A manifest: SARIF alerts stand on the line that pins the model.",
        locate=in_folder,
    ),
    Setting(
        "out_dir",
        any_text,
        "DIR",
        "Where result files go.",
        default_text="bdscan-results",
        locate=in_folder,
    ),
    Setting(
        "require_sha256",
        any_text,
        "FILE|HEX",
        "Refuse models whose sha256 is not listed; repeatable.",
        many=True,
        locate=_digest_file_in_folder,
    ),
    Setting(
        "fail_on",
        some_of(*FAILING),
        "VERDICT,...",
        "Verdicts that make the exit code 1 or 2.",
        default=FAILING,
    ),
    Setting(
        "jobs",
        whole_number(1),
        "N",
        "Models scanned side by side, each in a process of its own.",
        default=1,
    ),
    Setting(
        "threads",
        whole_number(1),
        "N",
        "Of each scan; last bits of its figures depend on it.",
        default_text="an equal share of the cores",
    ),
    Setting(
        "max_memory",
        whole_number(1),
        "MEGABYTES",
        "Bound on the memory of one model's scan.",
        default_text="80 % of the machine's",
    ),
    Setting("exit_zero", yes_or_no, "", "Exit with 0 whatever the verdicts are.", default=False),
    Setting(
        "target_classes",
        read_target_classes,
        "0,3,5-9",
        "Putative target classes.",
        "target_classes",
        default_text="all",
    ),
    Setting(
        "max_seconds",
        real_number(0),
        "SECONDS",
        "Bound on one model's scan; over it: inconclusive.",
        "max_seconds",
    ),
    Setting("detectors", read_detectors, "NAME,...", "Searches to run.", "detectors"),
    Setting(
        "schedule",
        one_of("fast", "paper"),
        "NAME",
        "Of l_red: fast, or paper: Algorithm 1 to the letter (slow).",
        "l_red.schedule",
    ),
    Setting(
        "images_per_class",
        whole_number(1),
        "N",
        "Clean images of each class that the search uses.",
        "images_per_class",
        default_text="8; 2 from 21 classes on, 1 from 51",
    ),
    Setting(
        "labels",
        any_text,
        "FILE",
        "File with one class name per line, in class order.",
        "labels",
        locate=in_folder,
    ),
    Setting(
        "preprocess",
        any_text,
        "FILE",
        "JSON file: pixel_range, mean, std, channel_order.",
        "preprocessing.file",
        locate=in_folder,
    ),
    Setting(
        "pixel_range",
        real_number(),
        "MAXIMUM",
        "1 or 255: the largest pixel before mean and std.",
        "preprocessing.pixel_range",
    ),
    Setting(
        "mean", read_numbers, "X,...", "Per channel, such as 0.5,0.5,0.5.", "preprocessing.mean"
    ),
    Setting("std", read_numbers, "X,...", "Per channel, such as 0.5,0.5,0.5.", "preprocessing.std"),
    Setting("channel_order", any_text, "ORDER", "RGB or BGR.", "preprocessing.channel_order"),
    Setting(
        "image_size",
        read_image_size,
        "HEIGHTxWIDTH",
        "For a model that leaves it free.",
        "image_size",
    ),
    Setting("output_name", any_text, "NAME", "Name of the model's output to use.", "output"),
    Setting(
        "limit",
        any_text,
        "NAME=VALUE",
        "Allow a model file more, such as nodes=200k; an unknown NAME lists all; repeatable.",
        "limits",
        many=True,
    ),
    Setting("device", any_text, "DEVICE", "auto, cpu, cuda or cuda:N.", "device"),
    Setting(
        "significance",
        real_number(0, 1),
        "P",
        "Largest calibrated p-value that counts.",
        "verdict.significance",
    ),
    Setting(
        "min_ratio_to_median",
        real_number(),
        "X",
        "Smallest r_max/median that counts.",
        "verdict.ratio_to_median",
        default_text="2 to 3, by K",
    ),
    Setting(
        "min_ratio_to_second",
        real_number(),
        "X",
        "Smallest r_max/r_2 that counts.",
        "verdict.ratio_to_second",
    ),
    Setting("seed", whole_number(), "N", "Seed of every random draw.", "seed"),
    Setting("quiet", yes_or_no, "", "Report only.", default=False, short="-q"),
    Setting("verbose", yes_or_no, "", "Say more.", default=False, short="-v"),
    Setting("progress", yes_or_no, "", "Show progress bars on a terminal.", default=True),
)
NAMES = tuple(setting.name for setting in SETTINGS)


def default_of(setting: Setting) -> Any:
    """A setting's value where nothing states it. Builds no `ScanConfig`: that loads torch."""
    if not setting.field:
        return () if setting.many else setting.default
    if setting.many:
        return ()
    owner: Any = ScanConfig
    *parents, name = setting.field.split(".")
    for parent in parents:
        owner = _fields(owner)[parent].default_factory()
    return getattr(owner, name) if parents else _fields(owner)[name].default


def _fields(owner: Any) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(owner)}
