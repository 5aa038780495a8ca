"""How large every tensor of a graph gets, told without running it.

Where torch runs a graph first, each operator of ours refuses what its numbers make too large. ONNX
Runtime has no such rule: a file of a few bytes can have it fill any memory. So a graph that only
ONNX Runtime can run is run only if the shape of every tensor follows from the input's, for the one
batch size that it will be run at, and if they are small enough together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx
import torch
from onnx import AttributeProto, NodeProto, TensorProto, helper

from converters.errors import UnsupportedModelError
from converters.isolated import infer_shapes
from converters.label_outputs import ML_DOMAIN
from converters.ort_session import open_session
from converters.registry import normal_domain
from converters.rewrite import set_input_shape, set_outputs
from converters.torch_graph import TensorType

MAX_BYTES = 2**30
"""What all tensors that a run computes may take together, in bytes."""

_DOMAINS = ("", "com.microsoft", ML_DOMAIN)
_ML_OPERATORS = {
    "ArrayFeatureExtractor",
    "Binarizer",
    "Imputer",
    "LabelEncoder",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
}
_SUBGRAPHS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
_NUMBERS: dict[str, torch.dtype] = {
    "float": torch.float32,
    "double": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    **{f"int{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
}


def foreign_operators(nodes: Iterable[NodeProto]) -> list[str]:
    """Operators that ONNX Runtime needs a library of the vendor's for, or that are not let run."""
    return sorted({_label(node) for node in nodes if not _may_run(node)})


def bounded_tensors(model: onnx.ModelProto, shape: tuple[int, ...]) -> dict[str, TensorType]:
    """Shape and type of every tensor that a run over an input of this shape computes.

    Nothing is run. Precondition: topological order, one input.

    Raises:
        UnsupportedModelError: an operator that is not let run, a tensor whose shape depends on
            more than the input's shape, or more than `MAX_BYTES` together.
    """
    foreign = foreign_operators(model.graph.node)
    if foreign:
        raise UnsupportedModelError(f"not run: {', '.join(foreign)}", tuple(foreign))
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    set_input_shape(sized, shape)
    set_outputs(sized, tuple(name for node in sized.graph.node for name in node.output if name))
    sized = infer_shapes(_with_ml_shapes(sized), strict=True)
    ranked = {v.name for v in sized.graph.output if v.type.tensor_type.HasField("shape")}
    session = open_session(sized, optimize=False)  # it knows com.microsoft's operators too
    labels = {n.output[0] for n in sized.graph.node if n.domain == ML_DOMAIN and n.output}
    types = {
        # ONNX Runtime gives a shape that it does not know as that of one number.
        v.name: _type(v.name, v.type, v.shape if v.shape or v.name in ranked else [None], labels)
        for v in session.get_outputs()
    }
    total = sum(math.prod(t.shape) * t.dtype.itemsize for t in types.values())
    if total > MAX_BYTES:
        name = max(types, key=lambda n: math.prod(types[n].shape) * types[n].dtype.itemsize)
        raise UnsupportedModelError(
            f"its tensors take {total} bytes, {name!r} of shape {list(types[name].shape)} the "
            f"most; the limit is {MAX_BYTES}"
        )
    return types


def _with_ml_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types that onnx does not infer for machine-learning operators."""
    outputs = {value.name: value for value in model.graph.output}
    for node in model.graph.node:
        if normal_domain(node.domain) != ML_DOMAIN or not node.input:
            continue
        known = infer_shapes(model).graph
        values = {v.name: v.type.tensor_type for v in (*known.output, *known.input)}
        source = values.get(node.input[0])
        if source is None or not source.HasField("shape"):
            continue
        shape = [d.dim_value if d.HasField("dim_value") else None for d in source.shape.dim]
        for name, result in zip(node.output, ml_shapes(node, shape), strict=False):
            if name and not values[name].HasField("shape"):
                outputs[name].CopyFrom(helper.make_tensor_value_info(name, *result))
    return model


def ml_shapes(node: NodeProto, shape: list[int | None]) -> list[tuple[int, list[int | None]]]:
    """Element type and shape of each output of a machine-learning operator; [] if not known here.

    Args:
        shape: of the first input.
    """
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    count = shape[:1]
    if node.op_type in ("Imputer", "Normalizer", "Scaler"):
        return [(TensorProto.FLOAT, shape)]
    if node.op_type == "LabelEncoder":
        numbers = any(name in given for name in ("values_int64s", "classes_strings"))
        return [(TensorProto.INT64, shape)] if numbers else []
    if node.op_type == "LinearRegressor":
        return [(TensorProto.FLOAT, [*count, given.get("targets", 1)])]
    if node.op_type == "SVMRegressor":
        return [(TensorProto.FLOAT, [*count, 1])]
    if node.op_type == "SVMClassifier":
        text = "classlabels_strings" in given
        classes = len(given.get("classlabels_strings", given.get("classlabels_ints", ())))
        pairs = "vectors_per_class" in given and "prob_a" not in given and classes > 2
        columns = classes * (classes - 1) // 2 if pairs else classes
        label = TensorProto.STRING if text else TensorProto.INT64
        return [(label, count), (TensorProto.FLOAT, [*count, columns])]
    return []


def _may_run(node: NodeProto) -> bool:
    """Whether an operator is one of ONNX Runtime's that keeps no graph or library of its own."""
    domain = normal_domain(node.domain)
    if domain not in _DOMAINS or any(a.type in _SUBGRAPHS for a in node.attribute):
        return False
    return domain != ML_DOMAIN or node.op_type in _ML_OPERATORS


def _label(node: NodeProto) -> str:
    domain = normal_domain(node.domain)
    return f"{domain}.{node.op_type}" if domain else node.op_type


def _type(name: str, kind: str, shape: Sequence[int | str | None], labels: set[str]) -> TensorType:
    """ONNX Runtime's description of a tensor as ours.

    Args:
        labels: tensors that may hold text: ONNX Runtime keeps one copy of each class's name. Other
            text could double in length at every node.

    Raises:
        UnsupportedModelError: not numbers, or a dimension that is not known.
    """
    dtype = _NUMBERS.get(kind.removeprefix("tensor(").removesuffix(")"))
    if kind == "tensor(string)" and name in labels:
        dtype = torch.int64
    if dtype is None:
        raise UnsupportedModelError(f"{name!r} is no tensor of numbers but {kind}")
    known = tuple(d for d in shape if isinstance(d, int) and d >= 0)
    if len(known) < len(shape):
        raise UnsupportedModelError(f"the shape of {name!r} can't be told before it is computed")
    return TensorType(known, dtype)
