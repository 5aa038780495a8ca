"""torch module -> ONNX file that says how its input is to be prepared and what its classes are.

The metadata keys are those that `bdscan` reads: `bdscan.preprocessing`, a JSON object with
`pixel_range`, `mean`, `std`, `channel_order` and `layout`, and `class_names`, a JSON list.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from converters.errors import NotAnImageClassifierError, ParityError, UnsupportedModelError
from converters.ort_session import open_session

OPSET = 17
IR_VERSION = 8
PREPROCESSING_KEY = "bdscan.preprocessing"
CLASS_NAMES_KEY = "class_names"
PREPROCESSING_FIELDS = ("pixel_range", "mean", "std", "channel_order", "layout")
PARITY_TOLERANCE = 1e-4
"""Greatest allowed |ONNX Runtime - torch|, as a fraction of the greatest |logit|."""


def export_onnx(
    module: nn.Module,
    example: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    preprocessing: Mapping[str, object] | None = None,
    class_names: Sequence[str] = (),
) -> None:
    """Export a classifier: input `input`, output `logits`, both with a free batch axis.

    The module is exported in evaluation mode and left in the mode that it was in. The file holds
    its weights itself, so it can't be larger than 2 GB.

    Args:
        module: maps prepared images (N, C, H, W) to logits (N, K), K >= 2.
        example: prepared images (N, C, H, W), real ones at best; ONNX Runtime must agree on them.
        path: the file to write; its folder is made.
        preprocessing: how images in [0, 1] are prepared: `pixel_range` (1 or 255: the largest
            pixel before mean and std), `mean` and `std` (one number for each channel) and
            `channel_order` ("RGB", "BGR" or "gray"). None writes nothing: a scan searches then.
        class_names: the K names; an empty sequence writes none.

    Raises:
        ValueError: `preprocessing` or `class_names` don't fit; nothing is written.
        NotAnImageClassifierError: the module does not give logits (N, K).
        UnsupportedModelError: torch can't export the module, or ONNX Runtime refuses the file.
        ParityError: ONNX Runtime and torch disagree.
    """
    if example.ndim != 4 or len(example) == 0:
        raise ValueError(f"example images must be (N, C, H, W), not {tuple(example.shape)}")
    metadata = {}
    if preprocessing is not None:
        metadata[PREPROCESSING_KEY] = _checked_json(preprocessing, example.shape[1])
    if class_names:
        metadata[CLASS_NAMES_KEY] = json.dumps(list(class_names))
    with _evaluation_mode(module):
        # Two images at least: an exporter may freeze an axis of size one.
        images = example if len(example) > 1 else torch.cat([example, example])
        # One image alone as well: a batch size frozen at export shows there.
        expected = [_logits(module, images[:1]), _logits(module, images)]
        classes = expected[0].shape[1]
        if class_names and len(class_names) != classes:
            raise ValueError(f"{len(class_names)} class names for {classes} logits")
        model = _to_onnx(module, images)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    _require_parity(model, images, expected)
    _write(model, Path(path))


def _checked_json(preprocessing: Mapping[str, object], channels: int) -> str:
    """The metadata's JSON; unknown fields and wrong numbers of channels are refused."""
    unknown = sorted(set(preprocessing) - set(PREPROCESSING_FIELDS))
    if unknown:
        fields = ", ".join(PREPROCESSING_FIELDS)
        raise ValueError(f"preprocessing has no field {', '.join(unknown)}; it has: {fields}")
    values: dict[str, object] = {"pixel_range": 1, **preprocessing, "layout": "NCHW"}
    if preprocessing.get("layout", "NCHW") != "NCHW":
        raise ValueError("only the layout NCHW is exported")
    pixel_range = _numbers("pixel_range", [values["pixel_range"]])[0]
    if pixel_range <= 0:
        raise ValueError(f"preprocessing: pixel_range {pixel_range}, expected 1 or 255")
    for key in ("mean", "std"):
        if key in values:
            values[key] = _numbers(key, values[key])
            if len(_numbers(key, values[key])) != channels:
                raise ValueError(f"preprocessing: {key} needs {channels} numbers, one a channel")
    if min(_numbers("std", values.get("std", [1.0]))) <= 0:
        raise ValueError("preprocessing: std must be positive")
    orders = ("gray",) if channels == 1 else ("RGB", "BGR")
    if values.setdefault("channel_order", orders[0]) not in orders:
        raise ValueError(f"preprocessing: channel_order must be {' or '.join(orders)}")
    return json.dumps(values)


def _numbers(key: str, values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"preprocessing: {key} {values!r} is not made of finite numbers")
    return numbers


@contextlib.contextmanager
def _evaluation_mode(module: nn.Module) -> Any:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _logits(module: nn.Module, images: torch.Tensor) -> np.ndarray[Any, Any]:
    try:
        with torch.inference_mode():
            logits = module(images)
    except Exception as error:  # whatever the user's module raises
        shape = tuple(images.shape[1:])
        raise UnsupportedModelError(
            f"the module fails on images of shape {shape}: {error}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise NotAnImageClassifierError(f"the module must give logits (N, K), it gives {what}")
    if len(logits) != len(images) or not torch.isfinite(logits).all():
        raise NotAnImageClassifierError("the module's logits are not finite, or not one row each")
    array: np.ndarray[Any, Any] = logits.float().cpu().numpy()
    return array


def _to_onnx(module: nn.Module, images: torch.Tensor) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces its other exporter
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                module,
                (images,),
                str(path),
                opset_version=OPSET,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                dynamo=False,
            )
            model = onnx.load(path)
        except Exception as error:  # the exporter's errors share no public base class
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedModelError(f"torch can't export the module: {reason}") from error
    model.ir_version = IR_VERSION
    return model


def _require_parity(
    model: onnx.ModelProto, images: torch.Tensor, expected: list[np.ndarray[Any, Any]]
) -> None:
    session = open_session(model)
    array = images.float().cpu().numpy()
    for logits in expected:
        count = len(logits)
        try:
            actual = np.asarray(session.run(["logits"], {"input": array[:count]})[0])
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise ParityError(f"ONNX Runtime can't run {count} images: {error}") from error
        if actual.shape != logits.shape:
            raise ParityError(f"ONNX Runtime gives {actual.shape} for {count} images")
        difference = float(np.abs(actual - logits).max())
        if not difference <= PARITY_TOLERANCE * float(np.abs(logits).max()):
            raise ParityError(f"ONNX Runtime differs from torch by {difference} on {count} images")


def _write(model: onnx.ModelProto, path: Path) -> None:
    """Write to a temporary name first: no half file is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(model.SerializeToString())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
