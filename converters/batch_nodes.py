"""Nodes of an ONNX graph that read the batch size off the images at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from converters.folding import unused_name
from converters.rewrite import graph_inputs

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Numbers:
    """A node's input of shape-like numbers, given anew.

    Attributes:
        position: of the input.
        values: the numbers at the fixed batch size.
        of_batch: which of them are multiples of the batch size and have to grow with it.
    """

    position: int
    values: Shape
    of_batch: tuple[int, ...] = ()

    def at(self, times: int) -> Shape:
        """The numbers at so many times the fixed batch size."""
        return tuple(n * times if i in self.of_batch else n for i, n in enumerate(self.values))


@dataclass(frozen=True)
class Repeat:
    """A node's input that is the same for every image of the fixed batch, repeated for any batch.

    Attributes:
        position: of the input.
        axis: along which it is repeated.
        size: of that axis at the fixed batch size.
        rank: number of dimensions.
    """

    position: int
    axis: int
    size: int
    rank: int


class BatchWriter:
    """Writes mends into a model, under names that nothing in it has.

    Every operator used is the same in all operator sets from 7 on.

    Attributes:
        first: nodes that must run before all others: they compute numbers from the batch size.
    """

    def __init__(self, model: onnx.ModelProto, taken: set[str], batch_size: int) -> None:
        self._model = model
        self._taken = taken
        self._batch_size = batch_size
        self._constants: dict[Shape, str] = {}
        self._computed: dict[tuple[Shape, tuple[int, ...]], str] = {}
        self._batches: dict[int, str] = {}
        self.first: list[NodeProto] = []

    def renumber(self, node: NodeProto, mends: Sequence[Numbers]) -> None:
        """Let the node read other numbers."""
        if mends and node.op_type == "Flatten":
            node.op_type = "Reshape"
            del node.attribute[:]
            node.input.append("")
        for mend in mends:
            node.input[mend.position] = self._numbers(mend.values, mend.of_batch)

    def repeated(self, node: NodeProto, mend: Repeat) -> list[NodeProto]:
        """Two nodes that repeat the input's first entry for the batch; the node reads those."""
        stem = f"{node.output[0]}/any_batch_{mend.position}"
        one, many = self._new(f"{stem}_one"), self._new(stem)
        sizes = tuple(mend.size if i == mend.axis else 1 for i in range(mend.rank))
        given = [node.input[mend.position], self._numbers((0,), ())]
        node.input[mend.position] = many
        return [
            helper.make_node("Gather", given, [one], axis=mend.axis),
            helper.make_node("Tile", [one, self._numbers(sizes, (mend.axis,))], [many]),
        ]

    def _numbers(self, values: Shape, of_batch: tuple[int, ...]) -> str:
        """A tensor of these numbers, some of them multiples of the batch size."""
        growing = [i for i in of_batch if values[i]]
        if not growing:
            return self._constant(values)
        if (values, of_batch) not in self._computed:
            parts, begun = [], 0
            for i in growing:
                parts += [self._constant(values[begun:i])] if i > begun else []
                parts.append(self._batch(values[i] // self._batch_size))
                begun = i + 1
            parts += [self._constant(values[begun:])] if begun < len(values) else []
            name = self._new("any_batch/numbers")
            self.first.append(helper.make_node("Concat", parts, [name], axis=0))
            self._computed[values, of_batch] = name
        return self._computed[values, of_batch]

    def _batch(self, times: int) -> str:
        """So many times the number of images at hand, as a vector of one number."""
        if not self._batches:
            image_input = graph_inputs(self._model)[0].name
            shape, size = self._new("any_batch/shape"), self._new("any_batch/size")
            self.first.append(helper.make_node("Shape", [image_input], [shape]))
            gather = helper.make_node("Gather", [shape, self._constant((0,))], [size], axis=0)
            self.first.append(gather)
            self._batches[1] = size
        if times not in self._batches:
            name = self._new(f"any_batch/size_times_{times}")
            given = [self._batches[1], self._constant((times,))]
            self.first.append(helper.make_node("Mul", given, [name]))
            self._batches[times] = name
        return self._batches[times]

    def _constant(self, values: Shape) -> str:
        if values not in self._constants:
            name = self._new("any_batch/constant")
            tensor = numpy_helper.from_array(np.array(values, dtype=np.int64), name)
            self._model.graph.initializer.append(tensor)
            self._constants[values] = name
        return self._constants[values]

    def _new(self, stem: str) -> str:
        name = unused_name(stem, self._taken)
        self._taken.add(name)
        return name
