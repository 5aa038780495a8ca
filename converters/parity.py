"""ONNX Runtime against TorchGraph: a scan means something only if both are the same network.

Parsers disagree about odd files, and a vendor could use that to show the scanner another network
than the one that will be deployed. So the vendor's untouched model in ONNX Runtime is compared
with the rewritten one in torch, and the rewritten one with itself in both engines.

A model in training mode is compared in inference mode, and its classes with those that the vendor's
file gives in training mode: normalized by the batch at hand, it could be another network. A model
that torch can't run is compared with itself before and after rewriting, both in ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from converters.batch_axis import run_in_batches
from converters.errors import ParityError
from converters.onnx_classifier import OnnxClassifier
from converters.ort_session import open_session, run_session
from converters.subgraph import all_nodes

Array = npt.NDArray[Any]

RELATIVE_TOLERANCE = 1e-3  # of the largest |value|, for float32 models
LOOSE_AGREEMENT = 0.95  # share of equal argmax that half-precision and quantised models need
LOOPED_IMAGES = 32  # compared where they are run one by one
_QUANTISED = (
    "ConvInteger",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QGemm",
    "QLinear",
    "QuantizeLinear",
    "Sign",  # a binarised network: rounding flips whole activations
)


@dataclass(frozen=True)
class Parity:
    """How far the engines differ.

    Attributes:
        images: how many images were compared.
        max_difference: largest |ONNX Runtime - torch| over logits and vendor's output, as a share
            of the largest |value|.
        argmax_agreement: share of images with the same winning class, in [0, 1].
        loose: the model is quantised or half-precision, so that only the argmax is asked for.
        training_agreement: share of images that have the same class in training mode, None for a
            model without BatchNormalization in training mode.
    """

    images: int
    max_difference: float
    argmax_agreement: float
    loose: bool
    training_agreement: float | None = None


def check_parity(
    classifier: OnnxClassifier,
    inputs: Array,
    session: onnxruntime.InferenceSession | None = None,
) -> Parity:
    """Compare both engines on the same images.

    The vendor's model as it came is run by ONNX Runtime at the batch size that it declares and its
    output compared with torch's; the logits of the rewritten model are compared in both engines.

    Args:
        inputs: (N, ...) in the model's layout and type; real images prove most.
        session: of the rewritten model, if there is one already.

    Raises:
        ParityError: a difference over 1e-3 of the largest |value|, or another winning class where
            the margin between the first two exceeds that (half-precision and quantised models:
            the same winning class on less than 95 % of the images).
        UnsupportedModelError: ONNX Runtime can't run the model.
        ValueError: no images.
    """
    if not len(inputs):
        raise ValueError("no images to compare the engines on")
    if classifier.batch_size is not None and classifier.network is not None:
        inputs = inputs[:: -(-len(inputs) // LOOPED_IMAGES)]
    loose = is_low_precision(classifier)
    # torch first: `prepare_classifier` has bounded what it makes of the file.
    by_torch = None if classifier.network is None else _run_torch(classifier, inputs)
    # Optimised integer kernels saturate on processors without instructions of their own for them.
    original = open_session(classifier.original, optimize=not loose)
    session = session or open_session(classifier.model, optimize=not loose)
    # Where images of one batch influence each other, each is run alone in both engines.
    declared = classifier.image_input.batch_size or classifier.batch_size
    if classifier.network is None:
        declared = classifier.image_input.batch_size or 1
    names, most = [classifier.logits_name, classifier.output_name], classifier.largest_batch
    vendor = run_session(original, names[1:], inputs, declared, most)[0]
    logits, *_, last = run_session(session, names, inputs, classifier.batch_size, most)
    first, last = by_torch or (logits, last)
    compared = [
        _compare(f"output {classifier.output_name!r}", vendor, last, loose),
        _compare(f"logits {classifier.logits_name!r}", logits, first, loose),
    ]
    return Parity(
        images=len(inputs),
        max_difference=max(difference for difference, _ in compared),
        argmax_agreement=min(agreement for _, agreement in compared),
        loose=loose,
        training_agreement=_training_agreement(classifier, inputs, vendor, declared),
    )


def _training_agreement(
    classifier: OnnxClassifier, inputs: Array, vendor: Array, batch_size: int | None
) -> float | None:
    """Share of images that have the same class where BatchNormalization takes the batch at hand.

    Args:
        vendor: the output in inference mode.
        batch_size: the only one that the vendor's file takes; None: all images are one batch.

    Raises:
        ParityError: less than `LOOSE_AGREEMENT`.
    """
    if classifier.batch_statistics is None:
        return None
    size = batch_size or len(inputs)
    whole = np.resize(np.arange(len(inputs)), -(-len(inputs) // size) * size)  # no zeros in a batch
    session = open_session(classifier.batch_statistics, optimize=False)
    training = run_session(session, [classifier.output_name], inputs[whole], size)[0]
    classes = [t.reshape(len(inputs), -1).argmax(1) for t in (training[: len(inputs)], vendor)]
    agreement = float((classes[0] == classes[1]).mean())
    if agreement < LOOSE_AGREEMENT:
        raise ParityError(
            f"the model is in training mode and gives the same class on only {agreement:.1%} of "
            f"{len(inputs)} images when it is not: export the model in evaluation mode"
        )
    return agreement


def is_low_precision(classifier: OnnxClassifier) -> bool:
    """Whether the logits come out of half precision or of quantised operators."""
    quantised = any(
        node.op_type.startswith(_QUANTISED) for node in all_nodes(classifier.model.graph.node)
    )
    return quantised or classifier.half_precision


def _device(classifier: OnnxClassifier) -> torch.device:
    return next((b.device for b in classifier.graph.buffers()), torch.device("cpu"))


def _run_torch(classifier: OnnxClassifier, inputs: Array) -> tuple[Array, Array]:
    """The first and the last output of the graph, for any number of images."""
    images = torch.from_numpy(np.ascontiguousarray(inputs))
    runs = []
    with torch.no_grad():
        for start in range(0, len(images), classifier.largest_batch):
            part = images[start : start + classifier.largest_batch].to(_device(classifier))
            runs.append(run_in_batches(classifier.graph, part, classifier.batch_size))
    first, last = (torch.cat([run[i] for run in runs]).cpu().numpy() for i in (0, -1))
    return first, last


def _compare(what: str, onnx_runtime: Array, by_torch: Array, loose: bool) -> tuple[float, float]:
    """(largest difference as a share of the largest value, share of equal argmax)."""
    expected = onnx_runtime.reshape(len(onnx_runtime), -1).astype(np.float64)
    got = by_torch.reshape(len(by_torch), -1).astype(np.float64)
    if expected.shape != got.shape:
        raise ParityError(f"{what}: ONNX Runtime gives {expected.shape}, torch {got.shape}")
    if not np.isfinite(expected).all() or not np.isfinite(got).all():
        raise ParityError(f"{what}: not finite on the images at hand")
    scale = max(float(np.abs(expected).max()), 1e-12)
    difference = float(np.abs(expected - got).max()) / scale
    same = expected.argmax(1) == got.argmax(1)
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > RELATIVE_TOLERANCE * scale
    agreement = float(same.mean())
    failed = (
        agreement < LOOSE_AGREEMENT
        if loose
        else (difference > RELATIVE_TOLERANCE or not same[clear].all())
    )
    if failed:
        raise ParityError(
            f"{what}: ONNX Runtime and torch differ by {difference:.2g} of the largest value, "
            f"the winning class agrees on {agreement:.1%} of {len(same)} images"
        )
    return difference, agreement
