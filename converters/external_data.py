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
from converters.held_tensors import all_tensors, declared_bytes

_KEYS = {"location", "offset", "length", "checksum"}


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
    by_file: dict[str, list[tuple[TensorProto, dict[str, str]]]] = {}
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            where = _where(tensor)
            by_file.setdefault(where.get("location", ""), []).append((tensor, where))
        elif tensor.data_location != TensorProto.DEFAULT:
            raise ModelFormatError(f"tensor {tensor.name!r} lies nowhere", "external_data_entry")
    digests = {}
    for name, tensors in by_file.items():
        data = _read(folder, name, file_bytes)
        digests[name] = hashlib.sha256(data).hexdigest()
        # So a small file can't be copied into the memory over and over.
        if sum(declared_bytes(tensor) for tensor, _ in tensors) > len(data):
            raise ModelFormatError(
                f"tensors reach outside the external data file {name!r}, or overlap in it",
                "external_data_range",
            )
        for tensor, where in tensors:
            tensor.raw_data = _slice(data, where, tensor)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return digests


def _where(tensor: TensorProto) -> dict[str, str]:
    """The entries that say where a tensor's data is; its own data must be empty."""
    keys = [entry.key for entry in tensor.external_data]
    if len(set(keys)) != len(keys) or not _KEYS.issuperset(keys):
        raise ModelFormatError(
            f"tensor {tensor.name!r} has unknown or repeated external data entries",
            "external_data_entry",
        )
    if tensor.raw_data or any(len(getattr(tensor, f)) for f in ("float_data", "int32_data")):
        raise ModelFormatError(
            f"tensor {tensor.name!r} holds data and says that it is external", "external_data_entry"
        )
    return {entry.key: entry.value for entry in tensor.external_data}


def _slice(data: bytes, where: dict[str, str], tensor: TensorProto) -> bytes:
    try:
        offset = _number(where.get("offset", "0"))
        length = _number(where.get("length", str(len(data) - offset)))
    except ValueError as error:
        raise ModelFormatError(
            f"tensor {tensor.name!r}: bad external offset or length", "external_data_range"
        ) from error
    if offset < 0 or length < 0 or offset + length > len(data):
        raise ModelFormatError(
            f"tensor {tensor.name!r} reaches outside its external data file", "external_data_range"
        )
    declared = declared_bytes(tensor)
    if length != declared:
        raise ModelFormatError(
            f"tensor {tensor.name!r} declares {declared} bytes and points to {length}",
            "declared_size_mismatch",
        )
    return data[offset : offset + length]


def _number(text: str) -> int:
    """A decimal number; `int` would take other writings too, which parsers disagree about.

    Raises:
        ValueError: anything else.
    """
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 20:
        raise ValueError(text)
    return int(text)


def _read(folder: Path | None, name: object, file_bytes: int) -> bytes:
    plain = isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
    if not plain or not isinstance(name, str):
        raise ModelFormatError(
            f"external data {name!r} is not a plain file name", "external_data_path"
        )
    if folder is None:
        raise ModelFormatError(
            f"external data {name!r} needs the model's folder", "external_data_missing"
        )
    path = folder / name
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its other end.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: text that is no file name here
        problem = getattr(error, "strerror", None) or "no file name"
        raise ModelFormatError(
            f"external data file {name!r} beside the model can't be opened: {problem}",
            "external_data_link" if os.path.islink(path) else "external_data_missing",
        ) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise ModelFormatError(
                f"external data {name!r} is a link or no regular file", "external_data_link"
            )
        if status.st_size > file_bytes:
            raise ModelFormatError(
                f"external data {name!r} exceeds {file_bytes} bytes", "file_too_large"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)
