"""Constants, types and copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from converters.ops._values import affordable, ints
from converters.registry import op
from converters.values import Text, Value

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BFLOAT16: torch.bfloat16,
}


def torch_type(data_type: int) -> torch.dtype:
    """The torch type for a TensorProto.DataType.

    Raises:
        NotImplementedError: there is none, or none that operators compute with.
    """
    if data_type not in DTYPES:
        known = data_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(data_type) if known else str(data_type)
        raise NotImplementedError(f"data type {name}")
    return DTYPES[data_type]


@op("Constant")
def constant(
    *,
    value: torch.Tensor | Text | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Any:
    """The tensor, or the text, that the one given attribute holds; sparse tensors are refused."""
    if value is not None:
        return value
    texts = value_string if value_string is not None else value_strings
    if texts is not None:
        return np.array(texts, dtype=object)
    floats = value_float if value_float is not None else value_floats
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32)
    integers = value_int if value_int is not None else value_ints
    if integers is not None:
        return torch.tensor(integers, dtype=torch.int64)
    raise ValueError("a Constant without a value")


@op("ConstantOfShape")
def constant_of_shape(shape: torch.Tensor, *, value: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor of this shape filled with the one number in `value`, by default float32 zero."""
    if value is None:
        value = torch.zeros(())
    return value.reshape(()).expand(affordable(ints(shape), value.dtype)).clone()


@op("Range")
def range_(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """start, start + delta, ... up to but without the limit."""
    first, last, step = start.item(), limit.item(), delta.item()
    if step == 0:
        raise ValueError("delta is 0")
    count = max(math.ceil((last - first) / step), 0)
    number_type = torch.float64 if start.is_floating_point() else torch.int64
    affordable([count], number_type)
    return (first + torch.arange(count, dtype=number_type) * step).to(start.dtype)


@op("EyeLike")
def eye_like(x: torch.Tensor, *, dtype: int | None = None, k: int = 0) -> torch.Tensor:
    """Ones on the k-th diagonal of a matrix of the shape of x, zeros elsewhere."""
    rows, columns = affordable(x.shape, torch.int64)
    at = torch.arange(columns)[None, :] - torch.arange(rows)[:, None] == k
    return at.to(x.dtype if dtype is None else torch_type(dtype))


@op("Cast", since=1)
def cast_1(x: torch.Tensor, *, to: str) -> torch.Tensor:
    """Conversion to the type of this name."""
    names: list[str] = TensorProto.DataType.keys()
    if to.upper() not in names:
        raise ValueError(f"unknown data type {to!r}")
    return x.to(torch_type(TensorProto.DataType.Value(to.upper())))


@op("Cast", since=6)
def cast(x: torch.Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> torch.Tensor:
    """Conversion to a type; the other attributes concern types of 8 bits, which are refused."""
    return x.to(torch_type(to))


@op("CastLike")
def cast_like(
    x: torch.Tensor, target: torch.Tensor, *, saturate: int = 1, round_mode: str = "up"
) -> torch.Tensor:
    """Conversion to the type of the second input."""
    return x.to(target.dtype)


@op("Identity")
def identity(x: Value) -> tuple[Any]:
    """x itself, be it a sequence."""
    return (x,)
