"""One classifier on images in [0, 1], two engines: ONNX Runtime forward, torch for gradients."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from converters import DeviceError, OnnxClassifier, open_session, run_session
from scanner.errors import UsageError
from scanner.preprocessing import Preprocessing

Images = npt.NDArray[np.float32]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Classifier:
    """An image classifier whose inputs are (N, C, H, W) float32 images in [0, 1].

    Attributes:
        onnx: the model as the converters give it.
        preprocessing: applied inside both engines' calls.
        session: ONNX Runtime session of the rewritten model.
        device: where gradients are computed, "cpu" or "cuda:N".
    """

    onnx: OnnxClassifier
    preprocessing: Preprocessing
    session: onnxruntime.InferenceSession
    device: torch.device

    @property
    def class_count(self) -> int:
        """K."""
        return self.onnx.class_count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        wanted = self.onnx.image_input
        return wanted.channels, wanted.height, wanted.width

    def inputs(self, images: Images) -> npt.NDArray[np.generic]:
        """Images as the ONNX graph takes them: preprocessed, in its layout and type."""
        with torch.no_grad():
            ready = self.preprocessing.apply(torch.from_numpy(images))
        return self.onnx.image_input.arrange_array(ready.numpy())

    def logits(self, images: Images) -> Logits:
        """(N, C, H, W) images -> (N, K) logits by ONNX Runtime."""
        onnx, inputs = self.onnx, self.inputs(images)
        names, most = [onnx.logits_name], onnx.largest_batch
        raw = run_session(self.session, names, inputs, onnx.batch_size, most)[0]
        return self.onnx.logits_of(torch.from_numpy(raw)).numpy()

    def differentiable_logits(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) images -> (N, K) logits by torch, with a gradient to the images."""
        ready = self.preprocessing.apply(images)
        return self.onnx.logits(self.onnx.image_input.arrange(ready))

    def predictions(self, images: Images) -> npt.NDArray[np.int64]:
        """(N, C, H, W) images -> (N,) class indices by ONNX Runtime."""
        classes: npt.NDArray[np.int64] = self.logits(images).argmax(1).astype(np.int64)
        return classes


def choose_device(wanted: str) -> tuple[str, str]:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device, and say why.

    Raises:
        UsageError: an unknown device, or CUDA was asked for by name and torch has none.
    """
    if wanted == "cpu":
        return "cpu", "asked for"
    if wanted != "auto" and not re.fullmatch(r"cuda(:\d+)?", wanted):
        raise UsageError(f"--device {wanted!r}: expected auto, cpu, cuda or cuda:N")
    available = torch.cuda.is_available()
    if wanted == "auto":
        return ("cuda:0", "CUDA found") if available else ("cpu", "torch finds no CUDA device")
    index = int(wanted.partition(":")[2] or 0)
    if not available or index >= torch.cuda.device_count():
        raise UsageError(f"--device {wanted}: torch finds no such CUDA device; use --device cpu")
    return f"cuda:{index}", "asked for"


def open_sessions(
    onnx: OnnxClassifier, device: str, strict: bool
) -> tuple[onnxruntime.InferenceSession, str]:
    """An ONNX Runtime session on the device, and where it really runs.

    Args:
        strict: fail rather than fall back to the CPU.

    Raises:
        UsageError: `strict` and ONNX Runtime can't use the device.
    """
    try:
        return open_session(onnx.model, device), device
    except DeviceError as error:
        if strict:
            raise UsageError(f"{error}; use --device cpu or auto") from error
        return open_session(onnx.model, "cpu"), "cpu"
