"""Each kind of hostile file is refused, or loaded and agreed on; quickly, in little memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from converters.errors import FORMAT_REASONS
from tests.converters.hostile import bombs, elsewhere, structure
from tests.converters.hostile.client import SECRET, Worker, secrets
from tests.converters.hostile.kinds import KINDS, Kind
from tests.converters.hostile.reads import OPENED, READ, Watch

MODULES = (bombs, elsewhere, structure)  # importing them fills KINDS

SECONDS, BYTES = 5.0, 10**9
_LIBRARIES = ("/usr/", "/lib", "/proc/", "/sys/", "/etc/")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    worker.ask({"path": str(folder / "absent.onnx")})  # imports are done
    yield worker
    worker.close()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_hostile_file(kind: Kind, worker: Worker, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = kind.make(folder)
    answer = worker.ask({"path": str(path)})
    if kind.reasons:
        assert answer["outcome"] == "refused", answer
        assert answer["reason"] in kind.reasons, answer
    else:
        assert answer["outcome"] == "loaded", answer
    assert len(answer["text"]) < 1000
    assert answer["seconds"] < SECONDS
    assert answer["memory"] < BYTES
    assert kind.sessions or not answer["sessions"], "ONNX Runtime saw it"
    inside = (str(folder), sys.prefix, sys.base_prefix, *_LIBRARIES)
    assert not [p for p in answer["opened"] if not p.startswith(inside)]


def test_every_reason_is_given_by_some_file_and_there_are_no_others() -> None:
    others = {"parity", "unsupported_model", "not_an_image_classifier"}
    given = {kind.reasons[0] for kind in KINDS.values() if kind.reasons}
    assert given - others == set(FORMAT_REASONS)
    assert {reason for kind in KINDS.values() for reason in kind.reasons} <= given | others


def test_there_are_many_kinds() -> None:
    assert len(KINDS) >= 100


_SECRETIVE = [k for k in KINDS.values() if k.build.__module__ == elsewhere.__name__]


@pytest.mark.parametrize("kind", _SECRETIVE, ids=lambda k: k.name)
def test_nobody_reads_the_secret(kind: Kind, worker: Worker, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = secrets(tmp_path / "secret")
    path = kind.make(folder)
    watch = Watch(secret, secret.parent)
    answer = worker.ask({"path": str(path)})
    events = watch.events()
    watch.close()
    assert not [e for e in events if e & READ]
    # A hard link is opened: only then can it be told from an ordinary file.
    assert kind.name == "hard_link" or not [e for e in events if e & OPENED]
    assert SECRET.decode("latin-1")[2:] not in str(answer)


def test_the_watch_sees_who_reads(tmp_path: Path) -> None:
    secret = secrets(tmp_path / "secret")
    watch = Watch(secret)
    secret.read_bytes()
    assert any(e & READ for e in watch.events())
    watch.close()
