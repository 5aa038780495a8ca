"""Helpers for graphs built node by node, beside which stands the same network in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import helper
from torch.nn import functional as F

from tests.converters.variants.checks import Logits
from tests.converters.variants.nets import patterns

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class HandBuilt:
    """A model, the same in float64 torch, and images as its input wants them."""

    model: onnx.ModelProto
    truth: Logits | None
    inputs: np.ndarray = field(default_factory=lambda: patterns(8, seed=9))
    activation: str = "none"


def random_weights(seed: int = 0, **shapes: Sequence[int]) -> Weights:
    """Normal weights, scaled so that sums over all but the first dimension keep their size."""
    rng = np.random.default_rng(seed)
    scale = {name: 1.5 / np.sqrt(max(np.prod(shape[1:]), 1)) for name, shape in shapes.items()}
    return {n: (rng.normal(size=s) * scale[n]).astype(np.float32) for n, s in shapes.items()}


def normalization(channels: int, seed: int) -> Weights:
    """Parameters of a BatchNormalization, named in the order of its inputs."""
    rng = np.random.default_rng(seed)
    names = ("gamma", "beta", "mean", "var")
    values = (rng.uniform(low, high, channels) for low, high in ((0.5, 2), (-1, 1), (0, 1), (1, 2)))
    return {n: v.astype(np.float32) for n, v in zip(names, values, strict=True)}


def tensors(weights: Weights) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(np.asarray(w, np.float64)) for n, w in weights.items()}


def batch_norm(x: torch.Tensor, w: dict[str, torch.Tensor], epsilon: float) -> torch.Tensor:
    return F.batch_norm(x, w["mean"], w["var"], w["gamma"], w["beta"], eps=epsilon)


def as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the initializers among the inputs, as IR version 3 wants it."""
    for tensor in model.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    model.ir_version = 3
    return model
