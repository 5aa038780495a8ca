"""Outputs that name the winning class only: the scores that they are taken from serve instead.

A support vector machine without probabilities has no scores by class: it lets pairs of classes
vote. Its label then becomes a 1 for the winning class and a 0 for every other one.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from converters.registry import normal_domain
from converters.rewrite import set_outputs

ML_DOMAIN = "ai.onnx.ml"

# Operators between a winning class and the output that change its shape, type or name.
_PASS_THROUGH = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_CLASSIFIERS = {"LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier"}
_CLASS_AXES = (1, -1)


def use_scores(model: onnx.ModelProto) -> list[str]:
    """Replace outputs that hold class labels, or maps by label, by the scores that they come from.

    Precondition: topological order. What was replaced is said in words.
    """
    producer = {name: node for node in model.graph.node for name in node.output if name}
    names, said = [], []
    for value in list(model.graph.output):
        voter = _voter_behind(value.name, producer)
        scores = _scores_of(value.name, producer)
        if voter is not None:
            scores = _one_hot(model, voter)
            said.append(f"output {value.name!r} holds votes: 1 for its label, 0 for other classes")
        elif scores:
            said.append(f"output {value.name!r} holds labels: its scores {scores!r} are used")
        names.append(scores or value.name)
    if said:
        set_outputs(model, tuple(dict.fromkeys(names)))
    return said


def _scores_of(output: str, producer: dict[str, NodeProto]) -> str | None:
    """The tensor whose winner `output` names, or whose numbers it maps to labels."""
    name, node = output, producer.get(output)
    while node is not None and _before_label(node):
        name = _before_label(node)
        node = producer.get(name)
    if node is None or not node.input:
        return None
    if normal_domain(node.domain) == ML_DOMAIN:
        if node.op_type == "ZipMap":
            return str(node.input[0])
        if node.op_type in _CLASSIFIERS and name == node.output[0]:
            return _second_output(node)
        return None
    if normal_domain(node.domain):
        return None
    if node.op_type == "ArgMax" and _integer(node, "axis", 0) in _CLASS_AXES:
        return str(node.input[0])
    is_top = node.op_type == "TopK" and len(node.output) > 1 and name == node.output[1]
    if is_top and _integer(node, "axis", -1) in _CLASS_AXES and _integer(node, "largest", 1):
        return str(node.input[0])
    return None


def _voter_behind(output: str, producer: dict[str, NodeProto]) -> NodeProto | None:
    """The support vector machine without probabilities that an output comes from, if one."""
    node = producer.get(output)
    while node is not None and (_before_label(node) or node.op_type == "ZipMap"):
        node = producer.get(_before_label(node) or str(node.input[0]))
    if node is None or node.op_type != "SVMClassifier" or normal_domain(node.domain) != ML_DOMAIN:
        return None
    given = {attribute.name for attribute in node.attribute}
    return node if "vectors_per_class" in given and "prob_a" not in given else None


def _one_hot(model: onnx.ModelProto, classifier: NodeProto) -> str:
    """Add nodes that turn a classifier's label into (N, K) numbers; the result's name."""
    label = str(classifier.output[0])
    result = f"{label}/one_hot"
    if any(result in node.output for node in model.graph.node):
        return result
    given = {a.name: helper.get_attribute_value(a) for a in classifier.attribute}
    index, classes = label, np.array(given.get("classlabels_ints", []), np.int64)
    if "classlabels_strings" in given:
        index, classes = (
            f"{label}/index",
            np.arange(len(given["classlabels_strings"]), dtype=np.int64),
        )
        version = max((o.version for o in model.opset_import if o.domain == ML_DOMAIN), default=1)
        names = given["classlabels_strings"]
        keys = (
            {"classes_strings": names}
            if version < 2
            else {
                "keys_strings": names,
                "values_int64s": classes.tolist(),
            }
        )
        encoder = helper.make_node("LabelEncoder", [label], [index], domain=ML_DOMAIN, **keys)
        model.graph.node.append(encoder)
    column, all_classes, shape = (f"{label}/{part}" for part in ("column", "classes", "shape"))
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(classes[None], all_classes),
            numpy_helper.from_array(np.array([-1, 1], np.int64), shape),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("Reshape", [index, shape], [column]),
            helper.make_node("Equal", [column, all_classes], [f"{label}/equal"]),
            helper.make_node("Cast", [f"{label}/equal"], [result], to=TensorProto.FLOAT),
        ]
    )
    return result


def _before_label(node: NodeProto) -> str:
    """What an operator on labels reads them from, '' for any other operator."""
    domain = normal_domain(node.domain)
    if not node.input:
        return ""
    if not domain and node.op_type in _PASS_THROUGH:
        return str(node.input[0])
    if domain == ML_DOMAIN and node.op_type == "LabelEncoder":
        return str(node.input[0])
    if domain == ML_DOMAIN and node.op_type == "ArrayFeatureExtractor" and len(node.input) > 1:
        return str(node.input[1])
    return ""


def _second_output(node: NodeProto) -> str:
    """The scores of a classifier that may leave them out."""
    if len(node.output) < 2:
        node.output.append(f"{node.output[0]}/scores")
    elif not node.output[1]:
        node.output[1] = f"{node.output[0]}/scores"
    return str(node.output[1])


def _integer(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
