"""Functions in place of operators: a file's own ones, and the bodies that ONNX gives for its own.

Both are replaced by what they consist of, so that everything later sees operators only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import onnx
from onnx import AttributeProto, NodeProto, inliner

from converters.errors import ModelFormatError, UnsupportedModelError
from converters.instructions import operator_label
from converters.registry import is_registered, lookup, normal_domain
from converters.validation import (
    Limits,
    check_nodes,
    check_operator_sets,
    check_texts,
    tensor_bytes,
)

_MAX_DEPTH = 64  # of functions that call functions; exporters write a handful
_MAX_ROUNDS = 4  # of standard bodies that need standard bodies; at most 2 are known

Identifier = tuple[str, str, str]


class _Size(NamedTuple):
    """What is left of a function's call once everything in it is inlined."""

    nodes: int
    tensor_bytes: int


def check_functions(model: onnx.ModelProto, limits: Limits) -> None:
    """Refuse functions that don't end, that grow beyond the limits, or that pose as operators.

    Raises:
        ModelFormatError: naming the function.
        UnsupportedModelError: a function with the name of an operator.
    """
    functions: dict[Identifier, onnx.FunctionProto] = {}
    for function in model.functions:
        key = _checked(function, limits)
        if key in functions:
            raise ModelFormatError(f"two functions have the name {function.name!r}", "ambiguous")
        functions[key] = function
        if not key[0] or is_registered(key[0], key[1]):
            versions = (o.version for o in model.opset_import if normal_domain(o.domain) == key[0])
            line = f"{operator_label(key[0], key[1], next(versions, None))} (1)"
            raise UnsupportedModelError(f"functions with the name of an operator: {line}", (line,))
    sizes: dict[Identifier, _Size | None] = {}
    for key in functions:
        _measure(key, functions, sizes, 0)
    total = _total(model.graph.node, sizes)
    if total.nodes > limits.nodes:
        raise ModelFormatError(
            f"{total.nodes} nodes in functions; the limit is {limits.nodes}", "too_many_nodes"
        )
    if total.tensor_bytes > limits.tensor_bytes:
        raise ModelFormatError(
            f"{total.tensor_bytes} bytes in functions; the limit is {limits.tensor_bytes}",
            "weights_too_large",
        )


def _checked(function: onnx.FunctionProto, limits: Limits) -> Identifier:
    """What a function is called by; its own lists are unambiguous after this."""
    check_texts(
        (function.domain, function.name, function.overload, *function.input, *function.output),
        "a function's name",
    )
    check_operator_sets(function.opset_import)
    check_nodes(function.node, function.input, limits, function.output)
    if len(set(function.input)) != len(function.input):
        raise ModelFormatError(
            f"two inputs of function {function.name!r} have the same name", "ambiguous"
        )
    return normal_domain(function.domain), function.name, function.overload


def inline_functions(model: onnx.ModelProto) -> None:
    """Replace calls of the file's own functions, and of standard operators that are not registered.

    What can't be replaced is left as it is. Precondition: `check_functions`, topological order.
    """
    try:
        if model.functions:
            _write_out_own_defaults(model)
            model.CopyFrom(inliner.inline_local_functions(model))
        for _ in range(_MAX_ROUNDS):
            names = _standard_calls(model)
            if not names:
                return
            identifiers = [("", name) for name in names]
            model.CopyFrom(inliner.inline_selected_functions(model, identifiers, False, True))
    except (RuntimeError, ValueError):  # a type that can't be inferred, or a model over 2 GB
        return


def _standard_calls(model: onnx.ModelProto) -> list[str]:
    """Standard operators with a function body and without a registered function.

    Those of subgraphs too. Their nodes get the default attributes written out, as in
    `_write_out_own_defaults`.
    """
    opset = max((o.version for o in model.opset_import if not normal_domain(o.domain)), default=0)
    names = set()
    for node in _all_nodes(model.graph.node):
        name = node.op_type
        if normal_domain(node.domain) or lookup("", name, opset):
            continue
        schema = onnx.defs.get_schema(name, opset, "") if onnx.defs.has(name, opset, "") else None
        if schema is not None and _has_body(schema):
            names.add(name)
            _write_out(node, (a.default_value for a in schema.attributes.values()))
    return sorted(names)


def _write_out_own_defaults(model: onnx.ModelProto) -> None:
    """Write default attributes out where a function is called: the inliner would leave them out."""
    functions = {
        (normal_domain(f.domain), f.name, f.overload): f.attribute_proto for f in model.functions
    }
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        for node in _all_nodes(nodes):
            _write_out(node, functions.get(_called(node), ()))


def _write_out(node: NodeProto, defaults: Iterable[AttributeProto]) -> None:
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(v for v in defaults if v.name and v.name not in given)


def _has_body(schema: onnx.defs.OpSchema) -> bool:
    # onnx's type stubs lack both.
    plain: bool = schema.has_function  # type: ignore[attr-defined]
    by_types: bool = schema.has_context_dependent_function  # type: ignore[attr-defined]
    return plain or by_types


def _measure(
    key: Identifier,
    functions: dict[Identifier, onnx.FunctionProto],
    sizes: dict[Identifier, _Size | None],
    depth: int,
) -> None:
    """Fill `sizes` for a function and for all that it calls; None marks one that is being done."""
    if key in sizes:
        if sizes[key] is None:
            raise ModelFormatError(f"function {key[1]!r} calls itself", "cycle")
        return
    if depth > _MAX_DEPTH:
        raise ModelFormatError(f"functions call each other more than {_MAX_DEPTH} deep", "too_deep")
    sizes[key] = None
    for node in _all_nodes(functions[key].node):
        if _called(node) in functions:
            _measure(_called(node), functions, sizes, depth + 1)
    sizes[key] = _total(functions[key].node, sizes)


def _total(nodes: Iterable[NodeProto], sizes: dict[Identifier, _Size | None]) -> _Size:
    count = held = 0
    for node in _all_nodes(nodes):
        size = sizes.get(_called(node))
        count += size.nodes if size else 1
        held += size.tensor_bytes if size else tensor_bytes(node)
    return _Size(count, held)


def _called(node: NodeProto) -> Identifier:
    return normal_domain(node.domain), node.op_type, node.overload


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of their subgraphs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += attribute.g.node
            for graph in attribute.graphs:
                waiting += graph.node
