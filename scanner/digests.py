"""`--require-sha256`: only models whose bytes somebody has pinned are scanned."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from scanner.errors import UsageError

MAX_BYTES = 1 << 26
_DIGEST = re.compile(r"(?<![0-9a-zA-Z])[0-9a-fA-F]{64}(?![0-9a-zA-Z])")


def is_digest(text: str) -> bool:
    """Whether a text is a sha256 in hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def read_digests(given: Iterable[str]) -> frozenset[str]:
    """Every sha256 among the texts and in the files that they name, in lower case.

    A file may be what `sha256sum` writes, a lock file, or any other text: each run of 64
    hexadecimal digits counts.

    Raises:
        UsageError: a file that can't be read or holds no digest.
    """
    found: set[str] = set()
    for text in given:
        found |= {text.lower()} if is_digest(text) else _digests_in(Path(text))
    return frozenset(found)


def _digests_in(path: Path) -> set[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise OSError(0, f"larger than {MAX_BYTES} bytes")
        text = path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise UsageError(f"--require-sha256 {path} can't be read: {error.strerror}") from error
    digests = {digest.lower() for digest in _DIGEST.findall(text)}
    if not digests:
        raise UsageError(f"--require-sha256 {path}: no sha256 of 64 hexadecimal digits in it")
    return digests
