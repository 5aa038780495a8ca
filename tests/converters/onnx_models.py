"""Small image classifiers as ONNX models, and what ONNX Runtime makes of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from converters import OnnxClassifier, open_session, run_session

Shape = Sequence[int | str]

GRAY = ("N", 1, 8, 8)
"""The input shape of `small_net`."""


def build(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    elem_type: int = TensorProto.FLOAT,
    opset: int = 17,
    ir_version: int = 8,
    imports: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of these nodes; its outputs have no declared type."""
    declared = [helper.make_tensor_value_info(n, elem_type, s) for n, s in inputs.items()]
    initializers = [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()]
    results = [ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "net", declared, results, initializers)
    opsets = [helper.make_opsetid(d, v) for d, v in {"": opset, **(imports or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def small_weights(classes: int = 5, channels: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of `small_nodes`: a 3x3 convolution to 4 channels, its normalization, a layer."""
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(size=(4, channels, 3, 3)),
        "b": rng.normal(size=4),
        "gamma": rng.uniform(0.5, 2, 4),
        "beta": rng.normal(size=4),
        "mean": rng.normal(size=4),
        "var": rng.uniform(0.5, 2, 4),
        "fc": rng.normal(size=(classes, 4)),
        "fb": rng.normal(size=classes),
    }
    return {name: value.astype(np.float32) for name, value in weights.items()}


def small_nodes() -> list[NodeProto]:
    """From image `x` to logits `logits`."""
    return [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv", "gamma", "beta", "mean", "var"], ["norm"]),
        helper.make_node("Relu", ["norm"], ["act"]),
        helper.make_node("GlobalAveragePool", ["act"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc", "fb"], ["logits"], transB=1),
    ]


def small_net(
    *tail: NodeProto, output: str = "logits", classes: int = 5, shape: Shape = GRAY
) -> onnx.ModelProto:
    """A small classifier of (N, 1, 8, 8) images, with `tail` behind its logits."""
    channels = int(shape[1])
    weights = small_weights(classes, channels)
    return build([*small_nodes(), *tail], {"x": shape}, [output], weights)


class TinyTransformer(torch.nn.Module):
    """Patches, one attention block and a class token: Shape, Gather, Slice, Expand and so on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = torch.nn.Conv2d(1, 8, 4, 4)
        self.token = torch.nn.Parameter(torch.randn(1, 1, 8))
        self.block = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        return self.head(self.block(tokens)[:, 0])


def exported(module: torch.nn.Module, example: torch.Tensor, **options: Any) -> onnx.ModelProto:
    """What torch's exporter makes of a module, traced on an example batch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (example,), buffer, dynamo=False, opset_version=17, **options
        )
    return onnx.ModelProto.FromString(buffer.getvalue())


def run_ort(
    model: onnx.ModelProto, inputs: np.ndarray, outputs: Sequence[str] | None = None
) -> list[np.ndarray]:
    """What ONNX Runtime computes for the only input; `outputs` may be any tensors."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    if outputs is not None:
        del copy.graph.output[:]
        copy.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(outputs, {session.get_inputs()[0].name: inputs})


def images(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    """Random images in [0, 1]."""
    return np.random.default_rng(seed).random(shape).astype(dtype)


def node(op_type: str, source: str, result: str, **attributes: object) -> NodeProto:
    return helper.make_node(op_type, [source], [result], **attributes)


def fixed_reshape(*shape_nodes: NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """`small_net` at batch 1 whose Flatten is a Reshape to the tensor `shape`."""
    nodes = small_nodes()
    nodes[4] = helper.make_node("Reshape", ["pooled", "shape"], ["flat"])
    return build([*shape_nodes, *nodes], {"x": (1, 1, 8, 8)}, ["logits"], small_weights() | weights)


def assert_logits(classifier: OnnxClassifier, expected: np.ndarray, inputs: np.ndarray) -> None:
    """Both engines give these logits, at once and image by image."""
    session = open_session(classifier.model)
    raw = run_session(session, [classifier.logits_name], inputs, classifier.batch_size)[0]
    by_ort = classifier.logits_of(torch.from_numpy(raw)).numpy()
    by_torch = classifier.logits(torch.from_numpy(inputs)).numpy()
    singly = [classifier.logits(torch.from_numpy(image[None])).numpy() for image in inputs]
    for got in (by_ort, by_torch, np.concatenate(singly)):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
