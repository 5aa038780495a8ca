"""Preprocessing: found by search, or stated, in the right order and with its origin."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper

from scanner.config import PreprocessingOptions
from scanner.errors import UsageError
from scanner.preprocessing import Preprocessing, resolve
from scanner.preprocessing_sources import (
    class_names,
    normalises_itself,
    read_metadata,
    read_sidecar,
    values_from_json,
)
from tests.models import as_classifier, linear_model, make_model

CLASSES = 24
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))

RGB = {"channel_order": "RGB"}  # what Hugging Face's and timm's files imply

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def colour_images(channels: int) -> tuple[Images, Labels]:
    """Two images of each of 24 plain colours (a, .5, 1 - a), or grays a."""
    levels = np.linspace(0, 1, CLASSES)
    colours = np.stack([levels, np.full(CLASSES, 0.5), 1 - levels], axis=1)[:, :channels]
    labels = np.repeat(np.arange(CLASSES), 2)
    noise = np.random.default_rng(0).normal(scale=0.004, size=(len(labels), channels, 4, 4))
    images = np.clip(colours[labels][:, :, None, None] + noise, 0, 1)
    return images.astype(np.float32), labels


def model_trained_with(preprocessing: Preprocessing, channels: int) -> onnx.ModelProto:
    """The nearest-colour classifier that is right under that preprocessing alone."""
    images, labels = colour_images(channels)
    ready = preprocessing.apply(torch.from_numpy(images)).numpy().reshape(len(images), -1)
    centres = np.stack([ready[labels == k].mean(0) for k in range(CLASSES)])
    # Spaced so that the right class wins by some 4 nats: sure, but not blindly.
    gap = min(((a - b) ** 2).sum() for a, b in itertools.pairwise(centres))
    sharpness = 4 / gap
    bias = -sharpness * (centres**2).sum(1)
    return linear_model(2 * sharpness * centres, bias, (channels, 4, 4))


def find(
    model: onnx.ModelProto,
    channels: int,
    options: PreprocessingOptions | None = None,
    path: Path | None = None,
    labelled: bool = True,
) -> Preprocessing:
    images, labels = colour_images(channels)
    labels = labels if labelled else np.full_like(labels, -1)

    def logits_under(preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
        return as_classifier(model, preprocessing).logits(images)

    return resolve(model, path, channels, options or PreprocessingOptions(), labels, logits_under)


COLOUR = {
    "0..1": Preprocessing(1, (0.0,) * 3, (1.0,) * 3, "RGB"),
    "0..255": Preprocessing(255, (0.0,) * 3, (1.0,) * 3, "RGB"),
    "-1..1": Preprocessing(1, (0.5,) * 3, (0.5,) * 3, "RGB"),
    "ImageNet": Preprocessing(1, *IMAGENET, "RGB"),
    "CIFAR": Preprocessing(1, *CIFAR, "RGB"),
    "0..1 BGR": Preprocessing(1, (0.0,) * 3, (1.0,) * 3, "BGR"),
    "ImageNet BGR": Preprocessing(1, IMAGENET[0][::-1], IMAGENET[1][::-1], "BGR"),
    "Caffe": Preprocessing(255, (103.939, 116.779, 123.68), (1.0,) * 3, "BGR"),
}
GRAY = {
    "0..1": Preprocessing(1, (0.0,), (1.0,), "gray"),
    "0..255": Preprocessing(255, (0.0,), (1.0,), "gray"),
    "-1..1": Preprocessing(1, (0.5,), (0.5,), "gray"),
    "MNIST": Preprocessing(1, (0.1307,), (0.3081,), "gray"),
}


def assert_is(found: Preprocessing, wanted: Preprocessing) -> None:
    assert found.pixel_range == wanted.pixel_range
    assert found.channel_order == wanted.channel_order
    assert found.mean == pytest.approx(wanted.mean)
    assert found.std == pytest.approx(wanted.std)


@pytest.mark.parametrize("name", COLOUR)
def test_the_search_finds_the_preprocessing_of_a_colour_model(name: str) -> None:
    found = find(model_trained_with(COLOUR[name], 3), 3)
    assert_is(found, COLOUR[name])
    assert found.accuracy == 1.0
    assert len(found.candidates) == 15
    assert all(origin.startswith("search") for origin in found.origins.values())


@pytest.mark.parametrize("name", GRAY)
def test_the_search_finds_the_preprocessing_of_a_gray_model(name: str) -> None:
    found = find(model_trained_with(GRAY[name], 1), 1)
    assert_is(found, GRAY[name])
    assert found.origins["channel_order"] == "one channel"


def test_apply_is_the_formula_in_the_model_s_channel_order() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    bgr = Preprocessing(255, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "BGR")
    blue_first = bgr.apply(images)
    torch.testing.assert_close(blue_first[:, 0], (255 * images[:, 2] - 1) / 4)
    torch.testing.assert_close(blue_first[:, 2], (255 * images[:, 0] - 3) / 6)


# --- sources ----------------------------------------------------------------------------------


def with_metadata(model: onnx.ModelProto, **entries: str) -> onnx.ModelProto:
    for key, value in entries.items():
        model.metadata_props.add(key=key.replace("__", "."), value=value)
    return model


def layered(tmp_path: Path, *sources: str) -> Preprocessing:
    """Resolve with those of the four sources; each states another mean."""
    model = model_trained_with(COLOUR["0..1"], 3)
    if "metadata" in sources:
        model = with_metadata(model, bdscan__preprocessing=json.dumps({"mean": [0.4] * 3}))
    if "sidecar" in sources:
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.3] * 3, "image_std": [1.0] * 3}), encoding="utf-8"
        )
    file = None
    if "file" in sources:
        file = tmp_path / "mine.json"
        file.write_text(json.dumps({"mean": [0.2] * 3}), encoding="utf-8")
    mean = (0.1,) * 3 if "flag" in sources else None
    options = PreprocessingOptions(mean=mean, file=str(file) if file else None)
    return find(model, 3, options, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("sources", "mean", "origin"),
    [
        (("flag", "file", "sidecar", "metadata"), 0.1, "flag"),
        (("file", "sidecar", "metadata"), 0.2, "file"),
        (("sidecar", "metadata"), 0.3, "sidecar preprocessor_config.json"),
        (("metadata",), 0.4, "model metadata"),
        (("flag", "metadata"), 0.1, "flag"),
    ],
)
def test_sources_take_precedence_in_their_order(
    tmp_path: Path, sources: tuple[str, ...], mean: float, origin: str
) -> None:
    found = layered(tmp_path, *sources)
    assert found.mean == (mean,) * 3
    assert found.origins["mean"].startswith(origin)


def test_what_one_source_leaves_open_another_one_states(tmp_path: Path) -> None:
    model = with_metadata(
        model_trained_with(COLOUR["0..1"], 3),
        bdscan__preprocessing=json.dumps({"std": [0.5] * 3, "channel_order": "BGR"}),
    )
    options = PreprocessingOptions(mean=(0.2,), pixel_range=255)
    found = find(model, 3, options, tmp_path / "model.onnx")
    assert_is(found, Preprocessing(255, (0.2,) * 3, (0.5,) * 3, "BGR"))
    assert found.origins == {
        "pixel_range": "flag",
        "mean": "flag",
        "std": "model metadata",
        "channel_order": "model metadata",
    }
    assert list(found.candidates) == ["as stated"]


def test_the_search_respects_what_is_stated() -> None:
    model = model_trained_with(COLOUR["ImageNet"], 3)
    found = find(model, 3, PreprocessingOptions(channel_order="bgr"))
    assert found.channel_order == "BGR"
    assert found.origins["channel_order"] == "flag"
    assert all(name.endswith("BGR") or name == "Caffe mean BGR" for name in found.candidates)


def test_without_labels_the_default_is_said_to_be_unverified() -> None:
    found = find(model_trained_with(COLOUR["0..255"], 3), 3, labelled=False)
    assert found.accuracy is None
    assert set(found.origins.values()) == {"default, unverified"}


def test_without_labels_stated_values_are_no_default() -> None:
    options = PreprocessingOptions(255, (0.0,), (1.0,), "RGB")
    found = find(model_trained_with(COLOUR["0..255"], 3), 3, options, labelled=False)
    assert_is(found, COLOUR["0..255"])
    assert set(found.origins.values()) == {"flag"}


def self_normalising_model() -> onnx.ModelProto:
    """0..255 images, divided and shifted by the graph itself."""
    inner = model_trained_with(GRAY["-1..1"], 1)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in inner.graph.initializer}
    arrays |= {"scale": np.float32(127.5), "shift": np.float32(1.0)}
    nodes = [
        helper.make_node("Div", ["x", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "shift"], ["shifted"]),
        helper.make_node("Flatten", ["shifted"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    return make_model(nodes, arrays, CLASSES)


def test_normalisation_in_the_graph_leaves_only_the_pixel_range_open() -> None:
    model = self_normalising_model()
    assert normalises_itself(model)
    found = find(model, 1)
    assert_is(found, GRAY["0..255"])
    assert found.origins["mean"] == found.origins["std"] == "graph"
    assert len(found.candidates) == 2


def test_a_graph_that_begins_with_a_layer_does_not_normalise_itself() -> None:
    assert not normalises_itself(linear_model(np.ones((2, 16))))


# --- files ------------------------------------------------------------------------------------

HUGGING_FACE = {
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 0.00392156862745098,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
TIMM = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            HUGGING_FACE,
            {**RGB, "pixel_range": 1.0, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
        ),
        (
            HUGGING_FACE | {"do_normalize": False},
            {**RGB, "pixel_range": 1.0, "mean": (0.0,), "std": (1.0,)},
        ),
        (
            HUGGING_FACE | {"do_rescale": False, "image_mean": [127.5] * 3},
            {**RGB, "pixel_range": 255.0, "mean": (127.5,) * 3, "std": (0.2, 0.3, 0.4)},
        ),
        (
            {"image_mean": [0.5], "image_std": [0.5]},
            {**RGB, "pixel_range": 1.0, "mean": (0.5,), "std": (0.5,)},
        ),
        (
            {"pixel_range": 255, "mean": [1, 2, 3], "std": [4, 5, 6], "channel_order": "BGR"},
            {
                "pixel_range": 255.0,
                "mean": (1.0, 2.0, 3.0),
                "std": (4.0, 5.0, 6.0),
                "channel_order": "BGR",
            },
        ),
        ({"model_type": "resnet", "hidden_size": 64}, {}),
        ({"mean": "0.5", "std": [True]}, {}),
    ],
)
def test_values_from_json(content: Mapping[str, Any], expected: dict[str, Any]) -> None:
    assert values_from_json(content) == expected


def test_a_timm_sidecar_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TIMM), encoding="utf-8")
    values = read_sidecar(tmp_path / "config.json")
    assert values == {**RGB, "pixel_range": 1.0, "mean": (0.1, 0.2, 0.3), "std": (0.4,) * 3}
    found = find(model_trained_with(COLOUR["0..1"], 3), 3, None, tmp_path / "model.onnx")
    assert found.origins["mean"] == "sidecar config.json"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "[1, 2]",
        "null",
        '{"mean": {"r": 1}}',
        '{"pretrained_cfg": 3}',
        '{"rescale_factor": "x", "do_rescale": 1, "image_mean": "y"}',
        "[" * 100_000,
        '{"mean": [1' + "0" * 400 + "]}",
    ],
)
def test_a_malformed_sidecar_states_no_mean(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    assert "mean" not in read_sidecar(tmp_path / "preprocessor_config.json")
    find(model_trained_with(COLOUR["0..1"], 3), 3, None, tmp_path / "model.onnx")


def test_a_binary_sidecar_states_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\x00\xfe")
    assert read_sidecar(tmp_path / "config.json") == {}


@pytest.mark.parametrize("text", ["{", "[1]", '{"other": 1}', None])
def test_a_stated_file_that_states_nothing_is_a_usage_error(
    tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "mine.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"mine\.json"):
        find(model_trained_with(GRAY["0..1"], 1), 1, PreprocessingOptions(file=str(file)))


@pytest.mark.parametrize(
    "options",
    [
        PreprocessingOptions(mean=(0.1, 0.2)),
        PreprocessingOptions(std=(0.0,)),
        PreprocessingOptions(std=(1.0, -1.0, 1.0)),
        PreprocessingOptions(mean=(float("nan"),)),
        PreprocessingOptions(pixel_range=0),
        PreprocessingOptions(pixel_range=float("inf")),
        PreprocessingOptions(channel_order="RBG"),
        PreprocessingOptions(channel_order="gray"),
    ],
)
def test_wrong_flags_are_refused(options: PreprocessingOptions) -> None:
    with pytest.raises(UsageError, match="flag"):
        find(model_trained_with(COLOUR["0..1"], 3), 3, options)


def test_a_malformed_vendor_s_metadata_is_no_usage_error_of_the_caller() -> None:
    model = model_trained_with(COLOUR["0..1"], 3)
    content = json.dumps({"mean": [0.1, 0.2], "std": [0, 0, 0], "channel_order": "XYZ"})
    with_metadata(model, bdscan__preprocessing=content)
    assert_is(find(model, 3), COLOUR["0..1"])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (
            {"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "NominalRange_0_255"},
            {"channel_order": "BGR", "pixel_range": 255.0, "mean": (0.0,), "std": (1.0,)},
        ),
        (
            {"Image.NominalPixelRange": "Normalized_1_1"},
            {"pixel_range": 1.0, "mean": (0.5,), "std": (0.5,)},
        ),
        (
            {"Image.BitmapPixelFormat": "Gray8", "Image.NominalPixelRange": "Normalized_0_1"},
            {"channel_order": "gray", "pixel_range": 1.0, "mean": (0.0,), "std": (1.0,)},
        ),
        ({"Image.BitmapPixelFormat": "Yuv"}, {}),
        ({"bdscan.preprocessing": "{"}, {}),
        ({}, {}),
    ],
)
def test_metadata_of_the_onnx_specification(
    entries: Mapping[str, str], expected: dict[str, Any]
) -> None:
    assert read_metadata(linear_model(np.ones((2, 16)), metadata=entries)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [('["a", "b"]', ("a", "b")), ("[1, 2]", ()), ("{", ()), ('{"a": 1}', ())],
)
def test_class_names_are_a_json_list_of_text(text: str, expected: tuple[str, ...]) -> None:
    assert class_names(linear_model(np.ones((2, 16)), metadata={"class_names": text})) == expected


def test_an_unusable_std_in_a_sidecar_counts_as_not_stated(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"std": [1e-60]}', encoding="utf-8")
    found = find(model_trained_with(COLOUR["ImageNet"], 3), 3, None, tmp_path / "model.onnx")
    assert_is(found, COLOUR["ImageNet"])


def test_usual_means_follow_a_stated_pixel_range() -> None:
    found = find(model_trained_with(COLOUR["ImageNet"], 3), 3, PreprocessingOptions(255.0))
    mean, std = IMAGENET
    assert found.pixel_range == 255
    assert found.mean == pytest.approx([255 * m for m in mean])
    assert found.std == pytest.approx([255 * s for s in std])
