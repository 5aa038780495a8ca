"""Work that need not be done at every run: constants, and BatchNormalization behind layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from itertools import chain

import torch

from converters.channel_layers import Layer, as_layer, change_of, changed, instruction_of
from converters.instructions import Instruction, Tensors
from converters.values import Value


def fold_constants(
    instructions: Iterable[Instruction], constants: Mapping[str, torch.Tensor]
) -> tuple[list[Instruction], Tensors]:
    """Run every instruction that depends on no input, once.

    Precondition: topological order. Returns the instructions that are left, and `constants` with
    the results added. Only tensors are constants: what gives sequences or text is left too.
    """
    known: dict[str, Value] = {**constants, "": None}
    left = []
    with torch.no_grad():
        for instruction in instructions:
            if not all(map(known.__contains__, instruction.inputs)):
                left.append(instruction)
                continue
            results = instruction.run(known)
            known.update(zip(instruction.outputs, results, strict=False))
            if not all(isinstance(result, torch.Tensor) for result in results):
                left.append(instruction)
    known.pop("", None)
    return left, {name: v for name, v in known.items() if isinstance(v, torch.Tensor)}


def fold_batch_normalization(
    instructions: list[Instruction], constants: Mapping[str, torch.Tensor], keep: Iterable[str]
) -> tuple[list[Instruction], Tensors]:
    """Merge what scales and shifts whole channels into the layer that alone feeds it.

    y = (conv(x) - mean) * gamma / sqrt(var + epsilon) + beta is a convolution too, with scaled
    weights and a shifted bias; the result is the same up to rounding. Likewise for ConvTranspose
    and Gemm, and for constants that each channel is multiplied with or that are added to it.
    Identity and Dropout, which change nothing, are left out.

    Precondition: constants are folded. Tensors named in `keep` are not folded away, and no constant
    gets a name from there. Returns the new instructions and only the constants that they add.
    """
    kept = set(keep)
    instructions = _without_copies(instructions, kept)
    uses = Counter(chain.from_iterable(i.inputs for i in instructions))
    uses.update(kept)
    layers: dict[str, Layer] = {}  # by the tensor that they compute
    left: dict[int, Instruction | Layer] = dict(enumerate(instructions))
    for index, instruction in enumerate(instructions):
        layer = as_layer(instruction, constants, index)
        for name in instruction.inputs if layers else ():
            source = layers.get(name) if uses[name] == 1 else None
            change = change_of(instruction, name, source, constants) if source else None
            if source and change:
                del left[source.index]
                layer = changed(source, change, instruction.outputs[0], index)
                break
        if layer:
            layers[layer.result] = left[index] = layer
    if not any(layer.change for layer in left.values() if isinstance(layer, Layer)):
        return instructions, {}
    made = chain.from_iterable(i.outputs for i in instructions)
    taken = uses.keys() | constants.keys() | set(made)
    added: Tensors = {}
    folded = []
    for step in left.values():
        if isinstance(step, Layer):
            stem = f"{step.result}/folded_"
            names = tuple(unused_name(stem + part, taken) for part in ("weight", "bias"))
            step, tensors = instruction_of(step, constants, names)
            added |= tensors
        folded.append(step)
    return folded, added


def _without_copies(
    instructions: Iterable[Instruction], kept: Collection[str]
) -> list[Instruction]:
    """The instructions but those whose only result is a copy of their first input."""
    copied: dict[str, str] = {}  # the copy -> what it is a copy of
    left = []
    for instruction in instructions:
        if not copied.keys().isdisjoint(instruction.inputs):
            inputs = tuple(copied.get(name, name) for name in instruction.inputs)
            instruction = instruction.reading(inputs)
        if copies(instruction) and instruction.outputs[0] not in kept:
            copied[instruction.outputs[0]] = instruction.inputs[0]
        else:
            left.append(instruction)
    return left


def copies(instruction: Instruction) -> bool:
    """Whether all that the instruction gives is its first input."""
    if instruction.domain or instruction.op_type not in ("Dropout", "Identity"):
        return False
    first, *others = (*instruction.outputs, "")
    return bool(first and any(instruction.inputs[:1])) and not any(others)


def unused_name(name: str, taken: Container[str]) -> str:
    """`name`, or `name` with as many dashes after it as make it a new one."""
    while name in taken:
        name += "-"
    return name
