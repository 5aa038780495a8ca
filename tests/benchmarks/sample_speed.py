"""Images a second: Cognitive Distillation as `bdscan samples` runs it, and the paper's procedure.

`python -m tests.benchmarks.sample_speed`: both on the same images in one process, with the same
noise and weights, alternately, best of three. The paper's procedure is written here on a native
torch module with the weights of the ONNX file, in the simplest way: Adam of torch, eq. 1 as it
stands, the weights' gradients computed although nobody wants them, the reference's forward pass
repeated in every step; once on the same batches, and once image by image, as eq. 1 is written.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from scanner.classifier import Classifier
from scanner.detectors import cognitive_distillation as cd
from tests.benchmarks.record import write
from tests.benchmarks.sample_scores import BATCH, open_model, read_images
from tests.conftest import ROOT

SEED = 0
ROUNDS = 3
MODELS = ("cifar10-badnets", "cifar10-blend")
STEPS = 30


class Native(nn.Module):
    """The same network as a plain torch module: normalisation, then the file's layers."""

    def __init__(self, classifier: Classifier, path: Path) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        used = classifier.preprocessing
        self.register_buffer("mean", torch.tensor(used.mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(used.std).reshape(1, -1, 1, 1))
        self.nodes = list(graph.node)
        self.parameters_of = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.from_numpy(array.copy()))
                for name, array in weights.items()
                if array.dtype == np.float32
            }
        )
        self.input_name, self.output_name = graph.input[0].name, graph.output[0].name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) images in [0, 1] -> (N, K) logits."""
        values: dict[str, Any] = {self.input_name: (images - self.mean) / self.std}
        for node in self.nodes:
            given = [self._value(values, name) for name in node.input]
            values[node.output[0]] = _run(node, given)
        return values[self.output_name]

    def _value(self, values: dict[str, Any], name: str) -> Any:
        return values[name] if name in values else self.parameters_of[_key(name)]


def _key(name: str) -> str:
    return name.replace(".", "_").replace("/", "_")


def _run(node: onnx.NodeProto, given: list[Any]) -> torch.Tensor:
    """The few operators of the fleet's small networks."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    functional = nn.functional
    if node.op_type == "Conv":
        pads = attributes.get("pads", [0, 0, 0, 0])
        assert pads[:2] == pads[2:]
        bias = given[2] if len(given) > 2 else None
        return functional.conv2d(
            given[0], given[1], bias, attributes.get("strides", [1, 1]), pads[:2],
            attributes.get("dilations", [1, 1]), attributes.get("group", 1),
        )  # fmt: skip
    if node.op_type == "Relu":
        return given[0].relu()
    if node.op_type == "Add":
        return given[0] + given[1]
    if node.op_type == "MaxPool":
        return functional.max_pool2d(given[0], attributes["kernel_shape"], attributes["strides"])
    if node.op_type == "GlobalAveragePool":
        return given[0].mean((2, 3), keepdim=True)
    if node.op_type == "Flatten":
        return given[0].flatten(1)
    if node.op_type == "Gemm":
        return functional.linear(given[0], given[1], given[2])
    raise NotImplementedError(node.op_type)


def papers_loop(
    network: nn.Module, images: torch.Tensor, noise: torch.Tensor, weights: cd.Weights, steps: int
) -> torch.Tensor:
    """Eq. 1 for one batch with CD-P's fidelity: (N,) mask norms."""
    p = torch.ones(len(images), 1, *images.shape[2:], requires_grad=True)
    optimiser = torch.optim.Adam([p], lr=0.1, betas=(0.1, 0.1))
    for step in range(steps):
        m = (torch.tanh(p) + 1) / 2
        delta = noise[:, step, :, None, None]
        x_cp = images * m + (1 - m) * delta
        wanted = network(images).softmax(1).detach()
        fit = (network(x_cp).softmax(1) - wanted).abs().sum(1) / 2
        down, right = m.diff(dim=2), m.diff(dim=3)
        tv = down.square().sum((1, 2, 3)) + right.square().sum((1, 2, 3))
        loss = fit + weights.size * m.sum((1, 2, 3)) + weights.smoothness * tv
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    return ((torch.tanh(p.detach()) + 1) / 2).sum((1, 2, 3))


def measure(name: str, count: int) -> dict[str, Any]:
    """Images a second of both, and how far their norms differ."""
    path = ROOT / "fixtures" / "fleets" / "cpu-small" / f"{name}.onnx"
    clean = ROOT / "fixtures" / "clean" / "cifar10"
    classifier = open_model(path, clean)
    images = torch.from_numpy(read_images(clean, classifier.image_shape, count, SEED))
    network = Native(classifier, path)
    torch.testing.assert_close(
        network(images), classifier.differentiable_logits(images), rtol=1e-3, atol=1e-3
    )
    config = cd.DistillationConfig(steps=STEPS)
    _, height, width = classifier.image_shape
    weights = cd.weights_of(cd.CD_P, height, width, 1.0, config)
    outputs = cd.outputs_of(cd.CD_P, cd.prepared(classifier))

    def ours(batch: torch.Tensor) -> torch.Tensor:
        pixels = batch.numpy()
        masks = cd.learn_masks(cd.CD_P, classifier, outputs, pixels, weights, config, SEED)
        return torch.from_numpy(masks).sum((1, 2))

    def loop(batch: torch.Tensor) -> torch.Tensor:
        noise = torch.from_numpy(cd.noise_colours(batch.numpy(), STEPS, SEED))
        return papers_loop(network, batch, noise, weights, STEPS)

    seconds: dict[str, list[float]] = {"ours": [], "loop": [], "one_by_one": []}
    norms = {}
    for _ in range(ROUNDS):
        for label, run, size in (
            ("ours", ours, BATCH),
            ("loop", loop, BATCH),
            ("one_by_one", loop, 1),
        ):
            begun = time.process_time()
            parts = [run(images[i : i + size]) for i in range(0, len(images), size)]
            seconds[label].append(time.process_time() - begun)
            norms[label] = torch.cat(parts).numpy()
    best = {label: min(times) for label, times in seconds.items()}
    differences = np.abs(norms["ours"] - norms["loop"]) / norms["loop"]
    return {
        "images": len(images),
        "steps": STEPS,
        "images_a_second": {k: round(len(images) / t, 2) for k, t in best.items()},
        "ratio_to_loop": round(best["loop"] / best["ours"], 2),
        "ratio_to_one_by_one": round(best["one_by_one"] / best["ours"], 2),
        "median_difference_of_norms": float(np.median(differences)),
        "rank_correlation": float(
            np.corrcoef(norms["ours"].argsort().argsort(), norms["loop"].argsort().argsort())[0, 1]
        ),
    }


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in MODELS:
        results[name] = measure(name, options.count)
        print(name, results[name], flush=True)
    content = {"time": "processor time of one thread, best of 3", "models": results}
    write(Path(__file__).with_suffix(".json"), content, SEED)


if __name__ == "__main__":
    main()
