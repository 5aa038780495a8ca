"""Pictures: the pixels that were stored, magnified where faint, and triggers as the scan embeds."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from scanner import triggers
from scanner.clean_set import CleanSetLoader, find_clean_images
from scanner.reports.html import pictures
from scanner.reports.html.clean_images import clean_images_of, open_clean_images
from scanner.reports.html.pictures import MAX_SIDE, Picture
from tests.conftest import ROOT


def pixels(made: Picture) -> npt.NDArray[np.uint8]:
    head, _, body = made.uri.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def draws(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def test_a_colour_image_keeps_its_pixels() -> None:
    image = draws(3, 6, 4)
    expected = np.rint(image * 255).transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels(pictures.picture(image, "", "")), expected)


def test_a_gray_image_and_a_mask_have_one_channel() -> None:
    image = draws(1, 6, 4)
    assert pixels(pictures.picture(image, "", "")).shape == (6, 4)
    assert pixels(pictures.picture(image[0], "", "")).shape == (6, 4)


def test_small_pictures_are_shown_in_whole_multiples() -> None:
    made = pictures.picture(draws(3, 32, 28), "", "")
    assert (made.width, made.height) == (28 * 5, 32 * 5)


def test_large_pictures_are_reduced() -> None:
    assert max(pixels(pictures.picture(draws(3, 2 * MAX_SIDE, 10), "", "")).shape) == MAX_SIDE


def test_a_faint_change_is_magnified_and_says_so() -> None:
    change = np.zeros((1, 2, 2), np.float32)
    change[0, 0, 0], change[0, 1, 1] = 0.01, -0.005
    made = pictures.change_picture(change, "Change")
    assert pixels(made).tolist() == [[255, 128], [128, 64]]
    assert "magnified 50 times" in made.caption
    assert "magnified 50 times" in made.alt


def test_a_visible_change_is_left_as_it_is() -> None:
    change = np.full((1, 2, 2), 0.3, np.float32)
    made = pictures.change_picture(change, "Change")
    assert "magnified" not in made.caption
    assert pixels(made)[0, 0] == round((0.5 + 0.3) * 255)


def test_no_change_at_all_is_gray() -> None:
    made = pictures.change_picture(np.zeros((3, 4, 4), np.float32), "Change")
    assert "empty" in made.alt
    assert set(np.unique(pixels(made))) == {128}


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (slice(0, 2), slice(0, 2), "upper left"),
        (slice(8, 10), slice(8, 10), "lower right"),
        (slice(4, 6), slice(8, 10), "middle right"),
        (slice(4, 6), slice(4, 6), "the middle"),
        (slice(0, 10), slice(0, 10), "spread over the whole image"),
    ],
)
def test_the_words_say_where_a_mask_lies(rows: slice, columns: slice, words: str) -> None:
    mask = np.zeros((10, 10), np.float32)
    mask[rows, columns] = 1
    assert words in pictures.mask_picture(mask, "Mask").alt


def test_triggers_are_stamped_as_the_scan_embeds_them() -> None:
    images, mask, pattern = draws(2, 3, 5, 4), draws(5, 4), draws(3, 5, 4)
    perturbation = pattern - np.float32(0.5)
    torch.testing.assert_close(
        torch.from_numpy(pictures.stamp_additive(images, perturbation)),
        triggers.embed_additive(torch.from_numpy(images), torch.from_numpy(perturbation)),
    )
    both = torch.from_numpy(np.concatenate([mask[None], pattern]))
    torch.testing.assert_close(
        torch.from_numpy(pictures.stamp_mask_pattern(images, mask, pattern)),
        triggers.embed_mask_pattern(torch.from_numpy(images), both),
    )


@pytest.mark.parametrize(
    ("shape", "rank", "shown"),
    [((3, 5, 4), 3, True), ((1, 5, 4), 3, True), ((4, 5, 4), 3, False), ((5, 4), 2, True),
     ((5, 4), 3, False), ((3, 0, 4), 3, False)],
)  # fmt: skip
def test_only_gray_and_rgb_are_drawn(shape: tuple[int, ...], rank: int, shown: bool) -> None:
    assert (pictures.drawable(np.zeros(shape, np.float32), rank) is not None) is shown


MNIST = ROOT / "fixtures" / "clean" / "mnist"


def report_on(digest: str, rule: str = "folder names are class numbers") -> dict[str, Any]:
    return {
        "model": {"class_count": 10},
        "clean_set": {"digest": digest, "label_rule": rule},
    }


def test_the_digest_is_the_scan_s() -> None:
    loader = CleanSetLoader(find_clean_images(MNIST))
    assert open_clean_images(MNIST).digest == loader.load(1, 28, 28, 10).digest


def test_only_the_images_that_were_scanned_with_are_used() -> None:
    images = open_clean_images(MNIST)
    assert clean_images_of(report_on(images.digest), [images]) is images
    assert clean_images_of(report_on("another"), [images]) is None
    assert clean_images_of({"clean_set": None}, [images]) is None


def test_images_come_from_the_heaviest_source_classes() -> None:
    images = open_clean_images(MNIST)
    weights = [0.0, 0.1, 0.0, 0.0, 0.5, 0.0, 0.3, 0.9, 0.0, 0.0]
    searched = {"target_class": 7, "source_weights": weights}
    chosen = images.choose(report_on(images.digest), searched, (1, 28, 28))
    assert [name for name, _ in chosen] == ["4", "6", "1"]
    assert all(image.shape == (1, 28, 28) for _, image in chosen)


def test_with_labels_that_are_not_known_any_folder_does() -> None:
    images = open_clean_images(MNIST)
    searched = {"target_class": 0, "source_weights": []}
    chosen = images.choose(report_on(images.digest, "labels file x"), searched, (3, 16, 16))
    assert [name for name, _ in chosen] == ["0", "1", "2"]


def test_a_flat_folder_with_a_broken_image_gives_the_next(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    Image.fromarray(np.full((4, 4), 51, np.uint8)).save(tmp_path / "b.png")
    images = open_clean_images(tmp_path)
    [(name, image)] = images.choose(
        report_on(images.digest), {"target_class": 0, "source_weights": []}, (1, 4, 4)
    )
    assert name == ""
    np.testing.assert_allclose(image, 0.2)
