"""How a child's report reaches its parent: JSON and plain numbers, each checked before it is used.

The child has read a vendor's bytes, so what it says may be anything. Nothing here can run code
(no pickle), take much memory, or make a value of another type than the report's own dataclasses.
Numbers that are not finite go over as they are: a report is the same from a child as from this
process.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import numbers
import os
import struct
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, Union

import numpy as np
import numpy.typing as npt

from scanner.results import Arrays, ModelReport, to_json
from scanner.schema import validate

MAX_MESSAGE = 96 * 2**20  # bytes; the report of a model of 1,000 classes may have 80 MB
MAX_VALUES = 2**20  # texts, lists and objects in it, each of which takes some 60 bytes of memory
MAX_ITEMS = 6 * 2**20  # of all lists and objects; a number takes 32 bytes of memory
MAX_NUMBERS = 2**23  # of one array
_MAX_PIXELS = 2**26  # of a trigger's picture, magnified
_LENGTH = struct.Struct("<I")
_TYPES = ("<f4", "<f8", "<i4", "<i8", "|u1", "|b1")
_DIMENSIONS = {"perturbation": 3, "pattern": 3, "image": 3, "mask": 2, "source_weights": 1}
_DIMENSIONS["trace"] = 2

T = TypeVar("T")
Value = npt.NDArray[Any]


class BadAnswerError(Exception):
    """What a child sent is no message, or no report; one line that says why."""


def pack(kind: str, content: Any) -> bytes:
    """A message: its length and `[kind, content]` as JSON, for `Unpacker`."""
    data = json.dumps([kind, encode(content)]).encode()
    return _LENGTH.pack(len(data)) + data


class Unpacker:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[str, Any]]:
        """Take more bytes; gives (kind, content) for each message that is now complete.

        Raises:
            BadAnswerError: a message that is too large, or not JSON.
        """
        self._held += data
        while len(self._held) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._held)
            if size > MAX_MESSAGE:
                raise BadAnswerError(f"a message of {size} bytes; the limit is {MAX_MESSAGE}")
            end = _LENGTH.size + size
            if len(self._held) < end:
                return
            try:
                with memoryview(self._held) as held:
                    text = str(held[_LENGTH.size : end], "ascii")
            except UnicodeDecodeError as error:
                raise BadAnswerError("a message that is no ASCII") from error
            del self._held[:end]
            yield _message(text)


def _message(text: str) -> tuple[str, Any]:
    if text.count("[") + text.count("{") + text.count('"') // 2 > MAX_VALUES:
        raise BadAnswerError(f"a message of more than {MAX_VALUES} values")
    if text.count(",") > MAX_ITEMS:
        raise BadAnswerError(f"a message of more than {MAX_ITEMS} items")
    try:
        kind, content = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadAnswerError(f"a message that is no JSON: {str(error)[:200]}") from error
    if not isinstance(kind, str):
        raise BadAnswerError("a message without a kind")
    return kind, content


def encode(value: Any) -> Any:
    """Dataclasses, mappings and sequences as dictionaries and lists; not finite stays as it is.

    Raises:
        TypeError: a value of another type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} can't be sent")


def decode(kind: Any, value: Any) -> Any:
    """The reverse of `encode` for a type such as `ModelReport` or `tuple[int, ...]`.

    Raises:
        TypeError: the value is of another type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_one_of(inner, value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value)
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        _expect(isinstance(value, list) and len(value) == len(inner), kind, value)
        return tuple(map(decode, inner, value))
    if origin in (tuple, list, Sequence):
        _expect(isinstance(value, list), kind, value)
        items = [decode(inner[0], item) for item in value]
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping):
        _expect(isinstance(value, dict), kind, value)
        return {_key(inner[0], key): decode(inner[1], item) for key, item in value.items()}
    if kind is float:
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), kind, value)
        return value
    if kind is int:
        _expect(isinstance(value, int) and not isinstance(value, bool), kind, value)
        return value
    if kind is None or kind is types.NoneType:
        _expect(value is None, kind, value)
        return None
    if kind is Path:
        _expect(isinstance(value, str), kind, value)
        return Path(value)
    _expect(kind in (str, bool) and isinstance(value, kind), kind, value)
    return value


def _expect(right: bool, kind: Any, value: Any) -> None:
    if not right:
        raise TypeError(f"{str(value)[:60]!r} is no {getattr(kind, '__name__', kind)}")


def _key(kind: Any, text: str) -> Any:
    try:
        return int(text) if kind is int else text
    except ValueError as error:
        raise TypeError(f"{text[:60]!r} is no number") from error


def _decode_one_of(kinds: Sequence[Any], value: Any) -> Any:
    for kind in kinds:
        try:
            return decode(kind, value)
        except TypeError:
            continue
    raise TypeError(f"{str(value)[:60]!r} is none of {kinds}")


def _decode_dataclass(kind: type[T], value: Any) -> T:
    hints = _hints(typing.cast(Any, kind))
    _expect(isinstance(value, dict) and set(value) <= set(hints), kind, value)
    return kind(**{name: decode(hints[name], item) for name, item in value.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, by name."""
    found = typing.get_type_hints(kind)
    return {f.name: found[f.name] for f in fields(kind)}


def write_report(report: ModelReport, file: BinaryIO) -> dict[str, Any]:
    """A report as the content of a message; its arrays' numbers go to a file, one after the other.

    Returns:
        {"report": ..., "arrays": {detector: {target class: {name: [type, shape, offset]}}}}.
    """
    index = {
        detector: {
            target: {name: _append(file, array) for name, array in _present(arrays)}
            for target, arrays in targets.items()
        }
        for detector, targets in report.arrays.items()
    }
    file.flush()
    return {"report": encode(replace(report, arrays={})), "arrays": encode(index)}


def _present(arrays: Arrays) -> Iterator[tuple[str, Value]]:
    every = ((f.name, getattr(arrays, f.name)) for f in fields(arrays))
    return ((name, array) for name, array in every if array is not None)


def _append(file: BinaryIO, array: Value) -> list[Any]:
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    offset = file.tell()
    file.write(plain.tobytes())
    return [plain.dtype.str, list(array.shape), offset]


def read_report(content: Any, file: BinaryIO) -> ModelReport:
    """The reverse of `write_report`; arrays are read where they are looked at.

    Raises:
        BadAnswerError: the content is no report, its JSON breaks the schema, or its arrays don't
            lie in the file or don't fit together.
    """
    from jsonschema import ValidationError

    try:
        report: ModelReport = decode(ModelReport, content["report"])
        index = decode(Mapping[str, Mapping[int, Mapping[str, tuple[str, tuple[int, ...], int]]]],
                       content["arrays"])  # fmt: skip
        validate(to_json(report))
    except (TypeError, KeyError, RecursionError) as error:
        raise BadAnswerError(f"no report: {str(error)[:200]}") from error
    except ValidationError as error:
        raise BadAnswerError(f"no valid report: {error.message[:200]}") from error
    arrays = {detector: _StoredArrays(file, targets) for detector, targets in index.items()}
    missing = {d.name for d in report.detectors} - set(arrays) if arrays else ()
    if missing:
        raise BadAnswerError(f"no arrays of {min(missing)[:60]}")
    return replace(report, arrays=arrays)


_Place = tuple[str, tuple[int, ...], int]


class _StoredArrays(Mapping[int, Arrays]):
    """One detector's arrays by target class; only what is asked for is held in memory."""

    def __init__(self, file: BinaryIO, index: Mapping[int, Mapping[str, _Place]]) -> None:
        self._file, self._index = file, index
        size = os.fstat(file.fileno()).st_size
        for places in index.values():
            _check_places(places, size)

    def __getitem__(self, target: int) -> Arrays:
        places = self._index[target]
        return Arrays(**{name: self._read(*place) for name, place in places.items()})

    def __iter__(self) -> Iterator[int]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def _read(self, kind: str, shape: tuple[int, ...], offset: int) -> Value:
        size = np.dtype(kind).itemsize * _product(shape)
        data = bytearray(os.pread(self._file.fileno(), size, offset))
        return np.frombuffer(data, kind).reshape(shape)


def _check_places(places: Mapping[str, _Place], size: int) -> None:
    """Whether one target class's arrays lie in the file, and have shapes that go together.

    Raises:
        BadAnswerError: they don't.
    """
    known = {field.name for field in fields(Arrays)}
    needed = {field.name for field in fields(Arrays) if field.default is dataclasses.MISSING}
    for name, (kind, shape, offset) in places.items():
        if name not in known or kind not in _TYPES:
            raise BadAnswerError(f"an array {name[:60]!r} of type {kind[:60]!r}")
        numbers_ = _product(shape) if len(shape) <= 4 and min(shape, default=1) >= 0 else -1
        if not 0 <= numbers_ <= MAX_NUMBERS or len(shape) != _DIMENSIONS.get(name, len(shape)):
            raise BadAnswerError(f"an array {name} of shape {str(shape)[:60]}")
        if not 0 <= offset <= size - numbers_ * np.dtype(kind).itemsize:
            raise BadAnswerError(f"an array {name} beyond the file's end")
    pictures = [shape for name, (_, shape, _) in places.items() if _DIMENSIONS.get(name) == 3]
    masks = [places["mask"][1]] if "mask" in places else []
    frames = {shape[1:] for shape in pictures} | set(masks)
    if len(frames) > 1 or any(shape[0] not in (1, 3) for shape in pictures):
        raise BadAnswerError(f"arrays of shapes {str([*pictures, *masks])[:120]}")
    for height, width in frames:
        if not min(height, width) or height * width * _magnified(height, width) > _MAX_PIXELS:
            raise BadAnswerError(f"an image of {height} x {width} pixels")
    if not needed <= set(places):
        raise BadAnswerError(f"arrays without {min(needed - set(places))}")


def _magnified(height: int, width: int) -> int:
    """How many times the pixels a picture of at least 256 pixels on the shorter side has."""
    factor: int = max(1, -(-256 // min(height, width)))
    return factor * factor


def _product(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
