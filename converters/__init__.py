"""ONNX <-> differentiable torch. Knows nothing of backdoors and imports nothing of `scanner`."""

import os

# ONNX Runtime 1.31 reports the models that it opens (names, digests of weights) to its maker unless
# it is told not to before it is loaded. What a vendor's model holds is nobody else's business.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from converters.convert import to_torch
from converters.errors import (
    ConverterError,
    ModelFormatError,
    NotAnImageClassifierError,
    ParityError,
    UnsupportedModelError,
)
from converters.image_input import ImageInput
from converters.load import load_classifier
from converters.model_file import ModelFile, read_model
from converters.onnx_classifier import OnnxClassifier
from converters.ort_session import DeviceError, open_session, run_session
from converters.parity import Parity, check_parity
from converters.prepare import prepare_classifier
from converters.registry import op
from converters.torch_export import export_onnx
from converters.torch_graph import TorchGraph
from converters.validation import Limits

__all__ = [
    "ConverterError",
    "DeviceError",
    "ImageInput",
    "Limits",
    "ModelFile",
    "ModelFormatError",
    "NotAnImageClassifierError",
    "OnnxClassifier",
    "Parity",
    "ParityError",
    "TorchGraph",
    "UnsupportedModelError",
    "check_parity",
    "export_onnx",
    "load_classifier",
    "op",
    "open_session",
    "prepare_classifier",
    "read_model",
    "run_session",
    "to_torch",
]
