"""Result files: names, layout, whole or not at all, and valid."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from scanner import store
from scanner.config import VerdictConfig
from scanner.errors import UsageError
from scanner.results import (
    BACKDOOR_FOUND,
    Arrays,
    ClassResult,
    CleanSetInfo,
    DetectorResult,
    ModelInfo,
    ModelReport,
    Note,
    ScanReport,
    to_json,
)
from scanner.schema import validate
from scanner.store import PICTURE_PIXELS, base_name, magnified, prepare_folder, save
from scanner.verdict import evaluate_statistics

SHA = "0123456789abcdef" * 4
NORMS = (0.3, 3.3, 3.6, 3.9, 4.2, 4.4)


def make_report(channels: int = 3, **changes: Any) -> ModelReport:
    generator = np.random.default_rng(0)
    classes = tuple(
        ClassResult(
            target_class=target,
            status="found",
            stop_reason="misclassification_fraction_reached",
            norm=norm,
            statistic=1 / norm,
            misclassification=0.95,
            runtime_difference=0,
            source_weights=(0.5, 0.5),
            source_fractions=(1.0, 0.9),
            gradient_evaluations=7,
            images=16,
            clipped_share=0.1,
        )
        for target, norm in enumerate(NORMS)
    )
    arrays = {
        target: Arrays(
            perturbation=generator.normal(size=(channels, 5, 4)).astype(np.float32),
            source_weights=generator.random(6),
            trace=generator.random((7, 2)),
        )
        for target in range(len(NORMS))
    }
    detector = DetectorResult(
        name="l_red",
        settings={"schedule": "fast"},
        classes=classes,
        statistics=evaluate_statistics(classes, VerdictConfig()),
        corroboration=None,
        image_gradients=700,
        seconds=1.5,
    )
    report = ModelReport(
        model=ModelInfo(path="vendor/net v2.onnx", sha256=SHA),
        verdict=BACKDOOR_FOUND,
        target_classes=(0,),
        reasons=(Note("code", "message"),),
        detectors=(detector,),
        clean_set=CleanSetInfo("imgs", "digest", "rule", 16, (), 0, 0, 1.0, ()),
        configuration={"seed": {"value": 0, "origin": "default"}},
        arrays={"l_red": arrays},
    )
    return replace(report, **changes)


def test_files_are_named_by_stem_model_and_setting(tmp_path: Path) -> None:
    saved = save(make_report(), tmp_path)
    name = base_name(saved)
    assert name.startswith("net_v2-0123456789ab-")
    assert len(name) == len("net_v2-0123456789ab-") + 8
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.{e}" for e in ("json", "h5", "png")}
    for kind in ("h5", "png"):
        written = (tmp_path / saved.files[kind]["name"]).read_bytes()
        assert saved.files[kind]["sha256"] == hashlib.sha256(written).hexdigest()


def test_hdf5_layout_types_compression_and_attributes(tmp_path: Path) -> None:
    report = save(make_report(), tmp_path)
    with h5py.File(tmp_path / report.files["h5"]["name"]) as file:
        assert file.attrs["model_sha256"] == SHA
        assert file.attrs["schema_version"] == "1"
        assert set(file["l_red"]) == {f"target_{k}" for k in range(len(NORMS))}
        for target, arrays in report.arrays["l_red"].items():
            group = file[f"l_red/target_{target}"]
            assert set(group) == {"perturbation", "source_weights", "trace"}
            for name, dataset in group.items():
                assert dataset.dtype == np.float32
                assert dataset.compression == "gzip"
                assert dataset.attrs["units"]
                assert dataset.attrs["axes"]
                np.testing.assert_allclose(dataset[()], getattr(arrays, name), rtol=1e-6)


def test_an_empty_trace_is_stored_too(tmp_path: Path) -> None:
    empty = Arrays(np.zeros((0, 2)), np.zeros(6), np.zeros((1, 4, 4), np.float32))
    report = save(make_report(arrays={"l_red": {0: empty}}), tmp_path)
    with h5py.File(tmp_path / report.files["h5"]["name"]) as file:
        assert file["l_red/target_0/trace"].shape == (0, 2)


def test_the_json_file_is_the_report_and_valid(tmp_path: Path) -> None:
    saved = save(make_report(), tmp_path)
    content = json.loads((tmp_path / saved.files["json"]["name"]).read_text(encoding="utf-8"))
    validate(content)
    assert content == json.loads(json.dumps(to_json(saved)))
    assert content["files"]["h5"] == saved.files["h5"]
    assert "arrays" not in content


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_numbers_that_are_not_finite_become_null(tmp_path: Path, number: float) -> None:
    report = make_report()
    detector = report.detectors[0]
    classes = (replace(detector.classes[0], statistic=number), *detector.classes[1:])
    saved = save(replace(report, detectors=(replace(detector, classes=classes),)), tmp_path)
    text = (tmp_path / saved.files["json"]["name"]).read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    content = json.loads(text)
    validate(content)
    assert content["detectors"][0]["classes"][0]["statistic"] is None


def test_a_whole_scan_report_is_valid_and_its_summary_adds_up() -> None:
    report = make_report(arrays={})
    broken = ModelReport(ModelInfo("x.onnx"), "error", reasons=(Note("a", "b"),))
    content = to_json(ScanReport((report, broken, broken)))
    validate(content)
    assert content["summary"] == {
        "no_backdoor_found": 0,
        "backdoor_found": 1,
        "inconclusive": 0,
        "error": 2,
        "skipped": 0,
    }


def test_every_field_of_the_results_is_in_the_schema() -> None:
    content = to_json(make_report())
    content["surprise"] = 1
    with pytest.raises(Exception, match="surprise"):
        validate(content)


def test_a_report_without_arrays_is_json_alone(tmp_path: Path) -> None:
    saved = save(make_report(arrays={}, detectors=()), tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".json"]
    assert set(saved.files) == {"json"}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
def test_an_error_while_writing_leaves_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(report: ModelReport, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(store, "_write_arrays", fail)
    with pytest.raises(type(error)):
        save(make_report(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_the_older_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(make_report(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def refuse(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save(saved, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": {"seed": {"value": 1, "origin": "given"}}},
        {"seed": 1},
        {"clean_set": None},
        {"model": ModelInfo(path="vendor/net v2.onnx", sha256=SHA[::-1])},
    ],
)
def test_another_setting_or_model_does_not_collide(tmp_path: Path, changes: dict[str, Any]) -> None:
    save(make_report(), tmp_path)
    save(make_report(**changes), tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_unreadable_models_of_one_name_do_not_collide(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save(ModelReport(ModelInfo(f"{folder}/net.onnx"), "error"), tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_the_same_scan_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    save(make_report(), tmp_path)
    save(make_report(finished="later"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("path", ["../../etc/passwd.onnx", "a/ü b\n;.onnx", "x/.onnx", "-rf.onnx"])
def test_names_hold_nothing_that_leads_elsewhere(tmp_path: Path, path: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    saved = save(make_report(model=ModelInfo(path=path, sha256=SHA)), inside)
    assert len(list(inside.iterdir())) == 3
    assert list(tmp_path.iterdir()) == [inside]
    assert not any(c in saved.files["json"]["name"] for c in "/\\\n ;")


def test_the_suspect_s_trigger_is_the_picture(tmp_path: Path) -> None:
    report = make_report(channels=1)
    saved = save(report, tmp_path)
    with Image.open(tmp_path / saved.files["png"]["name"]) as picture:
        expected = magnified(report.arrays["l_red"][0].perturbation)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pictures_are_magnified_without_smoothing(channels: int, mode: str) -> None:
    v = np.zeros((channels, 2, 3), np.float32)
    v[0, 0, 0], v[0, 1, 2] = 0.01, -0.01
    picture = magnified(v)
    factor = PICTURE_PIXELS // 2
    assert picture.mode == mode
    assert picture.size == (3 * factor, 2 * factor)
    pixels = np.asarray(picture).reshape(2 * factor, 3 * factor, channels)[..., 0]
    assert (pixels[:factor, :factor] == 255).all()
    assert (pixels[factor:, 2 * factor :] == 0).all()
    assert set(np.unique(pixels[:factor, factor:])) <= {127, 128}


def test_a_perturbation_of_zeros_is_gray() -> None:
    assert set(np.unique(np.asarray(magnified(np.zeros((1, 4, 4), np.float32))))) <= {127, 128}


def test_large_images_are_not_magnified() -> None:
    assert magnified(np.ones((1, 300, 400), np.float32)).size == (400, 300)


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_can_not_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="can't be written"):
        prepare_folder(tmp_path / "file" / "out")
