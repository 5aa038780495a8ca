"""A vendor's bytes become a validated ModelProto, or are refused with the reason.

The file is untrusted. It is parsed without following its references; external data is read only
from plain files beside the model; what is declared must be what is held. Everything later (both
engines) works on the ModelProto that leaves this module, never on the vendor's path.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from converters.errors import ModelFormatError
from converters.external_data import inline_external_data
from converters.functions import check_functions
from converters.validation import Limits, check_raw_data, validate


@dataclass(frozen=True)
class ModelFile:
    """A validated model.

    Attributes:
        proto: the model, external data inlined.
        sha256: hex digest of the model file's bytes.
        path: where it was read from, or None.
        external_sha256: hex digest of each external data file, by file name.
    """

    proto: onnx.ModelProto
    sha256: str
    path: Path | None = None
    external_sha256: dict[str, str] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Version of the default operator set, 0 if the model imports none."""
        versions = [o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")]
        return max(versions, default=0)

    @property
    def producer(self) -> str:
        """Name and version of the exporter, as the file states them."""
        return f"{self.proto.producer_name} {self.proto.producer_version}".strip()


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
        raise ModelFormatError(f"{len(data)} bytes; the limit is {limits.file_bytes}")
    proto = _parse(data)
    validate(proto, limits)
    check_functions(proto, limits)
    external = inline_external_data(proto, path.parent if path else None, limits.file_bytes)
    check_raw_data(proto)
    return ModelFile(proto, hashlib.sha256(data).hexdigest(), path, external)


def _read_file(path: Path, limits: Limits) -> bytes:
    try:
        if path.is_dir():
            raise ModelFormatError(f"{path} is a folder, not an ONNX file")
        if path.exists() and not path.is_file():
            raise ModelFormatError(f"{path} is not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.file_bytes:
                raise ModelFormatError(f"{path} has {size} bytes; the limit is {limits.file_bytes}")
            return file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no such file: {path}") from error
    except OSError as error:
        raise ModelFormatError(f"{path} can't be read: {error.strerror}") from error


def _parse(data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelFormatError("not an ONNX file, or a truncated one") from error
    return model
