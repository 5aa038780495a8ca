"""Models traced for one batch size: let them take any, and prove that they still do the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper

from converters.convert import graph_of
from converters.errors import UnsupportedModelError
from converters.folding import unused_name
from converters.image_input import ImageInput
from converters.rewrite import set_input_shape
from converters.torch_graph import TorchGraph

PROOF_BATCH = 3  # differs from every batch size that exporters bake in (1, and powers of two)
_RANGES = ((0.0, 1.0), (-3.0, 3.0), (0.0, 255.0))  # of pixels as networks usually want them


def free_batch(
    model: onnx.ModelProto, reference: TorchGraph, image_input: ImageInput
) -> tuple[TorchGraph, int | None, list[str]]:
    """Free the batch axis of `model` where that can be proved, in place.

    Args:
        model: rewritten in place; its outputs are those of `reference`.
        reference: the model in torch as it came.

    Returns:
        (graph, the only batch size it takes or None, what was changed).
    """
    declared = image_input.batch_size
    fixed = declared or 1
    images = sample_images(image_input, PROOF_BATCH)
    with torch.no_grad():
        proof = run_in_batches(reference, images, fixed)
    untouched = onnx.ModelProto()
    untouched.CopyFrom(model)
    set_input_shape(model, ("N", *image_input.shape))
    graph = graph_of(model)
    if _gives(graph, images, proof):
        return graph, None, [f"batch size {declared} freed"] if declared else []
    changed = free_fixed_shapes(model, reference, sample_images(image_input, fixed))
    if changed:
        graph = graph_of(model)
        if _gives(graph, images, proof):
            return graph, None, [f"batch size {fixed} freed in {changed} nodes"]
    model.CopyFrom(untouched)
    return graph_of(model), fixed, [f"batch size {fixed} could not be freed"]


def free_fixed_shapes(model: onnx.ModelProto, reference: TorchGraph, images: torch.Tensor) -> int:
    """Let every Reshape and Concat that has a fixed batch size baked in take any batch size.

    A graph traced for a batch of b holds Reshape nodes to constant shapes such as [b, 400]: the
    first entry becomes -1 and the others what they were at that batch size. It also joins constants
    of shape [b, ...], such as a class token, to what it computes: they are repeated as needed.

    Precondition: batch is the outermost axis there. The caller must prove the result against runs
    at the fixed batch size; where the precondition fails, they differ.

    Args:
        model: changed in place.
        reference: the model in torch.
        images: a batch of the fixed size.

    Returns:
        How many nodes were changed.
    """
    with torch.no_grad():
        shapes = {name: kind.shape for name, kind in reference.tensor_types(images).items()}
    constants = reference.constant_names
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)} | constants
    nodes: list[NodeProto] = []
    changed = 0
    for node in model.graph.node:
        computed = [name for name in node.input if name not in constants]
        target = shapes.get(node.output[0]) if node.output else None
        if target and computed and node.op_type == "Reshape" and set(node.input[1:]) <= constants:
            changed += _free_reshape(model, node, target, taken)
        elif target and computed and node.op_type == "Concat":
            extra = _free_concat(model, node, computed[0], reference, len(images), taken)
            nodes += extra
            changed += bool(extra)
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return changed


def _free_reshape(
    model: onnx.ModelProto, node: NodeProto, target: tuple[int, ...], taken: set[str]
) -> int:
    if len(node.input) != 2:
        return 0
    shape = np.array([-1, *target[1:]], dtype=np.int64)
    node.input[1] = _add_constant(model, f"{node.output[0]}/any_batch_shape", shape, taken)
    return 1


def _free_concat(
    model: onnx.ModelProto,
    node: NodeProto,
    computed: str,
    reference: TorchGraph,
    fixed: int,
    taken: set[str],
) -> list[NodeProto]:
    """Nodes that repeat the constants among a Concat's inputs for the batch of `computed`."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    extra: list[NodeProto] = []
    for position, name in enumerate(node.input):
        if name not in reference.constant_names:
            continue
        value = reference.constant(name)
        if value.ndim < 2 or axis in (0, -value.ndim) or len(value) != fixed:
            continue
        if not torch.equal(value, value[:1].expand_as(value)):
            continue
        stem = f"{node.output[0]}/any_batch_{position}"
        one = _add_constant(model, f"{stem}_value", value[:1].cpu().numpy(), taken)
        ones = _add_constant(model, f"{stem}_ones", np.ones(value.ndim - 1, dtype=np.int64), taken)
        first = _add_constant(model, f"{stem}_first", np.zeros(1, dtype=np.int64), taken)
        shape, size, full, repeated = (
            _new_name(f"{stem}_{part}", taken) for part in ("shape", "size", "full", "repeated")
        )
        extra += [
            helper.make_node("Shape", [computed], [shape]),
            helper.make_node("Gather", [shape, first], [size], axis=0),
            helper.make_node("Concat", [size, ones], [full], axis=0),
            helper.make_node("Expand", [one, full], [repeated]),
        ]
        node.input[position] = repeated
    return extra


def _add_constant(
    model: onnx.ModelProto, stem: str, value: np.ndarray[Any, np.dtype[Any]], taken: set[str]
) -> str:
    name = _new_name(stem, taken)
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _new_name(stem: str, taken: set[str]) -> str:
    name = unused_name(stem, taken)
    taken.add(name)
    return name


def run_in_batches(
    graph: TorchGraph, inputs: torch.Tensor, batch_size: int | None
) -> tuple[torch.Tensor, ...]:
    """Run a one-input graph over any number of images.

    Args:
        inputs: (N, ...).
        batch_size: the only batch size that the graph takes, or None.
    """
    if batch_size is None:
        return tuple(graph(inputs))
    parts = []
    for start in range(0, max(len(inputs), 1), batch_size):
        batch = inputs[start : start + batch_size]
        filler = batch.new_zeros(batch_size - len(batch), *batch.shape[1:])
        results = graph(torch.cat([batch, filler]) if len(filler) else batch)
        parts.append([result[: len(batch)] for result in results])
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def sample_images(image_input: ImageInput, count: int) -> torch.Tensor:
    """Seeded random images in the model's layout and type, in turn of each usual pixel range."""
    values = np.random.default_rng(1).random((count, *image_input.shape), dtype=np.float32)
    for index, image in enumerate(values):
        low, high = _RANGES[index % len(_RANGES)]
        image *= high - low
        image += low
    return torch.from_numpy(values.astype(image_input.dtype))


def _gives(graph: TorchGraph, images: torch.Tensor, proof: tuple[torch.Tensor, ...]) -> bool:
    """Whether a run over all images at once gives what runs at the fixed batch size gave."""
    try:
        with torch.no_grad():
            got = graph(images)
    except UnsupportedModelError:
        return False
    return _tells_apart(proof[0]) and all(map(_same, got, proof))


def _tells_apart(proof: torch.Tensor) -> bool:
    """Whether the images give different results: else mixing them up would not be noticed."""
    rows = _finite_rows(proof, proof)[0]
    if len(rows) < 2:
        return False
    return bool((rows.amax(0) - rows.amin(0)).max() > _tolerance(proof) * rows.abs().max())


def _same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Same shape, and the same numbers image by image."""
    if got.shape != expected.shape:
        return False
    rows, other = _finite_rows(expected, got)
    bound = _tolerance(expected) * rows.abs().amax(1, keepdim=True)
    return bool(((other - rows).abs() <= bound).all())


def _finite_rows(expected: torch.Tensor, got: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One row for each image; without those on whose pixel range half precision overflows."""
    rows, other = (t.reshape(len(expected), -1).double() for t in (expected, got))
    finite = rows.isfinite().all(1)
    return rows[finite], other[finite]


def _tolerance(result: torch.Tensor) -> float:
    """What rounding may change, as a share of an image's largest |value|."""
    return 1e-2 if result.dtype == torch.float16 else 1e-3
