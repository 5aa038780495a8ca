"""One-node models, and what ONNX Runtime and bdscan make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper

from converters import to_torch

Arrays = Sequence[np.ndarray | np.generic | None]


def one_node(
    op_type: str,
    inputs: Arrays,
    opset: int,
    n_outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node whose inputs are all graph inputs; None is an absent input."""
    names = ["" if value is None else f"in{i}" for i, value in enumerate(inputs)]
    outputs = [f"out{i}" for i in range(n_outputs)]
    node = helper.make_node(op_type, names, outputs, name="node", domain=domain, **attributes)
    declared = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in zip(names, inputs, strict=True)
        if value is not None
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "one_node", declared, results)
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run_ort(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    """The outputs that ONNX Runtime computes, without rewriting the graph."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    return session.run(
        None, {f"in{i}": np.asarray(v) for i, v in enumerate(inputs) if v is not None}
    )


def run_torch(model: onnx.ModelProto, inputs: Arrays) -> list[np.ndarray]:
    """The outputs that bdscan's torch graph computes."""
    given = [torch.from_numpy(np.array(value)) for value in inputs if value is not None]
    return [output.numpy() for output in to_torch(model)(*given)]


def assert_same(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    """Equal types and shapes, and numbers within the tolerance of the ONNX suite."""
    assert len(actual) >= len(expected)
    for got, wanted in zip(actual, expected, strict=False):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)


def assert_as_ort(
    op_type: str, inputs: Arrays, opset: int, n_outputs: int = 1, **attributes: Any
) -> None:
    """bdscan computes what ONNX Runtime computes."""
    model = one_node(op_type, inputs, opset, n_outputs, **attributes)
    assert_same(run_torch(model, inputs), run_ort(model, inputs))
