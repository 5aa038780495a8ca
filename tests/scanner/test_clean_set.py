"""The clean set: which folder is which class, what is read, and what is dropped and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanner.clean_set import (
    CleanSetLoader,
    decode_image,
    find_clean_images,
    map_classes,
)
from scanner.errors import CleanSetMismatchError, UsageError
from tests.models import save_image

SYNSETS = ("n01440764", "n01443537_goldfish", "n02084071 dog")


def gradient_image(height: int = 6, width: int = 6) -> Image.Image:
    values = np.linspace(0, 255, height * width).reshape(height, width)
    return Image.fromarray(values.astype(np.uint8))


def folders(tmp_path: Path, *names: str) -> Path:
    for name in names:
        save_image(np.full((1, 4, 4), 0.5, np.float32), tmp_path / name / "a.png")
    return tmp_path


# --- which folder is which class --------------------------------------------------------------


def test_a_labels_file_gives_the_class_by_line(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("zebra\n ape \ncow\n\n", encoding="utf-8")
    mapping, rule = map_classes(("ape", "cow", "zebra"), 3, str(labels))
    assert mapping == {"zebra": 0, "ape": 1, "cow": 2}
    assert "labels file" in rule


def test_a_labels_file_beats_integers_and_metadata(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("1\n0\n", encoding="utf-8")
    assert map_classes(("0", "1"), 2, str(labels), ("0", "1"))[0] == {"1": 0, "0": 1}


def test_a_folder_that_the_labels_file_lacks_is_named(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("ape\ncow\n", encoding="utf-8")
    with pytest.raises(CleanSetMismatchError, match="'zebra'"):
        map_classes(("ape", "zebra"), 3, str(labels))


def test_a_labels_file_with_more_lines_than_classes_is_refused_where_it_matters(
    tmp_path: Path,
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\n", encoding="utf-8")
    with pytest.raises(CleanSetMismatchError, match="class 3"):
        map_classes(("a", "d"), 3, str(labels))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00bad"])
def test_a_labels_file_that_can_not_be_read_is_a_usage_error(
    tmp_path: Path, content: bytes | None
) -> None:
    labels = tmp_path / "labels.txt"
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(UsageError, match=r"labels\.txt"):
        map_classes(("a",), 1, str(labels))


def test_integers_are_the_class_whatever_their_alphabetical_order() -> None:
    names = tuple(sorted(str(k) for k in range(12)))
    mapping, rule = map_classes(names, 12)
    assert mapping == {str(k): k for k in range(12)}
    assert "numbers" in rule


def test_integers_may_be_padded_and_leave_classes_out() -> None:
    assert map_classes(("00", "07", "11"), 12)[0] == {"00": 0, "07": 7, "11": 11}


def test_integers_one_to_k_are_refused_and_ask_for_labels() -> None:
    with pytest.raises(CleanSetMismatchError, match="--labels"):
        map_classes(tuple(str(k) for k in range(1, 11)), 10)


def test_integers_one_to_fewer_than_k_are_class_numbers() -> None:
    assert map_classes(("1", "2", "3"), 10)[0] == {"1": 1, "2": 2, "3": 3}


def test_an_integer_beyond_the_classes_is_refused() -> None:
    with pytest.raises(CleanSetMismatchError, match="'10'"):
        map_classes(("0", "10"), 10)


def test_two_spellings_of_one_integer_are_refused() -> None:
    with pytest.raises(CleanSetMismatchError, match="same number"):
        map_classes(("1", "01"), 10)


def test_synsets_are_classes_in_sorted_order() -> None:
    mapping, rule = map_classes(SYNSETS[::-1], 3)
    assert mapping == {name: index for index, name in enumerate(SYNSETS)}
    assert "synsets" in rule


def test_class_names_in_the_metadata_give_the_class() -> None:
    names = ("plane", "car", "bird", "cat")
    mapping, rule = map_classes(("bird", "car"), 4, None, names)
    assert mapping == {"bird": 2, "car": 1}
    assert "metadata" in rule


def test_metadata_with_other_names_is_not_used() -> None:
    mapping, rule = map_classes(("bird", "car"), 2, None, ("a", "b"))
    assert mapping == {"bird": 0, "car": 1}
    assert "sorted" in rule


def test_other_names_are_classes_in_sorted_order() -> None:
    assert map_classes(("b", "a", "c"), 3)[0] == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c", "d"), SYNSETS[:2]])
def test_another_number_of_folders_than_classes_asks_for_labels(names: tuple[str, ...]) -> None:
    with pytest.raises(CleanSetMismatchError, match="--labels"):
        map_classes(names, 3)


# --- what is found ----------------------------------------------------------------------------


def test_a_missing_folder_shows_the_tree_that_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist; expected DIR/<class>/<image>"):
        find_clean_images(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="is not a folder"):
        find_clean_images(tmp_path / "file")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "readme.txt").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="holds no images"):
        find_clean_images(tmp_path)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    folders(tmp_path, "0", "1", ".cache")
    save_image(np.full((1, 4, 4), 0.5, np.float32), tmp_path / "0" / ".hidden.png")
    (tmp_path / "0" / "Thumbs.db").write_bytes(b"x")
    found = find_clean_images(tmp_path)
    assert found.classes == ("0", "1")
    assert [str(f) for f in found.files] == ["0/a.png", "1/a.png"]


def test_images_deeper_in_a_class_folder_belong_to_it(tmp_path: Path) -> None:
    folders(tmp_path, "0", "1/deep")
    found = find_clean_images(tmp_path)
    assert found.class_of == (0, 1)


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    folders(tmp_path, ".")
    (tmp_path / "empty").mkdir()
    found = find_clean_images(tmp_path)
    assert found.classes == ()
    clean = CleanSetLoader(found).load(1, 4, 4, 3)
    assert clean.labels.tolist() == [-1]
    assert not clean.labelled
    assert "predictions" in clean.label_rule


def test_an_empty_class_folder_keeps_its_place(tmp_path: Path) -> None:
    folders(tmp_path, "ape", "zebra")
    (tmp_path / "cow").mkdir()
    clean = CleanSetLoader(find_clean_images(tmp_path)).load(1, 4, 4, 3)
    assert clean.labels.tolist() == [0, 2]


def test_a_corrupt_image_is_counted_and_named(tmp_path: Path) -> None:
    folders(tmp_path, "0", "1")
    (tmp_path / "0" / "noise.png").write_bytes(b"no image")
    whole = (tmp_path / "1" / "a.png").read_bytes()
    (tmp_path / "1" / "cut.png").write_bytes(whole[: len(whole) // 2])
    clean = CleanSetLoader(find_clean_images(tmp_path)).load(1, 4, 4, 2)
    assert clean.corrupt == ("0/noise.png", "1/cut.png")
    assert clean.files == ("0/a.png", "1/a.png")
    assert clean.labels.tolist() == [0, 1]


def test_not_one_readable_image_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "noise.png").write_bytes(b"no image")
    loader = CleanSetLoader(find_clean_images(tmp_path))
    with pytest.raises(UsageError, match="can be read"):
        loader.load(1, 4, 4, 1)
    with pytest.raises(UsageError, match="could be read"):
        loader.common_size()


def test_common_size_is_that_of_the_first_readable_image(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").write_bytes(b"no image")
    gradient_image(7, 9).save(tmp_path / "0" / "b.png")
    assert CleanSetLoader(find_clean_images(tmp_path)).common_size() == (7, 9)


def test_the_digest_depends_on_names_and_bytes(tmp_path: Path) -> None:
    def digest() -> str:
        return CleanSetLoader(find_clean_images(tmp_path)).load(1, 4, 4, 3).digest

    folders(tmp_path, "0", "1")
    first = digest()
    assert digest() == first
    (tmp_path / "1" / "a.png").rename(tmp_path / "1" / "b.png")
    renamed = digest()
    save_image(np.full((1, 4, 4), 0.6, np.float32), tmp_path / "1" / "b.png")
    assert len({first, renamed, digest()}) == 3


# --- how images are decoded -------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["png", "bmp", "ppm", "webp", "tiff", "tif", "PNG"])
def test_lossless_formats_are_read_exactly(tmp_path: Path, extension: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 6, 3), dtype=np.uint8)
    path = tmp_path / "0" / f"a.{extension}"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path, **({"lossless": True} if extension == "webp" else {}))
    assert len(find_clean_images(tmp_path).files) == 1
    image, changed = decode_image(path, 3, 5, 6)
    assert not changed
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, pixels.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("extension", ["jpg", "jpeg"])
def test_jpeg_is_read(tmp_path: Path, extension: str) -> None:
    path = tmp_path / "0" / f"a.{extension}"
    path.parent.mkdir()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(path, format="JPEG", quality=95)
    assert len(find_clean_images(tmp_path).files) == 1
    image, _ = decode_image(path, 3, 8, 8)
    np.testing.assert_allclose(image[:, 4, 4], np.array([200, 100, 50]) / 255, atol=0.02)


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 64], [257 * 128, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image, _ = decode_image(tmp_path / "a.png", 1, 2, 2)
    np.testing.assert_allclose(image[0], np.array([[0, 64], [128, 255]]) / 255, atol=1e-6)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    again, _ = decode_image(tmp_path / "a.tiff", 3, 2, 2)
    np.testing.assert_allclose(again[1], image[0])


def test_alpha_is_dropped(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 128)).save(tmp_path / "a.png")
    image, _ = decode_image(tmp_path / "a.png", 3, 4, 4)
    np.testing.assert_allclose(image[:, 0, 0], np.array([10, 20, 30]) / 255, atol=1e-6)


def test_a_palette_is_resolved(tmp_path: Path) -> None:
    colours = Image.new("RGB", (4, 4), (250, 120, 5))
    colours.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    image, _ = decode_image(tmp_path / "a.png", 3, 4, 4)
    np.testing.assert_allclose(image[:, 0, 0], np.array([250, 120, 5]) / 255, atol=1e-6)


def test_gray_becomes_colour_and_colour_gray(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 100).save(tmp_path / "gray.png")
    Image.new("RGB", (4, 4), (100, 100, 100)).save(tmp_path / "rgb.png")
    assert decode_image(tmp_path / "gray.png", 3, 4, 4)[0].shape == (3, 4, 4)
    np.testing.assert_allclose(
        decode_image(tmp_path / "rgb.png", 1, 4, 4)[0], np.full((1, 4, 4), 100 / 255), atol=1e-6
    )


def test_another_size_is_scaled_and_its_middle_taken(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, changed = decode_image(tmp_path / "a.png", 1, 8, 8)
    assert changed
    np.testing.assert_array_equal(image, np.ones((1, 8, 8)))
    image, changed = decode_image(tmp_path / "a.png", 1, 4, 8)
    assert changed
    assert image.shape == (1, 4, 8)


def test_resized_images_are_counted(tmp_path: Path) -> None:
    folders(tmp_path, "0", "1")
    gradient_image(9, 7).save(tmp_path / "1" / "b.png")
    clean = CleanSetLoader(find_clean_images(tmp_path)).load(1, 4, 4, 2)
    assert clean.resized == 1
    assert clean.images.shape == (3, 1, 4, 4)


def test_one_loader_serves_models_of_different_shapes(tmp_path: Path) -> None:
    loader = CleanSetLoader(find_clean_images(folders(tmp_path, "0", "1")))
    assert loader.load(1, 4, 4, 2).images.shape == (2, 1, 4, 4)
    assert loader.load(3, 8, 6, 2).images.shape == (2, 3, 8, 6)


def test_synsets_are_sorted_whatever_the_metadata_says() -> None:
    folders = ("n10000000", "n10000001", "n10000002")
    mapping, _ = map_classes(folders, 3, class_names=folders[::-1])
    assert mapping == {name: index for index, name in enumerate(folders)}


def test_a_thin_image_is_cut_without_being_blown_up(tmp_path: Path) -> None:
    Image.new("L", (1, 400_000), 128).save(tmp_path / "thin.png")
    image, changed = decode_image(tmp_path / "thin.png", 1, 224, 224)
    assert changed
    assert image.shape == (1, 224, 224)
    np.testing.assert_allclose(image, 128 / 255, atol=1e-6)


def test_an_image_that_claims_too_many_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="pixels"):
        decode_image(tmp_path / "large.png", 1, 8, 8)


def test_hidden_folders_inside_a_class_are_passed_over(tmp_path: Path) -> None:
    for name in ("0/a.png", "0/.ipynb_checkpoints/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert find_clean_images(tmp_path).files == (Path("0/a.png"),)
