"""Option texts as values; each error says where the text stands and what was expected.

Every reader takes (where, text): `where` is what the user wrote the text at, such as a flag, a
variable of the environment or a key of a file.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from scanner.config import DETECTORS
from scanner.errors import UsageError

if TYPE_CHECKING:
    from converters import Limits

MAX_CLASSES = 100_000
_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def any_text(where: str, text: str) -> str:
    """The text itself.

    Raises:
        UsageError: it is empty.
    """
    if not text:
        raise UsageError(f"{where}: expected something, got nothing")
    return text


def yes_or_no(where: str, text: str) -> bool:
    """`true`, `yes`, `1`, `false`, `no` or `0`.

    Raises:
        UsageError: anything else.
    """
    if text.lower() not in _YES_NO:
        raise UsageError(f"{where} {text!r}: expected true or false")
    return _YES_NO[text.lower()]


def one_of(*words: str) -> Callable[[str, str], str]:
    """A reader of one of the words; it raises UsageError at anything else."""

    def read(where: str, text: str) -> str:
        if text not in words:
            raise UsageError(f"{where} {text!r}: expected {', '.join(words)}")
        return text

    return read


def some_of(*words: str) -> Callable[[str, str], tuple[str, ...]]:
    """A reader of some of the words, in the order given here; UsageError at anything else."""

    def read(where: str, text: str) -> tuple[str, ...]:
        names = {part.strip() for part in text.split(",")}
        unknown = sorted(names - set(words))
        if unknown:
            raise UsageError(f"{where} {unknown[0]!r}: expected some of {', '.join(words)}")
        return tuple(word for word in words if word in names)

    return read


def whole_number(least: int | None = None) -> Callable[[str, str], int]:
    """A reader of a whole number of at least `least`; UsageError at anything else."""

    def read(where: str, text: str) -> int:
        found = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        if found is None or (least is not None and found < least):
            bound = "" if least is None else f" of at least {least}"
            raise UsageError(f"{where} {text!r}: expected a whole number{bound}")
        return found

    return read


def real_number(least: float = -math.inf, most: float = math.inf) -> Callable[[str, str], float]:
    """A reader of a finite number from `least` to `most`; UsageError at anything else."""

    def read(where: str, text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not (math.isfinite(found) and least <= found <= most):
            bounds = [f" of at least {least:g}"] if math.isfinite(least) else []
            bounds += [f" of at most {most:g}"] if math.isfinite(most) else []
            raise UsageError(f"{where} {text!r}: expected a number{' and'.join(bounds)}")
        return found

    return read


def read_target_classes(where: str, text: str) -> tuple[int, ...]:
    """`0,3,5-9` -> (0, 3, 5, 6, 7, 8, 9).

    Raises:
        UsageError: anything else.
    """
    classes: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"{where} {text!r}: expected numbers such as 0,3,5-9")
        end = int(last) if dash else int(first)
        if end > MAX_CLASSES or end < int(first):
            raise UsageError(f"{where} {text!r}: {part.strip()!r} is no range of classes")
        classes += range(int(first), end + 1)
    return tuple(classes)


def read_detectors(where: str, text: str) -> tuple[str, ...]:
    """`mask_pattern,maximum_margin`: each once, in the order of a scan.

    Raises:
        UsageError: an unknown name, or none.
    """
    return some_of(*DETECTORS)(where, text)


def read_numbers(where: str, text: str) -> tuple[float, ...]:
    """`0.5,0.5,0.5` -> (0.5, 0.5, 0.5).

    Raises:
        UsageError: anything else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{where} {text!r}: expected numbers such as 0.5,0.5,0.5") from None


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """`read_numbers` of an option that may be left out."""
    return None if text is None else read_numbers(option, text)


def read_image_size(where: str, text: str) -> tuple[int, int]:
    """`224x224` -> (224, 224), height first.

    Raises:
        UsageError: anything else.
    """
    height, cross, width = text.lower().partition("x")
    if not cross or not height.isdecimal() or not width.isdecimal():
        raise UsageError(f"{where} {text!r}: expected HEIGHTxWIDTH such as 224x224")
    size = int(height), int(width)
    if not all(1 <= side <= 10_000 for side in size):
        raise UsageError(f"{where} {text!r}: sides from 1 to 10000")
    return size


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """`read_image_size` of an option that may be left out."""
    return None if text is None else read_image_size("--image-size", text)


def parse_limits(texts: Iterable[str], where: str = "--limit") -> Limits:
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
            raise UsageError(f"{where} {text!r}: expected NAME=VALUE, NAME of {', '.join(names)}")
        found = re.fullmatch(r"([0-9]{1,18})([kMG]?)", number)
        if name in values or not found or not int(found[1]):
            raise UsageError(f"{where} {text!r}: expected one value such as 5000, 200k, 64M or 2G")
        values[name] = int(found[1]) * _SUFFIXES[found[2]]
    return Limits(**values)
