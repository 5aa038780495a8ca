"""What an interrupted run leaves: one file for each finished chunk, each whole or not at all.

A chunk is a run of consecutive images; its boundaries depend on the number of images and the batch
alone. So the second run computes exactly the chunks that are missing, in the same batches, and its
scores are those of an undisturbed run to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scanner.errors import UsageError
from scanner.store import write_whole


@dataclass(frozen=True)
class Part:
    """What is known of one chunk.

    Attributes:
        files: names of its N images.
        predicted: (N,) the model's classes.
        scores: by detector, (N,) float64.
        masks: by detector that has them, (N, H, W) float32.
        features: (N, D) float32 for the detectors that look at a whole class, or None.
        corrupt: names of the files that could not be read.
        resized: images that had another size.
        seconds: by detector.
    """

    files: tuple[str, ...]
    predicted: npt.NDArray[np.int64]
    scores: dict[str, npt.NDArray[np.float64]]
    masks: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    features: npt.NDArray[np.float32] | None = None
    corrupt: tuple[str, ...] = ()
    resized: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PartialRun:
    """A folder of finished chunks.

    Attributes:
        folder: it exists only while a run is under way or was interrupted.
    """

    folder: Path

    def open(self) -> None:
        """Make the folder.

        Raises:
            UsageError: it can't be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.folder} can't be written: {error.strerror}") from error

    def path(self, group: str, index: int) -> Path:
        """The file of a chunk; `group` is "clean" or "suspect"."""
        return self.folder / f"{group}-{index:06d}.npz"

    def load(self, group: str, index: int, masks: bool = True) -> Part | None:
        """A finished chunk; None if there is none, or none that can be read.

        Args:
            masks: False leaves the masks on disk.
        """
        try:
            with np.load(self.path(group, index), allow_pickle=False) as content:
                wanted = [n for n in content.files if masks or not n.startswith("mask/")]
                arrays = {name: content[name] for name in wanted}
            facts = json.loads(bytes(arrays["facts"]).decode("utf-8"))
            return Part(
                files=tuple(facts["files"]),
                predicted=arrays["predicted"],
                scores={name: arrays[f"score/{name}"] for name in facts["scores"]},
                masks={name: arrays[f"mask/{name}"] for name in facts["masks"] if masks},
                features=arrays.get("features"),
                corrupt=tuple(facts["corrupt"]),
                resized=facts["resized"],
                seconds=facts["seconds"],
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None  # not ours, or damaged: it is computed again

    def save(self, group: str, index: int, part: Part) -> None:
        """Keep a finished chunk.

        Raises:
            OSError: it could not be written.
        """
        facts = {
            "files": part.files,
            "scores": list(part.scores),
            "masks": list(part.masks),
            "corrupt": part.corrupt,
            "resized": part.resized,
            "seconds": part.seconds,
        }
        arrays: dict[str, Any] = {
            "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
            "predicted": part.predicted,
            **{f"score/{name}": values for name, values in part.scores.items()},
            **{f"mask/{name}": values for name, values in part.masks.items()},
        }
        if part.features is not None:
            arrays["features"] = part.features

        def write(path: Path) -> None:
            with path.open("wb") as file:
                np.savez(file, **arrays)

        write_whole(self.path(group, index), write)

    def remove(self) -> None:
        """The run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def run_key(facts: dict[str, Any]) -> str:
    """Sixteen hex digits of everything that the scores depend on."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
