"""Result files: JSON, HDF5 and the suspect trigger as a picture; each whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from scanner.errors import UsageError
from scanner.results import SCHEMA_VERSION, Arrays, ModelReport, plain, to_json

PICTURE_PIXELS = 256  # the shorter side of a trigger's picture is at least this


def prepare_folder(path: Path) -> None:
    """Make a folder and prove that files can be written there.

    Raises:
        UsageError: they can't.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".bdscan-"):
            pass
    except OSError as error:
        raise UsageError(f"out-dir {path} can't be written: {error.strerror}") from error


def base_name(report: ModelReport) -> str:
    """`<stem>-<12 digits of the model's sha256>-<8 of path, configuration and clean set>`."""
    stem = re.sub(r"[^\w.-]+", "_", Path(report.model.path).stem, flags=re.ASCII)[:100] or "model"
    of_path = hashlib.sha256(os.fsencode(report.model.path)).hexdigest()
    clean = report.clean_set
    labels = [clean.digest, clean.label_rule] if clean else []
    values = _values(report.configuration)
    if clean:
        values.pop("clean_dir", None)  # its digest says more; without one it tells two rows apart
    # The path counts too: the same bytes in two folders may have two sidecars.
    text = json.dumps(
        [of_path, values, report.seed, labels, plain(report.preprocessing)],
        sort_keys=True,
    )
    setting = hashlib.sha256(text.encode()).hexdigest()
    return f"{stem}-{(report.model.sha256 or of_path)[:12]}-{setting[:8]}"


def _values(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A report's configuration without the origins: a flag and a file may say the same."""
    return {
        name: part["value"] if "value" in part else _values(part)
        for name, part in configuration.items()
    }


def save(report: ModelReport, folder: Path) -> ModelReport:
    """Write a report's files; returns the report with their names and digests.

    Raises:
        OSError: a file could not be written; none is left half-written.
    """
    name = base_name(report)
    files: dict[str, Any] = {}
    if report.arrays:
        digest = write_whole(folder / f"{name}.h5", lambda path: _write_arrays(report, path))
        files["h5"] = {"name": f"{name}.h5", "sha256": digest}
        suspect = _suspect(report)
        if suspect is not None:
            picture = magnified(suspect)
            digest = write_whole(folder / f"{name}.png", lambda path: picture.save(path, "PNG"))
            files["png"] = {"name": f"{name}.png", "sha256": digest}
    files["json"] = {"name": f"{name}.json"}
    report = replace(report, files=files)
    text = json.dumps(to_json(report), allow_nan=False, indent=1, sort_keys=True)
    write_whole(
        folder / f"{name}.json", lambda path: path.write_text(text + "\n", encoding="utf-8")
    )
    return report


def write_whole(path: Path, writer: Callable[[Path], object]) -> str:
    """Write to a temporary name, then rename; returns the file's sha256."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".bdscan-", suffix=path.suffix)
    os.close(handle)
    try:
        writer(Path(temporary))
        digest = hashlib.sha256(Path(temporary).read_bytes()).hexdigest()
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, must leave nothing behind
        Path(temporary).unlink(missing_ok=True)
        raise
    return digest


def _write_arrays(report: ModelReport, path: Path) -> None:
    """`/<detector>/target_<k>/<array>` for each of a detector's arrays, float32, gzip."""
    with h5py.File(path, "w") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["model_sha256"] = report.model.sha256 or ""
        for detector, targets in report.arrays.items():
            for target, arrays in targets.items():
                group = file.create_group(f"{detector}/target_{target}")
                for field in fields(arrays):
                    values = getattr(arrays, field.name)
                    if values is not None:
                        _dataset(group, field.name, values, _ATTRIBUTES[field.name])


_ATTRIBUTES = {
    "perturbation": {"axes": "C, H, W", "units": "added to pixels in [0, 1], before preprocessing"},
    "mask": {"axes": "H, W", "units": "share of the pattern, in [0, 1]"},
    "pattern": {"axes": "C, H, W", "units": "pixels in [0, 1], before preprocessing"},
    "image": {"axes": "C, H, W", "units": "pixels in [0, 1], before preprocessing"},
    "source_weights": {"axes": "K", "units": "class weights, sum 1"},
    "trace": {
        "axes": "gradient evaluation, (size, Q); maximum_margin: (largest, smallest margin)",
        "units": "norm and share in [0, 1]; logits",
    },
}


def _dataset(
    group: h5py.Group, name: str, values: npt.NDArray[Any], attributes: Mapping[str, str]
) -> None:
    data = group.create_dataset(name, data=values.astype(np.float32), compression="gzip")
    data.attrs.update(attributes)


def _suspect(report: ModelReport) -> npt.NDArray[np.float32] | None:
    """How the accused class's trigger changes a gray image; else the most suspicious one's."""
    best: npt.NDArray[np.float32] | None = None
    for detector in report.detectors:
        tried, tested = detector.corroboration, detector.statistics
        arrays = report.arrays[detector.name].get(tested.suspect) if tested else None
        change = _change(arrays) if arrays else None
        if change is not None and (best is None or (tried is not None and tried.corroborated)):
            best = change
            if tried is not None and tried.corroborated:
                break
    return best


def _change(arrays: Arrays) -> npt.NDArray[np.float32] | None:
    """(C, H, W): what a trigger adds to mid-gray pixels; None for a detector without triggers."""
    if arrays.perturbation is not None:
        return arrays.perturbation
    if arrays.mask is not None and arrays.pattern is not None:
        change: npt.NDArray[np.float32] = arrays.mask * (arrays.pattern - np.float32(0.5))
        return change
    return None


def magnified(perturbation: npt.NDArray[np.float32]) -> Image.Image:
    """A (C, H, W) perturbation as a picture: 0 is mid-gray, the largest change black or white."""
    largest = float(np.abs(perturbation).max()) or 1.0
    pixels = np.rint(127.5 + 127.5 * perturbation / largest).astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    factor = max(1, -(-PICTURE_PIXELS // min(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)
