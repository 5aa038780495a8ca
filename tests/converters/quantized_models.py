"""A small CNN as ONNX Runtime's quantiser and optimiser write it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from tests.converters.onnx_models import exported, images

SHAPE = (3, 16, 16)


def patterns(count: int, seed: int) -> np.ndarray:
    """Images in [0, 1] that differ in colour and in coarse shapes."""
    coarse = torch.from_numpy(images(count, 3, 4, 4, seed=seed))
    tint = torch.from_numpy(images(count, 3, 1, 1, seed=seed + 1))
    fine = torch.nn.functional.interpolate(coarse * tint, size=SHAPE[1:], mode="bilinear")
    return fine.numpy()


class SmallCnn(torch.nn.Module):
    """Convolutions, a residual sum, concatenation, pools and the activations that are fused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.second = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.third = torch.nn.Conv2d(32, 24, 3, stride=2, padding=1)
        self.head = torch.nn.Linear(24, 10)
        with torch.no_grad():  # so that every class wins on some images
            given = self(torch.from_numpy(patterns(64, seed=5)))
            self.head.weight /= given.std(0).mean()
            self.head.bias -= self(torch.from_numpy(patterns(64, seed=5))).mean(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first) + first)
        both = torch.cat([torch.nn.functional.avg_pool2d(second, 2), first[:, :, ::2, ::2]], 1)
        third = torch.nn.functional.leaky_relu(self.third(both), 0.1)
        third = third * torch.sigmoid(third)
        return self.head(third.mean((2, 3)))


def plain(tmp_path: Path) -> Path:
    """The CNN in float32."""
    path = tmp_path / "plain.onnx"
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    example = torch.from_numpy(images(1, *SHAPE))
    names = {"input_names": ["x"], "output_names": ["y"]}
    onnx.save(exported(SmallCnn(), example, dynamic_axes=axes, **names), path)
    return path


class _Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter(
            [{"x": patterns(32, seed)} for seed in range(10, 14)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantized(tmp_path: Path, how: str) -> onnx.ModelProto:
    """The CNN as QDQ or QOperator file, or with dynamic quantisation."""
    logging.getLogger().setLevel(logging.ERROR)
    source, target = plain(tmp_path), tmp_path / "quantized.onnx"
    if how == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
        return onnx.load(target)
    options: dict[str, Any] = {
        "qdq_s8_per_channel": {
            "quant_format": QuantFormat.QDQ,
            "activation_type": QuantType.QInt8,
            "weight_type": QuantType.QInt8,
            "per_channel": True,
        },
        "qdq_u8": {
            "quant_format": QuantFormat.QDQ,
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QUInt8,
        },
        "qoperator_u8": {
            "quant_format": QuantFormat.QOperator,
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QUInt8,
        },
        "qoperator_s8_per_channel": {
            "quant_format": QuantFormat.QOperator,
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
            "per_channel": True,
            "reduce_range": True,
        },
    }[how]
    quantize_static(source, target, _Calibration(), **options)
    return onnx.load(target)


def optimized(source: Path, level: ort.GraphOptimizationLevel) -> onnx.ModelProto:
    """The file as ONNX Runtime saves it after optimising."""
    target = source.with_name("optimized.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return onnx.load(io.BytesIO(target.read_bytes()))
