from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from converters import (
    ConverterError,
    NotAnImageClassifierError,
    UnsupportedModelError,
    load_classifier,
    prepare_classifier,
    read_model,
)
from tests.converters.onnx_models import (
    Shape,
    assert_logits,
    build,
    fixed_reshape,
    images,
    node,
    run_ort,
    small_net,
    small_nodes,
    small_weights,
)

TAILS = {
    "none": ([], "none"),
    "softmax": ([node("Softmax", "logits", "y", axis=1)], "softmax"),
    "sigmoid": ([node("Sigmoid", "logits", "y")], "sigmoid"),
    "log_softmax": ([node("LogSoftmax", "logits", "y", axis=1)], "none"),
    "softmax_flatten": (
        [node("Softmax", "logits", "p"), node("Flatten", "p", "y")],
        "softmax",
    ),
    "softmax_squeeze": (
        [
            helper.make_node("Unsqueeze", ["logits", "two"], ["u"]),
            node("Softmax", "u", "p", axis=1),
            helper.make_node("Squeeze", ["p", "two"], ["y"]),
        ],
        "softmax",
    ),
    "softmax_with_other_readers": (
        [
            node("Softmax", "logits", "y"),
            node("ArgMax", "y", "winner", axis=1),
            node("Neg", "y", "n"),
        ],
        "softmax",
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_logits_are_found(name: str) -> None:
    tail, activation = TAILS[name]
    model = small_net(*tail, output="y" if tail else "logits")
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2]), "two"))
    classifier = load_classifier(model)
    x = images(4, 1, 8, 8)
    expected = run_ort(model, x, ["y" if name == "log_softmax" else "logits"])[0]
    assert_logits(classifier, expected, x)
    assert classifier.final_activation == activation
    assert classifier.class_count == 5
    assert not classifier.outputs_are_probabilities
    assert (f"cut before the final {activation}" in classifier.rewrites) == (activation != "none")


def test_softmax_over_another_axis_than_the_classes_is_not_cut() -> None:
    tail = [
        helper.make_node("Unsqueeze", ["logits", "two"], ["u"]),
        node("Softmax", "u", "ones", axis=2),
        helper.make_node("Mul", ["ones", "u"], ["product"]),
        node("Softmax", "product", "y", axis=0),
    ]
    model = small_net(*tail, output="y", shape=(1, 1, 8, 8))
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2]), "two"))
    classifier = prepare_classifier(read_model(model))
    assert classifier.final_activation == "none"
    assert classifier.logits_name == "y"
    assert classifier.batch_size == 1


def test_probabilities_without_a_softmax_to_cut_are_marked() -> None:
    tail = [
        node("Exp", "logits", "e"),
        helper.make_node("ReduceSum", ["e", "one"], ["total"], keepdims=1),
        helper.make_node("Div", ["e", "total"], ["y"]),
    ]
    model = small_net(*tail, output="y")
    model.graph.initializer.append(numpy_helper.from_array(np.int64([1]), "one"))
    classifier = load_classifier(model)
    assert classifier.outputs_are_probabilities
    x = images(4, 1, 8, 8)
    assert_logits(classifier, np.log(run_ort(model, x)[0]), x)


def layout_model(shape: Shape, *front: NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """`small_net` behind `front`, which turns `image` of this shape into `x`."""
    return build([*front, *small_nodes()], {"image": shape}, ["logits"], small_weights() | weights)


LAYOUTS = {
    "NHWC": (("N", 8, 8, 1), node("Transpose", "image", "x", perm=[0, 3, 1, 2])),
    "flat": (("N", 64), helper.make_node("Reshape", ["image", "square"], ["x"])),
    "NHW": (("N", 8, 8), helper.make_node("Unsqueeze", ["image", "one"], ["x"])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    shape, front = LAYOUTS[layout]
    weights = {"square": np.int64([-1, 1, 8, 8]), "one": np.int64([1])}
    classifier = load_classifier(layout_model(shape, front, **weights))
    wanted = classifier.image_input
    assert (wanted.layout, wanted.channels, wanted.height, wanted.width) == (layout, 1, 8, 8)
    x = images(4, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], wanted.arrange_array(x))
    arranged = wanted.arrange(torch.from_numpy(x).requires_grad_())
    classifier.logits(arranged).sum().backward()


def test_nhwc_with_colours_is_arranged_pixel_by_pixel() -> None:
    weights = small_weights(channels=3)
    front = node("Transpose", "image", "x", perm=[0, 3, 1, 2])
    nhwc = build([front, *small_nodes()], {"image": (1, 8, 6, 3)}, ["logits"], weights)
    nchw = build(small_nodes(), {"x": ("N", 3, 8, 6)}, ["logits"], weights)
    classifier = load_classifier(nhwc)
    x = images(4, 3, 8, 6)
    arranged = classifier.image_input.arrange_array(x)
    assert arranged.shape == (4, 8, 6, 3)
    assert_logits(classifier, run_ort(nchw, x)[0], arranged)


def test_flat_colours() -> None:
    weights = small_weights(channels=3) | {"shape": np.int64([-1, 3, 8, 8])}
    front = helper.make_node("Reshape", ["image", "shape"], ["x"])
    model = build([front, *small_nodes()], {"image": ("N", 192)}, ["logits"], weights)
    wanted = load_classifier(model).image_input
    assert (wanted.layout, wanted.channels, wanted.height, wanted.width) == ("flat", 3, 8, 8)


def test_half_precision() -> None:
    weights = {name: value.astype(np.float16) for name, value in small_weights().items()}
    model = build(
        [*small_nodes(), node("Softmax", "logits", "y", axis=1)],
        {"x": ("N", 1, 8, 8)},
        ["y"],
        weights,
        elem_type=TensorProto.FLOAT16,
    )
    classifier = load_classifier(model)
    assert classifier.image_input.dtype == np.float16
    assert classifier.final_activation == "softmax"
    x = images(4, 1, 8, 8)
    logits = classifier.logits(classifier.image_input.arrange(torch.from_numpy(x)))
    np.testing.assert_allclose(logits, run_ort(small_net(), x)[0], atol=0.05)


def test_logits_of_another_type_than_the_output() -> None:
    weights = {name: value.astype(np.float16) for name, value in small_weights().items()}
    nodes = [
        node("Cast", "image", "x", to=TensorProto.FLOAT16),
        *small_nodes(),
        node("Softmax", "logits", "p", axis=1),
        node("Cast", "p", "y", to=TensorProto.FLOAT),
    ]
    classifier = load_classifier(build(nodes, {"image": ("N", 1, 8, 8)}, ["y"], weights))
    assert (classifier.logits_name, classifier.final_activation) == ("logits", "softmax")


def test_free_image_size() -> None:
    model = small_net(shape=("N", 1, "H", "W"))
    with pytest.raises(NotAnImageClassifierError, match="leaves the image size free"):
        load_classifier(model)
    classifier = load_classifier(model, image_size=(12, 10))
    assert classifier.image_input.shape == (1, 12, 10)
    x = images(2, 1, 12, 10)
    assert_logits(classifier, run_ort(model, x)[0], x)


def with_outputs(*names: str) -> onnx.ModelProto:
    """A model with embeddings, two heads, probabilities and a winner among its tensors."""
    tail = [
        helper.make_node("Gemm", ["flat", "fc"], ["second"], transB=1),
        node("Softmax", "logits", "p", axis=1),
        node("ArgMax", "p", "winner", axis=1),
        helper.make_node("ReduceMax", ["logits"], ["best"], axes=[1], keepdims=0),
    ]
    model = small_net(*tail)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


@pytest.mark.parametrize(
    ("outputs", "chosen", "others"),
    [
        (["logits", "second"], "logits", ("second",)),
        (["second", "logits"], "second", ("logits",)),
        (["flat", "logits"], "logits", ()),
        (["logits", "p"], "p", ()),
        (["winner", "p"], "p", ()),
        (["winner"], "p", ()),
        (["second", "winner", "logits"], "second", ("p",)),
        (["act", "best", "logits", "x", "w"], "logits", ()),
    ],
)
def test_choice_among_outputs(outputs: list[str], chosen: str, others: tuple[str, ...]) -> None:
    """The first that no other is computed from; labels are replaced by their scores."""
    classifier = load_classifier(with_outputs(*outputs))
    assert classifier.other_outputs == others
    assert classifier.output_name == chosen
    assert classifier.logits_name == ("logits" if chosen == "p" else chosen)


def test_output_by_name() -> None:
    model = with_outputs("logits", "second", "p", "act")
    assert load_classifier(model, output="second").logits_name == "second"
    assert load_classifier(model, output="p").final_activation == "softmax"
    with pytest.raises(NotAnImageClassifierError, match="no output of one score for each class"):
        load_classifier(model, output="act")
    for name in ("other", "flat"):  # tensors within the graph are no outputs
        with pytest.raises(
            NotAnImageClassifierError,
            match=f"no output {name!r}; the graph has: logits, second, p, act",
        ):
            load_classifier(model, output=name)


def test_unsupported_operators_of_other_outputs_do_not_matter_when_one_is_named() -> None:
    model = with_outputs("logits", "second")
    model.graph.node.append(node("NotThere", "second", "strange"))
    model.graph.output.add(name="strange")
    with pytest.raises(UnsupportedModelError, match="NotThere"):
        prepare_classifier(read_model(model))
    assert prepare_classifier(read_model(model), output="logits").class_count == 5


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small_net(classes=1), r"one output class only: logits \[1, 1\]"),
        (with_outputs("best"), r"one output class only: best \[1\]"),
        (with_outputs("act", "w"), "no output of one score for each class"),
    ],
)
def test_no_classes(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(NotAnImageClassifierError, match=message):
        load_classifier(model)


@pytest.mark.parametrize(
    ("inputs", "elem_type", "message"),
    [
        ({"x": ["N", 10]}, TensorProto.FLOAT, r"\['\?', 10\] is no image batch"),
        ({"x": ["N", 5, 8, 8]}, TensorProto.FLOAT, "is no image batch"),
        ({"x": []}, TensorProto.FLOAT, "is no image batch"),
        ({"x": ["N", 3, 8, 8, 8]}, TensorProto.FLOAT, "is no image batch"),
        ({"x": ["N", 1, 8, 8]}, TensorProto.INT64, "int64, expected float or uint8 images"),
        ({"x": ["N", 1, 8, 8]}, 99, "99, expected float or uint8 images"),
        ({"x": ["N", 1, 8, 8], "z": [1]}, TensorProto.FLOAT, "one image input.*x, z"),
        ({}, TensorProto.FLOAT, "one image input.*none"),
        ({"x": ["N", 3, 2**20, 2**20]}, TensorProto.FLOAT, "too large"),
        ({"x": [2**40, 3, 8, 8]}, TensorProto.FLOAT, "too large"),
        ({"x": ["N", 3, -1, -1]}, TensorProto.FLOAT, "leaves the image size free"),
    ],
)
def test_inputs_that_are_no_images(inputs: dict[str, Shape], elem_type: int, message: str) -> None:
    source = next(iter(inputs), "w")
    nodes = [node("Identity", source, "y")]
    model = build(nodes, inputs, ["y"], {"w": np.zeros(1, np.float32)}, elem_type=elem_type)
    with pytest.raises(NotAnImageClassifierError, match=message):
        load_classifier(model)


def test_input_that_is_no_tensor() -> None:
    model = small_net()
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    with pytest.raises(NotAnImageClassifierError, match="expected float or uint8 images"):
        load_classifier(model)


def test_initializers_as_inputs_of_ir_version_3() -> None:
    model = fixed_reshape(shape=np.int64([1, 4]))
    model.ir_version = 3
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    classifier = load_classifier(model)
    assert classifier.batch_size is None
    x = images(4, 1, 8, 8)
    assert_logits(classifier, run_ort(small_net(), x)[0], x)


def test_the_files_proto_is_left_alone() -> None:
    file = read_model(fixed_reshape(shape=np.int64([1, 4])))
    before = file.proto.SerializeToString(deterministic=True)
    classifier = prepare_classifier(file)
    assert file.proto.SerializeToString(deterministic=True) == before
    assert classifier.original.SerializeToString(deterministic=True) == before


def test_gradient_reaches_the_images() -> None:
    classifier = load_classifier(small_net(node("Softmax", "logits", "y", axis=1), output="y"))
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    classifier.logits(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad.abs().sum((1, 2, 3)) > 0).all())


@pytest.mark.parametrize("seed", range(60))
def test_damaged_files_end_in_a_converter_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(fixed_reshape(shape=np.int64([1, 4])).SerializeToString())
    for _ in range(3):
        data[rng.integers(len(data))] = rng.integers(256)
    refusal = ""
    try:
        load_classifier(bytes(data))
    except ConverterError as error:
        refusal = str(error)
    assert "\n" not in refusal
