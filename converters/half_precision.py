"""Half-precision models computed in float32 by torch.

On a processor half precision is slow in torch, and its gradient coarse. So torch gets weights cast
to float32 once and casts that keep float32, while ONNX Runtime runs the vendor's half-precision
file. The two engines then differ on purpose, by rounding, and where float16 overflows (above
65504) and float32 does not: parity judges such a model by its classes on real images, and every
trigger that torch finds is measured again by ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from converters.held_tensors import all_tensors
from converters.rewrite import graph_inputs

HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # of Cast, EyeLike, DequantizeLinear and so on


def widen_half(model: onnx.ModelProto) -> bool:
    """Turn every half-precision tensor of the model into float32, in place.

    Inputs keep their type and are cast, so that the graph takes both.

    Returns:
        Whether there was any.
    """
    changed = False
    for tensor in all_tensors(model):
        if tensor.data_type in HALF_TYPES:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
            changed = True
    changed |= _widen_types(model)
    casts = [_cast_input(model, value.name) for value in graph_inputs(model) if _is_half(value)]
    if casts:
        nodes = [*casts, *(NodeProto.FromString(n.SerializeToString()) for n in model.graph.node)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    for value in model.graph.output:
        if _is_half(value):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return changed or bool(casts)


def _widen_types(model: onnx.ModelProto) -> bool:
    """Let operators that are told a half-precision type give float32."""
    changed = False
    waiting = list(model.graph.node)
    while waiting:
        for attribute in waiting.pop().attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i in HALF_TYPES:
                attribute.i = TensorProto.FLOAT
                changed = True
            for graph in (attribute.g, *attribute.graphs):
                waiting += graph.node
    return changed


def _is_half(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in HALF_TYPES


def _cast_input(model: onnx.ModelProto, name: str) -> NodeProto:
    """A cast of an input to float32, whose result all nodes read from now on."""
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
    wide = f"{name}/float32"
    while wide in taken:
        wide += "-"
    for node in model.graph.node:
        for index, source in enumerate(node.input):
            if source == name:
                node.input[index] = wide
    return helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT)
