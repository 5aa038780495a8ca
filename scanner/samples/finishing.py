"""The last pass over the chunks: HDF5, pictures and the simplified triggers of flagged images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from scanner.detectors.cognitive_distillation import simplified
from scanner.samples.partial import Part
from scanner.samples.results import SCHEMA_VERSION, DetectorThreshold, Sample
from scanner.samples.scoring import CLEAN, SUSPECT, Scores, Work
from scanner.samples.suspects import Chunk
from scanner.store import PICTURE_PIXELS

PARTNERS = 16  # clean images that a simplified trigger is tried on
MAX_PATTERN_BYTES = 4 * 2**30  # cognitive patterns beyond that are left out: image times mask
_ROWS = 64  # images of one HDF5 chunk

Images = npt.NDArray[np.float32]


class Trigger(NamedTuple):
    """A flagged image's simplified trigger (eq. 3).

    Attributes:
        row: of the image among the scored ones.
        image: (C, H, W), the trigger on a clean image.
        rate: share of the clean images tried that it carries to the flagged image's class; None
            where the model predicts that class for all of them.
    """

    row: int
    image: Images
    rate: float | None


@dataclass(frozen=True)
class Finisher:
    """What the last pass needs.

    Attributes:
        deciding: the detector whose masks make the simplified triggers.
        clean_predicted: (n,) the model's classes for the clean images.
        flagged: (N,) booleans, in the order of the scored images.
    """

    work: Work
    deciding: str | None
    clean_predicted: npt.NDArray[np.int64]
    flagged: npt.NDArray[np.bool_]

    def passes(self) -> Iterator[tuple[int, Part, Chunk]]:
        """(row of its first image, part with masks, images) of each suspect chunk with images."""
        row = 0
        for index, part in enumerate(self.work.parts(SUSPECT, masks=True)):
            if part.files:
                yield row, part, self.work.read(SUSPECT, index)
            row += len(part.files)

    def triggers(self, row: int, part: Part, chunk: Chunk) -> Iterator[Trigger]:
        """The simplified triggers of a chunk's flagged images."""
        masks = part.masks.get(self.deciding or "")
        if masks is None:
            return
        for i in np.flatnonzero(self.flagged[row : row + len(part.files)]):
            target = int(part.predicted[i])
            others = np.flatnonzero(self.clean_predicted != target)
            if not len(others):
                partner = self.work.clean.images[:1]
                yield Trigger(row + int(i), simplified(chunk.images[i], masks[i], partner)[0], None)
                continue
            some = others[:: -(-len(others) // PARTNERS)]
            stamped = simplified(chunk.images[i], masks[i], self.work.clean.images[some])
            carried = self.work.scorers.classifier.predictions(stamped) == target
            yield Trigger(row + int(i), stamped[0], float(carried.mean()))


def finish(
    finisher: Finisher, arrays: Path | None, pictures: Path | None, sha256: str
) -> tuple[dict[int, float | None], bool]:
    """Go over all chunks once more.

    Args:
        arrays: the HDF5 file to write, or None.
        pictures: the folder for pictures, or None.
        sha256: the model's.

    Returns:
        (the simplified trigger's rate of each flagged row, whether patterns were left out).

    Raises:
        OSError: something could not be written.
    """
    rates: dict[int, float | None] = {}
    file = h5py.File(arrays, "w") if arrays is not None else None
    left_out = False
    try:
        if file is not None:
            file.attrs.update({"schema_version": SCHEMA_VERSION, "model_sha256": sha256})
            left_out = _make_datasets(file, finisher)
        for row, part, chunk in finisher.passes():
            found = list(finisher.triggers(row, part, chunk))
            rates.update({one.row: one.rate for one in found})
            if file is not None:
                _write_rows(file, row, part, chunk.images, found, finisher.deciding)
            if pictures is not None:
                _write_pictures(pictures, row, part, chunk.images, found, finisher.deciding)
    finally:
        if file is not None:
            file.close()
    return rates, left_out


def _make_datasets(file: h5py.File, finisher: Finisher) -> bool:
    """Empty mask and pattern datasets; whether patterns are too many to be kept."""
    shape = finisher.work.scorers.classifier.image_shape
    count, flagged = len(finisher.flagged), int(finisher.flagged.sum())
    too_many = 4 * count * int(np.prod(shape)) > MAX_PATTERN_BYTES
    names = _with_masks(finisher)
    for name in names:
        group = file.create_group(f"samples/{name}")
        _empty(group, "mask", (count, *shape[1:]), "N, H, W", "share of the image kept, in [0, 1]")
        if not too_many:
            what = "image times mask, pixels in [0, 1], before preprocessing"
            _empty(group, "pattern", (count, *shape), "N, C, H, W", what)
        if name == finisher.deciding:
            what = "the simplified trigger (eq. 3) on a clean image, pixels in [0, 1]"
            _empty(group, "simplified", (flagged, *shape), "flagged, C, H, W", what)
            rows = np.flatnonzero(finisher.flagged).astype(np.int64)
            group.create_dataset("simplified_row", data=rows).attrs["units"] = "row of `file`"
    return too_many and bool(names)


def _with_masks(finisher: Finisher) -> list[str]:
    for part in finisher.work.parts(CLEAN, masks=True):
        return list(part.masks)
    return []


def _empty(group: h5py.Group, name: str, shape: tuple[int, ...], axes: str, units: str) -> None:
    if shape[0]:
        rows = (min(_ROWS, shape[0]), *shape[1:])
        data = group.create_dataset(name, shape, "f4", chunks=rows, compression="gzip")
    else:
        data = group.create_dataset(name, shape, "f4")
    data.attrs.update({"axes": axes, "units": units})


def _write_rows(
    file: h5py.File,
    row: int,
    part: Part,
    images: Images,
    triggers: Sequence[Trigger],
    deciding: str | None,
) -> None:
    rows = slice(row, row + len(part.files))
    for name, masks in part.masks.items():
        group = file[f"samples/{name}"]
        group["mask"][rows] = masks
        if "pattern" in group:
            group["pattern"][rows] = images * masks[:, None]
        if name == deciding and triggers:
            first = int(np.searchsorted(group["simplified_row"][:], triggers[0].row))
            stacked = np.stack([one.image for one in triggers])
            group["simplified"][first : first + len(triggers)] = stacked


def write_scores(
    path: Path,
    clean: Scores,
    suspects: Scores,
    samples: Sequence[Sample],
    thresholds: dict[str, DetectorThreshold],
) -> None:
    """Add files, scores and p-values to the HDF5 file, and the clean images' scores."""
    text = h5py.string_dtype()
    with h5py.File(path, "a") as file:
        names = [_utf8(name) for name in suspects.files]
        for detector, scores in suspects.by_detector.items():
            group = file.require_group(f"samples/{detector}")
            group.create_dataset("score", data=scores)
            group.create_dataset("file", data=names, dtype=text)
            if detector in thresholds:
                p = [
                    np.nan if s.p_values[detector] is None else s.p_values[detector]
                    for s in samples
                ]
                data: Any = np.array(p, dtype=np.float64)
                group.create_dataset("p_value", data=data)
            group.attrs["suspicious"] = (
                thresholds[detector].suspicious if detector in thresholds else "low"
            )
        for detector, scores in clean.by_detector.items():
            file.create_dataset(f"clean/{detector}/score", data=scores)


def _utf8(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _write_pictures(
    folder: Path,
    row: int,
    part: Part,
    images: Images,
    triggers: Sequence[Trigger],
    deciding: str | None,
) -> None:
    """`<image>.<detector>.mask.png` and `.pattern.png`; `.trigger.png` for flagged images."""
    of_row = {one.row: one.image for one in triggers}
    for i, name in enumerate(part.files):
        base = folder / name
        base.parent.mkdir(parents=True, exist_ok=True)
        for detector, masks in part.masks.items():
            _picture(masks[i][None]).save(_beside(base, detector, "mask"))
            _picture(images[i] * masks[i]).save(_beside(base, detector, "pattern"))
        if row + i in of_row and deciding is not None:
            _picture(of_row[row + i]).save(_beside(base, deciding, "trigger"))


def _beside(base: Path, detector: str, what: str) -> Path:
    return base.with_name(f"{base.name}.{detector}.{what}.png")


def _picture(pixels: npt.NDArray[np.float32]) -> Image.Image:
    """(C, H, W) in [0, 1], magnified."""
    values = np.rint(np.clip(np.nan_to_num(pixels), 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0))
    factor = max(1, -(-PICTURE_PIXELS // min(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)
