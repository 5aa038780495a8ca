"""Nodes that only work at one batch size: found by their shapes, and changed so that they take any.

Exporters write a fixed batch size into the graph as numbers: in the shape that a Reshape or an
Expand is given, in the sizes of a Resize, in where a Slice or a Split cuts, and as constants that
are as long as the batch. The graph is run once on shapes only, with a larger batch; where a node
fails or its result does not grow as it should, the node gets other numbers.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence

import onnx
import torch
from onnx import NodeProto

from converters.batch_nodes import BatchWriter, Numbers, Repeat, Shape
from converters.errors import UnsupportedModelError
from converters.instructions import Instruction, needed_instructions
from converters.ops._values import ints
from converters.subgraph import Subgraph
from converters.torch_graph import TorchGraph
from converters.values import Value

_LARGER = 11  # times the fixed batch size: not a size that networks usually have

Mends = Sequence[Numbers | Repeat]


def free_fixed_shapes(model: onnx.ModelProto, reference: TorchGraph, images: torch.Tensor) -> int:
    """Let every node that has a fixed batch size baked in take any batch size.

    The caller must prove the result against runs at the fixed batch size: where a shape leaves
    open which dimension is the batch, the first one is taken.

    Args:
        model: changed in place.
        reference: the model in torch.
        images: a batch of the fixed size.

    Returns:
        How many nodes were changed.
    """
    names = {n for node in model.graph.node for n in (*node.input, *node.output)}
    with torch.no_grad():
        small = {name: kind.shape for name, kind in reference.tensor_types(images).items()}
        try:
            mended = _LargerRun(reference, small, images, names).mended
        except (UnsupportedModelError, RuntimeError):
            return 0  # a shape that depends on numbers, or a fixed size that stands elsewhere
    writer = BatchWriter(model, names | reference.constant_names, len(images))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        mends = mended.get(node.output[0], ()) if node.output else ()
        for mend in mends:
            nodes += writer.repeated(node, mend) if isinstance(mend, Repeat) else []
        writer.renumber(node, [mend for mend in mends if isinstance(mend, Numbers)])
        nodes.append(node)
    copies = [NodeProto.FromString(n.SerializeToString()) for n in (*writer.first, *nodes)]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return len(mended)


class _LargerRun:
    """Shapes of a larger batch, found node by node, and what had to be mended on the way.

    Attributes:
        mended: by the name of a node's first output.
    """

    def __init__(
        self, graph: TorchGraph, small: Mapping[str, Shape], images: torch.Tensor, names: set[str]
    ) -> None:
        self._small = small
        self._names = names  # of the model's tensors: folding adds some that no node reads
        self._batch_size = len(images)
        # What no image influences keeps its numbers: it may be a shape, or the same for all images.
        self._values: dict[str, Value] = {
            name: graph.constant(name) for name in graph.constant_names
        }
        larger = (len(images) * _LARGER, *images.shape[1:])
        self._values[graph.input_names[0]] = images.new_empty(larger, device="meta")
        self._inner: dict[str, int] = {}  # by tensor: entries before the batch within its own axis
        self.mended: dict[str, Mends] = {}
        for instruction in needed_instructions(graph.fast_instructions, graph.output_names):
            self._step(instruction)

    def _step(self, instruction: Instruction) -> None:
        try:
            results = self._run(instruction, ())
        except UnsupportedModelError:
            mends = self._mends(instruction, None)
            if not mends:
                raise
            results = self._run(instruction, mends)
        else:
            mends = self._mends(instruction, results)
            results = self._run(instruction, mends) if mends else results
        if mends:
            self.mended[instruction.outputs[0]] = mends
        self._values.update((n, r) for n, r in zip(instruction.outputs, results, strict=False) if n)
        if instruction.op_type not in _RESHAPES:
            self._inherit(instruction)

    def _run(self, instruction: Instruction, mends: Mends) -> tuple[Value, ...]:
        """What the mended instruction gives for the larger batch."""
        values = {name: self._values[name] for name in instruction.inputs if name}
        if any(map(_is_meta, values.values())):
            values = {n: _to_meta(v) for n, v in values.items()}
        for mend in mends:
            name = instruction.inputs[mend.position] if instruction.op_type != "Flatten" else ""
            if isinstance(mend, Repeat):
                values[name] = _repeated(values[name], mend)
            elif instruction.op_type in _RESHAPES:
                return (_as_tensor(values[instruction.inputs[0]]).reshape(mend.at(_LARGER)),)
            else:
                values[name] = torch.tensor(mend.at(_LARGER))
        return instruction.run(ChainMap(values, self._values))

    def _mends(
        self, instruction: Instruction, results: tuple[Value, ...] | None
    ) -> list[Numbers] | list[Repeat]:
        """What to change so that the results grow with the batch; None: the node failed."""
        mender = _MENDERS.get(instruction.op_type)
        batch = self._grown(next(iter(instruction.inputs), ""))
        if mender is not None and batch is not None and not instruction.domain:
            tensors = None if results is None else tuple(map(_as_tensor, results))
            mends = mender(self, instruction, batch, tensors)
            if mends:
                return mends
        return [] if results else self._repeats(instruction)

    def _grown(self, name: str) -> int | None:
        """The one dimension of a tensor that grew with the batch."""
        value = self._values.get(name)
        if not isinstance(value, torch.Tensor):
            return None
        return _grown_axis(self._small.get(name), tuple(value.shape))

    def _reshape(
        self, instruction: Instruction, batch: int, results: tuple[torch.Tensor, ...] | None
    ) -> list[Numbers]:
        source, result = instruction.inputs[0], instruction.outputs[0]
        target = self._small[result]
        outside = math.prod(self._small[source][:batch]) * self._inner.get(source, 1)
        axis = _new_batch_axis(self._small[source], target, outside, self._batch_size)
        if axis is None:
            return []
        self._inner[result] = outside // math.prod(target[:axis])
        if results and _grown_axis(target, tuple(results[0].shape)) == axis:
            return []
        return [Numbers(1, tuple(-1 if i == axis else size for i, size in enumerate(target)))]

    def _expand(
        self, instruction: Instruction, batch: int, results: tuple[torch.Tensor, ...] | None
    ) -> list[Numbers]:
        """An Expand keeps the size of a dimension that it is asked to make 1."""
        source, target = self._small[instruction.inputs[0]], self._small[instruction.outputs[0]]
        axis = batch + len(target) - len(source)
        if results or target[axis] != source[batch]:
            return []
        return [Numbers(1, tuple(1 if i == axis else size for i, size in enumerate(target)))]

    def _resize(
        self, instruction: Instruction, batch: int, results: tuple[torch.Tensor, ...] | None
    ) -> list[Numbers]:
        sizes = self._ints(instruction, 3)
        small = self._small[instruction.outputs[0]]
        if not sizes or (results and _grown_axis(small, tuple(results[0].shape)) == batch):
            return []
        axes = instruction.attributes.get("axes") or range(len(small))
        where = [entry for entry, axis in enumerate(axes) if axis % len(small) == batch]
        return [Numbers(3, tuple(sizes), tuple(where))] if where else []

    def _slice(
        self, instruction: Instruction, batch: int, results: tuple[torch.Tensor, ...] | None
    ) -> list[Numbers]:
        """A Slice that cuts whole batches out of several ones laid one after the other."""
        small = self._small[instruction.outputs[0]]
        if not results or _grown_axis(small, tuple(results[0].shape)) == batch:
            return []
        starts, ends = self._ints(instruction, 1), self._ints(instruction, 2)
        axes = self._ints(instruction, 3) or range(len(starts))
        steps = self._ints(instruction, 4) or [1] * len(starts)
        for entry, axis in enumerate(axes):
            if axis % len(small) != batch or steps[entry] != 1 or not starts:
                continue
            size = self._small[instruction.inputs[0]][batch]
            starts[entry], ends[entry], _ = slice(starts[entry], ends[entry]).indices(size)
            if starts[entry] % self._batch_size == ends[entry] % self._batch_size == 0:
                return [Numbers(1, tuple(starts), (entry,)), Numbers(2, tuple(ends), (entry,))]
        return []

    def _split(
        self, instruction: Instruction, batch: int, results: tuple[torch.Tensor, ...] | None
    ) -> list[Numbers]:
        sizes = self._ints(instruction, 1)
        rank = len(self._small[instruction.inputs[0]])
        along_batch = instruction.attributes.get("axis", 0) % rank == batch
        if results or not along_batch or any(size % self._batch_size for size in sizes):
            return []
        return [Numbers(1, tuple(sizes), tuple(range(len(sizes))))] if sizes else []

    def _ints(self, instruction: Instruction, position: int) -> list[int]:
        """The numbers of a shape-like input; none if it is absent."""
        name = instruction.inputs[position] if len(instruction.inputs) > position else ""
        return ints(_as_tensor(self._values[name])) if name else []

    def _repeats(self, instruction: Instruction) -> list[Repeat]:
        """Inputs as long as the fixed batch whose entries along the batch axis are all the same."""
        grown = [(name, self._grown(name)) for name in instruction.inputs]
        name, batch = next(((n, axis) for n, axis in grown if axis is not None), ("", 0))
        subgraphs = any(isinstance(v, Subgraph) for v in instruction.attributes.values())
        if not name or subgraphs:  # what a subgraph reads it reads by name
            return []
        size, from_end = self._small[name][batch], len(self._small[name]) - batch
        repeats = []
        for position, other in enumerate(instruction.inputs):
            value = self._values.get(other) if other in self._names else None
            if not isinstance(value, torch.Tensor) or value.is_meta:
                continue
            axis = value.ndim - from_end
            if axis < 0 or value.shape[axis] != size:
                continue
            if torch.equal(value, value.narrow(axis, 0, 1).expand_as(value)):
                repeats.append(Repeat(position, axis, size, value.ndim))
        return repeats

    def _inherit(self, instruction: Instruction) -> None:
        """An operator that keeps the size of a merged axis keeps the order within it."""
        sources = [name for name in instruction.inputs if name in self._inner]
        for name in filter(None, instruction.outputs) if sources else ():
            axis = self._grown(name)
            for source in sources:
                before = self._grown(source)
                if axis is None or before is None:
                    continue
                if self._small[source][before] == self._small[name][axis]:
                    self._inner[name] = self._inner[source]


_RESHAPES = ("Reshape", "Flatten")
_MENDERS = {
    "Reshape": _LargerRun._reshape,
    "Flatten": _LargerRun._reshape,
    "Expand": _LargerRun._expand,
    "Resize": _LargerRun._resize,
    "Slice": _LargerRun._slice,
    "Split": _LargerRun._split,
}


def _is_meta(value: Value) -> bool:
    if isinstance(value, tuple):
        return any(map(_is_meta, value))
    return isinstance(value, torch.Tensor) and value.is_meta


def _to_meta(value: Value) -> Value:
    """The value with shapes only in place of floating-point numbers."""
    if isinstance(value, tuple):
        return tuple(
            v.to("meta") if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            for v in value
        )
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to("meta")
    return value


def _as_tensor(value: Value) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise UnsupportedModelError("a sequence or a text where a tensor must be")
    return value


def _repeated(value: Value, mend: Repeat) -> torch.Tensor:
    tensor = _as_tensor(value)
    sizes = list(tensor.shape)
    sizes[mend.axis] *= _LARGER
    return tensor.new_empty(sizes)


def _grown_axis(small: Shape | None, large: Shape) -> int | None:
    """The one dimension that is larger by as much as the batch is."""
    if small is None or len(small) != len(large):
        return None
    grown = [i for i, (a, b) in enumerate(zip(small, large, strict=True)) if a != b]
    return grown[0] if len(grown) == 1 and large[grown[0]] == _LARGER * small[grown[0]] else None


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
