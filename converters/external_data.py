"""Weights in files beside the model: copied in, from plain files of its own folder only.

A path with folders in it, or a link, hard or symbolic, could make the scanner read a secret that
the vendor can't.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import onnx
from onnx import TensorProto

from converters.errors import ModelFormatError
from converters.validation import all_tensors, declared_bytes


def inline_external_data(
    model: onnx.ModelProto, folder: Path | None, file_bytes: int
) -> dict[str, str]:
    """Copy external tensors into the model, in place.

    Args:
        folder: where the model lies; None if it came without one.
        file_bytes: the largest size of a file.

    Returns:
        The sha256 of each file read, by name.

    Raises:
        ModelFormatError: a file that is missing or may not be read, or a tensor outside of it.
    """
    held: dict[str, bytes] = {}
    for tensor in all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        name = where.get("location", "")
        if name not in held:
            held[name] = _read(folder, name, file_bytes)
        tensor.raw_data = _slice(held[name], where, tensor)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    return {name: hashlib.sha256(data).hexdigest() for name, data in held.items()}


def _slice(data: bytes, where: dict[str, str], tensor: TensorProto) -> bytes:
    try:
        offset = int(where.get("offset", "0"))
        length = int(where.get("length", str(len(data) - offset)))
    except ValueError as error:
        raise ModelFormatError(f"tensor {tensor.name!r}: bad external offset or length") from error
    if offset < 0 or length < 0 or offset + length > len(data):
        raise ModelFormatError(f"tensor {tensor.name!r} reaches outside its external data file")
    declared = declared_bytes(tensor)
    if length != declared:
        raise ModelFormatError(
            f"tensor {tensor.name!r} declares {declared} bytes and points to {length}"
        )
    return data[offset : offset + length]


def _read(folder: Path | None, name: object, file_bytes: int) -> bytes:
    if folder is None:
        raise ModelFormatError(f"external data {name!r} needs the model's folder")
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
    if not plain or not isinstance(name, str):
        raise ModelFormatError(f"external data {name!r} is not a plain file name")
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its other end.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(folder / name, flags)
    except OSError as error:
        raise ModelFormatError(
            f"external data file {name!r} beside the model can't be opened: {error.strerror}"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise ModelFormatError(f"external data {name!r} is a link or no regular file")
        if status.st_size > file_bytes:
            raise ModelFormatError(f"external data {name!r} exceeds {file_bytes} bytes")
        return file.read()
