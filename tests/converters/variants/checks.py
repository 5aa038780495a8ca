"""What must hold for a classifier read from any vendor's file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import TensorProto

from converters import OnnxClassifier, TorchGraph, check_parity, load_classifier
from converters.batch_axis import run_in_batches
from tests.converters.variants.nets import CLASSES, patterns

BATCH_SIZES = (1, 3, 8)
Logits = Callable[[torch.Tensor], torch.Tensor]


def check_variant(
    model: onnx.ModelProto | str,
    truth: Logits | None = None,
    *,
    activation: str = "none",
    any_batch: bool = True,
    inputs: np.ndarray | None = None,
    tolerance: float = 1e-3,
) -> OnnxClassifier:
    """Load the file and prove that the classifier does what the file does, and can be optimised.

    ONNX Runtime and torch agree at batch sizes 1, 3 and 8, whatever batch size the file declares;
    the logits are those before the final activation; the gradient of a random projection of them is
    that of `truth`, or else that of central finite differences in float64.

    Args:
        model: the model, or the path of its file.
        truth: the same network in float64, from the model's inputs to logits; not of the converter.
        activation: which one the logits must have been cut before.
        any_batch: whether the batch axis must have been freed.
        inputs: images in the model's layout and type; default: `patterns`.
        tolerance: of logits and gradient, as a share of the largest value.
    """
    images = patterns(max(BATCH_SIZES), seed=9) if inputs is None else inputs
    classifier = load_classifier(model, parity_inputs=images)
    assert classifier.final_activation == activation
    assert (classifier.batch_size is None) == any_batch
    x = torch.from_numpy(images.astype(np.float32))
    logits = feed(classifier)
    singly = torch.cat([logits(image[None]) for image in x])
    for size in BATCH_SIZES:
        check_parity(classifier, images[:size])
        _close(logits(x[:size]), singly[:size], tolerance)
    if truth is not None:
        _close(singly, truth(x.double()), tolerance)
    check_gradient(classifier, x[:4], truth, tolerance)
    return classifier


def check_rounded_variant(
    model: onnx.ModelProto, truth: Logits, *, cosine: float, dtype: type = np.float32
) -> OnnxClassifier:
    """Load a quantised or half-precision file and prove what can be proved of one.

    Both engines name the same class on 95 % of 64 images, and the gradient of a random projection
    of the logits has at least this cosine with that of the network that was rounded.

    Args:
        truth: the network before rounding, in float64.
        dtype: of the file's input.
    """
    images = patterns(64, seed=9)
    classifier = load_classifier(model, parity_inputs=images.astype(dtype))
    parity = check_parity(classifier, images.astype(dtype))
    assert parity.loose
    assert parity.argmax_agreement >= 0.95
    x = torch.from_numpy(images[:8])
    for size in BATCH_SIZES:
        assert feed(classifier)(x[:size]).shape == (size, CLASSES)
    projection = torch.randn(len(x), CLASSES, generator=torch.Generator().manual_seed(4))
    found = gradient(feed(classifier), x, projection).double()
    assert bool((found.abs().amax((1, 2, 3)) > 0).all())
    expected = gradient(truth, x.double(), projection.double())
    alike = torch.cosine_similarity(found.reshape(-1), expected.reshape(-1), dim=0)
    assert float(alike) >= cosine
    return classifier


def check_gradient(
    classifier: OnnxClassifier, x: torch.Tensor, truth: Logits | None, tolerance: float
) -> None:
    """The float32 gradient against the truth's, or against finite differences in float64."""
    rng = torch.Generator().manual_seed(4)
    projection = torch.randn(len(x), classifier.class_count, generator=rng)
    found = gradient(feed(classifier), x, projection)
    assert bool((found.abs().amax(tuple(range(1, found.ndim))) > 0).all())
    if truth is not None:
        _close(found, gradient(truth, x.double(), projection.double()), tolerance)
        return
    graph = in_double(classifier.graph)

    def value(point: torch.Tensor) -> float:
        raw = run_in_batches(graph, point, classifier.batch_size)[0]
        return float((raw.reshape(len(x), -1) * projection).sum())

    step = 1e-6 * float(x.abs().max())
    with torch.no_grad():
        for _ in range(3):
            way = torch.randn(x.shape, generator=rng, dtype=torch.float64)
            way = way / way.norm() * found.double().norm() + found.double()  # not at a right angle
            slope = (value(x + step * way) - value(x - step * way)) / (2 * step)
            expected = float((found.double() * way).sum())
            assert abs(slope - expected) <= tolerance * float(found.norm() * way.norm())


def feed(classifier: OnnxClassifier) -> Logits:
    """From float32 images in the model's layout to logits; differentiable."""
    half = classifier.image_input.elem_type == TensorProto.FLOAT16
    return lambda images: classifier.logits(images.half() if half else images)


def gradient(logits: Logits, x: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Of the projected logits, by the images."""
    given = x.clone().requires_grad_()
    (logits(given) * projection).sum().backward()
    assert given.grad is not None
    assert bool(given.grad.isfinite().all())
    return given.grad


def in_double(graph: TorchGraph) -> TorchGraph:
    """The same graph in float64: constants, and where it casts to float32."""
    instructions = [
        replace(i, attributes={**i.attributes, "to": TensorProto.DOUBLE})
        if i.op_type == "Cast" and i.attributes["to"] == TensorProto.FLOAT
        else i
        for i in graph.instructions
    ]
    constants = {name: graph.constant(name) for name in graph.constant_names}
    return TorchGraph(instructions, constants, graph.input_names, graph.output_names).double()


def _close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    difference = float((got.double() - expected.double()).abs().max())
    assert difference <= tolerance * float(expected.abs().max())
