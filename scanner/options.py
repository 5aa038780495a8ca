"""Option texts as values; each error says what was expected."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from scanner.config import DETECTORS
from scanner.errors import UsageError

if TYPE_CHECKING:
    from converters import Limits

MAX_CLASSES = 100_000
_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def parse_target_classes(text: str | None) -> tuple[int, ...] | None:
    """`0,3,5-9` -> (0, 3, 5, 6, 7, 8, 9).

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    classes: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--target-classes {text!r}: expected numbers such as 0,3,5-9")
        end = int(last) if dash else int(first)
        if end > MAX_CLASSES or end < int(first):
            raise UsageError(f"--target-classes {text!r}: {part.strip()!r} is no range of classes")
        classes += range(int(first), end + 1)
    return tuple(classes)


def parse_detectors(text: str) -> tuple[str, ...]:
    """`mask_pattern,l_red` -> ("l_red", "mask_pattern"): each once, in the order of a scan.

    Raises:
        UsageError: an unknown name, or none.
    """
    names = {part.strip() for part in text.split(",")}
    unknown = sorted(names - set(DETECTORS))
    if unknown:
        raise UsageError(f"--detectors {unknown[0]!r}: expected some of {', '.join(DETECTORS)}")
    return tuple(name for name in DETECTORS if name in names)


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.5,0.5` -> (0.5, 0.5, 0.5).

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: expected numbers such as 0.5,0.5,0.5") from None


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """`224x224` -> (224, 224), height first.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    if not cross or not height.isdecimal() or not width.isdecimal():
        raise UsageError(f"--image-size {text!r}: expected HEIGHTxWIDTH such as 224x224")
    size = int(height), int(width)
    if not all(1 <= side <= 10_000 for side in size):
        raise UsageError(f"--image-size {text!r}: sides from 1 to 10000")
    return size


def parse_limits(texts: Iterable[str]) -> Limits:
    """`nodes=200k` and the like -> `Limits` with these fields changed; suffixes k, M and G.

    Raises:
        UsageError: an unknown name, a name given twice, or anything but a positive whole number.
    """
    from converters import Limits  # it imports the engines

    names = [field.name for field in dataclasses.fields(Limits)]
    values: dict[str, int] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in names:
            raise UsageError(f"--limit {text!r}: expected NAME=VALUE, NAME of {', '.join(names)}")
        found = re.fullmatch(r"([0-9]{1,18})([kMG]?)", number)
        if name in values or not found or not int(found[1]):
            raise UsageError(f"--limit {text!r}: expected one value such as 5000, 200k, 64M or 2G")
        values[name] = int(found[1]) * _SUFFIXES[found[2]]
    return Limits(**values)
