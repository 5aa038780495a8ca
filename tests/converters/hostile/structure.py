"""Hostile files whose bytes, names, sizes or order are wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.converters.hostile.kinds import Made, field, kind
from tests.converters.onnx_models import build, node, small_net, small_nodes, small_weights

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # field numbers


def weight(model: onnx.ModelProto, name: str) -> TensorProto:
    """The initializer of that name."""
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


@kind("incomplete")
def empty_file(folder: Path) -> Made:
    return b""


@kind("truncated_or_not_onnx")
def garbage(folder: Path) -> Made:
    return b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10


@kind("truncated_or_not_onnx")
def truncated(folder: Path) -> Made:
    return small_net().SerializeToString()[:-100]


@kind("truncated_or_not_onnx")
def zeros_without_end(folder: Path) -> Made:
    path = folder / "zeros.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 - 1)
    return path


@kind("truncated_or_not_onnx")
def zeros_in_a_graph(folder: Path) -> Made:
    path, size = folder / "zeros.onnx", 2**30
    with path.open("wb") as file:
        file.write(field(_GRAPH, bytes(2**22))[:2] + b"\x80\x80\x80\x04")
        file.truncate(file.tell() + size)
    return path


@kind("file_too_large")
def three_gigabytes(folder: Path) -> Made:
    path = folder / "large.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    return path


@kind("unreadable_file")
def folder_as_file(folder: Path) -> Made:
    return folder


@kind("unreadable_file")
def named_pipe(folder: Path) -> Made:
    os.mkfifo(folder / "pipe.onnx")
    return folder / "pipe.onnx"


@kind("unreadable_file")
def device(folder: Path) -> Made:
    (folder / "zero.onnx").symlink_to("/dev/zero")
    return folder / "zero.onnx"


@kind("too_many_nodes")
def millions_of_empty_nodes(folder: Path) -> Made:
    return field(_GRAPH, field(_NODE, b"") * 5_000_000)


@kind("too_many_nodes")
def millions_of_empty_attributes(folder: Path) -> Made:
    return field(_GRAPH, field(_NODE, field(5, b"") * 5_000_000))


@kind("too_many_nodes")
def many_nodes(folder: Path) -> Made:
    model = small_net()
    one = field(_NODE, node("Relu", "x", "").SerializeToString())
    return model.SerializeToString() + field(_GRAPH, one * 100_001)


@kind("too_many_nodes")
def functions_that_double(folder: Path) -> Made:
    functions = [
        helper.make_function(
            "own", f"f{i}", ["a"], ["c"],
            [
                helper.make_node(f"f{i + 1}", ["a"], ["b"], domain="own"),
                helper.make_node(f"f{i + 1}", ["b"], ["c"], domain="own"),
            ],
            [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
        )
        for i in range(40)
    ]  # fmt: skip
    last = helper.make_function(
        "own", "f40", ["a"], ["c"], [node("Relu", "a", "c")], [helper.make_opsetid("", 17)]
    )
    return _with_functions([*functions, last])


def _with_functions(functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    call = helper.make_node("f0", ["logits"], ["y"], domain="own")
    model = small_net(call, output="y")
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend(functions)
    return model


def _chain(length: int, last: str) -> list[onnx.FunctionProto]:
    """Functions that call the next one each; the last one calls `last`."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return [
        helper.make_function(
            "own",
            f"f{i}",
            ["a"],
            ["b"],
            [helper.make_node(f"f{i + 1}" if i + 1 < length else last, ["a"], ["b"], domain="own")],
            imports,
        )
        for i in range(length)
    ]


@kind("cycle")
def function_that_calls_itself(folder: Path) -> Made:
    return _with_functions(_chain(3, "f0"))


@kind("too_deep")
def functions_in_functions(folder: Path) -> Made:
    return _with_functions(_chain(100, "none"))


@kind("ambiguous")
def two_functions_of_one_name(folder: Path) -> Made:
    return _with_functions(_chain(1, "none") * 2)


@kind("unsupported_model")
def function_named_as_an_operator(folder: Path) -> Made:
    model = small_net()
    model.functions.append(
        helper.make_function(
            "", "Relu", ["a"], ["b"], [node("Neg", "a", "b")], [helper.make_opsetid("", 17)]
        )
    )
    return model


@kind("weights_too_large")
def weights_of_functions_called_often(folder: Path) -> Made:
    value = numpy_helper.from_array(np.zeros(2**20, np.float32))
    inner = [helper.make_node("Constant", [], ["k"], value=value), node("Relu", "a", "b")]
    function = helper.make_function("own", "f", ["a"], ["b"], inner, [helper.make_opsetid("", 17)])
    calls = [
        helper.make_node("f", ["logits" if i == 0 else f"y{i}"], [f"y{i + 1}"], domain="own")
        for i in range(3000)
    ]
    model = small_net(*calls, output="y3000")
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(function)
    return model


@kind("too_many_initializers")
def many_initializers(folder: Path) -> Made:
    tensors = []
    for i in range(100_001):
        name = b"w%d" % i
        tensors.append(field(_INITIALIZER, b"\x10\x01" + field(8, name) + field(4, bytes(4))))
    return small_net().SerializeToString() + field(_GRAPH, b"".join(tensors))


@kind("too_many_outputs")
def many_outputs(folder: Path) -> Made:
    tail = [node("Relu", "logits" if i == 0 else f"y{i}", f"y{i + 1}") for i in range(5000)]
    model = small_net(*tail)
    model.graph.output.extend(onnx.ValueInfoProto(name=f"y{i + 1}") for i in range(5000))
    return model


def _nested(depth: int) -> onnx.GraphProto:
    graph = helper.make_graph([node("Identity", "logits", "d0")], "g", [], [])
    graph.output.add(name="d0")
    for level in range(1, depth + 1):
        branch = helper.make_node("If", ["yes"], [f"d{level}"], then_branch=graph)
        graph = helper.make_graph([branch], "g", [], [])
        graph.output.add(name=f"d{level}")
    return graph


@kind("too_deep")
def twenty_graphs_in_one_another(folder: Path) -> Made:
    model = small_net(helper.make_node("If", ["yes"], ["y"], then_branch=_nested(20)))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return model


@kind("too_deep")
def four_hundred_graphs_in_one_another(folder: Path) -> Made:
    graph = b""
    for _ in range(400):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(_NODE, field(4, b"If") + field(5, attribute))
    return field(_GRAPH, graph)


@kind("too_deep")
def types_in_types(folder: Path) -> Made:
    kind_of = b""
    for _ in range(400):
        kind_of = field(9, field(1, kind_of))  # optional(elem_type)
    value = field(1, b"x") + field(2, kind_of)
    return field(_GRAPH, field(11, value) + field(_NODE, b""))


@kind("cycle")
def cycle(folder: Path) -> Made:
    model = small_net()
    model.graph.node[2].input[0] = "pooled"
    return model


@kind("cycle")
def node_that_reads_itself(folder: Path) -> Made:
    model = small_net()
    model.graph.node[2].input[0] = "act"
    return model


@kind("cycle")
def cycle_through_a_subgraph(folder: Path) -> Made:
    inner = helper.make_graph([node("Identity", "later", "i")], "g", [], [])
    inner.output.add(name="i")
    branch = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    model = small_net(branch, node("Relu", "y", "later"), output="later")
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return model


@kind("missing_tensor")
def missing_input(folder: Path) -> Made:
    model = small_net()
    model.graph.node[2].input[0] = "nowhere"
    return model


@kind("missing_tensor")
def missing_output(folder: Path) -> Made:
    return small_net(output="nowhere")


@kind("duplicate_assignment")
def tensor_computed_twice(folder: Path) -> Made:
    return small_net(node("Neg", "flat", "logits"))


@kind("duplicate_assignment")
def output_over_a_weight(folder: Path) -> Made:
    return small_net(node("Neg", "flat", "w"))


@kind("duplicate_assignment")
def output_over_the_input(folder: Path) -> Made:
    return small_net(node("Neg", "flat", "x"))


@kind("duplicate_assignment")
def subgraph_that_hides_an_outer_name(folder: Path) -> Made:
    inner = helper.make_graph([node("Neg", "logits", "flat")], "g", [], [])
    inner.output.add(name="flat")
    branch = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    model = small_net(branch, output="y")
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return model


@kind("ambiguous")
def two_weights_of_one_name(folder: Path) -> Made:
    model = small_net()
    model.graph.initializer.append(weight(model, "w"))
    return model


@kind("ambiguous")
def two_inputs_of_one_name(folder: Path) -> Made:
    model = small_net()
    model.graph.input.append(model.graph.input[0])
    return model


@kind("ambiguous")
def data_held_twice(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").float_data.extend([1, 2, 3, 4])
    return model


@kind("ambiguous")
def two_versions_of_the_operators(folder: Path) -> Made:
    model = small_net()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 9))
    return model


@kind("ambiguous")
def attribute_given_twice(folder: Path) -> Made:
    model = small_net()
    model.graph.node[5].attribute.append(helper.make_attribute("transB", 0))
    return model


@kind("invalid_model")
def operator_set_of_no_version(folder: Path) -> Made:
    model = small_net()
    model.opset_import[0].version = 2**62
    return model


@kind("incomplete")
def no_operator_set(folder: Path) -> Made:
    model = small_net()
    del model.opset_import[:]
    return model


@kind("incomplete")
def no_outputs(folder: Path) -> Made:
    model = small_net()
    del model.graph.output[:]
    return model


@kind("invalid_text")
def operator_name_that_is_no_text(folder: Path) -> Made:
    return small_net().SerializeToString().replace(b"Relu", b"\xff\xfe\xfd\xfc")


@kind("invalid_text")
def node_name_that_is_no_text(folder: Path) -> Made:
    return small_net().SerializeToString().replace(b"conv", b"\xff\xfe\xfd\xfc")


@kind("invalid_text")
def input_without_a_name(folder: Path) -> Made:
    model = small_net()
    model.graph.input[0].name = ""
    return model


@kind("negative_dimension")
def dimension_minus_one(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").dims[0] = -1
    return model


@kind("declared_size_mismatch")
def too_few_bytes(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").raw_data = bytes(12)
    return model


@kind("declared_size_mismatch")
def too_many_bytes(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").raw_data = bytes(20)
    return model


@kind("declared_size_mismatch")
def numbers_in_the_wrong_field(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").ClearField("raw_data")
    weight(model, "b").int32_data.extend([1, 2, 3, 4])
    return model


@kind("declared_size_mismatch")
def gigabytes_declared_and_none_held(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").ClearField("raw_data")
    weight(model, "b").dims[:] = [2**30]
    return model


@kind("weights_too_large")
def terabytes_declared(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").dims[:] = [2**40]
    return model


@kind("weights_too_large")
def dimensions_that_overflow(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").dims[:] = [2**33, 2**33]
    return model


@kind("unknown_data_type")
def data_type_99(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").data_type = 99
    return model


@kind("unknown_data_type")
def data_type_missing(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").ClearField("data_type")
    return model


@kind("unsupported_model")
def sparse_weights(folder: Path) -> Made:
    model = small_net()
    model.graph.sparse_initializer.add()
    return model


@kind("unsupported_model", sessions=True)
def operator_name_of_a_megabyte(folder: Path) -> Made:
    return small_net(node("R" * 2**20, "logits", "y"), output="y")


@kind("parity", sessions=True)
def weights_that_are_no_numbers(folder: Path) -> Made:
    model = small_net()
    weight(model, "b").raw_data = np.full(4, np.nan, np.float32).tobytes()
    return model


@kind()  # in inference mode, which is compared
def training_mode_with_other_statistics(folder: Path) -> Made:
    model = small_net()
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    model.graph.node[1].output.extend(["running_mean", "running_var"])
    return model


@kind()
def unsorted_nodes(folder: Path) -> Made:
    return build(small_nodes()[::-1], {"x": ("N", 1, 8, 8)}, ["logits"], small_weights())


@kind()
def metadata_bomb(folder: Path) -> Made:
    model = small_net()
    for i in range(2**16):
        model.metadata_props.add(key=f"k{i % 1000}", value="v" * 100)
    return model


@kind()
def quantization_annotation_of_nothing(folder: Path) -> Made:
    model = small_net()
    note = model.graph.quantization_annotation.add(tensor_name="b")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="nowhere")
    return model


def _sized(*sizes: int) -> onnx.ModelProto:
    model = small_net()
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
        dim.dim_value = size
    return model


@kind("input_too_large")
def batch_of_a_million(folder: Path) -> Made:
    return _sized(2**20, 1, 8, 8)


@kind("input_too_large")
def image_of_gigabytes(folder: Path) -> Made:
    return _sized(1, 1, 2**15, 2**15)
