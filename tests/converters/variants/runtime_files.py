"""What ONNX Runtime's optimiser and its quantisers write."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from tests.converters.variants.nets import patterns

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

_U8, _S8 = QuantType.QUInt8, QuantType.QInt8
STATIC: dict[str, dict[str, Any]] = {
    f"{layout} {kind}{' per channel' if per_channel else ''}": {
        "quant_format": QuantFormat.QDQ if layout == "qdq" else QuantFormat.QOperator,
        "activation_type": activation,
        "weight_type": weight,
        "per_channel": per_channel,
        # 7 bits: sums of two products of 8 bits overflow on processors without their own kernels
        "reduce_range": weight == _S8 and activation == _U8,
    }
    for layout in ("qdq", "qoperator")
    for kind, activation, weight in (("u8u8", _U8, _U8), ("u8s8", _U8, _S8), ("s8s8", _S8, _S8))
    for per_channel in (False, True)
}


class _Calibration(CalibrationDataReader):
    def __init__(self, name: str) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter(
            [{name: patterns(32, seed)} for seed in range(10, 14)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantized(
    model: onnx.ModelProto, how: str, folder: Path, prepare: bool = False
) -> onnx.ModelProto:
    """The model by ONNX Runtime's quantisers.

    Args:
        how: one of `STATIC`, or "dynamic u8" or "dynamic s8" after the type of the weights.
        prepare: optimise it first, as ONNX Runtime advises.
    """
    logging.getLogger().setLevel(logging.ERROR)  # it advises so in every run
    source, target = folder / "plain.onnx", folder / "quantized.onnx"
    onnx.save(model, source)
    if prepare:
        quant_pre_process(source, folder / "prepared.onnx")
        source = folder / "prepared.onnx"
    if how.startswith("dynamic"):
        quantize_dynamic(source, target, weight_type=_U8 if how.endswith("u8") else _S8)
    else:
        quantize_static(source, target, _Calibration(model.graph.input[0].name), **STATIC[how])
    return onnx.load(target)


def optimized(model: onnx.ModelProto, level: str, folder: Path) -> onnx.ModelProto:
    """The model as ONNX Runtime saves it after optimising on one of `LEVELS`."""
    target = folder / "optimized.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(target)


def operators(model: onnx.ModelProto) -> set[str]:
    """The operators of a model; those of other domains with the domain in front."""
    return {f"{n.domain}.{n.op_type}".lstrip(".") for n in model.graph.node}
