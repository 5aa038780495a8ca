"""The suspect images: which files there are, read chunk by chunk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from scanner.clean_set import EXTENSIONS, decode_image
from scanner.errors import UsageError


@dataclass(frozen=True)
class SuspectFolder:
    """What lies in a suspect folder.

    Attributes:
        path: the folder.
        files: paths of the images relative to it, in alphabetical order, at any depth.
    """

    path: Path
    files: tuple[str, ...]

    def digest(self) -> str:
        """sha256 over the files' names, sizes and times of change: what a resumed run compares."""
        digest = hashlib.sha256()
        for file in self.files:
            facts = (self.path / file).stat()
            digest.update(os.fsencode(file) + b"\0%d\0%d\0" % (facts.st_size, facts.st_mtime_ns))
        return digest.hexdigest()


@dataclass(frozen=True)
class Chunk:
    """Consecutive suspect images, decoded.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1].
        files: the N names.
        corrupt: names of the files between them that could not be read.
        resized: how many had another size.
    """

    images: npt.NDArray[np.float32]
    files: tuple[str, ...]
    corrupt: tuple[str, ...]
    resized: int


def find_suspects(path: Path) -> SuspectFolder:
    """List the images below a folder; class folders play no role.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UsageError(f"suspect folder {path} {what}; expected a folder of images")
    try:
        found = [
            str(p.relative_to(path))
            for p in path.rglob("*")
            if p.suffix.lower() in EXTENSIONS
            and not any(part.startswith(".") for part in p.relative_to(path).parts)
            and p.is_file()
        ]
    except OSError as error:
        raise UsageError(f"suspect folder {path} can't be read: {error.strerror}") from error
    if not found:
        raise UsageError(f"suspect folder {path} holds no images; expected {_known()}")
    return SuspectFolder(path, tuple(sorted(found)))


def _known() -> str:
    return ", ".join(sorted(EXTENSIONS))


def read_chunk(folder: SuspectFolder, files: Sequence[str], shape: tuple[int, int, int]) -> Chunk:
    """Decode some of the folder's images as the model takes them.

    Args:
        shape: (C, H, W).
    """
    images, kept, corrupt, resized = [], [], [], 0
    for file in files:
        try:
            image, changed = decode_image(folder.path / file, *shape)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            corrupt.append(file)
            continue
        images.append(image)
        kept.append(file)
        resized += changed
    stacked = np.stack(images) if images else np.zeros((0, *shape), np.float32)
    return Chunk(stacked, tuple(kept), tuple(corrupt), resized)
