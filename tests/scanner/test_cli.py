"""The command line as scripts meet it: exit codes, streams, formats, bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from scanner.classifier import choose_device
from scanner.cli import with_command
from scanner.errors import UsageError
from scanner.schema import validate
from tests.conftest import ROOT
from tests.models import (
    linear_model,
    make_model,
    save_clean_set,
    save_image,
    save_model,
    stated,
    template_images,
    template_model,
    two_layer_model,
)
from tests.scanner.scans import Run, bdscan, environment, here, start, wait

CLASSES = 6
VERDICTS = ("no_backdoor_found", "backdoor_found", "inconclusive", "error", "skipped")
MNIST = ROOT / "fixtures" / "clean" / "mnist"


# --- models and images ------------------------------------------------------------------------


def l_red(report: dict[str, Any]) -> dict[str, Any]:
    """What L-RED found."""
    (found,) = [d for d in report["detectors"] if d["name"] == "l_red"]
    return dict(found)


def backdoored_model() -> onnx.ModelProto:
    """The prototype classifier with a shortcut: the first pixel, if brighter, speaks for class 3.

    A ReLU makes it one-way; a linear one would carry class 3 away as easily.
    """
    plain = template_model(CLASSES)
    w, b = (onnx.numpy_helper.to_array(t) for t in plain.graph.initializer)
    first = np.concatenate([np.eye(16), np.eye(1, 16)])
    first_bias = np.append(np.zeros(16), 0.002 - 0.2)
    shortcut = 400.0 * (np.arange(CLASSES) == 3)
    model = two_layer_model(first, first_bias, np.c_[w, shortcut], b)
    for key, value in stated().items():
        model.metadata_props.add(key=key, value=value)
    return model


def tiny_images(per_class: int = 8) -> tuple[np.ndarray, np.ndarray]:
    images, labels = template_images(CLASSES, per_class)
    images[:, 0, 0, 0] = 0.2
    return images, labels


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of eight 4x4 gray images."""
    return save_clean_set(*tiny_images(), tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean model for those images."""
    return save_model(
        template_model(CLASSES, metadata=stated()), tmp_path_factory.mktemp("good") / "good.onnx"
    )


def broken_models(folder: Path) -> dict[str, str]:
    """One model of each kind that can't be scanned; name -> reason code."""
    folder.mkdir(exist_ok=True)
    (folder / "text.onnx").write_text("this is no model", encoding="utf-8")
    whole = template_model(CLASSES).SerializeToString()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "empty.onnx").write_bytes(b"")
    relu = [helper.make_node("Relu", ["x"], ["logits"])]
    save_model(make_model(relu, {}, 7, (7,)), folder / "no_image.onnx")
    save_model(linear_model(np.ones((1, 16))), folder / "one_class.onnx")
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["y"], domain="com.vendor"),
        helper.make_node("Flatten", ["y"], ["logits"]),
    ]
    alien = make_model(nodes, {}, 16)
    alien.opset_import.append(helper.make_opsetid("com.vendor", 1))
    save_model(alien, folder / "alien.onnx")
    return {
        "text": "truncated_or_not_onnx",
        "truncated": "truncated_or_not_onnx",
        "empty": "incomplete",
        "no_image": "not_an_image_classifier",
        "one_class": "not_an_image_classifier",
        "alien": "unsupported_model",
    }


def assert_one_line_of_error(run: Run, *words: str) -> None:
    lines = run.err.strip().splitlines()
    assert len(lines) == 1, run.err
    assert lines[0].startswith("bdscan: ")
    for word in words:
        assert word in lines[0]


def codes(report: dict[str, Any]) -> list[str]:
    return [note["code"] for note in report["reasons"]]


# --- the shipped pair, end to end -------------------------------------------------------------


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Path]]:
    """The shipped MNIST models, each scanned once; one as text, one as JSON."""
    started = {}
    for name, form in (("attacked", "text"), ("clean", "json")):
        folder = tmp_path_factory.mktemp(name)
        model = ROOT / "fixtures" / "models" / f"mnist_lenet5_{name}.onnx"
        arguments = [model, "--clean-dir", MNIST, "--format", form, "--out-dir", folder]
        started[name] = (start(*arguments, cwd=folder), folder)
    return {name: (wait(process), folder) for name, (process, folder) in started.items()}


def stored(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("*.json")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_the_attacked_model_is_found_with_target_and_sources(
    pair: dict[str, tuple[Run, Path]],
) -> None:
    run, folder = pair["attacked"]
    assert run.code == 1, run.err
    report = stored(folder)
    assert report["verdict"] == "backdoor_found"
    assert report["target_classes"] == [8]
    assert [d["name"] for d in report["detectors"]] == [
        "maximum_margin",
        "mask_pattern",
        "l_red",
    ]
    detector = l_red(report)
    assert detector["statistics"]["suspect"] == 8
    assert detector["statistics"]["paper_p"] < 1e-6
    assert detector["statistics"]["calibrated_p"] < 0.01
    assert detector["corroboration"]["corroborated"]
    weights = detector["classes"][8]["source_weights"]
    assert sorted(np.argsort(weights)[-3:]) == [4, 6, 9]


def test_the_clean_model_is_not_accused(pair: dict[str, tuple[Run, Path]]) -> None:
    run, _ = pair["clean"]
    assert run.code == 0, run.err
    (report,) = run.reports()
    assert report["verdict"] == "no_backdoor_found"
    assert report["target_classes"] == []
    assert l_red(report)["statistics"]["calibrated_p"] > 0.05


def test_the_text_report_says_what_matters(pair: dict[str, tuple[Run, Path]]) -> None:
    run, folder = pair["attacked"]
    assert "verdict: backdoor_found (target class 8)" in run.out
    for word in ("mnist_lenet5_attacked.onnx", "preprocessing", "accuracy", "calibrated p"):
        assert word in run.out
    assert "Traceback" not in run.err
    for file in folder.iterdir():
        assert file.name in run.out


def test_standard_error_tells_preprocessing_and_accuracy_before_the_scan(
    pair: dict[str, tuple[Run, Path]],
) -> None:
    for run, _ in pair.values():
        before = run.err.partition("l_red, mask_pattern, maximum_margin:")[0]
        for word in ("accuracy", "preprocessing pixels 0..1 gray", "mean 0, std 1", "cpu"):
            assert word in before
        assert "Warning" not in run.err


def test_reports_say_all_that_the_result_depends_on(pair: dict[str, tuple[Run, Path]]) -> None:
    for name, (_, folder) in pair.items():
        report = stored(folder)
        validate(report)
        assert report["model"]["path"].endswith(f"mnist_lenet5_{name}.onnx")
        assert len(report["model"]["sha256"]) == 64
        assert report["tool"]["name"] == "bdscan"
        assert {"python", "torch", "onnx", "numpy"} <= set(report["environment"])
        assert report["device"]["torch"]
        assert report["configuration"]["images_per_class"] == {"value": None, "origin": "default"}
        assert report["clean_set"]["accuracy"] > 0.9
        assert [c["used"] for c in report["clean_set"]["classes"]] == [8] * 10
        assert report["preprocessing"]["origins"]["mean"] == "model metadata"
        assert report["parity"]["max_difference"] <= 1e-3
        assert report["started"] < report["finished"]
        assert report["started"].endswith("Z")
        assert l_red(report)["image_gradients"] > 1000


def test_json_on_standard_output_is_the_stored_report(pair: dict[str, tuple[Run, Path]]) -> None:
    run, folder = pair["clean"]
    assert run.reports() == [stored(folder)]
    assert run.document()["summary"] == {**dict.fromkeys(VERDICTS, 0), "no_backdoor_found": 1}


def test_hdf5_and_report_agree(pair: dict[str, tuple[Run, Path]]) -> None:
    for _, folder in pair.values():
        report = stored(folder)
        with h5py.File(folder / report["files"]["h5"]["name"]) as file:
            assert file.attrs["model_sha256"] == report["model"]["sha256"]
            for result in l_red(report)["classes"]:
                group = file[f"l_red/target_{result['target_class']}"]
                v = group["perturbation"][()]
                assert v.shape == (1, 28, 28)
                assert np.linalg.norm(v) == pytest.approx(result["norm"], rel=1e-4)
                np.testing.assert_allclose(group["source_weights"], result["source_weights"], 1e-5)
                assert group["trace"].shape == (result["gradient_evaluations"], 2)
        assert (folder / report["files"]["png"]["name"]).is_file()


# --- tiny models: verdicts and formats --------------------------------------------------------


@pytest.fixture(scope="session")
def vendor(tmp_path_factory: pytest.TempPathFactory, clean: Path, good: Path) -> tuple[Run, Path]:
    """A folder of one backdoored, one clean and several broken models, scanned at once."""
    folder = tmp_path_factory.mktemp("vendor")
    broken_models(folder / "broken")
    save_model(backdoored_model(), folder / "bad.onnx")
    shutil.copy(good, folder / "good.ONNX")
    (folder / "notes.txt").write_text("", encoding="utf-8")
    run = bdscan(folder, "--clean-dir", clean, "--format", "json", "-q", cwd=folder)
    return run, folder


def by_name(run: Run) -> dict[str, dict[str, Any]]:
    return {Path(r["model"]["path"]).stem: r for r in run.reports()}


def test_a_finding_beats_errors(vendor: tuple[Run, Path]) -> None:
    run, _ = vendor
    reports = by_name(run)
    assert run.code == 1, run.err
    assert reports["bad"]["verdict"] == "backdoor_found"
    assert reports["bad"]["target_classes"] == [3]
    assert reports["good"]["verdict"] == "no_backdoor_found"
    assert run.document()["summary"]["error"] == 6


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("text", "truncated_or_not_onnx"),
        ("truncated", "truncated_or_not_onnx"),
        ("empty", "incomplete"),
        ("no_image", "not_an_image_classifier"),
        ("one_class", "not_an_image_classifier"),
        ("alien", "unsupported_model"),
    ],
)
def test_a_model_that_can_not_be_scanned_is_an_error_with_its_reason(
    vendor: tuple[Run, Path], name: str, code: str
) -> None:
    run, _ = vendor
    report = by_name(run)[name]
    assert report["verdict"] == "error"
    assert codes(report) == [code]
    assert report["target_classes"] == []
    lines = [line for line in run.err.splitlines() if f"{name}.onnx" in line]
    assert len(lines) == 1
    assert "Traceback" not in run.err


def test_an_unsupported_operator_is_named(vendor: tuple[Run, Path]) -> None:
    assert "Frobnicate" in by_name(vendor[0])["alien"]["reasons"][0]["message"]


def test_each_model_of_a_folder_gets_its_file_in_the_default_folder(
    vendor: tuple[Run, Path],
) -> None:
    run, folder = vendor
    written = sorted(p.name for p in (folder / "bdscan-results").glob("*.json"))
    assert written == sorted(r["files"]["json"]["name"] for r in run.reports())
    assert len(written) == 8


def test_broken_models_alone_exit_with_2(tmp_path: Path, clean: Path) -> None:
    broken_models(tmp_path / "broken")
    run = bdscan(tmp_path / "broken", "--clean-dir", clean, "--format", "jsonl", cwd=tmp_path)
    assert run.code == 2
    reports = [json.loads(line) for line in run.out.splitlines()]
    assert [r["verdict"] for r in reports] == ["error"] * 6
    for report in reports:
        validate(report)
    lines = run.err.strip().splitlines()
    assert len(lines) == 7
    assert "6 models: 0 no_backdoor_found, 0 backdoor_found, 0 inconclusive, 6 error" in lines[-1]


def test_a_model_that_fails_as_text_says_so_and_is_no_clean_bill(
    tmp_path: Path, clean: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x01garbage")
    run = bdscan(tmp_path / "bad.onnx", "--clean-dir", clean, cwd=tmp_path)
    assert run.code == 2
    assert "verdict: error" in run.out
    assert "no clean bill" in run.out
    assert_one_line_of_error(run, "bad.onnx")


# --- clean sets -------------------------------------------------------------------------------


def scan_json(model: Path, images: Path, cwd: Path, *options: object) -> Run:
    return here(model, "--clean-dir", images, "--format", "json", *options, cwd=cwd)


def test_an_odd_clean_set_is_scanned_and_its_oddities_are_told(tmp_path: Path, good: Path) -> None:
    images, labels = tiny_images(12)
    there = labels != 4
    folder = save_clean_set(images[there], labels[there], tmp_path / "imgs")
    (folder / "0" / "corrupt.png").write_bytes(b"no image")
    save_image(np.repeat(np.repeat(images[0], 3, 1), 3, 2), folder / "0" / "large.png")
    run = scan_json(good, folder, tmp_path)
    assert run.code == 0, run.err
    (report,) = run.reports()
    assert report["clean_set"]["corrupt"] == ["0/corrupt.png"]
    assert report["clean_set"]["resized"] == 1
    assert report["clean_set"]["classes"][4] == dict.fromkeys(("images", "correct", "used"), 0) | {
        "class_index": 4
    }
    flags = {note["code"] for note in report["flags"]}
    assert {"corrupt_images", "resized_images", "classes_without_images"} <= flags
    assert "0/corrupt.png" in run.err
    assert l_red(report)["classes"][4]["images"] > 0


def test_class_folders_unlike_the_classes_are_an_error_of_that_model(
    tmp_path: Path, clean: Path
) -> None:
    model = save_model(template_model(4, metadata=stated()), tmp_path / "four.onnx")
    run = scan_json(model, clean, tmp_path)
    assert run.code == 2
    (report,) = run.reports()
    assert (report["verdict"], codes(report)) == ("error", ["clean_set_mismatch"])
    assert report["model"]["class_count"] is None or report["model"]["class_count"] == 4
    assert len(report["model"]["sha256"]) == 64


def test_shuffled_labels_are_inconclusive(tmp_path: Path, good: Path) -> None:
    images, labels = tiny_images()
    folder = save_clean_set(images, (labels + 1) % CLASSES, tmp_path / "imgs")
    run = scan_json(good, folder, tmp_path)
    assert run.code == 2
    (report,) = run.reports()
    assert report["verdict"] == "inconclusive"
    assert "accuracy_near_chance" in codes(report)
    assert report["detectors"] == []


def test_too_few_images_are_inconclusive(tmp_path: Path, good: Path) -> None:
    folder = save_clean_set(*tiny_images(2), tmp_path / "imgs")
    run = scan_json(good, folder, tmp_path)
    assert run.code == 2
    assert "few_images" in codes(run.reports()[0])


def test_a_flat_folder_takes_the_model_s_predictions(tmp_path: Path, good: Path) -> None:
    folder = tmp_path / "imgs"
    for number, pixels in enumerate(tiny_images()[0]):
        save_image(pixels, folder / f"{number}.png")
    run = scan_json(good, folder, tmp_path)
    assert run.code == 0, run.err
    (report,) = run.reports()
    assert report["clean_set"]["accuracy"] is None
    assert "predictions" in report["clean_set"]["label_rule"]
    assert [c["used"] for c in report["clean_set"]["classes"]] == [8] * CLASSES


def test_labels_map_folders_to_classes(tmp_path: Path, good: Path) -> None:
    names = ["zebra", "yak", "wolf", "viper", "toad", "seal"]
    images, labels = tiny_images()
    folder = save_clean_set(images, labels, tmp_path / "imgs", names)
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    run = scan_json(good, folder, tmp_path, "--labels", tmp_path / "names.txt")
    assert run.code == 0, run.err
    assert run.reports()[0]["clean_set"]["accuracy"] == 1.0


# --- bounds -----------------------------------------------------------------------------------


def test_a_time_limit_is_inconclusive_with_partial_results(
    tmp_path: Path, clean: Path, good: Path
) -> None:
    run = scan_json(
        *(good, clean, tmp_path, "--schedule", "paper", "--max-seconds", "0.3"),
        *("--detectors", "l_red", "--out-dir", "out"),
    )
    assert run.code == 2
    (report,) = run.reports()
    assert (report["verdict"], codes(report)[0]) == ("inconclusive", "time_limit")
    classes = l_red(report)["classes"]
    assert {c["status"] for c in classes} == {"censored"}
    assert all(c["norm"] > 0 for c in classes)
    assert (tmp_path / "out" / report["files"]["h5"]["name"]).is_file()


def test_target_classes_are_searched_alone(tmp_path: Path, clean: Path, good: Path) -> None:
    run = scan_json(good, clean, tmp_path, "--target-classes", "0,2-4,5")
    assert run.code == 2, run.err  # nothing is said of class 1
    assert "partial_targets" in codes(run.reports()[0])
    classes = run.reports()[0]["detectors"][0]["classes"]
    assert [c["target_class"] for c in classes] == [0, 2, 3, 4, 5]


def test_too_few_target_classes_are_inconclusive_with_their_norms(
    tmp_path: Path, clean: Path, good: Path
) -> None:
    run = scan_json(good, clean, tmp_path, "--target-classes", "1,2")
    assert run.code == 2
    (report,) = run.reports()
    assert codes(report).count("few_classes") == 1
    assert [c["status"] for c in l_red(report)["classes"]] == ["found"] * 2


def test_results_do_not_depend_on_anything_but_model_images_and_configuration(
    tmp_path: Path, clean: Path, good: Path
) -> None:
    once, again = (scan_json(good, clean, tmp_path / "..", "--out-dir", tmp_path) for _ in "ab")
    first, second = (run.reports()[0]["detectors"][0]["classes"] for run in (once, again))
    assert first == second


# --- usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.onnx", "--clean-dir", "CLEAN"], ["nowhere.onnx", "does not exist"]),
        (["GOOD", "--clean-dir", "nowhere"], ["nowhere", "DIR/<class>/<image>"]),
        (["GOOD", "--clean-dir", "empty"], ["holds no images", "DIR/<class>/<image>"]),
        (["GOOD"], ["clean-dir"]),
        (["GOOD", "--clean-dir", "CLEAN", "--frobnicate"], ["--frobnicate"]),
        (["GOOD", "--clean-dir", "CLEAN", "--schedule", "slow"], ["slow", "paper"]),
        (["GOOD", "--clean-dir", "CLEAN", "--target-classes", "5-2"], ["5-2"]),
        (["GOOD", "--clean-dir", "CLEAN", "--mean", "a,b"], ["--mean"]),
        (["GOOD", "--clean-dir", "CLEAN", "--image-size", "0x4"], ["--image-size"]),
        (["GOOD", "--clean-dir", "CLEAN", "--images-per-class", "0"], ["images-per-class"]),
        (["GOOD", "--clean-dir", "CLEAN", "--labels", "nowhere.txt"], ["nowhere.txt"]),
        (["GOOD", "--clean-dir", "CLEAN", "--preprocess", "nowhere.json"], ["nowhere.json"]),
        (["GOOD", "--clean-dir", "CLEAN", "--device", "tpu"], ["tpu"]),
        (["GOOD", "--clean-dir", "CLEAN", "--device", "cuda:x"], ["cuda:x"]),
        (["GOOD", "--clean-dir", "CLEAN", "--device", "cuda:99"], ["cuda:99"]),
        (["GOOD", "--clean-dir", "CLEAN", "--max-seconds", "-1"], ["max-seconds"]),
        (["GOOD", "--clean-dir", "CLEAN", "--out-dir", "GOOD/out"], ["out-dir"]),
    ],
)
def test_wrong_usage_exits_with_4_and_one_line_and_json_still_parses(
    arguments: list[str], words: list[str], tmp_path: Path, clean: Path, good: Path
) -> None:
    (tmp_path / "empty").mkdir()
    given = [a.replace("GOOD", str(good)).replace("CLEAN", str(clean)) for a in arguments]
    run = here(*given, "-q", "--format=json", cwd=tmp_path)
    assert run.code == 4
    assert_one_line_of_error(run, *words)
    document = run.document()
    assert document["models"] == []
    assert document["error"]["code"] == "usage"
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize(
    ("arguments", "word"), [(["--target-classes", "99"], "99"), (["--mean", "0.1,0.2"], "mean")]
)
def test_an_option_that_does_not_fit_the_model_exits_with_4(
    arguments: list[str], word: str, tmp_path: Path, clean: Path, good: Path
) -> None:
    run = here(good, "--clean-dir", clean, *arguments, "-q", "--format=json", cwd=tmp_path)
    assert run.code == 4
    assert_one_line_of_error(run, word)
    (model,) = run.document()["models"]
    assert [reason["code"] for reason in model["reasons"]] == ["usage"]


def test_an_unknown_format_is_wrong_usage(tmp_path: Path, clean: Path, good: Path) -> None:
    run = here(good, "--clean-dir", clean, "--format", "xml", cwd=tmp_path)
    assert (run.code, run.out) == (4, "")
    assert_one_line_of_error(run, "xml", "jsonl")


def test_an_unknown_device_is_wrong_usage_where_cuda_is_there_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert choose_device("cuda:0")[0] == "cuda:0"
    for wanted in ("tpu", "gpu:0", "cuda:1", "cuda:-1", "cuda:x", ""):
        with pytest.raises(UsageError, match="--device"):
            choose_device(wanted)


def test_a_folder_without_models_exits_with_3(tmp_path: Path, clean: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = bdscan("empty", "--clean-dir", clean, "--format", "json", cwd=tmp_path)
    assert run.code == 3
    assert_one_line_of_error(run, "no .onnx file")
    assert run.document()["error"]["code"] == "nothing_to_scan"


def test_a_usage_error_as_text_leaves_standard_output_empty(tmp_path: Path, clean: Path) -> None:
    run = bdscan("scan", "nowhere.onnx", "--clean-dir", clean, cwd=tmp_path)
    assert (run.code, run.out) == (4, "")
    assert_one_line_of_error(run, "nowhere.onnx")


def test_a_vendor_s_malformed_metadata_does_not_stop_the_scan_of_the_others(
    tmp_path: Path, clean: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    wrong = {"bdscan.preprocessing": json.dumps({"mean": [0.1, 0.2], "std": [0.0]})}
    save_model(backdoored_model(), models / "a.onnx")
    save_model(template_model(CLASSES, metadata=wrong), models / "b.onnx")
    run = scan_json(models, clean, tmp_path)
    assert run.code == 1
    assert next(r["verdict"] for r in run.reports()) == "backdoor_found"
    assert len(run.reports()) == 2


def test_an_option_that_fits_only_some_models_does_not_lose_a_finding(
    tmp_path: Path, clean: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    save_model(backdoored_model(), models / "a.onnx")
    images, labels = tiny_images()
    folder = save_clean_set(images[labels < 5], labels[labels < 5], tmp_path / "imgs")
    save_model(template_model(5, metadata=stated()), models / "b.onnx")
    run = scan_json(models, folder, tmp_path, "--target-classes", "0-5")
    assert run.code == 1
    assert run.reports()[0]["verdict"] == "backdoor_found"


def test_a_default_folder_that_can_not_be_written_is_a_warning(
    tmp_path: Path, clean: Path, good: Path
) -> None:
    (tmp_path / "bdscan-results").write_text("a file in the way", encoding="utf-8")
    run = bdscan(good, "--clean-dir", clean, "-q", cwd=tmp_path)
    assert run.code == 0
    assert_one_line_of_error(run, "only printed")
    assert "verdict: no_backdoor_found" in run.out


# --- interrupts and pipes ---------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_running_scan_and_leaves_nothing_half_written(
    number: signal.Signals, code: int, tmp_path: Path, clean: Path, good: Path
) -> None:
    process = start(
        good, "--clean-dir", clean, "--schedule", "paper", "--format", "json", cwd=tmp_path
    )
    assert process.stderr is not None
    seen = ""
    while "target classes" not in seen:  # the search is about to start
        line = process.stderr.readline()
        assert line, f"ended early: {seen}"
        seen += line
    time.sleep(0.3)
    process.send_signal(number)
    run = wait(process)
    assert run.code == code
    assert "Traceback" not in run.err
    assert run.document()["models"] == []
    assert list((tmp_path / "bdscan-results").iterdir()) == []


def test_a_reader_that_goes_away_leaves_no_traceback(tmp_path: Path) -> None:
    broken_models(tmp_path / "broken")
    command = f"{sys.executable} -m scanner broken --clean-dir {MNIST} --format jsonl | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout)["verdict"] == "error"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert "Exception ignored" not in done.stderr


# --- other commands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["m.onnx", "--clean-dir", "d"], ["scan", "m.onnx", "--clean-dir", "d"]),
        (["scan", "m.onnx"], ["scan", "m.onnx"]),
        (["--clean-dir", "d", "m.onnx"], ["scan", "--clean-dir", "d", "m.onnx"]),
        (["inspect", "m.onnx"], ["inspect", "m.onnx"]),
        (["doctor"], ["doctor"]),
        (["--help"], ["--help"]),
        (["--version"], ["--version"]),
    ],
)
def test_a_model_alone_means_scan(given: list[str], expected: list[str]) -> None:
    assert with_command(given) == expected


def test_no_arguments_show_the_help_and_are_wrong_usage(tmp_path: Path) -> None:
    run = bdscan(cwd=tmp_path)
    assert run.code == 4
    assert "Usage: bdscan" in run.out


@pytest.mark.parametrize("arguments", [["--help"], ["scan", "--help"], ["inspect", "--help"]])
def test_help_imports_neither_torch_nor_onnx_nor_scipy(
    arguments: list[str], tmp_path: Path
) -> None:
    program = (
        "import sys; from scanner.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'scipy', 'h5py'} & set(sys.modules);"
        "sys.exit(code if not heavy else f'imported {heavy}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: bdscan" in done.stdout
    assert done.stderr == ""


def test_version(tmp_path: Path) -> None:
    run = bdscan("--version", cwd=tmp_path)
    assert (run.code, run.err) == (0, "")
    assert run.out.startswith("bdscan ")
    assert len(run.out.splitlines()) == 1


def test_inspect_shows_what_a_model_holds(tmp_path: Path, good: Path) -> None:
    run = bdscan("inspect", good, "--format", "json", cwd=tmp_path)
    assert (run.code, run.err) == (0, "")
    facts = json.loads(run.out)
    assert facts["model"]["class_count"] == CLASSES
    assert sum(facts["operators"].values()) == 2
    assert facts["preprocessing"]["pixel_range"] == {"value": 1.0, "origin": "model metadata"}
    assert facts["problem"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["alien", "one_class"])
def test_inspect_of_a_model_that_can_not_be_scanned_says_why(tmp_path: Path, name: str) -> None:
    expected = broken_models(tmp_path)[name]
    run = here("inspect", tmp_path / f"{name}.onnx", "--format", "json", cwd=tmp_path)
    assert run.code == 2
    facts = json.loads(run.out)
    assert facts["problem"]["code"] == expected
    if name == "alien":
        assert any("Frobnicate" in o for o in facts["unsupported_operators"])


@pytest.mark.parametrize(("name", "code"), [("text.onnx", 2), ("nowhere.onnx", 4)])
def test_inspect_of_what_is_no_model(tmp_path: Path, name: str, code: int) -> None:
    broken_models(tmp_path)
    run = here("inspect", tmp_path / name, "--format", "json", cwd=tmp_path)
    assert run.code == code
    assert_one_line_of_error(run, name)
    assert "error" in json.loads(run.out)


def test_doctor_names_versions_and_working_providers(tmp_path: Path) -> None:
    run = bdscan("doctor", "--format", "json", cwd=tmp_path)
    facts = json.loads(run.out)
    assert run.code == (2 if facts["problems"] else 0)
    assert "CPUExecutionProvider" in facts["onnxruntime_starts"]
    assert facts["environment"]["torch"]
    assert set(facts["onnxruntime_starts"]) <= set(facts["onnxruntime_offers"])


def test_a_model_of_integer_input_is_told_to_be_no_image_classifier(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["logits"], to=TensorProto.FLOAT)]
    save_model(make_model(nodes, {}, 16, (16,), elem_type=TensorProto.INT64), tmp_path / "i.onnx")
    run = here("inspect", tmp_path / "i.onnx", cwd=tmp_path)
    assert run.code == 2
    assert "int64" in run.out
