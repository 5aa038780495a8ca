"""Tiny ONNX classifiers, and the `Classifier` that the scanner makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from converters import open_session, prepare_classifier, read_model
from scanner.classifier import Classifier
from scanner.preprocessing import Preprocessing

OPSET = 17
IR_VERSION = 8

Shape = tuple[int, int, int]


def make_model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, npt.NDArray[Any]],
    classes: int,
    shape: Sequence[int | str] = (1, 4, 4),
    metadata: Mapping[str, str] | None = None,
    elem_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model from `x` of (batch, *shape) to `logits` of (batch, classes)."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info("x", elem_type, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


def linear_model(
    weights: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None = None,
    shape: Shape = (1, 4, 4),
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """logits = weights @ flat(x) + bias, for weights of (K, C*H*W)."""
    w = np.asarray(weights, np.float32)
    b = np.zeros(len(w)) if bias is None else bias
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1),
    ]
    return make_model(nodes, {"w": w, "b": np.asarray(b, np.float32)}, len(w), shape, metadata)


def two_layer_model(
    first: npt.NDArray[Any],
    first_bias: npt.NDArray[Any],
    second: npt.NDArray[Any],
    second_bias: npt.NDArray[Any],
    shape: Shape = (1, 4, 4),
) -> onnx.ModelProto:
    """logits = second @ relu(first @ flat(x) + first_bias) + second_bias."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"], transB=1),
    ]
    arrays = {"w1": first, "b1": first_bias, "w2": second, "b2": second_bias}
    as_float = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return make_model(nodes, as_float, len(second), shape)


def random_network(seed: int, classes: int, shape: Shape = (1, 4, 4)) -> onnx.ModelProto:
    """A two-layer network with random weights."""
    generator = np.random.default_rng(seed)
    size, hidden = int(np.prod(shape)), 24
    return two_layer_model(
        generator.normal(size=(hidden, size)),
        generator.normal(size=hidden) * 0.2,
        generator.normal(size=(classes, hidden)),
        np.zeros(classes),
        shape,
    )


def plain_preprocessing(channels: int = 1) -> Preprocessing:
    """Images as they are."""
    order = "gray" if channels == 1 else "RGB"
    return Preprocessing(1.0, (0.0,) * channels, (1.0,) * channels, order)


def as_classifier(model: onnx.ModelProto, preprocessing: Preprocessing | None = None) -> Classifier:
    """The scanner's view of a model, on the CPU."""
    ready = prepare_classifier(read_model(model))
    return Classifier(
        onnx=ready,
        preprocessing=preprocessing or plain_preprocessing(ready.image_input.channels),
        session=open_session(ready.model),
        device=torch.device("cpu"),
    )


def stated(pixel_range: float = 1.0, channel_order: str = "gray") -> dict[str, str]:
    """Metadata that states a preprocessing without mean and std."""
    content = {"pixel_range": pixel_range, "mean": [0.0], "std": [1.0]}
    return {"bdscan.preprocessing": json.dumps({**content, "channel_order": channel_order})}


def template_images(
    classes: int, per_class: int, shape: Shape = (1, 4, 4), seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images of random prototypes, one for each class, with a little noise, and their labels."""
    generator = np.random.default_rng(seed)
    prototypes = generator.uniform(0.2, 0.8, size=(classes, *shape))
    labels = np.repeat(np.arange(classes), per_class)
    noise = generator.normal(scale=0.03, size=(len(labels), *shape))
    return np.clip(prototypes[labels] + noise, 0, 1).astype(np.float32), labels


def template_model(
    classes: int,
    shape: Shape = (1, 4, 4),
    seed: int = 0,
    sharpness: float = 8.0,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The nearest-prototype classifier for `template_images` of the same seed: it is linear."""
    generator = np.random.default_rng(seed)
    prototypes = generator.uniform(0.2, 0.8, size=(classes, *shape)).reshape(classes, -1)
    bias = -(prototypes**2).sum(1)
    return linear_model(2 * sharpness * prototypes, sharpness * bias, shape, metadata)


def save_model(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model's bytes."""
    path.write_bytes(model.SerializeToString())
    return path


def save_image(pixels: npt.NDArray[np.float32], path: Path) -> Path:
    """Write a (C, H, W) image in [0, 1]; the format follows from the name."""
    values = np.rint(pixels * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values[0] if len(values) == 1 else values.transpose(1, 2, 0)).save(path)
    return path


def save_clean_set(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    folder: Path,
    names: Sequence[str] | None = None,
) -> Path:
    """Write images as `<folder>/<class>/<number>.png`."""
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        name = names[label] if names else str(label)
        save_image(pixels, folder / name / f"{number:03d}.png")
    return folder
