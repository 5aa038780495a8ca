"""What a report says of models that can't be scanned as they came: no gradient, training mode."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from converters import Parity
from scanner import ScanConfig, scan
from scanner.config import DEFAULT_DETECTORS
from scanner.options import read_detectors
from scanner.reliability import model_flags
from scanner.results import INCONCLUSIVE
from tests.models import (
    as_classifier,
    save_clean_set,
    save_model,
    stated,
    template_images,
    template_model,
)
from tests.scanner.scans import DETECTORS, here

CLASSES = 6
SHAPE = (1, 8, 8)


def forward_only_model() -> onnx.ModelProto:
    """The nearest-prototype classifier as an operator that torch has no function for."""
    plain = template_model(CLASSES, SHAPE)
    weights, bias = (numpy_helper.to_array(t) for t in plain.graph.initializer)
    linear = helper.make_node(
        "LinearRegressor",
        ["image"],
        ["logits"],
        domain="ai.onnx.ml",
        coefficients=weights.reshape(-1).tolist(),
        intercepts=bias.reshape(-1).tolist(),
        targets=CLASSES,
    )
    graph = helper.make_graph(
        [linear],
        "linear",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 64])],
        [onnx.ValueInfoProto(name="logits")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    for key, value in stated().items():
        model.metadata_props.add(key=key, value=value)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model, clean set)."""
    folder = tmp_path_factory.mktemp("no_gradient")
    model = save_model(forward_only_model(), folder / "linear.onnx")
    return model, save_clean_set(*template_images(CLASSES, 8, SHAPE), folder / "clean")


def test_the_report_is_whole_and_says_what_did_not_run(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    model, clean = files
    run = here("scan", model, "--clean-dir", clean, "--format", "json", cwd=tmp_path)
    (report,) = run.reports()
    assert run.code == 2
    assert report["verdict"] == INCONCLUSIVE
    assert [reason["code"] for reason in report["reasons"]] == ["no_gradient"]
    assert "ai.onnx.ml.LinearRegressor-3 (1)" in report["reasons"][0]["message"]
    assert [(d["name"], d["code"]) for d in report["not_run"]] == [
        (name, "no_gradient") for name in read_detectors("", DETECTORS)
    ]
    assert report["detectors"] == []
    assert report["model"]["differentiable"] is False
    assert report["model"]["class_count"] == CLASSES
    assert report["clean_set"]["accuracy"] > 0.95
    assert report["preprocessing"]["layout"] == "flat"
    assert report["parity"]["images"] == 8 * CLASSES


def test_people_read_it_too(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, clean = files
    run = here("scan", model, "--clean-dir", clean, cwd=tmp_path)
    assert run.code == 2
    assert "l_red was not run: no_gradient" in run.out
    assert "there is no gradient, only forward passes" in run.out


def test_inspect_says_the_same(files: tuple[Path, Path], tmp_path: Path) -> None:
    model, clean = files
    run = here("inspect", model, "--clean-dir", clean, cwd=tmp_path)
    assert run.code == 2
    assert "no_gradient" in run.out
    assert "LinearRegressor" in run.out
    assert "accuracy: 1" in run.out or "accuracy: 0.9" in run.out


def test_forward_passes_can_be_had() -> None:
    """What detectors without gradients need: logits of any number of images."""
    classifier = as_classifier(forward_only_model())
    images, labels = template_images(CLASSES, 9, SHAPE)
    expected = as_classifier(template_model(CLASSES, SHAPE)).logits(images)
    np.testing.assert_allclose(classifier.logits(images), expected, rtol=1e-3, atol=1e-3)
    assert (classifier.predictions(images) == labels).mean() > 0.95


def test_time_that_runs_out_before_the_search(files: tuple[Path, Path], tmp_path: Path) -> None:
    clean = files[1]
    model = save_model(template_model(CLASSES, SHAPE, metadata=stated()), tmp_path / "model.onnx")
    (report,) = scan(model, clean, ScanConfig(max_seconds=1e-6)).models
    assert report.verdict == INCONCLUSIVE
    assert [reason.code for reason in report.reasons] == ["time_limit"]
    assert [(d.name, d.code) for d in report.not_run] == [
        (n, "time_limit") for n in DEFAULT_DETECTORS
    ]
    assert report.model.class_count == CLASSES
    assert report.timings["import_seconds"] > 0


def test_every_step_is_timed(files: tuple[Path, Path]) -> None:
    (report,) = scan(*files).models
    steps = ("import", "clean_set", "preprocessing", "classification", "parity")
    seconds = [report.timings[f"{step}_seconds"] for step in steps]
    assert all(value >= 0 for value in seconds)
    assert sum(seconds) <= report.timings["total_seconds"] + 0.01


def test_flags_of_the_model() -> None:
    onnx_model = as_classifier(template_model(CLASSES, SHAPE)).onnx
    parity = Parity(images=64, max_difference=0.0, argmax_agreement=1.0, loose=False)
    assert model_flags(onnx_model, parity) == []
    marked = replace(
        onnx_model,
        other_outputs=("second", "third"),
        training_mode_forced=True,
        half_precision=True,
    )
    flags = {note.code: note.message for note in model_flags(marked, parity)}
    assert list(flags) == ["other_outputs", "training_mode_forced", "half_precision"]
    assert (
        "logits is scanned, not second, third, which --output-name scans" in flags["other_outputs"]
    )
    assert "%" not in flags["training_mode_forced"]
    compared = replace(parity, training_agreement=0.97)
    flags = {note.code: note.message for note in model_flags(marked, compared)}
    assert "97.0% of the images" in flags["training_mode_forced"]


def test_a_batch_statistics_model_is_flagged_in_its_report(tmp_path: Path) -> None:
    """A prototype classifier behind a BatchNormalization in training mode."""
    images, labels = template_images(CLASSES, 8, SHAPE)
    plain = template_model(CLASSES, SHAPE, metadata=stated())
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in plain.graph.node]
    for node in nodes:
        node.input[:] = ["normal" if name == "x" else name for name in node.input]
    norm = helper.make_node(
        "BatchNormalization",
        ["x", "scale", "bias", "mean", "var"],
        ["normal", "new_mean", "new_var"],
        training_mode=1,
    )
    del plain.graph.node[:]
    plain.graph.node.extend([norm, *nodes])
    mean, var = images.mean(), images.var()
    given = {"scale": np.sqrt(var), "bias": mean, "mean": mean, "var": var}
    for name, value in given.items():
        plain.graph.initializer.append(numpy_helper.from_array(np.float32([value]), name))
    model = save_model(plain, tmp_path / "training.onnx")
    (report,) = scan(model, save_clean_set(images, labels, tmp_path / "clean")).models
    assert "training_mode_forced" in {flag.code for flag in report.flags}
    assert report.parity is not None
    assert report.parity.training_agreement is not None
    assert report.parity.training_agreement >= 0.95
    assert any("in training mode: inference forced" in text for text in report.model.rewrites)
