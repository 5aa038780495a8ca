"""Files that were converted after their export: precision, operator set, labels, storage, names."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, version_converter
from onnxruntime.transformers.float16 import convert_float_to_float16

from converters.rewrite import find_logits


def half_precision(model: onnx.ModelProto, keep_io: bool) -> onnx.ModelProto:
    """In float16; with float32 inputs and outputs and a Cast at both ends if `keep_io`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of weights that float16 rounds to 0
        return convert_float_to_float16(copied(model), keep_io_types=keep_io)


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """By onnx's converter."""
    return version_converter.convert_version(model, opset)


def labelled(model: onnx.ModelProto, ir_version: int, opset: int | None = None) -> onnx.ModelProto:
    """With another IR version, initializers among the inputs before 4, and another opset."""
    model = copied(model)
    model.ir_version = ir_version
    if ir_version < 4:
        for tensor in model.graph.initializer:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(value)
    if opset is not None:
        model.opset_import[0].version = opset
    return model


def with_external_data(model: onnx.ModelProto, path: Path) -> Path:
    """In a file with all weights in another one beside it."""
    onnx.save(copied(model), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def unsorted(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """With its nodes in a random order."""
    model = copied(model)
    order = np.random.default_rng(seed).permutation(len(model.graph.node))
    nodes = [model.graph.node[i].SerializeToString() for i in order]
    del model.graph.node[:]
    model.graph.node.extend(onnx.NodeProto.FromString(node) for node in nodes)
    return model


def oddly_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """With names that are no identifiers for all tensors, and without names for nodes."""
    model = copied(model)
    graph = model.graph
    tensors = [t.name for t in graph.initializer] + [v.name for v in graph.input]
    tensors += [name for node in graph.node for name in node.output if name]
    odd = ("a/b:0.1-c {}", "层 {}", "{}", "self.{}\n", "__class__{}", "'{}'; import os", " {}\t")
    renamed = {name: odd[i % len(odd)].format(i) for i, name in enumerate(dict.fromkeys(tensors))}
    for node in graph.node:
        node.name = ""
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.input, *graph.output):
        value.name = renamed.get(value.name, value.name)
    del graph.value_info[:]
    return model


def ending(model: onnx.ModelProto, op_type: str) -> onnx.ModelProto:
    """With an activation behind its only output."""
    model = copied(model)
    output = model.graph.output[0]
    assert find_logits(model, output.name)[1] == "none"
    model.graph.node.append(helper.make_node(op_type, [output.name], ["ending"], axis=1))
    if op_type == "Sigmoid":
        del model.graph.node[-1].attribute[:]
    output.name = "ending"
    return model


def with_more_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """With an embedding, the logits, probabilities and the winner's index as outputs."""
    model = copied(model)
    logits = model.graph.output[0].name
    embedding = next(n.input[0] for n in model.graph.node if logits in n.output)
    model.graph.node.extend(
        [
            helper.make_node("Softmax", [logits], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["winner"], axis=1, keepdims=0),
        ]
    )
    del model.graph.output[:]
    names = ("winner", embedding, logits, "probabilities")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


def declared(
    model: onnx.ModelProto, batch: int | str | None, output_batch: int | str | None
) -> onnx.ModelProto:
    """With these batch sizes declared: a name, a number (-1 is one some write) or None."""
    model = copied(model)
    for value, size in ((model.graph.input[0], batch), (model.graph.output[0], output_batch)):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size
    return model


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())
