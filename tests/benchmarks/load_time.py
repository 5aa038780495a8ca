"""Seconds to load large graphs, beside ONNX Runtime's and onnx's own on the same bytes.

    python -m tests.benchmarks.load_time

The files: 50,000 nodes (Relu, Add and Identity in turn on an 8x8 image, then Flatten and Gemm to 5
classes) with a free batch axis and with batch 1, and 10,000 Reshape nodes with batch 1 baked into
each. Processor seconds of one thread, medians of RUNS interleaved runs. Writes load_time.json.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper

from converters import load_classifier, read_model, to_torch
from converters.prepare import prepare_classifier
from tests.benchmarks.record import write
from tests.converters.onnx_models import build

RUNS = 3
NODES = 50_000
RESHAPES = 10_000
CLASSES = 5
SIDE = 8


def finished(nodes: list[NodeProto], batch: int | str) -> bytes:
    """The bytes of a classifier of gray images that ends in Flatten and Gemm."""
    nodes.append(helper.make_node("Flatten", [nodes[-1].output[0]], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "w", "b"], ["logits"], transB=1))
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(CLASSES, SIDE * SIDE)).astype(np.float32),
        "b": rng.normal(size=CLASSES).astype(np.float32),
        "small": np.float32(1e-4),
        "flat_shape": np.int64([1, SIDE * SIDE]),
        "image_shape": np.int64([1, 1, SIDE, SIDE]),
    }
    model = build(nodes, {"x": (batch, 1, SIDE, SIDE)}, ["logits"], weights)
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, CLASSES))
    model.graph.output[0].CopyFrom(result)  # onnx's checker asks for its type
    return model.SerializeToString()


def long_chain(batch: int | str) -> bytes:
    nodes: list[NodeProto] = []
    source = "x"
    for index in range(NODES - 2):
        op_type = ("Relu", "Add", "Identity")[index % 3]
        inputs = [source, "small"] if op_type == "Add" else [source]
        source = f"t{index}"
        nodes.append(helper.make_node(op_type, inputs, [source]))
    return finished(nodes, batch)


def reshapes() -> bytes:
    nodes: list[NodeProto] = []
    source = "x"
    for index in range(RESHAPES):
        shape = ("flat_shape", "image_shape")[index % 2]
        nodes.append(helper.make_node("Reshape", [source, shape], [f"t{index}"]))
        source = f"t{index}"
    return finished(nodes, 1)


def onnx_runtime(data: bytes) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def onnx_checker(data: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(data))


STEPS: dict[str, Callable[[bytes], object]] = {
    "onnx_load_and_check": onnx_checker,
    "onnx_runtime_session": onnx_runtime,
    "read_model": read_model,
    "read_and_to_torch": to_torch,
    "read_and_prepare_classifier": lambda data: prepare_classifier(read_model(data)),
    "load_classifier_with_parity": load_classifier,
}


def seconds(step: Callable[[bytes], object], data: bytes) -> float:
    gc.collect()
    begun = time.process_time()
    step(data)
    return time.process_time() - begun


def measure(data: bytes) -> dict[str, Any]:
    """Median seconds of each step, and their ratio to ONNX Runtime's session."""
    runs: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(RUNS):
        for name, step in STEPS.items():
            runs[name].append(seconds(step, data))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    session = medians["onnx_runtime_session"]
    return {
        "file_megabytes": round(len(data) / 1e6, 2),
        "processor_seconds": {name: round(value, 2) for name, value in medians.items()},
        "ratio_to_onnx_runtime": {n: round(v / session, 2) for n, v in medians.items()},
    }


def main() -> None:
    torch.set_num_threads(1)
    files = {
        f"{NODES} nodes, free batch": long_chain("N"),
        f"{NODES} nodes, batch 1": long_chain(1),
        f"{RESHAPES} Reshape nodes, batch 1": reshapes(),
    }
    results = {name: measure(data) for name, data in files.items()}
    write(Path(__file__).with_suffix(".json"), {"runs": RUNS, "files": results}, seed=0)


if __name__ == "__main__":
    main()
