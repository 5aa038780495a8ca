"""ABL isolation: poisoned images are learned first, so their training losses are the lowest.

Y. Li, X. Lyu, N. Koren, L. Lyu, B. Li, X. Ma, "Anti-Backdoor Learning: Training Clean Models on
Poisoned Data", NeurIPS 2021. The score is each image's loss averaged over the first 20 epochs
(Table 5 of the Cognitive Distillation paper). The losses come from whoever trained the model.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scanner.errors import UsageError

Floats = npt.NDArray[np.float64]

EPOCHS = 20
"""The paper's number of epochs."""

_FORMATS = (
    "expected a .npz file with an array `losses`, a .npy file, or a .csv file of one image a row"
)


@dataclass(frozen=True)
class TrainingLosses:
    """What the training side wrote.

    Attributes:
        path: where.
        losses: (epochs, N) float64, one column for each training image.
        names: (N,) which image each column is (its number in the split, or its file name), or None:
            the order of the images in the folder.
    """

    path: Path
    losses: Floats
    names: tuple[str, ...] | None = None


def read_losses(path: Path) -> TrainingLosses:
    """Read training losses.

    A .npz file holds `losses`, (epochs, N) or (N,), and may hold `indices` (N,), each image's
    number (`fixtures.fleet` writes such files). A .npy file holds `losses` alone. A .csv file has
    one row for each image and one column for each epoch; a heading is allowed, and a column headed
    `file` or `index` says which image it is.

    Raises:
        UsageError: no such file, or it does not hold losses; the line says what was expected.
    """
    try:
        losses, names = _read_csv(path) if path.suffix.lower() == ".csv" else _read_numpy(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, csv.Error) as error:
        raise UsageError(f"losses {path} can't be read: {error}; {_FORMATS}") from error
    if losses.ndim not in (1, 2) or losses.size == 0 or np.isnan(losses).any():
        raise UsageError(f"losses {path}: shape {losses.shape}, or not numbers; {_FORMATS}")
    losses = np.atleast_2d(losses)
    if names is not None and len(names) != losses.shape[1]:
        raise UsageError(f"losses {path}: {len(names)} indices for {losses.shape[1]} images")
    return TrainingLosses(path, losses, names)


def isolation_scores(
    recorded: TrainingLosses, files: Sequence[str], epochs: int = EPOCHS
) -> Floats:
    """Each image's mean training loss over the first epochs. Small is suspicious.

    Args:
        recorded: of the training.
        files: (N,) the images' file names, in order. Where the losses say which image they belong
            to, an image is looked up by its name with or without folders and extension, a number
            by its value (`deer/00017.png` is image 17); otherwise by its place.
        epochs: how many at most.

    Returns:
        (N,) losses >= 0, in nats.

    Raises:
        UsageError: an image has no loss, or there are not as many losses as images.
    """
    means: Floats = recorded.losses[:epochs].mean(0)
    if recorded.names is None:
        if len(means) != len(files):
            raise UsageError(
                f"losses {recorded.path}: {len(means)} losses for {len(files)} images; "
                "give one for each image, or an array `indices` that says which image each is"
            )
        return means
    place = {_key(name): position for position, name in enumerate(recorded.names)}
    if len(place) < len(means):
        raise UsageError(f"losses {recorded.path}: two losses bear the name of the same image")
    found = [_look_up(place, file) for file in files]
    missing = [file for file, position in zip(files, found, strict=True) if position is None]
    if missing:
        raise UsageError(
            f"losses {recorded.path}: {len(means)} losses, none for {len(missing)} of "
            f"{len(files)} images, the first {missing[0]}"
        )
    return means[np.array(found, dtype=np.int64)]


def _key(name: str) -> str:
    return (name.lstrip("0") or "0") if name.isascii() and name.isdigit() else name


def _look_up(place: dict[str, int], file: str) -> int | None:
    path = Path(file)
    for name in (path.as_posix(), path.name, path.stem):
        if (position := place.get(_key(name))) is not None:
            return position
    return None


def _read_numpy(path: Path) -> tuple[Floats, tuple[str, ...] | None]:
    read = np.load(path, allow_pickle=False)
    if isinstance(read, np.ndarray):
        return read.astype(np.float64), None
    with read:
        names = None
        if "indices" in read.files:
            names = tuple(str(int(index)) for index in read["indices"])
        return read["losses"].astype(np.float64), names


def _read_csv(path: Path) -> tuple[Floats, tuple[str, ...] | None]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = [row for row in csv.reader(file) if row]
    if not table:
        raise ValueError("it is empty")
    heading = [cell.strip().lower() for cell in table[0]]
    named = next((i for i, cell in enumerate(heading) if cell in ("file", "index")), None)
    if named is not None or not _is_number(heading[0]):
        table = table[1:]
    if any(len(row) != len(heading) for row in table):
        raise ValueError("rows of different lengths")
    names = None if named is None else tuple(row[named].strip() for row in table)
    numbers = [[float(c) for i, c in enumerate(row) if i != named] for row in table]
    return np.array(numbers, dtype=np.float64).T, names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
