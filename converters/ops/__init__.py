"""ONNX operators as plain functions on torch tensors, one module for each family."""

from converters.ops import (
    activation,
    constant,
    contrib,
    contrib_quantized,
    elementwise,
    indexing,
    linear,
    normalization,
    pad,
    pool,
    quantized,
    reduce,
    resize,
    shape,
)

__all__ = [
    "activation",
    "constant",
    "contrib",
    "contrib_quantized",
    "elementwise",
    "indexing",
    "linear",
    "normalization",
    "pad",
    "pool",
    "quantized",
    "reduce",
    "resize",
    "shape",
]
