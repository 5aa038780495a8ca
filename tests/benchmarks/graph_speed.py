"""Seconds of TorchGraph against the torch module that the file was exported from, on one core.

    python -m tests.benchmarks.graph_speed [--skip-compiled] [--rounds N]

ResNet-18 of width 32 and MobileNetV2 on 64 images of 32x32, and LeNet-5 on 8 images of 28x28, which
shows what an instruction costs. Baseline ("native"): the same module in eager torch, in evaluation
mode, BatchNormalization not folded, parameters without gradient, plain memory layout (NCHW).
Exported with BatchNormalization kept, so that all folding is the importer's. Beside it, where it is
installed, onnx2fx 0.0.1 on the same file. All contenders take turns, round by round; written are
medians over the rounds of the seconds of processor time and of their ratio to native in the same
round. "compiled" is `TorchGraph.compiled`, ResNet-18 only: compiling takes a minute or more.
Some three minutes; writes graph_speed.json.
"""

from __future__ import annotations

import argparse
import importlib
import io
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from converters import to_torch
from fixtures.architectures import lenet5, mobilenet_v2
from fixtures.architectures.common import convolution, head
from fixtures.architectures.resnet import BasicBlock
from tests.benchmarks.record import write

SEED = 0
ROUNDS = 11
LONG = 0.05  # seconds that a measured piece of work takes at least; short runs are repeated

Run = Callable[[torch.Tensor], Any]


def resnet18(width: int) -> nn.Module:
    """ResNet-18 for small images; its first stage has `width` channels."""
    layers, channels = convolution(3, width), width
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(channels, width * 2**stage, stride))
            channels = width * 2**stage
    return nn.Sequential(*layers, *head(channels, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18_width32": (lambda: resnet18(32), (64, 3, 32, 32)),
    "mobilenet_v2": (mobilenet_v2, (64, 3, 32, 32)),
    "lenet5": (lenet5, (8, 1, 28, 28)),
}
COMPILED = "resnet18_width32"


def prepared(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, without gradients of weights, with uneven statistics."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in ((layer.weight, 0.5), (layer.running_var, 0.5), (layer.bias, -0.5)):
                nn.init.uniform_(tensor, low, low + 1)
    return module.eval().requires_grad_(False)


def exported(module: nn.Module, images: torch.Tensor) -> onnx.ModelProto:
    """The module as ONNX, with all of its BatchNormalization.

    Raises:
        RuntimeError: the exporter has folded some.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (images,),
            buffer,
            dynamo=False,
            opset_version=17,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    model = onnx.ModelProto.FromString(buffer.getvalue())
    count = Counter(node.op_type for node in model.graph.node)["BatchNormalization"]
    if count != sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()):
        raise RuntimeError("the exporter has folded BatchNormalization")
    return model


def contenders(name: str, images: torch.Tensor, compiled: bool) -> dict[str, Run]:
    """What is compared: from images to logits, all checked to agree with the first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        native = prepared(NETWORKS[name][0]())
    model = exported(native, images)
    graph = to_torch(model)
    runs: dict[str, Run] = {"native": native, "bdscan": lambda x: graph(x)[0]}
    try:
        other = importlib.import_module("onnx2fx").convert(model).eval().requires_grad_(False)
        runs["onnx2fx"] = lambda x: first(other(x))
    except ImportError:
        print("onnx2fx is not installed and left out")
    if compiled and name == COMPILED:
        fast = graph.compiled()
        runs["compiled"] = lambda x: fast(x)[0]
    expected = native(images)
    for label, run in runs.items():
        if label == "compiled":
            continue  # it is checked with its gradient, for which it must be compiled anyway
        if not torch.allclose(
            run(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        ):
            raise RuntimeError(f"{label} gives other logits for {name}")
    return runs


def first(result: Any) -> Any:
    """The only output of a module that may return a tuple of them."""
    return result[0] if isinstance(result, tuple | list) else result


def forward(run: Run, images: torch.Tensor) -> torch.Tensor:
    """Logits alone."""
    with torch.no_grad():
        return run(images)


def backward(run: Run, images: torch.Tensor) -> torch.Tensor:
    """Logits, and the gradient of their sum of squares with respect to the images."""
    leaf = images.clone().requires_grad_()
    return torch.autograd.grad(run(leaf).square().sum(), leaf)[0]


def measure(
    work: Callable[[Run, torch.Tensor], torch.Tensor],
    runs: dict[str, Run],
    images: torch.Tensor,
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Medians over interleaved rounds, for each contender."""
    expected = work(runs["native"], images)
    begun = time.process_time()
    work(runs["native"], images)
    repeats = max(1, round(LONG / (time.process_time() - begun)))
    first_calls = {}
    for label, run in runs.items():
        begun = time.perf_counter()
        got = work(run, images)
        first_calls[label] = time.perf_counter() - begun
        if not torch.allclose(got, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())):
            raise RuntimeError(f"{label} differs")
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(rounds):
        for label, run in runs.items():
            begun = time.process_time()
            for _ in range(repeats):
                work(run, images)
            seconds[label].append((time.process_time() - begun) / repeats)
    return {
        label: {
            "seconds": round(statistics.median(times), 5),
            "to_native": round(statistics.median(map(_ratio, times, seconds["native"])), 3),
            **({"first_call_seconds": round(first_calls[label], 1)} if label == "compiled" else {}),
        }
        for label, times in seconds.items()
    }


def _ratio(one: float, other: float) -> float:
    return one / other


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--skip-compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rounds": options.rounds}
    for name, (_, shape) in NETWORKS.items():
        images = torch.rand(shape, generator=torch.Generator().manual_seed(SEED))
        runs = contenders(name, images, not options.skip_compiled)
        eager = {label: run for label, run in runs.items() if label != "compiled"}
        results[name] = {
            "batch": list(shape),
            "forward": measure(forward, eager, images, options.rounds),
            "forward_and_backward": measure(backward, runs, images, options.rounds),
        }
        print(name, results[name], flush=True)
    write(Path(__file__).with_suffix(".json"), results, SEED)


if __name__ == "__main__":
    main()
