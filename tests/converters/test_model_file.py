from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import (
    ConverterError,
    Limits,
    ModelFormatError,
    UnsupportedModelError,
    load_classifier,
    read_model,
)
from tests.converters.onnx_models import small_net

Change = Callable[[onnx.ModelProto], object]


def initializer(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def test_reads_path_bytes_and_proto_alike(tmp_path: Path) -> None:
    model = small_net()
    model.producer_name, model.producer_version = "maker", "3"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    from_path, from_text = read_model(path), read_model(str(path))
    from_bytes, from_proto = read_model(path.read_bytes()), read_model(model)
    assert from_path.sha256 == from_text.sha256 == from_bytes.sha256 == from_proto.sha256
    assert (from_path.path, from_bytes.path) == (path, None)
    assert from_path.opset == 17
    assert from_path.producer == "maker 3"
    assert from_proto.proto is not model


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*absent\.onnx"):
        read_model(tmp_path / "absent.onnx")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="is a folder"):
        read_model(tmp_path)


def test_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelFormatError, match="not a regular file"):
        read_model(tmp_path / "pipe.onnx")


def test_overlong_path() -> None:
    with pytest.raises(ConverterError, match="can't be read"):
        read_model("x" * 5000)


@pytest.mark.parametrize("data", [b"", b"hello, world", b"\x89PNG\r\n\x1a\n", bytes(100)])
def test_not_onnx(data: bytes) -> None:
    with pytest.raises(ModelFormatError, match="not an ONNX"):
        read_model(data)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated(share: float) -> None:
    data = small_net().SerializeToString()
    with pytest.raises(ConverterError):
        load_classifier(data[: int(len(data) * share)])


def test_limits(tmp_path: Path) -> None:
    model = small_net()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    size = path.stat().st_size
    read_model(path, Limits(file_bytes=size, nodes=6))
    for source in (path, path.read_bytes(), model):
        with pytest.raises(ModelFormatError, match=f"bytes; the limit is {size - 1}"):
            read_model(source, Limits(file_bytes=size - 1))
    with pytest.raises(ModelFormatError, match="6 nodes; the limit is 5"):
        read_model(model, Limits(nodes=5))
    with pytest.raises(ModelFormatError, match="bytes of tensors; the limit is 100"):
        read_model(model, Limits(tensor_bytes=100))


def duplicate_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["logits"], ["logits"]))


def output_over_initializer(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "w"


def output_over_input(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "x"


def same_initializer_twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(initializer(model, "w"))


def same_output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


def nameless_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = ""


def negative_dimension(model: onnx.ModelProto) -> None:
    initializer(model, "b").dims[0] = -1


def short_raw_data(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "b")
    tensor.raw_data = tensor.raw_data[:-4]


def long_raw_data(model: onnx.ModelProto) -> None:
    initializer(model, "b").raw_data += b"1234"


def raw_and_typed_data(model: onnx.ModelProto) -> None:
    initializer(model, "b").float_data.extend([1, 2, 3, 4])


def terabytes(model: onnx.ModelProto) -> None:
    initializer(model, "b").dims[0] = 2**40


def unknown_type(model: onnx.ModelProto) -> None:
    initializer(model, "b").data_type = 99


def two_attributes_of_one_name(model: onnx.ModelProto) -> None:
    model.graph.node[5].attribute.append(helper.make_attribute("transB", 0))


def two_operator_sets(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 9))


def no_operator_set(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (duplicate_output, "'logits' is assigned more than once"),
        (output_over_initializer, "'w' is assigned more than once"),
        (output_over_input, "'x' is assigned more than once"),
        (same_initializer_twice, "two initializers have the same name"),
        (same_output_twice, "two outputs have the same name"),
        (nameless_input, "a name among the inputs is empty"),
        (negative_dimension, "'b' has a negative dimension"),
        (short_raw_data, "'b' declares 16 bytes and holds 12"),
        (long_raw_data, "'b' declares 16 bytes and holds 20"),
        (raw_and_typed_data, "'b' holds its numbers twice"),
        (terabytes, "bytes of tensors; the limit is"),
        (unknown_type, "'b' has unknown data type 99"),
        (two_attributes_of_one_name, "two attributes of the same name"),
        (two_operator_sets, "two versions of operator set 'ai.onnx'"),
        (no_operator_set, "imports no operator set"),
        (no_outputs, "no outputs"),
    ],
)
def test_broken_files_are_refused(change: Change, message: str) -> None:
    model = small_net()
    change(model)
    with pytest.raises(ModelFormatError, match=message):
        read_model(model)


@pytest.mark.parametrize("name", ["conv", "Relu", "logits", "gamma", "transB"])
def test_invalid_utf8(name: str) -> None:
    data = small_net().SerializeToString().replace(name.encode(), b"\xff" * len(name))
    with pytest.raises(ModelFormatError, match="not valid UTF-8"):
        read_model(data)


def test_sparse_weights_are_refused() -> None:
    model = small_net()
    model.graph.sparse_initializer.add()
    with pytest.raises(UnsupportedModelError, match="sparse"):
        read_model(model)


def external(tmp_path: Path, location: str, **where: int) -> Path:
    """A model in tmp_path/model whose bias `b` lies in the file `location`."""
    model = small_net()
    tensor = initializer(model, "b")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **where}.items():
        tensor.external_data.add(key=key, value=str(value))
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


BIAS = np.arange(4, dtype=np.float32)


def test_external_data_is_inlined(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin", offset=8, length=16)
    path.with_name("weights.bin").write_bytes(b"12345678" + BIAS.tobytes() + b"rest")
    file = read_model(path)
    tensor = initializer(file.proto, "b")
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), BIAS)
    assert list(file.external_sha256) == ["weights.bin"]
    load_classifier(path)


def test_external_data_inside_attributes_is_inlined(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    model = onnx.ModelProto.FromString(path.read_bytes())
    value = initializer(model, "b")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["b"], value=value))
    model.graph.initializer.remove(value)
    path.write_bytes(model.SerializeToString())
    path.with_name("weights.bin").write_bytes(BIAS.tobytes())
    held = read_model(path).proto.graph.node[0].attribute[0].t
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(held), BIAS)


def test_external_data_inside_subgraphs_is_not_left_to_onnx_runtime(tmp_path: Path) -> None:
    path = external(tmp_path, "../secret")
    model = onnx.ModelProto.FromString(path.read_bytes())
    tensor = initializer(model, "b")
    inner = helper.make_graph([helper.make_node("Identity", ["inside"], ["i"])], "inner", [], [])
    inner.initializer.append(tensor)
    inner.initializer[0].name = "inside"
    tensor.CopyFrom(numpy_helper.from_array(BIAS, "b"))
    model.graph.node.append(helper.make_node("If", ["x"], ["o"], then_branch=inner))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match="not a plain file name"):
        read_model(path)


def test_missing_external_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"'weights\.bin' beside the model can't be opened"):
        read_model(external(tmp_path, "weights.bin"))


def test_external_data_of_bytes_is_refused(tmp_path: Path) -> None:
    data = external(tmp_path, "weights.bin").read_bytes()
    with pytest.raises(ModelFormatError, match="needs the model's folder"):
        read_model(data)


@pytest.mark.parametrize("how", ["../secret", "a/../../secret", "absolute", "..", "", "a\0b"])
def test_external_paths_are_refused(tmp_path: Path, how: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(BIAS.tobytes())
    path = external(tmp_path, str(secret) if how == "absolute" else how)
    (path.parent / "a").mkdir()
    with pytest.raises(ModelFormatError, match="not a plain file name"):
        read_model(path)


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_external_links_are_refused(tmp_path: Path, link: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(BIAS.tobytes())
    path = external(tmp_path, "weights.bin")
    (os.symlink if link == "symbolic" else os.link)(secret, path.with_name("weights.bin"))
    with pytest.raises(ModelFormatError, match=r"can't be opened|is a link"):
        read_model(path)


def test_external_folder_and_pipe_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    os.mkfifo(path.with_name("weights.bin"))
    with pytest.raises(ModelFormatError, match="no regular file"):
        read_model(path)


@pytest.mark.parametrize(
    "where",
    [
        {"offset": -4, "length": 16},
        {"offset": 8, "length": 16},
        {"offset": 17},
        {"length": 2**40},
        {"length": -1},
        {"length": 8},
        {"length": "many"},
    ],
)
def test_external_ranges_are_checked(tmp_path: Path, where: dict[str, int]) -> None:
    path = external(tmp_path, "weights.bin", **where)
    path.with_name("weights.bin").write_bytes(BIAS.tobytes())
    with pytest.raises(ModelFormatError, match=r"external|points to"):
        read_model(path)


def test_external_file_over_the_limit(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    path.with_name("weights.bin").write_bytes(bytes(10_000))
    with pytest.raises(ModelFormatError, match="exceeds 5000 bytes"):
        read_model(path, Limits(file_bytes=5000))
