"""Kinds of hostile files: how each is made, and what must become of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

Made = onnx.ModelProto | bytes | Path
Builder = Callable[[Path], Made]


@dataclass(frozen=True)
class Kind:
    """A kind of hostile file.

    Attributes:
        name: what it is called in tests.
        reasons: what it may be refused for; empty: it is loaded, and both engines agree on it.
        build: makes it in an empty folder; returns its path, or what to write to a file there.
        sessions: whether ONNX Runtime may see it.
    """

    name: str
    reasons: tuple[str, ...]
    build: Builder
    sessions: bool

    def make(self, folder: Path) -> Path:
        """The file's path."""
        made = self.build(folder)
        if isinstance(made, Path):
            return made
        path = folder / "model.onnx"
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        return path


KINDS: dict[str, Kind] = {}


def kind(*reasons: str, sessions: bool = False) -> Callable[[Builder], Builder]:
    """Register a builder as a kind of the same name."""

    def register(build: Builder) -> Builder:
        name = build.__name__
        assert name not in KINDS
        KINDS[name] = Kind(name, reasons, build, sessions or not reasons)
        return build

    return register


def field(number: int, content: bytes) -> bytes:
    """A protobuf field of bytes, as it stands in a file."""
    length, head = len(content), bytearray([number << 3 | 2])
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    return bytes([*head, length]) + content
