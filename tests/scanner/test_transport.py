"""Reports as messages: what goes in comes out, and nothing but a report comes out."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from scanner import transport
from scanner.results import Arrays, ModelInfo, ModelReport, Note, Tensor
from scanner.transport import BadAnswerError, Unpacker, decode, encode, pack

TRACE = np.arange(6, dtype=np.float64).reshape(3, 2)


def report(**arrays: Any) -> ModelReport:
    info = ModelInfo(path="m", inputs=(Tensor("x", "FLOAT", ("N", 3, 8, 8)),), class_count=2)
    found = {"l_red": {4: Arrays(TRACE, **arrays)}}
    return ModelReport(model=info, verdict="inconclusive", reasons=(Note("a", "b"),), arrays=found)


def sent(given: ModelReport, file: BinaryIO) -> Any:
    """What the parent reads of it."""
    ((kind, content),) = Unpacker().feed(pack("report", transport.write_report(given, file)))
    assert kind == "report"
    return content


def test_a_report_comes_out_as_it_went_in(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((8, 8), np.float32)
    with (tmp_path / "arrays").open("w+b") as file:
        content = sent(report(mask=mask.T), file)
        found = transport.read_report(content, file)
        assert dict(found.arrays["l_red"]).keys() == {4}
        np.testing.assert_array_equal(found.arrays["l_red"][4].mask, mask.T)
        np.testing.assert_array_equal(found.arrays["l_red"][4].trace, TRACE)
        assert found.arrays["l_red"].get(5) is None
        assert (found.model, found.reasons) == (report().model, report().reasons)


def test_numbers_that_are_not_finite_and_odd_texts_survive() -> None:
    values = [math.inf, -math.inf, 0.1, "\u2713\ud800\n", None, True, 7]
    messages = pack("a", [*values, math.nan]) + pack("b", np.float32(0.5))
    unpacker = Unpacker()
    found = [m for i in range(len(messages)) for m in unpacker.feed(messages[i : i + 1])]
    assert found[0][0] == "a"
    assert found[0][1][:-1] == values
    assert math.isnan(found[0][1][-1])
    assert found[1] == ("b", 0.5)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04K\x01.",
        b'["a"]',
        b"[1, 2]",
        b"{}",
        b'["a", ' + b"[" * 5000 + b"]" * 5000 + b"]",
        b'["a", [' + b"[]," * 1_100_000 + b"0]]",
        '["a", "\u2713"]'.encode(),
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(BadAnswerError):
        list(Unpacker().feed(struct.pack("<I", len(data)) + data))


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True),
        (int, 1.5),
        (float, "1"),
        (str, None),
        (tuple[int, ...], "12"),
        (tuple[int, str], [1]),
        (Note, {"code": "a", "message": "b", "more": 1}),
        (Note, {"code": "a"}),
        (int | None, "x"),
        (dict[int, str], {"x": "y"}),
        (bytes, "x"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(TypeError):
        decode(kind, value)


def test_only_plain_values_are_sent() -> None:
    with pytest.raises(TypeError):
        encode(object())


@pytest.mark.parametrize(
    "place",
    [
        ["<f4", [8, 8], 1 << 40],
        ["<f4", [8, 8], -4],
        ["<f4", [-8, -8], 0],
        ["<f4", [1 << 20, 1 << 20], 0],
        ["<f4", [1, 1 << 20], 0],
        ["<f4", [0, 8], 0],
        ["<f4", [8], 0],
        ["<f4", [9, 8], 0],
        ["|O", [8, 8], 0],
        ["<f4", [8, 8]],
    ],
)
def test_arrays_that_lie_elsewhere_or_do_not_fit(place: Any, tmp_path: Path) -> None:
    mask, pattern = np.zeros((8, 8), np.float32), np.zeros((3, 8, 8), np.float32)
    with (tmp_path / "arrays").open("w+b") as file:
        content = sent(report(mask=mask, pattern=pattern), file)
        file.truncate(10**7)
        transport.read_report(json.loads(json.dumps(content)), file)
        content["arrays"]["l_red"]["4"]["mask"] = place
        with pytest.raises(BadAnswerError):
            transport.read_report(content, file)


@pytest.mark.parametrize("change", ["unknown", "trace", "detectors"])
def test_arrays_that_are_not_a_reports(change: str, tmp_path: Path) -> None:
    with (tmp_path / "arrays").open("w+b") as file:
        content = sent(report(), file)
        places = content["arrays"]["l_red"]["4"]
        if change == "trace":
            del places["trace"]
        elif change == "unknown":
            places["__class__"] = places["trace"]
        else:
            content["report"]["detectors"] = [{"name": "other"}]
        with pytest.raises(BadAnswerError):
            transport.read_report(content, file)
