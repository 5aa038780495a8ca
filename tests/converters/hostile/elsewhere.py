"""Hostile files that point to files which are none of theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from tests.converters.hostile.client import secrets
from tests.converters.hostile.kinds import Made, kind
from tests.converters.hostile.structure import weight
from tests.converters.onnx_models import node, small_net


def _point(tensor: TensorProto, location: str, **where: object) -> None:
    """Let a tensor's numbers lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **where}.items():
        tensor.external_data.add(key=key, value=str(value))


def _model(location: str, **where: object) -> onnx.ModelProto:
    """`small_net`, whose bias of 16 bytes lies in the file `location`."""
    model = small_net()
    _point(weight(model, "b"), location, **where)
    return model


def _secret(folder: Path) -> Path:
    return secrets(folder.parent / "secret")


@kind("external_data_path")
def parent_folder(folder: Path) -> Made:
    _secret(folder)
    return _model("../secret/secret.bin")


@kind("external_data_path")
def parent_of_a_folder(folder: Path) -> Made:
    _secret(folder)
    (folder / "a").mkdir()
    return _model("a/../../secret/secret.bin")


@kind("external_data_path")
def password_file(folder: Path) -> Made:
    return _model("../../../../../../../../etc/passwd", length=16)


@kind("external_data_path")
def absolute_path(folder: Path) -> Made:
    return _model(str(_secret(folder)))


@kind("external_data_path")
def device_of_zeros(folder: Path) -> Made:
    return _model("/dev/zero", length=16)


@kind("external_data_path")
def address_of_a_file(folder: Path) -> Made:
    return _model(f"file://{_secret(folder)}")


@kind("external_data_path")
def windows_path(folder: Path) -> Made:
    return _model("..\\secret\\secret.bin")


@kind("external_data_path")
def null_character(folder: Path) -> Made:
    _secret(folder)
    return _model("weights.bin\0../secret/secret.bin")


@kind("external_data_path")
def memory_address(folder: Path) -> Made:
    return _model("*/_ORT_MEM_ADDR_/*", offset=2**40, length=16)


@kind("external_data_path")
def symbolic_link_of_a_folder(folder: Path) -> Made:
    (folder / "weights").symlink_to(_secret(folder).parent)
    return _model("weights/secret.bin")


@kind("external_data_path")
def the_folder_itself(folder: Path) -> Made:
    return _model(".")


@kind("external_data_missing")
def look_alike_of_a_slash(folder: Path) -> Made:
    _secret(folder)
    return _model("\u2025\u2215secret\uff0fsecret.bin")


@kind("external_data_missing")
def absent_file(folder: Path) -> Made:
    return _model("weights.bin")


@kind("external_data_missing")
def name_of_ten_thousand_letters(folder: Path) -> Made:
    return _model("w" * 10_000)


@kind("external_data_link")
def symbolic_link(folder: Path) -> Made:
    (folder / "weights.bin").symlink_to(_secret(folder))
    return _model("weights.bin")


@kind("external_data_link")
def hard_link(folder: Path) -> Made:
    os.link(_secret(folder), folder / "weights.bin")
    return _model("weights.bin")


@kind("external_data_link")
def pipe(folder: Path) -> Made:
    os.mkfifo(folder / "weights.bin")
    return _model("weights.bin")


@kind("external_data_link")
def link_to_a_device(folder: Path) -> Made:
    (folder / "weights.bin").symlink_to("/dev/zero")
    return _model("weights.bin", length=16)


@kind("external_data_link")
def folder_of_weights(folder: Path) -> Made:
    (folder / "weights.bin").mkdir()
    return _model("weights.bin")


def _with_weights(folder: Path, **where: object) -> onnx.ModelProto:
    (folder / "weights.bin").write_bytes(bytes(64))
    return _model("weights.bin", **where)


@kind("external_data_range")
def negative_offset(folder: Path) -> Made:
    return _with_weights(folder, offset=-16, length=16)


@kind("external_data_range")
def huge_length(folder: Path) -> Made:
    return _with_weights(folder, length=2**40)


@kind("external_data_range")
def offset_that_overflows(folder: Path) -> Made:
    return _with_weights(folder, offset=2**64 - 8, length=16)


@kind("external_data_range")
def offset_in_other_digits(folder: Path) -> Made:
    return _with_weights(folder, offset="\u0661\u0666", length=16)


@kind("external_data_range")
def one_small_file_for_many_weights(folder: Path) -> Made:
    model = _with_weights(folder, length=16)
    for i in range(100):
        copy = model.graph.initializer.add()
        copy.CopyFrom(weight(model, "b"))
        copy.name = f"copy{i}"
    return model


@kind("declared_size_mismatch")
def other_length_than_declared(folder: Path) -> Made:
    return _with_weights(folder, length=32)


@kind("external_data_entry")
def unknown_keys(folder: Path) -> Made:
    return _with_weights(folder, length=16, basepath="../secret", __class__="evil")


@kind("external_data_entry")
def repeated_location(folder: Path) -> Made:
    model = _with_weights(folder, length=16)
    weight(model, "b").external_data.add(key="location", value="../secret/secret.bin")
    return model


@kind("external_data_entry")
def inside_and_outside(folder: Path) -> Made:
    model = _with_weights(folder, length=16)
    weight(model, "b").raw_data = bytes(16)
    return model


def _constant(folder: Path) -> onnx.NodeProto:
    """A Constant whose value is the secret."""
    _secret(folder)
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[4])
    _point(tensor, "../secret/secret.bin")
    return helper.make_node("Constant", [], ["k"], value=tensor)


@kind("external_data_path")
def inside_an_attribute(folder: Path) -> Made:
    model = small_net()
    model.graph.node.insert(0, _constant(folder))
    return model


@kind("external_data_path")
def inside_a_subgraph(folder: Path) -> Made:
    inner = helper.make_graph([_constant(folder)], "g", [], [])
    inner.output.add(name="k")
    return small_net(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def _function(folder: Path, change: Callable[[onnx.FunctionProto], None]) -> onnx.ModelProto:
    function = helper.make_function(
        "own", "f", ["a"], ["b"], [node("Neg", "a", "b")], [helper.make_opsetid("", 17)]
    )
    change(function)
    model = small_net()
    model.functions.append(function)
    return model


@kind("external_data_path")
def inside_a_function(folder: Path) -> Made:
    return _function(folder, lambda f: f.node.append(_constant(folder)))


@kind("external_data_path")
def inside_a_default_value(folder: Path) -> Made:
    value = _constant(folder).attribute[0]
    return _function(folder, lambda f: f.attribute_proto.append(value))


@kind()
def inside_the_training_graphs(folder: Path) -> Made:
    model = small_net()
    model.training_info.add().algorithm.node.append(_constant(folder))
    return model


@kind()
def ordinary_weights(folder: Path) -> Made:
    return _with_weights(folder, offset=16, length=16)
