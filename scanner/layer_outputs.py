"""What a layer inside a classifier computes for images: the last convolution's map and the vector
that the last linear layer reads.

Both are found in the graph itself. ONNX Runtime gives them for any model, in one forward pass with
the logits (`open_layers`); torch gives a layer with a gradient to the images
(`differentiable_features`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import NodeProto

from converters import OnnxClassifier, open_session, run_session
from converters.batch_axis import sample_images
from converters.ort_session import CUDA
from converters.rewrite import copied, graph_inputs, set_outputs
from scanner.classifier import Classifier, Images, Logits
from scanner.errors import BdscanError, UsageError

Floats = npt.NDArray[np.float32]

_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv", "ConvTranspose", "DeformConv"}

# (the data's input, the weights' input) of each linear operator.
_LINEAR = {
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "FusedGemm": (0, 1),
    "FusedMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
    "MatMulNBits": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
}
_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear"}

# Operators that leave a map's height, width and axes as they are: what is still the same layer.
# fmt: off
_SAME_MAP = {
    "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Clip", "Sigmoid",
    "HardSigmoid", "HardSwish", "Swish", "Tanh", "Softplus", "Softsign", "Mish", "Gelu",
    "FastGelu", "QuickGelu", "BiasGelu", "Erf", "Abs", "Neg", "Exp", "Log", "Sqrt", "Pow",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
    "MeanVarianceNormalization", "LpNormalization", "Add", "Sub", "Mul", "Div", "Sum", "Max",
    "Min", "Where", "Identity", "Dropout", "Cast", "Concat", "QuantizeLinear", "DequantizeLinear",
    "QLinearAdd", "QLinearMul", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearConcat",
}
# fmt: on


class LayerNotFoundError(BdscanError):
    """The model has no layer of the kind that a detector needs; another detector may still run."""

    reason = "no_such_layer"


@dataclass(frozen=True)
class Layers:
    """Layers of a classifier, computed by ONNX Runtime.

    Attributes:
        classifier: whose layers they are.
        names: tensors of its rewritten graph, in the order in which `run` returns them.
        session: of the same validated model, with these tensors as outputs beside the logits.
    """

    classifier: Classifier
    names: tuple[str, ...]
    session: onnxruntime.InferenceSession

    def run(self, images: Images) -> tuple[Logits, tuple[Floats, ...]]:
        """(N, C, H, W) images in [0, 1] -> (N, K) logits, and (N, ...) float32 for each layer.

        Raises:
            UnsupportedModelError: ONNX Runtime failed.
            LayerNotFoundError: a layer does not give one result for each image.
        """
        wanted, inputs = self.classifier.onnx, self.classifier.inputs(images)
        outputs = [wanted.logits_name, *self.names]
        raw, *layers = run_session(
            self.session, outputs, inputs, wanted.batch_size, wanted.largest_batch
        )
        for name, values in zip(self.names, layers, strict=True):
            if len(values) != len(images):
                raise LayerNotFoundError(
                    f"layer {name!r} gives {len(values)} results for {len(images)} images"
                )
        logits = wanted.logits_of(torch.from_numpy(raw)).numpy()
        return logits, tuple(values.astype(np.float32) for values in layers)


def open_layers(classifier: Classifier, names: Sequence[str]) -> Layers:
    """Open a session that gives the named tensors; it is as costly as opening the model.

    Args:
        names: tensors of the rewritten graph (`convolution_map`, `penultimate_vector`, or the
            user's own choice after `check_layer`).

    Raises:
        UnsupportedModelError: ONNX Runtime refuses the model so.
    """
    on_gpu = CUDA in classifier.session.get_providers()
    device = str(classifier.device) if on_gpu else "cpu"
    session = _session(classifier.onnx, tuple(names), device)
    return Layers(classifier, tuple(names), session)


def differentiable_features(
    classifier: Classifier, name: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from (N, C, H, W) images in [0, 1] to the layer's (N, ...) tensor, by torch.

    It has a gradient to the images; the classifier's preprocessing is inside.

    Raises:
        UnsupportedModelError: torch can't run the model.
    """
    graph, wanted = classifier.onnx.graph, classifier.onnx
    step = wanted.batch_size

    def features(images: torch.Tensor) -> torch.Tensor:
        inputs = wanted.image_input.arrange(classifier.preprocessing.apply(images))
        if step is None:
            return graph.features(name, inputs).float()
        parts = []
        for batch in torch.split(inputs, step):
            filler = batch.new_zeros(step - len(batch), *batch.shape[1:])
            parts.append(graph.features(name, torch.cat([batch, filler]))[: len(batch)])
        return torch.cat(parts).float()

    return features


def convolution_map(wanted: OnnxClassifier) -> str:
    """Name of the last convolution's map (N, C, H, W), after what is done to it element by element.

    That is the last activation before pooling: bias, normalisation, activation, and the sum or
    concatenation with other branches are followed. A convolution whose map is a single pixel is a
    linear layer and does not count.

    Raises:
        LayerNotFoundError: no such convolution.
    """
    nodes = _nodes_of_logits(wanted)
    convolutions = [i for i, node in enumerate(nodes) if node.op_type in _CONVOLUTIONS]
    varying = _varying(nodes, wanted)
    ends = [_end_of_map(nodes, i) for i in convolutions if varying.intersection(nodes[i].input)]
    names = tuple(dict.fromkeys(reversed(ends)))
    for name, shape in zip(names, _shapes(wanted, names), strict=True):
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            return name
    raise LayerNotFoundError(
        "the model has no convolution whose map could be compared; name a layer with --features",
        "no_convolution",
    )


def penultimate_vector(wanted: OnnxClassifier) -> str:
    """Name of what the last linear layer reads, (N, D) or with more dimensions.

    Where no linear layer leads to the logits (a network of convolutions alone), it is the last
    convolution's map.

    Raises:
        LayerNotFoundError: there is neither.
    """
    nodes = _nodes_of_logits(wanted)
    varying = _varying(nodes, wanted)
    made_by = {name: node for node in nodes for name in node.output}
    for node in reversed(nodes):
        if node.op_type not in _LINEAR:
            continue
        data, weights = (node.input[i] for i in _LINEAR[node.op_type])
        if data in varying and weights not in varying:
            source = made_by.get(data)
            quantised = source is not None and source.op_type in _QUANTIZERS
            # Quantised values of a batch may be on a scale of their own.
            name = str(source.input[0] if quantised and source is not None else data)
            if name in made_by:
                return name
    try:
        return convolution_map(wanted)
    except LayerNotFoundError as error:
        raise LayerNotFoundError(
            "the model has neither a layer before its last linear one nor a convolution; "
            "name a layer with --features"
        ) from error


def check_layer(wanted: OnnxClassifier, name: str) -> str:
    """A layer that the user named, if the graph computes it from the image for each image.

    Raises:
        UsageError: it does not; the line names tensors that it does compute.
    """
    nodes = _nodes_of_logits(wanted)
    made = [output for node in nodes for output in node.output if output]
    varying = _varying(nodes, wanted)
    images = len(_probe(wanted))
    if name in made and name in varying:
        shape = _shapes(wanted, (name,))[0]
        if len(shape) >= 2 and shape[0] == images:
            return name
    last = ", ".join([n for n in made if n in varying][-4:])
    raise UsageError(
        f"--features {name!r}: the logits depend on no such layer; the last are {last}"
    )


def rows(layer: Floats) -> Floats:
    """(N, ...) -> (N, D): a map (N, C, H, W) becomes its mean over height and width (D = C)."""
    if layer.ndim == 4:
        pooled: Floats = layer.mean((2, 3))
        return pooled
    return layer.reshape(len(layer), -1)


def _nodes_of_logits(wanted: OnnxClassifier) -> list[NodeProto]:
    """The nodes that the logits depend on, in topological order."""
    needed, kept = {wanted.logits_name}, []
    for node in reversed(wanted.model.graph.node):
        if needed.intersection(filter(None, node.output)):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _varying(nodes: Sequence[NodeProto], wanted: OnnxClassifier) -> set[str]:
    """The tensors that depend on the image."""
    varying = {value.name for value in graph_inputs(wanted.model)}
    for node in nodes:
        if node.op_type not in ("Shape", "Size") and varying.intersection(node.input):
            varying.update(filter(None, node.output))
    return varying


def _end_of_map(nodes: Sequence[NodeProto], index: int) -> str:
    """The last tensor that is the map of the convolution `nodes[index]`, changed in place."""
    return list(_same_map(nodes, index))[-1]


def _same_map(nodes: Sequence[NodeProto], index: int) -> Iterator[str]:
    carried = {nodes[index].output[0]}
    yield nodes[index].output[0]
    for node in nodes[index + 1 :]:
        if node.op_type in _SAME_MAP and carried.intersection(node.input):
            carried.add(node.output[0])
            yield node.output[0]


def _probe(wanted: OnnxClassifier) -> npt.NDArray[np.generic]:
    # Two images where the model takes any number, so that each result's first axis shows.
    images: npt.NDArray[np.generic] = sample_images(
        wanted.image_input, wanted.batch_size or 2
    ).numpy()
    return images


def _shapes(wanted: OnnxClassifier, names: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Shapes of tensors for the images of `_probe`."""
    if not names:
        return []
    session, feed = _session(wanted, names, "cpu"), _probe(wanted)
    results = run_session(session, list(names), feed, wanted.batch_size, len(feed))
    return [result.shape for result in results]


def _session(
    wanted: OnnxClassifier, names: tuple[str, ...], device: str
) -> onnxruntime.InferenceSession:
    model: onnx.ModelProto = copied(wanted.model)
    set_outputs(model, (wanted.logits_name, *names))
    return open_session(model, device)
