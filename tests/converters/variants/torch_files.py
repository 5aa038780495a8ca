"""What torch's two exporters write."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from pathlib import Path

import onnx
import torch

from tests.converters.variants.nets import patterns

SCRIPT_OPSETS = tuple(range(9, 21))
DYNAMO_OPSETS = tuple(range(18, 24))


def script_exported(
    module: torch.nn.Module,
    opset: int,
    batch: int | None = None,
    *,
    fold: bool = True,
    training: bool = False,
) -> onnx.ModelProto:
    """By the TorchScript exporter.

    Args:
        batch: the fixed batch size, or None for a dynamic axis.
        fold: whether the exporter computes constants.
        training: whether BatchNorm and Dropout are exported as they are in training.
    """
    if training:
        module = copy.deepcopy(module)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 0.0  # the exporter's own run would count among the statistics
    mode = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
    buffer = io.BytesIO()
    axes = None if batch else {"image": {0: "N"}, "scores": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.from_numpy(patterns(batch or 2, seed=0)),),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes=axes,
            do_constant_folding=fold,
            training=mode,
        )
    return onnx.ModelProto.FromString(buffer.getvalue())


def dynamo_exported(
    module: torch.nn.Module,
    opset: int,
    path: Path,
    batch: int | None = None,
    *,
    external: bool = False,
) -> Path:
    """By the dynamo exporter, into a file, with its weights in one beside it if `external`."""
    axis = {} if batch else {"dynamic_shapes": ({0: torch.export.Dim("N")},)}
    example = torch.from_numpy(patterns(batch or 2, seed=0))
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it reports every step, and operators of torchvision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, (example,), dynamo=True, opset_version=opset, verbose=False, **axis
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    program.save(path, external_data=external)
    return path
