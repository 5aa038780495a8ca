"""Work that need not be done at every run: constants, and BatchNormalization behind Conv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace

import torch

from converters.instructions import Instruction, Tensors


def fold_constants(
    instructions: Iterable[Instruction], constants: Mapping[str, torch.Tensor]
) -> tuple[list[Instruction], Tensors]:
    """Run every instruction that depends on no input, once.

    Precondition: topological order. Returns the instructions that are left, and `constants` with
    the results added.
    """
    known = dict(constants)
    left = []
    for instruction in instructions:
        if all(name in known for name in instruction.inputs if name):
            with torch.no_grad():
                results = instruction.run(known)
            known.update(zip(instruction.outputs, results, strict=False))
        else:
            left.append(instruction)
    known.pop("", None)
    return left, known


def fold_batch_normalization(
    instructions: list[Instruction], constants: Mapping[str, torch.Tensor], keep: Iterable[str]
) -> tuple[list[Instruction], Tensors]:
    """Merge each inference BatchNormalization into the Conv that alone feeds it.

    y = (conv(x) - mean) * gamma / sqrt(var + epsilon) + beta is a convolution too, with scaled
    weights and a shifted bias; the result is the same up to rounding.

    Precondition: constants are folded. Tensors named in `keep` are not folded away, and no constant
    gets a name from there. Returns the new instructions and only the constants that they add.
    """
    uses = Counter(name for i in instructions for name in i.inputs)
    uses.update(keep)
    taken = uses.keys() | constants.keys() | {name for i in instructions for name in i.outputs}
    producer = {i.outputs[0]: index for index, i in enumerate(instructions) if i.outputs}
    folded: list[Instruction | None] = list(instructions)
    added: Tensors = {}
    for index, batch_norm in enumerate(instructions):
        if batch_norm.op_type != "BatchNormalization" or not batch_norm.inputs:
            continue
        source = producer.get(batch_norm.inputs[0])
        if source is None or uses[batch_norm.inputs[0]] != 1:
            continue
        conv = instructions[source]
        if not _can_merge(conv, batch_norm, constants):
            continue
        stem = f"{batch_norm.outputs[0]}/folded_"
        names = tuple(unused_name(stem + part, taken) for part in ("weight", "bias"))
        merged, tensors = _merge(conv, batch_norm, constants, names)
        added |= tensors
        folded[source], folded[index] = None, merged
    return [i for i in folded if i is not None], added


def unused_name(name: str, taken: Container[str]) -> str:
    """`name`, or `name` with as many dashes after it as make it a new one."""
    while name in taken:
        name += "-"
    return name


def _can_merge(
    conv: Instruction, batch_norm: Instruction, constants: Mapping[str, torch.Tensor]
) -> bool:
    """Whether both are what they are named after, with constant parameters of the right shape."""
    if (conv.op_type, conv.domain, batch_norm.domain) != ("Conv", "", ""):
        return False
    if len(conv.inputs) not in (2, 3) or len(batch_norm.inputs) != 5:
        return False
    parameters = [constants.get(n) for n in (*conv.inputs[1:], *batch_norm.inputs[1:]) if n]
    if any(p is None or not p.is_floating_point() for p in parameters):
        return False
    weight, *vectors = (p for p in parameters if p is not None)
    return (
        weight.ndim >= 3
        and all(vector.shape == weight.shape[:1] for vector in vectors)
        and len([name for name in batch_norm.outputs if name]) == 1
        and bool(batch_norm.attributes.get("spatial", 1))
    )


def _merge(
    conv: Instruction,
    batch_norm: Instruction,
    constants: Mapping[str, torch.Tensor],
    names: tuple[str, ...],
) -> tuple[Instruction, Tensors]:
    """The Conv that does the work of both, and its weight and bias under these two names."""
    weight = constants[conv.inputs[1]]
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] != ""
    bias = constants[conv.inputs[2]] if has_bias else weight.new_zeros(weight.shape[0])
    gamma, beta, mean, var = (constants[name].double() for name in batch_norm.inputs[1:5])
    scale = gamma / torch.sqrt(var + batch_norm.attributes.get("epsilon", 1e-5))
    new_weight = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    new_bias = (bias.double() - mean) * scale + beta
    merged = replace(conv, inputs=(conv.inputs[0], *names), outputs=batch_norm.outputs[:1])
    return merged, {names[0]: new_weight.to(weight.dtype), names[1]: new_bias.to(weight.dtype)}
