"""Operator sets that ONNX Runtime does not read, converted to the nearest one that it does."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import NodeProto, helper, version_converter

from converters.errors import UnsupportedModelError
from converters.folding import unused_name
from converters.registry import normal_domain

FIRST_OPSET = 7  # ONNX Runtime has no kernels for what operators were like before
LAST_OPSET = 26  # of ONNX Runtime 1.31


def must_convert(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime does not read the model's operator set."""
    return not FIRST_OPSET <= _version(model) <= LAST_OPSET


def fit_opset(model: onnx.ModelProto, ranks: Mapping[str, int]) -> str:
    """Convert the model to an operator set that ONNX Runtime reads, in place.

    The caller must prove the result: ONNX Runtime can't, for it does not read the vendor's.

    Args:
        ranks: number of dimensions of every tensor.

    Returns:
        What was done, in words.

    Raises:
        UnsupportedModelError: it can't be converted.
    """
    version = _version(model)
    target = min(max(version, FIRST_OPSET), LAST_OPSET)
    refusal = f"operator set {version} can't be converted to {target}, which ONNX Runtime reads"
    if model.functions:
        raise UnsupportedModelError(f"{refusal}: it has functions of its own")
    if version < FIRST_OPSET:
        _align_broadcasts(model, ranks)
    try:
        try:
            converted = version_converter.convert_version(model, target)
        except RuntimeError:  # some of its rules want every dimension as a number
            converted = version_converter.convert_version(_of_one_image(model), target)
    except Exception as error:  # the converter's errors share no public base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0].rpartition("failed: ")[2][:200]  # without the place in onnx's sources
        raise UnsupportedModelError(f"{refusal}: {reason}") from error
    del converted.graph.value_info[:]
    declared = {value.name: value for value in model.graph.input}
    for value in converted.graph.input:
        value.CopyFrom(declared.get(value.name, value))
    for value in converted.graph.output:
        if not value.type.tensor_type.elem_type:  # one of undeclared type is given type 0
            value.ClearField("type")
    model.CopyFrom(converted)
    return f"operator set {version} converted to {target}"


def _version(model: onnx.ModelProto) -> int:
    versions = [o.version for o in model.opset_import if not normal_domain(o.domain)]
    return max(versions, default=FIRST_OPSET)


def _of_one_image(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs have 1 in place of each free dimension."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = max(dim.dim_value, 1)
    for value in copy.graph.output:
        value.ClearField("type")
    return copy


def _align_broadcasts(model: onnx.ModelProto, ranks: Mapping[str, int]) -> None:
    """Let dimensions of size 1 say what the attribute `axis` of `Add` and so on said.

    onnx's converter adds one of them too many.
    """
    taken = set(ranks) | {name for node in model.graph.node for name in node.output}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        given = {attribute.name: attribute for attribute in node.attribute}
        known = ranks.keys() >= set(node.input)  # else no output depends on the node
        if not normal_domain(node.domain) and known and {"axis", "broadcast"} <= set(given):
            left, right = (ranks[name] for name in node.input)
            axis = given["axis"].i + (left if given["axis"].i < 0 else 0)
            if axis + right < left:
                name = unused_name(f"{node.output[0]}/aligned", taken)
                taken.add(name)
                axes = list(range(right, left - axis))
                nodes.append(helper.make_node("Unsqueeze", [node.input[1]], [name], axes=axes))
                node.input[1] = name
            node.attribute.remove(given["axis"])
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
