"""Take the fixed batch size out of a traced graph's constants.

A graph traced for a batch of b holds Reshape nodes to constant shapes such as [b, 400] or, inside
an attention, [tokens, b * heads, 32], and joins constants of shape [b, ...], such as a class token,
to what it computes. Which dimension is the batch is found by running the shapes alone (on torch's
meta device, without numbers) for a larger batch, node by node, mending each as it comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper

from converters.errors import UnsupportedModelError
from converters.folding import unused_name
from converters.instructions import Instruction, Tensors, needed_instructions
from converters.torch_graph import TorchGraph

_LARGER = 3  # times the fixed batch size

Shape = tuple[int, ...]
Mended = dict[str, "list[int] | dict[int, int]"]


def free_fixed_shapes(model: onnx.ModelProto, reference: TorchGraph, images: torch.Tensor) -> int:
    """Let every Reshape and Concat that has a fixed batch size baked in take any batch size.

    The caller must prove the result against runs at the fixed batch size: where a shape leaves
    open which dimension is the batch, the first one is taken.

    Args:
        model: changed in place.
        reference: the model in torch.
        images: a batch of the fixed size.

    Returns:
        How many nodes were changed.
    """
    with torch.no_grad():
        small = {name: kind.shape for name, kind in reference.tensor_types(images).items()}
        try:
            mended = _LargerRun(reference, small, images).mended
        except (UnsupportedModelError, RuntimeError):
            return 0  # a shape that depends on numbers, or a fixed size that stands elsewhere
    nodes: list[NodeProto] = []
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
    names = _Names(model, taken | reference.constant_names)
    for node in model.graph.node:
        change = mended.get(node.output[0]) if node.output else None
        if isinstance(change, list):
            shape = np.array(change, dtype=np.int64)
            node.input[1] = names.constant(f"{node.output[0]}/any_batch_shape", shape)
        elif change:
            nodes += _repeat_constants(node, change, reference, names)
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return len(mended)


class _LargerRun:
    """Shapes of a larger batch, found node by node, and what had to be mended on the way.

    Attributes:
        mended: by the name of a node's first output: for a Reshape its new shape, with -1 for the
            batch; for a Concat, by position among its inputs, the axis along which a constant is
            to be repeated.
    """

    def __init__(self, graph: TorchGraph, small: Mapping[str, Shape], images: torch.Tensor) -> None:
        self._graph = graph
        self._constants = graph.constant_names
        self._small = small
        self._batch_size = len(images)
        self._values: Tensors = {}
        for name in self._constants:
            value = graph.constant(name)  # integers keep their numbers: they are shapes and indices
            self._values[name] = value.to("meta") if value.is_floating_point() else value
        larger = (len(images) * _LARGER, *images.shape[1:])
        self._values[graph.input_names[0]] = images.new_empty(larger, device="meta")
        self._inner: dict[str, int] = {}  # by tensor: entries before the batch within its own axis
        self.mended: Mended = {}
        for instruction in needed_instructions(graph.fast_instructions, graph.output_names):
            self._step(instruction)

    def _step(self, instruction: Instruction) -> None:
        arguments = {name: self._values[name] for name in instruction.inputs if name}
        if instruction.op_type == "Reshape" and len(instruction.inputs) == 2:
            self._mend_reshape(instruction, arguments)
        elif instruction.op_type == "Concat":
            self._mend_concat(instruction, arguments)
        results = instruction.run(arguments)
        self._values.update((n, r) for n, r in zip(instruction.outputs, results, strict=False) if n)
        if instruction.outputs[0] not in self.mended:
            self._inherit(instruction)

    def _grown(self, name: str) -> int | None:
        """The one dimension of a tensor that grew with the batch."""
        small, large = self._small[name], self._values[name].shape
        if len(small) != len(large):
            return None
        grown = [i for i, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
        one = len(grown) == 1 and large[grown[0]] == _LARGER * small[grown[0]]
        return grown[0] if one else None

    def _mend_reshape(self, instruction: Instruction, arguments: Tensors) -> None:
        (source, shape_name), result = instruction.inputs, instruction.outputs[0]
        batch = self._grown(source)
        if batch is None or shape_name not in self._constants:
            return
        target = self._small[result]
        outside = math.prod(self._small[source][:batch]) * self._inner.get(source, 1)
        axis = _new_batch_axis(self._small[source], target, outside, self._batch_size)
        if axis is not None:
            shape = [-1 if i == axis else size for i, size in enumerate(target)]
            self.mended[result] = shape
            arguments[shape_name] = torch.tensor(shape)
            self._inner[result] = outside // math.prod(target[:axis])

    def _mend_concat(self, instruction: Instruction, arguments: Tensors) -> None:
        computed = next((n for n in instruction.inputs if n and n not in self._constants), "")
        batch = self._grown(computed) if computed else None
        if batch is None:
            return
        rank, size = len(self._small[computed]), self._small[computed][batch]
        if instruction.attributes.get("axis", 1) % rank == batch:
            return
        repeats = {}
        for position, name in enumerate(instruction.inputs):
            value = self._graph.constant(name) if name in self._constants else None
            if value is None or value.ndim != rank or value.shape[batch] != size:
                continue
            first = value.narrow(batch, 0, 1)
            if torch.equal(value, first.expand_as(value)):
                repeats[position] = batch
                sizes = [n * _LARGER if i == batch else n for i, n in enumerate(value.shape)]
                arguments[name] = self._values[name].new_empty(sizes)
        if repeats:
            self.mended[instruction.outputs[0]] = repeats

    def _inherit(self, instruction: Instruction) -> None:
        """An operator that keeps the size of a merged axis keeps the order within it."""
        sources = [name for name in instruction.inputs if name in self._inner]
        for name in filter(None, instruction.outputs) if sources else ():
            axis = self._grown(name) if name in self._values else None
            for source in sources:
                before = self._grown(source)
                if axis is None or before is None:
                    continue
                if self._small[source][before] == self._small[name][axis]:
                    self._inner[name] = self._inner[source]


def _new_batch_axis(source: Shape, target: Shape, outside: int, batch_size: int) -> int | None:
    """Which dimension of a Reshape's result holds the batch, be it merged with others.

    A Reshape keeps the order of numbers, so what lay outside of the batch lies outside of it still.
    At batch size 1 that leaves a choice: a dimension of exactly the batch size is the best, then
    the first if dimensions were merged, else the one that begins with the batch.
    """
    candidates = []
    for axis, size in enumerate(target):
        before = math.prod(target[:axis])
        if not outside or not before or outside % before:
            continue
        merged = outside // before
        if size % (merged * batch_size) == 0:
            candidates.append((axis, merged, size))
    exact = [axis for axis, merged, size in candidates if merged == 1 and size == batch_size]
    leading = [axis for axis, merged, _ in candidates if merged == 1]
    every = [axis for axis, _, _ in candidates]
    ordered = exact + (every if len(target) < len(source) else leading + every)
    return ordered[0] if ordered else None


class _Names:
    """Adds initializers to a model, and hands out names that nothing in it has."""

    def __init__(self, model: onnx.ModelProto, taken: set[str]) -> None:
        self._model = model
        self._taken = taken

    def new(self, stem: str) -> str:
        name = unused_name(stem, self._taken)
        self._taken.add(name)
        return name

    def constant(self, stem: str, value: npt.NDArray[Any]) -> str:
        name = self.new(stem)
        self._model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


def _repeat_constants(
    node: NodeProto, repeats: dict[int, int], reference: TorchGraph, names: _Names
) -> list[NodeProto]:
    """Nodes that repeat a Concat's constants for the batch at hand; the Concat is to read those."""
    computed = next(n for n in node.input if n and n not in reference.constant_names)
    extra: list[NodeProto] = []
    for position, axis in repeats.items():
        stem = f"{node.output[0]}/any_batch_{position}"
        value = reference.constant(node.input[position]).narrow(axis, 0, 1)
        one = names.constant(f"{stem}_value", value.contiguous().cpu().numpy())
        before, at, after = (
            names.constant(f"{stem}_{part}", np.array(numbers, dtype=np.int64))
            for part, numbers in (
                ("before", [1] * axis),
                ("axis", [axis]),
                ("after", [1] * (value.ndim - axis - 1)),
            )
        )
        shape, size, full, repeated = (
            names.new(f"{stem}_{part}") for part in ("shape", "size", "full", "repeated")
        )
        extra += [
            helper.make_node("Shape", [computed], [shape]),
            helper.make_node("Gather", [shape, at], [size], axis=0),
            helper.make_node("Concat", [before, size, after], [full], axis=0),
            helper.make_node("Expand", [one, full], [repeated]),
        ]
        node.input[position] = repeated
    return extra
