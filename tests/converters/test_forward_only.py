"""Models that only ONNX Runtime can run: their scores, and what they are not let do."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from converters import (
    ConverterError,
    NotAnImageClassifierError,
    OnnxClassifier,
    ParityError,
    UnsupportedModelError,
    check_parity,
    isolated,
    load_classifier,
    open_session,
    registry,
    run_session,
)
from tests.converters.onnx_models import (
    assert_logits,
    build,
    images,
    node,
    run_ort,
    small_net,
    small_nodes,
    small_weights,
)

ML = "ai.onnx.ml"
IMPORTS = {ML: 3, "com.microsoft": 1}
THRESHOLDS = np.float32([0.5, 0.3, 0.7])
LEAVES = np.float32([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.05, 0.05, 0.9]])


def tree(post_transform: str = "NONE", outputs: Sequence[str] = ("label", "scores")) -> NodeProto:
    """Pixel 0 chooses one of two branches, pixel 1 or pixel 2 one of its two leaves."""
    count = len(LEAVES) * 3
    return helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        outputs,
        domain=ML,
        nodes_treeids=[0] * 7,
        nodes_nodeids=list(range(7)),
        nodes_featureids=[0, 1, 2, 0, 0, 0, 0],
        nodes_modes=["BRANCH_LEQ"] * 3 + ["LEAF"] * 4,
        nodes_values=[*THRESHOLDS.tolist(), 0.0, 0.0, 0.0, 0.0],
        nodes_truenodeids=[1, 3, 5, 0, 0, 0, 0],
        nodes_falsenodeids=[2, 4, 6, 0, 0, 0, 0],
        nodes_hitrates=[1.0] * 7,
        nodes_missing_value_tracks_true=[0] * 7,
        class_treeids=[0] * count,
        class_nodeids=np.repeat([3, 4, 5, 6], 3).tolist(),
        class_ids=[0, 1, 2] * len(LEAVES),
        class_weights=LEAVES.reshape(-1).tolist(),
        classlabels_int64s=[0, 1, 2],
        post_transform=post_transform,
    )


def scores_of(x: np.ndarray) -> np.ndarray:
    """What `tree` gives, in plain numpy."""
    left = np.where(x[:, 1] <= THRESHOLDS[1], 0, 1)
    right = np.where(x[:, 2] <= THRESHOLDS[2], 2, 3)
    return LEAVES[np.where(x[:, 0] <= THRESHOLDS[0], left, right)]


def zip_map() -> NodeProto:
    return helper.make_node("ZipMap", ["scores"], ["maps"], domain=ML, classlabels_int64s=[0, 1, 2])


def flat_model(
    *nodes: NodeProto, outputs: Sequence[str], batch: int | str = "N", **weights: np.ndarray
) -> onnx.ModelProto:
    return build(nodes, {"x": (batch, 64)}, outputs, weights, imports=IMPORTS, opset=20)


def runtime_logits(classifier: OnnxClassifier, x: np.ndarray) -> np.ndarray:
    session = open_session(classifier.model)
    raw = run_session(session, [classifier.logits_name], x, classifier.batch_size)[0]
    return classifier.logits_of(torch.from_numpy(raw)).numpy()


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([tree()], ["scores"]),
        ([tree()], ["label", "scores"]),
        ([tree(), zip_map()], ["label", "maps"]),
        ([tree(), zip_map()], ["maps"]),
        ([tree()], ["label"]),
        ([tree(outputs=["label"])], ["label"]),
        ([tree(outputs=["label", ""])], ["label"]),
        ([tree(), node("Cast", "label", "text", to=TensorProto.STRING)], ["text"]),
    ],
)
@pytest.mark.parametrize("batch", ["N", 1])
def test_a_tree_gives_the_logarithm_of_its_probabilities(
    nodes: list[NodeProto], outputs: list[str], batch: int | str
) -> None:
    classifier = load_classifier(flat_model(*nodes, outputs=outputs, batch=batch))
    assert not classifier.differentiable
    assert classifier.network is None
    assert "TreeEnsembleClassifier-3 (1)" in classifier.why_not_differentiable
    assert classifier.class_count == 3
    assert classifier.outputs_are_probabilities
    x = images(70, 64)
    np.testing.assert_allclose(runtime_logits(classifier, x), np.log(scores_of(x)), rtol=1e-5)


def test_no_gradient_is_an_error_of_its_own() -> None:
    classifier = load_classifier(flat_model(tree(), outputs=["scores"]))
    with pytest.raises(UnsupportedModelError, match="TreeEnsembleClassifier"):
        classifier.logits(torch.zeros(1, 64))
    with pytest.raises(UnsupportedModelError, match="TreeEnsembleClassifier"):
        _ = classifier.graph


def machine(classes: int, **attributes: object) -> NodeProto:
    """A support vector machine with one vector for each class."""
    vectors = np.random.default_rng(0).random((classes, 64)).astype(np.float32)
    signs = np.where(np.arange(classes * (classes - 1)) < classes * (classes - 1) / 2, 1.0, -1.0)
    return helper.make_node(
        "SVMClassifier",
        ["x"],
        ["label", "scores"],
        domain=ML,
        coefficients=signs.tolist(),
        kernel_params=[0.05, 0.0, 3.0],
        kernel_type="RBF",
        rho=[0.0] * (classes * (classes - 1) // 2),
        support_vectors=vectors.reshape(-1).tolist(),
        vectors_per_class=[1] * classes,
        **attributes,
    )


@pytest.mark.parametrize("outputs", [["label"], ["label", "scores"], ["scores"]])
@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("text", [False, True])
def test_votes_of_support_vectors(outputs: list[str], classes: int, text: bool) -> None:
    """Their scores are those of pairs of classes, so only the label counts."""
    names = ["cat", "dog", "eel", "fox", "gnu"][:classes]
    labels = (
        {"classlabels_strings": names} if text else {"classlabels_ints": [7, 8, 9, 5, 6][:classes]}
    )
    model = flat_model(machine(classes, **labels), outputs=outputs)
    classifier = load_classifier(model)
    assert classifier.class_count == classes
    assert any("holds votes" in said for said in classifier.rewrites)
    x = images(60, 64)
    winners = [w.decode() if isinstance(w, bytes) else w for w in run_ort(model, x, ["label"])[0]]
    assert len(set(winners)) > 1
    order = names if text else labels["classlabels_ints"]
    got = runtime_logits(classifier, x)
    assert [order[k] for k in got.argmax(1)] == winners
    np.testing.assert_allclose(np.exp(got).sum(1), 1, rtol=1e-6)


def test_probabilities_of_support_vectors() -> None:
    given = {"prob_a": [-1.0] * 3, "prob_b": [0.0] * 3, "classlabels_ints": [0, 1, 2]}
    model = flat_model(machine(3, **given), outputs=["label"])
    classifier = load_classifier(model)
    assert classifier.outputs_are_probabilities
    x = images(10, 64)
    expected = np.log(run_ort(model, x, ["scores"])[0])
    np.testing.assert_allclose(runtime_logits(classifier, x), expected, rtol=1e-4)


def test_a_linear_classifier_is_cut_before_its_softmax() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(3, 64)).astype(np.float32)
    linear = helper.make_node(
        "LinearRegressor",
        ["x"],
        ["linear"],
        domain=ML,
        coefficients=weights.reshape(-1).tolist(),
        intercepts=[0.0, 0.5, 1.0],
        targets=3,
    )
    model = flat_model(linear, node("Softmax", "linear", "y", axis=1), outputs=["y"])
    classifier = load_classifier(model)
    assert classifier.final_activation == "softmax"
    assert "cut before the final softmax" in classifier.rewrites
    x = images(5, 64)
    expected = x @ weights.T + np.float32([0, 0.5, 1])
    np.testing.assert_allclose(runtime_logits(classifier, x), expected, rtol=1e-4, atol=1e-5)


def test_operator_of_com_microsoft() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "square"], ["i"]),
        helper.make_node("Inverse", ["i"], ["v"], domain="com.microsoft"),
        node("Flatten", "v", "y"),
    ]
    classifier = load_classifier(flat_model(*nodes, outputs=["y"], square=np.int64([-1, 8, 8])))
    assert classifier.why_not_differentiable == (
        "unsupported operators: com.microsoft.Inverse-1 (1)"
    )
    x = images(4, 64) + 2 * np.eye(8, dtype=np.float32).reshape(-1)
    expected = np.linalg.inv(x.reshape(-1, 8, 8)).reshape(-1, 64)
    np.testing.assert_allclose(runtime_logits(classifier, x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", ["N", 1, 5, 40])
def test_standard_operator_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, batch: int | str
) -> None:
    """The same logits as with the operator, at any number of images."""
    model = small_net(node("Softmax", "logits", "y"), output="y", shape=(batch, 1, 8, 8))
    with_it = load_classifier(model)
    monkeypatch.delitem(registry._REGISTRY, ("", "Relu"))
    without = load_classifier(model)
    assert (with_it.differentiable, without.differentiable) == (True, False)
    assert without.final_activation == "softmax"
    x = images(45, 1, 8, 8)
    expected = with_it.logits(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(runtime_logits(without, x), expected, rtol=1e-4, atol=1e-5)


def test_scaled_and_normalized_pixels() -> None:
    front = [
        helper.make_node("Scaler", ["pixels"], ["s"], domain=ML, offset=[0.5], scale=[2.0]),
        helper.make_node("Normalizer", ["s"], ["x"], domain=ML, norm="MAX"),
    ]
    model = build([*front, tree()], {"pixels": ("N", 64)}, ["scores"], imports=IMPORTS)
    x = images(20, 64)
    scaled = (x - 0.5) * 2
    expected = scores_of(scaled / scaled.max(1, keepdims=True))
    got = runtime_logits(load_classifier(model), x)
    np.testing.assert_allclose(np.exp(got), expected, rtol=1e-4)


def test_images_that_influence_each_other_are_run_singly() -> None:
    nodes = [
        tree(),
        helper.make_node("ReduceMean", ["scores", "zero"], ["mean"]),
        helper.make_node("Sub", ["scores", "mean"], ["away"]),
        helper.make_node("Add", ["away", "scores"], ["y"]),
    ]
    classifier = load_classifier(flat_model(*nodes, outputs=["y"], zero=np.int64([0])))
    assert classifier.batch_size == 1
    x = images(6, 64)
    np.testing.assert_allclose(
        np.exp(runtime_logits(classifier, x)), scores_of(x), rtol=1e-5, atol=1e-6
    )


def test_a_changed_model_is_noticed() -> None:
    classifier = load_classifier(flat_model(tree(), outputs=["scores"]))
    other = load_classifier(flat_model(tree("SOFTMAX"), outputs=["scores"]))
    x = images(8, 64)
    with pytest.raises(ParityError, match="differ by"):
        check_parity(replace(classifier, model=other.model), x)


# --- class labels only, on differentiable models -------------------------------------------------


def labels_model(*tail: NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    return build(
        [*small_nodes(), *tail],
        {"x": ("N", 1, 8, 8)},
        ["y"],
        small_weights() | weights,
        imports={ML: 3},
    )


@pytest.mark.parametrize(
    "tail",
    [
        [node("ArgMax", "logits", "y", axis=1)],
        [node("ArgMax", "logits", "y", axis=-1, keepdims=0)],
        [node("Softmax", "logits", "p"), node("ArgMax", "p", "y", axis=1)],
        [node("ArgMax", "logits", "a", axis=1), node("Cast", "a", "y", to=TensorProto.INT32)],
        [helper.make_node("TopK", ["logits", "k"], ["best", "y"])],
        [
            node("ArgMax", "logits", "a", axis=1),
            helper.make_node("ArrayFeatureExtractor", ["names", "a"], ["y"], domain=ML),
        ],
    ],
)
def test_labels_are_replaced_by_the_scores_that_they_come_from(tail: list[NodeProto]) -> None:
    model = labels_model(*tail, k=np.int64([2]), names=np.int64([[10, 11, 12, 13, 14]]))
    classifier = load_classifier(model)
    assert classifier.differentiable
    assert any("holds labels" in text for text in classifier.rewrites)
    x = images(4, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)


@pytest.mark.parametrize(
    "tail",
    [
        [node("ArgMax", "logits", "y", axis=0)],
        [node("ArgMin", "logits", "y", axis=1)],
        [helper.make_node("TopK", ["logits", "k"], ["worst", "y"], largest=0)],
    ],
)
def test_labels_of_something_else_are_refused(tail: list[NodeProto]) -> None:
    with pytest.raises(NotAnImageClassifierError, match="no output of one score for each class"):
        load_classifier(labels_model(*tail, k=np.int64([5])))


@pytest.mark.parametrize(
    "tail",
    [
        [node("Hardmax", "logits", "y")],
        [
            node("ArgMax", "logits", "a", axis=1, keepdims=0),
            helper.make_node("OneHot", ["a", "depth", "values"], ["y"]),
        ],
    ],
)
def test_scores_that_are_steps_have_no_gradient(tail: list[NodeProto]) -> None:
    weights = {"depth": np.int64(5), "values": np.float32([0, 1])}
    classifier = load_classifier(labels_model(*tail, **weights))
    assert not classifier.differentiable
    assert "steps" in classifier.why_not_differentiable
    x = images(6, 1, 8, 8)
    winners = run_ort(small_net(), x)[0].argmax(1)
    assert (runtime_logits(classifier, x).argmax(1) == winners).all()


# --- what is refused -----------------------------------------------------------------------------


def big(shape: str) -> list[NodeProto]:
    """Scores that depend on a tensor of this shape."""
    return [
        tree(),
        node("ConstantOfShape", shape, "big"),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["scores", "sum"], ["y"]),
    ]


def looped() -> NodeProto:
    body = helper.make_graph(
        [node("Identity", "go", "on"), helper.make_node("Add", ["v", "v"], ["twice"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT, []),
        ],
    )
    return helper.make_node("Loop", ["trips", "true", "one"], ["last"], body=body)


def doubled_text() -> list[NodeProto]:
    """Text of 2^40 letters."""
    chain = [helper.make_node("StringConcat", [f"t{i}"] * 2, [f"t{i + 1}"]) for i in range(40)]
    return [
        tree(),
        node("Cast", "scores", "t0", to=TensorProto.STRING),
        *chain,
        node("Cast", "t40", "y", to=TensorProto.FLOAT),
    ]


def by_pixels() -> list[NodeProto]:
    """A size that the image's pixels decide."""
    return [
        helper.make_node("ReduceMax", ["x"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["brightest", "billion"], ["size"]),
        node("Cast", "size", "whole", to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["whole", "zero"], ["shape"]),
        *big("shape"),
    ]


HOSTILE = {
    "64 GB": (big("sixteen"), "'big' of shape"),
    "64 GB through the batch": (
        [node("Shape", "x", "s"), helper.make_node("Mul", ["s", "many"], ["shape"]), *big("shape")],
        "'big' of shape",
    ),
    "a size by pixels": (by_pixels(), "the shape of 'big' can't be told"),
    "places of non-zero pixels": (
        [
            tree(),
            node("NonZero", "x", "places"),
            helper.make_node("ReduceSum", ["places"], ["sum"], keepdims=0),
            node("Cast", "sum", "f", to=TensorProto.FLOAT),
            helper.make_node("Add", ["scores", "f"], ["y"]),
        ],
        "the shape of 'places' can't be told",
    ),
    "a loop": ([tree(), looped(), helper.make_node("Add", ["scores", "last"], ["y"])], "Tree"),
    "text that doubles": (doubled_text(), "no tensor of numbers"),
    "a sequence": (
        [
            tree(),
            node("SequenceConstruct", "scores", "q"),
            helper.make_node("SequenceAt", ["q", "zero_scalar"], ["y"]),
        ],
        "no tensor of numbers",
    ),
    "another library": (
        [helper.make_node("Quant", ["x"], ["y"], domain="onnx.brevitas")],
        "onnx.brevitas.Quant-1",
    ),
    "nobody's operator": ([node("Frobnicate", "x", "y")], "Frobnicate-20"),
    "a tree whose branch leads back": (
        [
            helper.make_node(
                "TreeEnsembleClassifier",
                ["x"],
                ["label", "y"],
                domain=ML,
                nodes_treeids=[0, 0, 0],
                nodes_nodeids=[0, 1, 2],
                nodes_featureids=[0, 0, 0],
                nodes_modes=["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"],
                nodes_values=[0.5, 0.5, 0.0],
                nodes_truenodeids=[1, 0, 0],
                nodes_falsenodeids=[2, 2, 0],
                class_treeids=[0],
                class_nodeids=[2],
                class_ids=[0],
                class_weights=[1.0],
                classlabels_int64s=[0, 1, 2],
            )
        ],
        "ONNX Runtime refuses",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_could_fill_the_memory_is_not_run(name: str) -> None:
    nodes, message = HOSTILE[name]
    model = flat_model(
        *nodes,
        outputs=["y"],
        sixteen=np.int64([16 * 2**30]),
        many=np.int64([2**20, 2**10]),
        billion=np.float32(1e12),
        zero=np.int64([0]),
        zero_scalar=np.int64(0),
        one=np.float32(1),
        true=np.array(True),
        trips=np.int64(2**62),
    )
    model.opset_import.add(domain="onnx.brevitas", version=1)
    begun = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConverterError, match=message):
        load_classifier(model)
    assert time.monotonic() - begun < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes


@pytest.mark.parametrize("tail", [[], [node("Relu", "logits", "y")]])
def test_what_no_output_needs_is_not_run(tail: list[NodeProto]) -> None:
    """Not even by ONNX Runtime, which would fold the constant."""
    model = small_net(*tail, node("ConstantOfShape", "sixteen", "big"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64([16 * 2**30]), "sixteen"))
    if tail:
        model.graph.output.add(name="big")
    classifier = load_classifier(model, output="logits" if tail else None)
    assert classifier.differentiable
    for part in (classifier.model, classifier.original):
        assert "big" not in {name for n in part.graph.node for name in n.output}


def test_a_dimension_that_a_pool_made_negative_is_refused() -> None:
    """onnx 1.23's shape inference ends the process over the Slice."""
    nodes = [
        node("AveragePool", "pixels", "a", kernel_shape=[2, 255], pads=[1, 1, 0, 0]),
        helper.make_node("Slice", ["a", "from", "to", "axes"], ["s"]),
        node("Flatten", "s", "f"),
        helper.make_node("Scaler", ["f"], ["y"], domain=ML, offset=[0.5], scale=[2.0]),
    ]
    weights = {"from": np.int64([0, 0]), "to": np.int64([6, 6]), "axes": np.int64([2, 3])}
    model = build(nodes, {"pixels": ("N", 1, 8, 8)}, ["y"], weights, imports=IMPORTS)
    with pytest.raises(UnsupportedModelError, match="shape"):
        load_classifier(model)


@pytest.mark.parametrize(
    ("script", "message"),
    [("import os; os.abort()", "crashed"), ("import time; time.sleep(60)", "too long")],
)
def test_shape_inference_that_ends_or_hangs_its_process_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(isolated, "_SCRIPT", script)
    monkeypatch.setattr(isolated, "SECONDS", 1)
    with pytest.raises(UnsupportedModelError, match=message):
        isolated.infer_shapes(small_net())
