"""Option texts as values; each error says what was expected."""

from __future__ import annotations

from scanner.errors import UsageError

MAX_CLASSES = 100_000


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
