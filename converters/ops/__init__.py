"""ONNX operators as plain functions on torch tensors, one module for each family."""

from converters.ops import (
    activation,
    constant,
    elementwise,
    indexing,
    linear,
    normalization,
    pad,
    pool,
    reduce,
    resize,
    shape,
)

__all__ = [
    "activation",
    "constant",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pad",
    "pool",
    "reduce",
    "resize",
    "shape",
]
