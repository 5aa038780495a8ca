"""A look at a file's protobuf framing before it is parsed.

Parsed messages take far more memory than their bytes: 2 bytes of file become an empty node of
about 150 bytes. So what a large file would grow to is counted first, without keeping anything.
"""

from __future__ import annotations

import functools
import mmap
from typing import Any

import onnx

from converters.errors import ModelFormatError

Bytes = bytes | mmap.mmap
"""Bytes, or a file of which only what is looked at is read."""

SMALL_FILE = 2**21
"""Bytes below which a file can't grow to anything that matters."""

_MAX_MESSAGES = 2_000_000  # a file of 100,000 nodes has about 600,000
_MAX_FIELDS = 5_000_000
_MAX_NESTING = 90  # the parser itself ends at 100
_VARINT, _FIXED64, _TEXT, _FIXED32 = 0, 1, 2, 5


def check_framing(data: Bytes) -> None:
    """Refuse bytes that are no protobuf messages, or too many or too deeply nested ones.

    Raises:
        ModelFormatError: saying which.
    """
    try:
        _count(data)
    except IndexError as error:
        raise _broken() from error


def _count(data: Bytes) -> None:
    # Each entry: where a message ends, and what its fields are.
    open_messages = [(len(data), _fields(onnx.ModelProto.DESCRIPTOR))]
    at = messages = fields_seen = 0
    while open_messages:
        end, fields = open_messages[-1]
        if at >= end:
            if at > end:
                raise _broken()
            open_messages.pop()
            continue
        tag, at = _varint(data, at)
        fields_seen += 1
        if fields_seen > _MAX_FIELDS:
            raise _too_many(_MAX_FIELDS)
        kind = tag & 7 if tag > 7 else -1  # there is no field 0
        if kind == _TEXT:
            length, at = _varint(data, at)
            if at + length > end:
                raise _broken()
            inner = fields.get(tag >> 3)
            if inner is None:
                at += length
                continue
            messages += 1
            if messages > _MAX_MESSAGES:
                raise _too_many(_MAX_MESSAGES)
            open_messages.append((at + length, _fields(inner)))
            if len(open_messages) > _MAX_NESTING:
                raise ModelFormatError(f"nested more than {_MAX_NESTING} deep", "too_deep")
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise _broken()


def _varint(data: Bytes, at: int) -> tuple[int, int]:
    """A number of up to 10 bytes, and where the next one begins."""
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
    raise _broken()


@functools.cache
def _fields(descriptor: Any) -> dict[int, Any]:
    """The fields of a message that are messages themselves, by number."""
    return {f.number: f.message_type for f in descriptor.fields if f.message_type is not None}


def _too_many(limit: int) -> ModelFormatError:
    return ModelFormatError(f"more than {limit} parts; no exporter writes that", "too_many_nodes")


def _broken() -> ModelFormatError:
    return ModelFormatError("not an ONNX file, or a truncated one", "truncated_or_not_onnx")
