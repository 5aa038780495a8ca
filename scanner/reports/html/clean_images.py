"""Clean images to stamp triggers on, if the user names folders of them.

The folder that a result names is never opened: only `--clean-dir` is, and its images are used for
those results that were made with them, by the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from scanner.clean_set import CleanFolder, decode_image, find_clean_images, map_classes
from scanner.errors import CleanSetMismatchError

Floats = npt.NDArray[np.float32]
SHOWN_IMAGES = 3


@dataclass
class CleanImages:
    """A folder of clean images, decoded as they are asked for.

    Attributes:
        folder: what lies in it.
        digest: as in a report's `clean_set`.
    """

    folder: CleanFolder
    digest: str
    _decoded: dict[tuple[int, ...], Floats | None] = field(default_factory=dict)

    def choose(
        self, report: Mapping[str, Any], searched: Mapping[str, Any], shape: tuple[int, ...]
    ) -> list[tuple[str, Floats]]:
        """Up to three images of a target class's heaviest source classes.

        Args:
            report: a REPORT.
            searched: the target class's entry in it.
            shape: (C, H, W) that the images are wanted in.

        Returns:
            (name of the class folder, (C, H, W) image in [0, 1]) for each.
        """
        chosen: list[tuple[str, Floats]] = []
        for folder in self._by_weight(report, searched):
            image = self._first_of(folder, shape)
            if image is not None:
                chosen.append((self._name(folder), image))
            if len(chosen) == SHOWN_IMAGES:
                break
        return chosen

    def _name(self, folder: int) -> str:
        return self.folder.classes[folder] if self.folder.classes else ""

    def _by_weight(self, report: Mapping[str, Any], searched: Mapping[str, Any]) -> list[int]:
        """Class folders, those first whose images weigh most; the target's own left out."""
        names, count = self.folder.classes, report["model"]["class_count"]
        if not names:
            return [0]
        try:
            mapping, rule = map_classes(names, count or 0)
        except CleanSetMismatchError:
            mapping, rule = {}, ""
        if rule != (report["clean_set"] or {}).get("label_rule"):
            return list(range(len(names)))  # which folder is which class is not known here
        weights = searched["source_weights"]
        order = sorted(
            (-weights[k] if k < len(weights) else 0.0, position)
            for position, name in enumerate(names)
            if (k := mapping[name]) != searched["target_class"]
        )
        return [position for _, position in order]

    def _first_of(self, folder: int, shape: tuple[int, ...]) -> Floats | None:
        """The first image of a class folder that can be read, None if none can."""
        key = (folder, *shape)
        if key not in self._decoded:
            of_folder = (
                file
                for index, file in enumerate(self.folder.files)
                if not self.folder.classes or self.folder.class_of[index] == folder
            )
            tries = (self._decode(file, shape) for file in of_folder)
            self._decoded[key] = next((image for image in tries if image is not None), None)
        return self._decoded[key]

    def _decode(self, file: Path, shape: tuple[int, ...]) -> Floats | None:
        channels, height, width = shape
        try:
            return decode_image(self.folder.path / file, channels, height, width)[0]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None


def open_clean_images(folder: Path) -> CleanImages:
    """The images below a folder.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    found = find_clean_images(folder)
    digest = hashlib.sha256()
    for file in found.files:
        digest.update(os.fsencode(file) + b"\0")
        with contextlib.suppress(OSError):
            digest.update((folder / file).read_bytes())
    return CleanImages(found, digest.hexdigest())


def clean_images_of(report: Mapping[str, Any], sets: Sequence[CleanImages]) -> CleanImages | None:
    """The set that a model was scanned with, None if it is not among them."""
    scanned = (report["clean_set"] or {}).get("digest")
    return next((clean for clean in sets if clean.digest == scanned), None)
