"""The Frequency detector: its DCT by definition, its classifier from training to scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import read_model
from fixtures import frequency_classifier as training
from scanner.detectors.frequency import (
    FrequencyClassifier,
    cosine_coefficients,
    frequency_scores,
    open_frequency_classifier,
)
from scanner.errors import UsageError
from scanner.exit_codes import ExitCode
from tests.models import linear_model, save_image, save_model

Floats = npt.NDArray[np.float32]


def smooth_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Floats:
    """Random images of low frequencies, rounded to 8 bits."""
    generator = np.random.default_rng(seed)
    channels, height, width = shape
    rows, columns = np.linspace(0, np.pi, height), np.linspace(0, np.pi, width)
    waves = np.array(
        [[np.outer(np.cos(i * rows), np.cos(j * columns)) for j in range(3)] for i in range(3)]
    )
    weights = generator.normal(size=(count, channels, 3, 3)) * 0.15
    images = 0.5 + np.einsum("ncij,ijhw->nchw", weights, waves)
    rounded: Floats = np.rint(np.clip(images, 0, 1) * 255).astype(np.float32) / np.float32(255)
    return rounded


def spectrum_model(
    shape: tuple[int, int, int], weights: npt.NDArray[np.float64]
) -> onnx.ModelProto:
    """Logits 0 and weights . coefficients."""
    both = np.stack([np.zeros(weights.size), weights.ravel()])
    return linear_model(both, shape=shape)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FrequencyClassifier]:
    """A classifier trained by the command on 120 small images, of which one can't be read."""
    folder = tmp_path_factory.mktemp("clean")
    for number, image in enumerate(smooth_images(120, (3, 12, 16))):
        save_image(image, folder / str(number % 3) / f"{number}.png")
    save_image(smooth_images(1, (3, 9, 9))[0], folder / "0" / "other_size.png")
    (folder / "0" / "broken.png").write_bytes(b"no image")
    path = folder / "spectra.onnx"
    training.main(["--clean-dir", str(folder), "--out", str(path), "--steps", "60"])
    return path, open_frequency_classifier(path)


def test_coefficients_are_those_of_the_definition() -> None:
    images = np.random.default_rng(0).random((2, 2, 3, 4), dtype=np.float32)
    found = cosine_coefficients(images)
    assert found.dtype == np.float32
    for u in range(3):
        for v in range(4):
            wave = np.outer(
                [math.cos(math.pi * u * (2 * i + 1) / 6) for i in range(3)],
                [math.cos(math.pi * v * (2 * j + 1) / 8) for j in range(4)],
            )
            scale = math.sqrt((1 if u == 0 else 2) / 3 * (1 if v == 0 else 2) / 4)
            expected = scale * (images * wave).sum((2, 3))
            np.testing.assert_allclose(found[:, :, u, v], expected, rtol=1e-4, atol=1e-6)


def test_scores_are_the_probability_that_the_file_gives(tmp_path: Path) -> None:
    images = np.random.default_rng(1).random((5, 1, 4, 6), dtype=np.float32)
    weights = np.random.default_rng(2).normal(size=(1, 4, 6))
    path = save_model(spectrum_model((1, 4, 6), weights), tmp_path / "f.onnx")
    found = frequency_scores(open_frequency_classifier(path), images)
    logits = (cosine_coefficients(images) * weights).sum((1, 2, 3))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert frequency_scores(open_frequency_classifier(path), images[:0]).shape == (0,)


def test_a_trained_classifier_tells_triggers_that_it_was_not_shown(
    trained: tuple[Path, FrequencyClassifier],
) -> None:
    classifier = trained[1]
    assert classifier.image_shape == (3, 12, 16)
    clean = smooth_images(60, (3, 12, 16), seed=5)
    marked = clean.copy()
    marked[:, :, 8:11, 12:15] = np.indices((3, 3)).sum(0) % 2  # BadNets' chequers
    scores = [frequency_scores(classifier, images) for images in (clean, marked)]
    above = scores[1][:, None] > scores[0][None]
    assert above.mean() > 0.95


def test_the_file_is_portable_and_says_how_good_it_is(
    trained: tuple[Path, FrequencyClassifier],
) -> None:
    model = read_model(trained[0])
    assert model.opset <= 20
    assert model.proto.ir_version <= 10
    facts = json.loads({p.key: p.value for p in model.proto.metadata_props}[training.METADATA_KEY])
    assert facts["images"] == 108  # 120 less a tenth
    assert set(facts["held_out_triggered"]) == {make.__name__ for make in training.TRIGGERS}
    assert 0 <= facts["held_out_clean"] <= 1


@pytest.mark.parametrize("make", training.TRIGGERS, ids=lambda make: make.__name__)
def test_generated_triggers_change_images_within_their_range(make: training.MakeTrigger) -> None:
    for shape in ((1, 28, 28), (3, 7, 40)):
        image, other = smooth_images(2, shape, seed=3)
        first = make(image, other, np.random.default_rng(4))
        assert first.shape == shape
        assert 0 <= first.min() <= first.max() <= 1
        assert np.abs(first - image).max() > 2 / 255
        np.testing.assert_array_equal(first, make(image, other, np.random.default_rng(4)))


def test_training_is_the_same_for_the_same_seed() -> None:
    images = smooth_images(40, (1, 8, 8))
    log: list[str] = []
    first, second = (training.train(images, 3, 7, log.append).state_dict() for _ in range(2))
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize("size", [(1, 28, 28), (3, 64, 48), (3, 224, 224)])
def test_the_network_takes_any_size(size: tuple[int, int, int]) -> None:
    images = smooth_images(3, size)
    module = training.SpectrumClassifier(training._coefficients(images)).eval()
    assert module(training._coefficients(images)).shape == (3, 2)


def test_too_few_images_to_train_on_are_one_line(tmp_path: Path) -> None:
    save_image(smooth_images(1, (1, 8, 8))[0], tmp_path / "one.png")
    with pytest.raises(SystemExit, match="1 images of one size"):
        training.main(["--clean-dir", str(tmp_path), "--out", str(tmp_path / "f.onnx")])


def test_images_of_another_shape_are_one_line(tmp_path: Path) -> None:
    path = save_model(spectrum_model((1, 4, 6), np.ones((1, 4, 6))), tmp_path / "f.onnx")
    with pytest.raises(UsageError, match=r"\(1, 4, 6\), not \(3, 4, 6\)") as caught:
        frequency_scores(open_frequency_classifier(path), np.zeros((2, 3, 4, 6), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["missing", "noise", "classes", "vector", "two_inputs", "truncated"]
)
def test_what_is_no_classifier_of_spectra_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f.onnx"
    good = spectrum_model((1, 4, 4), np.ones((1, 4, 4)))
    if kind == "noise":
        path.write_bytes(b"\x00\xffnothing")
    elif kind == "classes":
        save_model(linear_model(np.ones((10, 16))), path)
    elif kind == "vector":
        node = helper.make_node("Gemm", ["x", "w"], ["y"])
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in "xy")
        weights = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
        graph = helper.make_graph([node], "g", [x], [y], [weights])
        save_model(helper.make_model(graph, ir_version=8), path)
    elif kind == "two_inputs":
        good.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
        save_model(good, path)
    elif kind == "truncated":
        path.write_bytes(good.SerializeToString()[:-40])
    with pytest.raises(UsageError, match="frequency classifier") as caught:
        open_frequency_classifier(path)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)
