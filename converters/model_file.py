"""A vendor's bytes become a validated ModelProto, or are refused with the reason.

The file is untrusted. It is parsed without following its references; external data is read only
from plain files beside the model; what is declared must be what is held. Everything later (both
engines) works on the ModelProto that leaves this module, never on the vendor's path.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from converters.collector import collector_off
from converters.errors import ModelFormatError
from converters.external_data import inline_external_data
from converters.framing import SMALL_FILE, check_framing
from converters.functions import check_functions
from converters.held_tensors import all_tensors, check_data
from converters.validation import Limits, validate


@dataclass(frozen=True)
class ModelFile:
    """A validated model.

    Attributes:
        proto: the model, external data inlined.
        sha256: hex digest of the model file's bytes.
        path: where it was read from, or None.
        external_sha256: hex digest of each external data file, by file name.
        limits: what the file was held to.
    """

    proto: onnx.ModelProto
    sha256: str
    path: Path | None = None
    external_sha256: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    @property
    def opset(self) -> int:
        """Version of the default operator set, 0 if the model imports none."""
        versions = [o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")]
        return max(versions, default=0)

    @property
    def producer(self) -> str:
        """Name and version of the exporter, as the file states them."""
        return f"{self.proto.producer_name} {self.proto.producer_version}".strip()


@collector_off()
def read_model(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto, limits: Limits | None = None
) -> ModelFile:
    """Read and validate a model from a path, from bytes or from a ModelProto.

    Raises:
        FileNotFoundError: no such file.
        ModelFormatError: not ONNX, truncated, over a limit, or not what it declares.
        UnsupportedModelError: sparse weights, functions with the name of an operator.
    """
    limits = limits or Limits()
    path = None
    if isinstance(source, onnx.ModelProto):
        data = source.SerializeToString(deterministic=True)
    elif isinstance(source, bytes):
        data = source
    else:
        path = Path(source)
        data = _read_file(path, limits)
    if len(data) > limits.file_bytes:
        raise _too_large(f"{len(data)} bytes", limits)
    if path is None and len(data) > SMALL_FILE:
        check_framing(data)  # of a file it is done before it is read
    proto = _parse(data)
    # No part of inference, and so nothing that anyone may read.
    proto.ClearField("training_info")
    proto.graph.ClearField("quantization_annotation")
    validate(proto, limits)
    check_functions(proto, limits)
    external = inline_external_data(proto, path.parent if path else None, limits.file_bytes)
    for tensor in all_tensors(proto):
        check_data(tensor)
    return ModelFile(proto, hashlib.sha256(data).hexdigest(), path, external, limits)


def _read_file(path: Path, limits: Limits) -> bytes:
    try:
        # O_NONBLOCK: opening a named pipe must not wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                what = "a folder, not an ONNX" if stat.S_ISDIR(status.st_mode) else "not a regular"
                raise ModelFormatError(f"{path} is {what} file", "unreadable_file")
            if status.st_size > limits.file_bytes:
                raise _too_large(f"{path} has {status.st_size} bytes", limits)
            if status.st_size > SMALL_FILE:
                with mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ) as view:
                    check_framing(view)
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        problem = getattr(error, "strerror", None) or str(error)
        raise ModelFormatError(f"{path} can't be read: {problem}", "unreadable_file") from error


def _too_large(what: str, limits: Limits) -> ModelFormatError:
    return ModelFormatError(f"{what}; the limit is {limits.file_bytes}", "file_too_large")


def _parse(data: bytes) -> onnx.ModelProto:
    """The parsed bytes."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        check_framing(data)  # it may know better what is wrong
        raise ModelFormatError(
            "not an ONNX file, or a truncated one", "truncated_or_not_onnx"
        ) from error
    return model
