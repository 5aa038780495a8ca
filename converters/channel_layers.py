"""Layers with constant weights, and what can be merged into them.

A layer computes channels (dimension 1 of its result): Conv, ConvTranspose or Gemm. What multiplies
each channel with a number and adds one can be done by its weights and its bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from converters.instructions import Instruction, Tensors

Constants = Mapping[str, torch.Tensor]


class Change(NamedTuple):
    """y = scale * x + shift, both (channels,) in double precision."""

    scale: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Layer:
    """A layer, and what is done to its result.

    Attributes:
        result: the tensor that all of it computes.
        index: where it is in the list of instructions.
        rank: of the result.
        change: None as long as nothing was merged.
    """

    instruction: Instruction
    result: str
    index: int
    rank: int
    channels: int
    change: Change | None = None


def as_layer(instruction: Instruction, constants: Constants, index: int) -> Layer | None:
    """The instruction as a layer, if it is one, with constant parameters of the right shape."""
    if instruction.domain or instruction.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    if len(instruction.inputs) not in (2, 3) or not instruction.outputs:
        return None
    weight = _number(constants, instruction.inputs[1])
    has_bias = any(instruction.inputs[2:])
    bias = _number(constants, instruction.inputs[2]) if has_bias else None
    if weight is None or (has_bias and bias is None):
        return None
    is_gemm = instruction.op_type == "Gemm"
    if (instruction.opset < 7 or weight.ndim != 2) if is_gemm else weight.ndim < 3:
        return None
    channels = _channels(instruction, weight)
    if bias is not None and not _fits(bias, channels, 2 if is_gemm else 1, exact=not is_gemm):
        return None
    return Layer(instruction, instruction.outputs[0], index, weight.ndim, channels)


def _number(constants: Constants, name: str) -> torch.Tensor | None:
    value = constants.get(name)
    return value if value is not None and value.is_floating_point() else None


def _channels(instruction: Instruction, weight: torch.Tensor) -> int:
    """How many channels the layer computes; 0, which nothing fits, where that can't be told."""
    if instruction.op_type == "Conv":
        return weight.shape[0]
    if instruction.op_type == "Gemm":
        return weight.shape[0 if instruction.attributes.get("transB", 0) else 1]
    group = instruction.attributes.get("group", 1)
    return weight.shape[1] * group if group > 0 and weight.shape[0] % group == 0 else 0


def _fits(value: torch.Tensor, channels: int, rank: int, exact: bool = False) -> bool:
    """Whether `value` broadcasts to one number for each channel of a result of this rank.

    Args:
        exact: the value must have one dimension, that of the channels.
    """
    if exact or value.ndim > rank:
        return exact and value.shape == (channels,)
    shape = [1] * (rank - value.ndim) + list(value.shape)
    wanted = [1] * rank
    return shape == wanted or shape == [*wanted[:1], channels, *wanted[2:]]


def change_of(
    instruction: Instruction, source: str, layer: Layer, constants: Constants
) -> Change | None:
    """What the instruction does to each channel of the layer's result `source`, if just that."""
    if instruction.domain or [name for name in instruction.outputs[1:] if name]:
        return None
    if not instruction.outputs or not instruction.outputs[0]:
        return None
    if instruction.op_type == "BatchNormalization":
        change = _normalization(instruction, source, layer.channels, constants)
    else:
        change = _arithmetic(instruction, source, layer, constants)
    # What is not finite would not stay within its channel's one number.
    return change if change and all(bool(part.isfinite().all()) for part in change) else None


def _normalization(
    instruction: Instruction, source: str, channels: int, constants: Constants
) -> Change | None:
    if len(instruction.inputs) != 5 or instruction.inputs[0] != source:
        return None
    found = [_number(constants, name) for name in instruction.inputs[1:]]
    if any(p is None or p.shape != (channels,) for p in found):
        return None
    if not instruction.attributes.get("spatial", 1):
        return None
    gamma, beta, mean, var = (p.double() for p in found if p is not None)
    scale = gamma / torch.sqrt(var + instruction.attributes.get("epsilon", 1e-5))
    return Change(scale, beta - mean * scale)


def _arithmetic(
    instruction: Instruction, source: str, layer: Layer, constants: Constants
) -> Change | None:
    """Add, Sub, Mul or Div with a constant."""
    if instruction.opset < 7 or len(instruction.inputs) != 2:
        return None
    first = instruction.inputs[0] == source
    value = _number(constants, instruction.inputs[1 if first else 0])
    weight = constants[layer.instruction.inputs[1]]
    if value is None or value.dtype != weight.dtype or not layer.channels:
        return None
    if not _fits(value, layer.channels, layer.rank):
        return None
    numbers = value.double().reshape(-1).expand(layer.channels)
    one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
    match instruction.op_type, first:
        case "Add", _:
            return Change(one, numbers)
        case "Sub", True:
            return Change(one, -numbers)
        case "Sub", False:
            return Change(-one, numbers)
        case "Mul", _:
            return Change(numbers, zero)
        case "Div", True:
            return Change(1 / numbers, zero)
    return None


def changed(layer: Layer, change: Change, result: str, index: int) -> Layer:
    """The layer with one more change, which computes `result` and is at `index` now."""
    if layer.change is not None:
        scale, shift = layer.change
        change = Change(scale * change.scale, shift * change.scale + change.shift)
    return replace(layer, change=change, result=result, index=index)


def instruction_of(
    layer: Layer, constants: Constants, names: tuple[str, ...]
) -> tuple[Instruction, Tensors]:
    """One instruction that does it all, and its weight and bias under these two names."""
    instruction = layer.instruction
    if layer.change is None:
        return instruction, {}
    scale, shift = layer.change
    weight, attributes = constants[instruction.inputs[1]], dict(instruction.attributes)
    bias = scale.new_zeros(())
    if any(instruction.inputs[2:]):
        bias = constants[instruction.inputs[2]].double().reshape(-1)
    if instruction.op_type == "Gemm":
        bias = bias * attributes.pop("beta", 1.0)
    new_bias = bias * scale + shift
    new_weight = weight.double() * _for_weight(instruction, weight, scale)
    merged = replace(
        instruction,
        inputs=(instruction.inputs[0], *names),
        outputs=(layer.result,),
        attributes=attributes,
    )
    return merged, {names[0]: new_weight.to(weight.dtype), names[1]: new_bias.to(weight.dtype)}


def _for_weight(
    instruction: Instruction, weight: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """`scale` in a shape that multiplies each weight with the number of its channel."""
    spatial = [1] * (weight.ndim - 2)
    if instruction.op_type == "Gemm":
        return scale[:, None] if instruction.attributes.get("transB", 0) else scale
    if instruction.op_type == "Conv":
        return scale.reshape(-1, 1, *spatial)
    group = instruction.attributes.get("group", 1)  # each with its own inputs and channels
    by_group = scale.reshape(group, 1, -1).expand(-1, weight.shape[0] // group, -1)
    return by_group.reshape(weight.shape[0], -1, *spatial)
