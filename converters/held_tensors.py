"""The tensors that a model file holds: where they are, what they declare, what they hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from converters.errors import ModelFormatError

_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_Dtype = np.dtype[np.generic]


def all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that the model holds, also inside attributes, subgraphs and functions."""
    graphs: list[GraphProto] = [model.graph]
    nodes: list[NodeProto] = [node for function in model.functions for node in function.node]
    defaults = [a for function in model.functions for a in function.attribute_proto]
    for attribute in defaults:
        yield from tensors_of(attribute)
        graphs += subgraphs_of(attribute)
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes += graph.node
        for node in nodes:
            for attribute in node.attribute:
                yield from tensors_of(attribute)
                graphs += subgraphs_of(attribute)
        nodes = []


def tensors_of(attribute: AttributeProto) -> Iterator[TensorProto]:
    """The tensors that an attribute holds, without those of its graphs."""
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def subgraphs_of(attribute: AttributeProto) -> list[GraphProto]:
    """The graphs that an attribute holds."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def declared_bytes(tensor: TensorProto) -> int:
    """The bytes that a tensor's type and dimensions stand for.

    Raises:
        ModelFormatError: unknown data type.
    """
    dtype, count = _dtype(tensor), int(math.prod(tensor.dims))
    return -(-count * _bits(dtype) // 8)


def check_data(tensor: TensorProto) -> None:
    """Refuse a tensor that does not hold exactly what its type and dimensions say.

    Precondition: its data is not external.

    Raises:
        ModelFormatError: naming the tensor.
    """
    filled = [field for field in (*_TYPED_FIELDS, "string_data") if len(getattr(tensor, field))]
    raw = tensor.HasField("raw_data")
    if len(filled) + raw > 1:
        raise ModelFormatError(f"tensor {tensor.name!r} holds its numbers twice", "ambiguous")
    if raw:
        held, declared = len(tensor.raw_data), declared_bytes(tensor)
        unit = "bytes"
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        held, declared = len(getattr(tensor, field)), _entries(tensor)
        unit = f"numbers in {field}"
    if held != declared:
        raise ModelFormatError(
            f"tensor {tensor.name!r} declares {declared} {unit} and holds {held}",
            "declared_size_mismatch",
        )


def _entries(tensor: TensorProto) -> int:
    """How many entries a typed field has for a tensor of this type and shape."""
    dtype, count = _dtype(tensor), int(math.prod(tensor.dims))
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    return -(-count * _bits(dtype) // 8) if _bits(dtype) < 8 else count


def _bits(dtype: _Dtype) -> int:
    """Bits of one number; numpy gives packed types a byte for each."""
    packed = (bits for bits in (2, 4) if dtype.itemsize == 1 and _is_packed(dtype.name, bits))
    return next(packed, dtype.itemsize * 8)


def _is_packed(name: str, bits: int) -> bool:
    return name in (f"int{bits}", f"uint{bits}") or name.startswith(f"float{bits}_")


def _dtype(tensor: TensorProto) -> _Dtype:
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError as error:
        raise ModelFormatError(
            f"tensor {tensor.name!r} has unknown data type {tensor.data_type}", "unknown_data_type"
        ) from error
