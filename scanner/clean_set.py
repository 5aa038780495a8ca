"""The clean images: which files there are, which class each belongs to, and what was dropped."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from scanner.errors import CleanSetMismatchError, UsageError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"})
EXPECTED_TREE = "expected DIR/<class>/<image>.png, or DIR/<image>.png without classes"
MAX_PIXELS = 50_000_000  # of one image; a small file can claim many more
_SYNSET = re.compile(r"n\d{8}(\D.*)?$")


@dataclass(frozen=True)
class CleanFolder:
    """What lies in a clean set's folder, before any model is known.

    Attributes:
        path: the folder.
        classes: names of the class folders in alphabetical order; empty for a flat folder.
        files: paths of the images, relative to `path`, in alphabetical order within each class.
        class_of: index into `classes` for each file; empty for a flat folder.
    """

    path: Path
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    class_of: tuple[int, ...]


@dataclass(frozen=True)
class CleanSet:
    """Decoded clean images for one model.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1], RGB or gray.
        labels: (N,) class indices; -1 for every image of a flat folder.
        files: the N file names, relative to the folder.
        corrupt: files that could not be read.
        resized: how many images had another size.
        label_rule: how folders were mapped to classes, in words.
        digest: sha256 over names and bytes of all files.
    """

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    files: tuple[str, ...]
    corrupt: tuple[str, ...]
    resized: int
    label_rule: str
    digest: str = ""

    @property
    def labelled(self) -> bool:
        """Whether the images came in class folders."""
        return bool((self.labels >= 0).all())


def find_clean_images(path: Path) -> CleanFolder:
    """List the images below a folder.

    Raises:
        UsageError: no such folder, or no image in it; the line shows the tree expected.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UsageError(f"clean set {path} {what}; {EXPECTED_TREE}")
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files, class_of = [], []
    for index, folder in enumerate(folders):
        images = _images_in(folder, recursive=True)
        files += images
        class_of += [index] * len(images)
    if not files:
        folders, files = [], _images_in(path, recursive=False)
    if not files:
        raise UsageError(f"clean set {path} holds no images; {EXPECTED_TREE}")
    return CleanFolder(
        path=path,
        classes=tuple(folder.name for folder in folders),
        files=tuple(file.relative_to(path) for file in files),
        class_of=tuple(class_of),
    )


def _images_in(folder: Path, recursive: bool) -> list[Path]:
    entries = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        p
        for p in entries
        if p.suffix.lower() in EXTENSIONS
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


def map_classes(
    folders: tuple[str, ...],
    class_count: int,
    labels_file: str | None = None,
    class_names: tuple[str, ...] = (),
) -> tuple[dict[str, int], str]:
    """Which class index each folder stands for, and by which rule.

    In this order: the labels file; all folders integers: the integer; all synsets: their sorted
    order; the class names in the model's metadata; else sorted by name.

    Raises:
        UsageError: the labels file can't be read.
        CleanSetMismatchError: the folders don't fit a model of `class_count` classes.
    """
    if labels_file is not None:
        names = read_labels(labels_file)
        return _by_name(folders, names, class_count, f"labels file {labels_file}")
    if all(name.isascii() and name.isdigit() for name in folders):
        return _by_integer(folders, class_count)
    synsets = all(map(_SYNSET.match, folders))
    if not synsets and class_names and set(folders) <= set(class_names):
        return _by_name(folders, class_names, class_count, "class names in the model's metadata")
    rule = "synsets, sorted" if synsets else "folder names, sorted"
    if len(folders) != class_count:
        raise CleanSetMismatchError(
            f"{len(folders)} class folders for a model of {class_count} classes: which folder is "
            "which class is unknown; give --labels FILE with one class name per line"
        )
    return {name: index for index, name in enumerate(sorted(folders))}, rule


def read_labels(path: str) -> tuple[str, ...]:
    """Class names from a file with one name per line; the line's index is the class.

    Raises:
        UsageError: the file can't be read as text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"labels file {path} can't be read: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return tuple(line.strip() for line in lines)


def _by_name(
    folders: tuple[str, ...], names: tuple[str, ...], class_count: int, rule: str
) -> tuple[dict[str, int], str]:
    index = {name: i for i, name in enumerate(names)}
    unknown = [folder for folder in folders if folder not in index]
    if unknown:
        raise CleanSetMismatchError(f"{rule}: class folder {unknown[0]!r} is not among its names")
    mapping = {folder: index[folder] for folder in folders}
    _check_range(mapping, class_count)
    return mapping, rule


def _by_integer(folders: tuple[str, ...], class_count: int) -> tuple[dict[str, int], str]:
    mapping = {folder: int(folder) for folder in folders}
    if sorted(mapping.values()) == list(range(1, class_count + 1)):
        raise CleanSetMismatchError(
            f"class folders are numbered 1 to {class_count}: whether folder 1 is class 0 or class "
            "1 is unknown; give --labels FILE with one folder name per line"
        )
    if len(set(mapping.values())) < len(mapping):
        raise CleanSetMismatchError("two class folders are the same number")
    _check_range(mapping, class_count)
    return mapping, "folder names are class numbers"


def _check_range(mapping: dict[str, int], class_count: int) -> None:
    for folder, index in mapping.items():
        if index >= class_count:
            raise CleanSetMismatchError(
                f"class folder {folder!r} is class {index}, but the model has classes 0 to "
                f"{class_count - 1}"
            )


@dataclass
class CleanSetLoader:
    """Decodes a clean folder once for each image shape that models ask for."""

    folder: CleanFolder
    _decoded: dict[tuple[int, int, int], _Decoded] = field(default_factory=dict)

    def load(
        self,
        channels: int,
        height: int,
        width: int,
        class_count: int,
        labels_file: str | None = None,
        class_names: tuple[str, ...] = (),
    ) -> CleanSet:
        """The clean set as a model of that input and class count sees it.

        Raises:
            UsageError: not one image could be read.
            CleanSetMismatchError: see `map_classes`.
        """
        folder = self.folder
        mapping: dict[str, int] = {}
        rule = "flat folder: the model's own predictions serve as labels"
        if folder.classes:
            mapping, rule = map_classes(folder.classes, class_count, labels_file, class_names)
        shape = (channels, height, width)
        if shape not in self._decoded:
            self._decoded[shape] = _decode_all(folder, *shape)
        decoded = self._decoded[shape]
        labels = [
            mapping[folder.classes[folder.class_of[i]]] if mapping else -1 for i in decoded.kept
        ]
        return CleanSet(
            images=decoded.images,
            labels=np.array(labels, dtype=np.int64),
            files=tuple(str(folder.files[i]) for i in decoded.kept),
            corrupt=decoded.corrupt,
            resized=decoded.resized,
            label_rule=rule,
            digest=decoded.digest,
        )

    def common_size(self) -> tuple[int, int]:
        """(height, width) of the first image that can be read, for models that leave it free."""
        for file in self.folder.files:
            try:
                with Image.open(self.folder.path / file) as image:
                    return image.height, image.width
            except (OSError, ValueError, Image.DecompressionBombError):
                continue
        raise UsageError(f"clean set {self.folder.path}: not one image could be read")


@dataclass(frozen=True)
class _Decoded:
    images: npt.NDArray[np.float32]
    kept: tuple[int, ...]
    corrupt: tuple[str, ...]
    resized: int
    digest: str


def _decode_all(folder: CleanFolder, channels: int, height: int, width: int) -> _Decoded:
    images, kept, corrupt, resized = [], [], [], 0
    digest = hashlib.sha256()
    for index, file in enumerate(folder.files):
        try:
            digest.update(os.fsencode(file) + b"\0")
            digest.update((folder.path / file).read_bytes())
            image, changed = decode_image(folder.path / file, channels, height, width)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            corrupt.append(str(file))
            continue
        images.append(image)
        kept.append(index)
        resized += changed
    if not images:
        raise UsageError(f"clean set {folder.path}: not one of {len(corrupt)} images can be read")
    return _Decoded(np.stack(images), tuple(kept), tuple(corrupt), resized, digest.hexdigest())


def decode_image(
    path: Path, channels: int, height: int, width: int
) -> tuple[npt.NDArray[np.float32], bool]:
    """Read one image as (C, H, W) float32 in [0, 1].

    An image of another size is scaled until it covers the frame, then its middle is taken.

    Returns:
        (image, whether its size was changed).

    Raises:
        OSError, ValueError: the file is no image that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{path} has more than {MAX_PIXELS} pixels")
            opened.load()
            image = _eight_bit(opened).convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image") from error
    changed = image.size != (width, height)
    if changed:
        scale = max(width / image.width, height / image.height)
        shown = width / scale, height / scale  # the middle that fills the frame, in image pixels
        left, top = (image.width - shown[0]) / 2, (image.height - shown[1]) / 2
        box = (left, top, left + shown[0], top + shown[1])
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return pixels.reshape(height, width, channels).transpose(2, 0, 1), changed


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit gray images scaled to 8 bits; Pillow's own conversion would clip them."""
    if image.mode.startswith("I;16") or image.mode == "I":
        pixels = np.asarray(image, dtype=np.float64) / 257.0
        return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))
    return image
