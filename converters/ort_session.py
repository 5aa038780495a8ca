"""ONNX Runtime sessions that say honestly where they run."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from converters.errors import UnsupportedModelError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


class DeviceError(RuntimeError):
    """CUDA was asked for and ONNX Runtime can't use it."""


def open_session(
    model: onnx.ModelProto, device: str = "cpu", optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Open a session on a validated model's bytes; ONNX Runtime never sees a path.

    ONNX Runtime falls back from CUDA to CPU without an exception, so the providers of the session
    itself are read. TF32 is off: both engines compute in float32.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        optimize: False switches graph optimisation off.

    Raises:
        DeviceError: CUDA was asked for and the session does not run on it.
        UnsupportedModelError: ONNX Runtime refuses the model.
    """
    providers: list[Any] = [CPU]
    if device.startswith("cuda"):
        if CUDA not in onnxruntime.get_available_providers():
            raise DeviceError(f"ONNX Runtime can't use {device}: the package is for CPU only")
        index = int(device.partition(":")[2] or 0)
        providers = [(CUDA, {"device_id": index, "use_tf32": 0}), CPU]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces its fallbacks there
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), sess_options=options, providers=providers
            )
    except Exception as error:  # ONNX Runtime's own exceptions share no public base class
        raise UnsupportedModelError(f"ONNX Runtime refuses the model: {_short(error)}") from error
    if device.startswith("cuda") and CUDA not in session.get_providers():
        raise DeviceError(f"ONNX Runtime can't use {device}; it offers {session.get_providers()}")
    return session


def run_session(
    session: onnxruntime.InferenceSession,
    outputs: list[str],
    feed: npt.NDArray[np.generic],
    batch_size: int | None,
    default_batch: int = 256,
) -> list[npt.NDArray[np.generic]]:
    """Run a one-input session over a whole array in batches.

    Args:
        feed: (N, ...) in the model's layout and type.
        batch_size: the only batch size the model takes (the last batch is filled up with zeros and
            cut again), or None for batches of `default_batch`.

    Returns:
        One (N, ...) array for each name in `outputs`.
    """
    name = session.get_inputs()[0].name
    step = batch_size or default_batch
    parts = []
    for start in range(0, len(feed), step):
        batch = feed[start : start + step]
        count = len(batch)
        if batch_size and count < batch_size:
            filler = np.zeros((batch_size - count, *feed.shape[1:]), feed.dtype)
            batch = np.concatenate([batch, filler])
        try:
            results = session.run(outputs, {name: batch})
        except Exception as error:  # as above
            raise UnsupportedModelError(f"ONNX Runtime failed: {_short(error)}") from error
        parts.append([np.asarray(result)[:count] for result in results])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
