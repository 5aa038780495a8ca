"""`bdscan samples`: exit codes, report, files, and what is wrong with the input."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import jsonschema
import numpy as np
import pytest
from onnx import helper
from PIL import Image

from tests.conftest import ROOT
from tests.models import (
    make_model,
    save_clean_set,
    save_image,
    save_model,
    stated,
    template_images,
    template_model,
)
from tests.scanner.samples.folders import (
    MODEL,
    SCHEMA,
    TARGET,
    make_folders,
    report_of,
    samples,
)
from tests.scanner.scans import bdscan


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return make_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A linear model, its clean set, and suspect images that are as clean."""
    tmp = tmp_path_factory.mktemp("tiny")
    model = save_model(template_model(6, metadata=stated()), tmp / "model.onnx")
    images, labels = template_images(6, 12)
    clean = save_clean_set(images[::2], labels[::2], tmp / "clean")
    return model, clean, save_clean_set(images[1::2], labels[1::2], tmp / "suspects")


def test_triggered_images_are_found(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    clean, _, mixed = folders
    (mixed / "broken.png").write_bytes(b"no image")
    run = samples(
        MODEL,
        clean,
        mixed,
        tmp_path,
        "--format",
        "json",
        "--detectors",
        "cd_p,cd_l,cd_f,strip,confidence,activation_clustering,spectral_signatures",
        "--save-images",
        tmp_path / "pictures",
    )
    (mixed / "broken.png").unlink()
    assert run.code == 1, run.err
    report = report_of(run)
    finding, summary = report["finding"], report["summary"]
    assert (finding["verdict"], finding["detector"]) == ("triggered_images_found", "cd_p")
    assert finding["p_value"] <= 0.01
    assert summary["unreadable"] == ["broken.png"]
    assert summary["scored"] == finding["images"] == 50
    assert summary["classes"][0]["class_index"] == TARGET
    assert report["thresholds"]["cd_p"]["clean_images"] == 60
    assert report["thresholds"]["strip"]["clean_images"] == 30  # the other half is laid over
    assert report["thresholds"]["confidence"]["suspicious"] == "high"
    flagged = {one["file"] for one in report["samples"] if one["flagged"]}
    carrying = {f"triggered-{i:03d}.png" for i in range(20)}
    assert len(flagged & carrying) >= 18
    assert len(flagged - carrying) <= 6
    for one in report["samples"]:
        assert set(one["scores"]) == set(report["thresholds"]) == set(one["p_values"])
        assert one["flagged"] == (one["p_values"]["cd_p"] <= 0.05)
        assert (one["simplified_trigger_rate"] is not None) == one["flagged"]
        threshold = report["thresholds"]["cd_p"]["by_gamma"]
        assert one["beyond_gamma"]["cd_p"] == (one["scores"]["cd_p"] <= threshold)
    _check_files(report, tmp_path)


def _check_files(report: dict[str, object], folder: Path) -> None:
    """The stored report, the arrays and the pictures say the same as the document."""
    (stored,) = (folder / "bdscan-results").glob("*.json")
    assert json.loads(stored.read_text(encoding="utf-8")) == report
    (arrays,) = (folder / "bdscan-results").glob("*.h5")
    rows = report["samples"]
    assert isinstance(rows, list)
    with h5py.File(arrays) as file:
        group = file["samples/cd_p"]
        names = group["file"].asstr()[:].tolist()
        assert names == [one["file"] for one in rows]
        masks = group["mask"][:]
        assert masks.shape == (50, 32, 32)
        assert 0 <= masks.min() <= masks.max() <= 1
        scores = [one["scores"]["cd_p"] for one in rows]
        np.testing.assert_allclose(masks.sum((1, 2), dtype=np.float64), scores, rtol=1e-6)
        np.testing.assert_array_equal(group["score"][:], scores)
        np.testing.assert_array_equal(group["p_value"][:], [o["p_values"]["cd_p"] for o in rows])
        assert group["pattern"].shape == (50, 3, 32, 32)
        flagged = [i for i, one in enumerate(rows) if one["flagged"]]
        assert group["simplified_row"][:].tolist() == flagged
        assert group["simplified"].shape == (len(flagged), 3, 32, 32)
        assert len(file["clean/cd_p/score"]) == 60
        assert set(file["samples"]) == set(rows[0]["scores"])
    pictures = {p.name for p in (folder / "pictures").iterdir()}
    assert "clean-000.png.cd_p.mask.png" in pictures
    assert "clean-000.png.cd_l.pattern.png" in pictures
    assert f"{rows[flagged[0]]['file']}.cd_p.trigger.png" in pictures
    with Image.open(folder / "pictures" / "clean-000.png.cd_p.mask.png") as mask:
        assert mask.size == (256, 256)


def test_clean_images_are_no_finding(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    clean, innocent, _ = folders
    run = samples(MODEL, clean, innocent, tmp_path)
    assert run.code == 0, run.err
    assert "no_triggered_images_found" in run.out
    assert "exit code 0" in run.out


def test_batches_do_not_change_the_answer(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, clean, suspects = tiny
    scores = []
    for batch in (5, 64):
        run = samples(model, clean, suspects, tmp_path, "--format", "json", "--batch-size", batch)
        scores.append([one["scores"]["cd_p"] for one in report_of(run)["samples"]])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-3)


def test_lines_of_json(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, clean, suspects = tiny
    run = samples(model, clean, suspects, tmp_path, "--format", "jsonl")
    *lines, last = map(json.loads, run.out.splitlines())
    assert len(lines) == 36
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for part, content in [("sample", lines[0]), ("facts", last)]:
        jsonschema.validate(content, {"$ref": f"#/$defs/{part}", "$defs": schema["$defs"]})


@pytest.mark.parametrize("exists", [True, False])
def test_no_suspects(tiny: tuple[Path, Path, Path], tmp_path: Path, exists: bool) -> None:
    model, clean, _ = tiny
    folder = tmp_path / "suspects"
    if exists:
        folder.mkdir()
    run = samples(model, clean, folder, tmp_path, "--format", "json")
    assert run.code == 4
    assert str(folder) in run.err
    assert len(run.err.strip().splitlines()) == 1
    document = report_of(run)
    assert document["error"]["code"] == "usage"
    assert document["samples"] == []


def test_too_few_clean_images(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, _, suspects = tiny
    images, labels = template_images(6, 3)
    clean = save_clean_set(images, labels, tmp_path / "few")
    run = samples(model, clean, suspects, tmp_path)
    assert run.code == 2
    assert "18 usable images, --level 0.05 needs 19" in run.err
    assert samples(model, clean, suspects, tmp_path, "--level", 0.1).code == 0


def test_a_detector_that_can_not_run_leaves_the_others(
    tiny: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, clean, suspects = tiny
    run = samples(model, clean, suspects, tmp_path, "--format", "json", "--detectors", "cd_f,cd_p")
    report = report_of(run)
    assert run.code == 2
    assert [(one["name"], one["code"]) for one in report["not_run"]] == [("cd_f", "no_convolution")]
    assert report["finding"]["verdict"] == "inconclusive"
    assert report["finding"]["detector"] == "cd_p"
    assert all(one["p_values"]["cd_p"] is not None for one in report["samples"])


def test_probabilities_with_nothing_to_cut(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, clean, suspects = tiny
    del model
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w", "b"], ["raw"]),
        helper.make_node("Sigmoid", ["raw"], ["positive"]),
        helper.make_node("ReduceSum", ["positive", "axis"], ["sum"], keepdims=1),
        helper.make_node("Div", ["positive", "sum"], ["logits"]),
    ]
    prototypes = template_images(6, 1)[0].reshape(6, -1)
    weights, bias = 16 * prototypes, -8 * (prototypes**2).sum(1)
    arrays = {
        "w": (weights - weights.mean(0)).T,
        "b": bias - bias.mean(),
        "axis": np.array([1], np.int64),
    }
    probabilities = make_model(nodes, arrays, 6, metadata=stated())
    path = save_model(probabilities, tmp_path / "probabilities.onnx")
    run = samples(path, clean, suspects, tmp_path, "--format", "json", "--detectors", "cd_p,cd_l")
    report = report_of(run)
    assert run.code == 2
    assert [one["code"] for one in report["not_run"]] == ["probabilities_instead_of_logits"]
    assert report["thresholds"]["cd_p"]["clean_images"] == 36


def test_images_of_another_size_are_scaled_and_counted(
    tiny: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, clean, _ = tiny
    for i in range(3):
        save_image(np.full((1, 9, 7), i / 3, np.float32), tmp_path / "sizes" / f"{i}.png")
    run = samples(model, clean, tmp_path / "sizes", tmp_path, "--format", "json")
    report = report_of(run)
    assert report["summary"]["resized"] == 3
    assert "resized_suspects" in {one["code"] for one in report["flags"]}


def test_nothing_readable_is_inconclusive(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, clean, _ = tiny
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    run = samples(model, clean, tmp_path / "broken", tmp_path, "--format", "json")
    assert run.code == 2
    assert report_of(run)["summary"]["unreadable"] == ["a.png"]


def test_a_loss_file_of_another_length(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, clean, suspects = tiny
    losses = np.linspace(0, 1, 36)
    np.save(tmp_path / "right.npy", losses)
    np.save(tmp_path / "short.npy", losses[:-1])
    given = ["--detectors", "cd_p,abl", "--losses"]
    run = samples(model, clean, suspects, tmp_path, *given, tmp_path / "short.npy")
    assert run.code == 4
    assert "35 losses for 36 images" in run.err
    run = samples(
        model, clean, suspects, tmp_path, "--format", "json", *given, tmp_path / "right.npy"
    )
    report = report_of(run)
    assert run.code == 0
    assert [one["scores"]["abl"] for one in report["samples"]] == pytest.approx(losses.tolist())
    assert report["samples"][0]["p_values"]["abl"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--detectors", "nonsense"], "nonsense"),
        (["--detectors", "abl"], "--losses"),
        (["--detectors", "frequency"], "--frequency-classifier"),
        (["--detectors", "cd_f", "--features", "nowhere"], "nowhere"),
        (["--level", "0.7"], "--level"),
        (["--format", "yaml"], "yaml"),
    ],
)
def test_options_that_can_not_be(
    tiny: tuple[Path, Path, Path], tmp_path: Path, arguments: list[str], words: str
) -> None:
    model, clean, suspects = tiny
    run = samples(model, clean, suspects, tmp_path, *arguments)
    assert run.code == 4
    assert words in run.err


def test_a_missing_model_is_a_usage_error(tiny: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, clean, suspects = tiny
    run = bdscan(
        "samples",
        tmp_path / "nowhere.onnx",
        "--clean-dir",
        clean,
        "--suspect-dir",
        suspects,
        cwd=ROOT,
    )
    assert run.code == 4
    assert "nowhere.onnx does not exist" in run.err
    assert "Traceback" not in run.err


def test_no_score_where_the_model_knows_nothing(
    tiny: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, clean, suspects = tiny
    other = save_model(template_model(6, seed=5, metadata=stated()), tmp_path / "other.onnx")
    run = samples(other, clean, suspects, tmp_path, "--format", "json")
    report = report_of(run)
    assert run.code == 2
    assert report["finding"]["reasons"][0]["code"] == "accuracy_near_chance"
    assert report["not_run"][0]["name"] == "cd_p"
    assert report["samples"] == []
