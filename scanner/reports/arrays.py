"""The arrays that a stored result has in HDF5, read so that the file can do no harm.

The bytes are read once, compared with the digest in the result, and opened from memory; links to
other files and arrays kept in them are not followed, and sizes are bounded before anything is read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np
import numpy.typing as npt

from scanner.reports.stored import StoredResult, UnreadableResultError

MAX_NUMBERS = 1 << 24  # of one array; three channels of 2,048 x 2,048 pixels have fewer

Floats = npt.NDArray[np.float32]


class StoredArrays:
    """A result's arrays by path, such as `l_red/target_3/perturbation`."""

    def __init__(self, file: h5py.File | None) -> None:
        self._file = file

    def floats(self, *path: str, rank: int) -> Floats | None:
        """An array of finite floats with `rank` axes; None where there is none such."""
        data = self._dataset(path)
        if data is None or data.ndim != rank or data.dtype.kind != "f":
            return None
        return self._read(data, ())

    def texts(self, *path: str) -> list[str] | None:
        """A list of texts; None where there is none."""
        data = self._dataset(path)
        if data is None or data.ndim != 1 or h5py.check_string_dtype(data.dtype) is None:
            return None
        return [
            text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            for text in data[()]
        ]

    def integers(self, *path: str) -> list[int]:
        """A list of integers; empty where there is none."""
        data = self._dataset(path)
        if data is None or data.ndim != 1 or data.dtype.kind not in "iu":
            return []
        return [int(value) for value in data[()]]

    def item(self, *path: str, index: int, rank: int) -> Floats | None:
        """One item, with `rank` axes, along the first axis of an array of floats."""
        data = self._dataset(path, bounded=False)
        if data is None or data.ndim != rank + 1 or data.dtype.kind != "f":
            return None
        if not 0 <= index < len(data) or data.size > MAX_NUMBERS * len(data):
            return None
        return self._read(data, index)

    @staticmethod
    def _read(data: h5py.Dataset, index: int | tuple[()]) -> Floats | None:
        try:
            values: Floats = np.asarray(data[index], dtype=np.float32)
        except (OSError, ValueError, RuntimeError):  # no picture, but a report
            return None
        return values if np.isfinite(values).all() else None

    def _dataset(self, path: tuple[str, ...], bounded: bool = True) -> h5py.Dataset | None:
        node = self._file
        for part in path:
            if not isinstance(node, h5py.Group):
                return None
            link = node.get(part, getlink=True) if part in node else None
            if not isinstance(link, h5py.HardLink):
                return None
            node = node[part]
        if not isinstance(node, h5py.Dataset) or node.external or node.is_virtual or not node.size:
            return None
        return None if bounded and node.size > MAX_NUMBERS else node


@contextmanager
def open_arrays(result: StoredResult) -> Iterator[tuple[StoredArrays, str | None]]:
    """A result's arrays, and why there are none (None where there are).

    No arrays is no error: a report without pictures is still a report.
    """
    file, missing = _open(result)
    try:
        yield StoredArrays(file), missing
    finally:
        if file is not None:
            file.close()


def _open(result: StoredResult) -> tuple[h5py.File | None, str | None]:
    try:
        content = result.beside("h5")
        if content is None:
            return None, "the result has no arrays"
        return h5py.File(io.BytesIO(content), "r"), None
    except UnreadableResultError as error:
        return None, str(error)
    except (OSError, ValueError, RuntimeError) as error:  # h5py raises all of them
        return None, f"the arrays can't be read: {error}"
