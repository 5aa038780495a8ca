"""ModelProto -> TorchGraph, without changing what the graph computes."""

from __future__ import annotations

import os

import onnx

from converters.carried_integers import carry_integers, carry_weights
from converters.collector import collector_off
from converters.constant_branches import inline_constant_branches
from converters.folding import fold_batch_normalization, fold_constants
from converters.functions import inline_functions
from converters.graph_builder import build_instructions
from converters.model_file import read_model
from converters.ops.constant import DTYPES
from converters.rewrite import graph_inputs, sort_nodes
from converters.subgraph import within_limits
from converters.torch_graph import TorchGraph
from converters.validation import Limits


def to_torch(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto, limits: Limits | None = None
) -> TorchGraph:
    """Turn an ONNX model into a differentiable torch module.

    The module takes tensors in the order of the graph's inputs (initializers are none) and returns
    a tuple of the graph's outputs. A sequence is a tuple of tensors, text an array of str, what is
    optional and absent None. Nothing is rewritten but what does not change results: nodes are
    sorted, functions and branches that are always taken inlined, constants computed once,
    BatchNormalization merged into the Conv before it. Weights are buffers, so no gradient is
    computed for them.

    Raises:
        FileNotFoundError, ModelFormatError: see `read_model`.
        UnsupportedModelError: operators that are not there, all of them at once.
    """
    file = read_model(model, limits)
    proto = file.proto
    with within_limits(file.limits):
        sort_nodes(proto)
        inline_functions(proto)
        inline_constant_branches(proto)
        return graph_of(proto)


@collector_off()
def graph_of(model: onnx.ModelProto) -> TorchGraph:
    """`to_torch` for a model that is validated and sorted already.

    What the model declares of its inputs' shapes has no part in the graph.
    """
    outputs = tuple(value.name for value in model.graph.output)
    instructions, constants = build_instructions(model)
    inputs = tuple(value.name for value in graph_inputs(model))
    types = {name: tensor.dtype for name, tensor in constants.items()}
    for value in model.graph.input:
        elem_type = value.type.tensor_type.elem_type
        types |= {value.name: DTYPES[elem_type]} if elem_type in DTYPES else {}
    instructions = carry_integers(instructions, types, inputs, outputs)
    instructions, constants = fold_constants(instructions, constants)
    constants = carry_weights(instructions, constants)
    fast, added = fold_batch_normalization(instructions, constants, keep=inputs + outputs)
    graph = TorchGraph(instructions, constants | added, inputs, outputs, fast)
    return graph.eval()
