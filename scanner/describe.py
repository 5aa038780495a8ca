"""Facts of a scan as report sections."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx as onnx_package
from onnx import TensorProto

from converters import ModelFile, OnnxClassifier, Parity
from converters.rewrite import graph_inputs
from scanner.clean_set import CleanSet
from scanner.config import ScanConfig
from scanner.preprocessing import Preprocessing
from scanner.results import (
    CleanClass,
    CleanSetInfo,
    ModelInfo,
    ParityInfo,
    PreprocessingInfo,
    Tensor,
)

PACKAGES = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "h5py", "Pillow")


def version_of(package: str) -> str | None:
    """The installed version of a distribution, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tool() -> dict[str, str]:
    """Name and version of this program."""
    return {"name": "bdscan", "version": version_of("bdscan") or "not installed"}


def environment() -> dict[str, str]:
    """Versions that a result depends on."""
    versions = {name: version_of(name) for name in PACKAGES}
    installed = {name: version for name, version in versions.items() if version}
    return {"python": platform.python_version(), "platform": platform.platform(), **installed}


def utc(moment: datetime) -> str:
    """RFC 3339 in UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def configuration(config: ScanConfig, origins: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Every setting with its value and where it comes from.

    Args:
        origins: such as "flag --seed", by the field's dotted name. A field that is not in it was
            "given", unless it is the default.
    """
    return with_origins(config, ScanConfig(), origins or {})


def with_origins(
    config: Any, default: Any, origins: Mapping[str, str] | None = None, prefix: str = ""
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        path = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            result[field.name] = with_origins(value, usual, origins, f"{path}.")
        else:
            # `--limit` states the section as a whole, of which most is the default.
            whole = (origins or {}).get(prefix.rstrip("."), "given")
            origin = (origins or {}).get(path, "default" if value == usual else whole)
            result[field.name] = {"value": value, "origin": origin}
    return result


def model(file: ModelFile, path: str) -> ModelInfo:
    """What a readable file says of itself."""
    proto = file.proto
    return ModelInfo(
        path=path,
        sha256=file.sha256,
        bytes=file.path.stat().st_size if file.path else None,
        ir_version=proto.ir_version,
        opset=file.opset,
        producer=file.producer,
        inputs=tuple(map(_tensor, graph_inputs(proto))),
        outputs=tuple(map(_tensor, proto.graph.output)),
        external_data=file.external_sha256,
    )


def unreadable_model(path: Path) -> ModelInfo:
    """What can be said of a file that is no readable ONNX model: its size and digest."""
    if not path.is_file():
        return ModelInfo(path=str(path))
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return ModelInfo(path=str(path))
    return ModelInfo(path=str(path), sha256=digest.hexdigest(), bytes=path.stat().st_size)


def _tensor(value: onnx_package.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    kind = "not a tensor"
    if tensor.elem_type:
        known = tensor.elem_type in TensorProto.DataType.values()
        number = tensor.elem_type
        kind = TensorProto.DataType.Name(number) if known else f"unknown type {number}"
    dims = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim
    )
    return Tensor(value.name, kind, dims)


def classifier(onnx: OnnxClassifier, path: str) -> ModelInfo:
    """`model`, with what became known when it was loaded."""
    return dataclasses.replace(
        model(onnx.file, path),
        class_count=onnx.class_count,
        final_activation=onnx.final_activation,
        differentiable=onnx.differentiable,
        rewrites=onnx.rewrites,
    )


def clean_set(
    clean: CleanSet, path: str, accuracy: float | None, counts: Sequence[tuple[int, int, int]]
) -> CleanSetInfo:
    """The clean set; `counts` are (images, correct, used) for each class."""
    return CleanSetInfo(
        path=path,
        digest=clean.digest,
        label_rule=clean.label_rule,
        images=len(clean.images),
        corrupt=clean.corrupt,
        resized=clean.resized,
        misclassified=sum(images - correct for images, correct, _ in counts),
        accuracy=accuracy,
        classes=tuple(CleanClass(k, *count) for k, count in enumerate(counts)),
    )


def preprocessing(onnx: OnnxClassifier, used: Preprocessing) -> PreprocessingInfo:
    """The preprocessing with its origins; layout and size are read off the graph."""
    wanted = onnx.image_input
    return PreprocessingInfo(
        pixel_range=used.pixel_range,
        mean=used.mean,
        std=used.std,
        channel_order=used.channel_order,
        layout=wanted.layout,
        image_size=(wanted.height, wanted.width),
        origins={**used.origins, "layout": "graph", "image_size": "graph"},
        candidates=used.candidates,
    )


def parity(result: Parity) -> ParityInfo:
    """The parity check's figures."""
    return ParityInfo(**dataclasses.asdict(result))
