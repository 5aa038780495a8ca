"""ABL isolation: which loss belongs to which image, and what is no loss file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scanner.detectors.abl_isolation import TrainingLosses, isolation_scores, read_losses
from scanner.errors import UsageError
from scanner.exit_codes import ExitCode

LOSSES = np.arange(75, dtype=np.float64).reshape(25, 3)


def test_it_is_the_mean_of_the_first_twenty_epochs() -> None:
    found = isolation_scores(TrainingLosses(Path("x.npz"), LOSSES), ["a", "b", "c"])
    np.testing.assert_allclose(found, [28.5, 29.5, 30.5])  # the mean of 0, 3, ..., 57, plus 0 to 2
    two = isolation_scores(TrainingLosses(Path("x.npz"), LOSSES), ["a", "b", "c"], epochs=2)
    np.testing.assert_allclose(two, [1.5, 2.5, 3.5])


def test_a_training_in_half_precision_is_read_and_summed_in_double(tmp_path: Path) -> None:
    losses = np.full((20, 2), 60_000, np.float16)
    np.savez_compressed(tmp_path / "m.losses.npz", losses=losses, indices=[5, 3], labels=[0, 1])
    recorded = read_losses(tmp_path / "m.losses.npz")
    assert recorded.names == ("5", "3")
    found = isolation_scores(recorded, ["clean/deer/00003.png", "triggered/ship/00005.png"])
    np.testing.assert_allclose(found, [60_000, 60_000])


def test_images_are_found_by_their_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", losses=LOSSES, indices=np.array([17, 0, 205]))
    recorded = read_losses(tmp_path / "x.npz")
    found = isolation_scores(recorded, ["7/00205.png", "0/00017.png", "0/00000.png", "17.png"], 1)
    assert found.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5\n0.25\n2\n", [0.5, 0.25, 2]),
        ("loss\n0.5\n0.25\n2\n", [0.5, 0.25, 2]),
        ("epoch 1,epoch 2\n1,3\n2,2\n0,1\n", [2, 2, 0.5]),
        ("file,loss\nb.png,0.25\na.png,0.5\nc/x.png,2\n", [0.5, 0.25, 2]),
        ("first,file\n0.25,b\n0.5,a\n2,c/x.png\n", [0.5, 0.25, 2]),
    ],
)
def test_text_files(tmp_path: Path, text: str, expected: list[float]) -> None:
    (tmp_path / "losses.csv").write_text(text)
    recorded = read_losses(tmp_path / "losses.csv")
    assert isolation_scores(recorded, ["a.png", "b.png", "c/x.png"]).tolist() == expected


def test_plain_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", LOSSES[0])
    np.save(tmp_path / "all.npy", LOSSES)
    assert isolation_scores(read_losses(tmp_path / "one.npy"), list("abc")).tolist() == [0, 1, 2]
    assert read_losses(tmp_path / "all.npy").losses.shape == (25, 3)


@pytest.mark.parametrize("names", [None, ("0", "1", "2")])
def test_another_number_of_images_is_an_error(names: tuple[str, ...] | None) -> None:
    recorded = TrainingLosses(Path("x.npz"), LOSSES, names)
    with pytest.raises(UsageError, match="3 losses") as caught:
        isolation_scores(recorded, ["0.png", "1.png", "2.png", "3.png"])
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)


def test_two_losses_for_one_image_are_an_error() -> None:
    recorded = TrainingLosses(Path("x.npz"), LOSSES, ("1", "01", "2"))
    with pytest.raises(UsageError, match="same image"):
        isolation_scores(recorded, ["1.png"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.npz", None),
        ("noise.npz", b"PK\x03\x04 nothing"),
        ("noise.npy", b"\x93NUMPY nothing"),
        ("text.npy", b"some text"),
        ("empty.csv", b""),
        ("words.csv", b"loss\nlow\n"),
        ("ragged.csv", b"1,2\n3\n"),
        ("nan.csv", b"1\nnan\n"),
        ("binary.csv", b"\xff\xfe\x00"),
        ("pickle.npy", None),
        ("object.npz", None),
        ("cube.npy", None),
        ("short.npz", None),
        ("nothing.npz", None),
    ],
)
def test_what_is_no_loss_file_is_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "pickle.npy":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    elif name == "object.npz":
        np.savez(path, losses=np.array([None]))
    elif name == "cube.npy":
        np.save(path, np.zeros((2, 2, 2)))
    elif name == "short.npz":
        np.savez(path, losses=LOSSES, indices=[1, 2])
    elif name == "nothing.npz":
        np.savez(path, other=LOSSES)
    with pytest.raises(UsageError, match=f"losses .*{name}") as caught:
        read_losses(path)
    assert "\n" not in str(caught.value)
