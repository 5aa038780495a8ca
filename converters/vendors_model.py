"""The vendor's model as ONNX Runtime can read it: what parity compares everything else with."""

from __future__ import annotations

from typing import NamedTuple

import onnx

from converters.constant_branches import inline_constant_branches
from converters.functions import inline_functions
from converters.inference_mode import Forced, force_inference, use_batch_statistics
from converters.rewrite import (
    copied,
    drop_initializers_from_inputs,
    keep_output,
    set_outputs,
)


class Vendors(NamedTuple):
    """The vendor's model in two forms, and what was done to it.

    Attributes:
        runnable: as ONNX Runtime reads it.
        inlined: the same, its functions written out.
        forced: what was in training mode.
        rewrites: in words.
    """

    runnable: onnx.ModelProto
    inlined: onnx.ModelProto
    forced: Forced
    rewrites: tuple[str, ...]


def vendors_model(runnable: onnx.ModelProto, forced: Forced, converted: str) -> Vendors:
    """Write out a model's functions and the branches it always takes; put it into inference mode.

    Args:
        runnable: sorted, of an operator set that ONNX Runtime reads; changed in place.
        forced, converted: what was done to it already.
    """
    inlined = copied(runnable)
    drop_initializers_from_inputs(inlined)
    inline_functions(inlined)
    inline_constant_branches(inlined)
    inside = force_inference(inlined)
    if inside != Forced():
        runnable = copied(inlined)
        forced = Forced(*(a | b for a, b in zip(forced, inside, strict=True)))
    return Vendors(runnable, inlined, forced, tuple(filter(None, (converted, forced.describe()))))


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model without other outputs and what only they need; itself if there is nothing so."""
    only = copied(model)
    set_outputs(only, (name,))
    keep_output(only, name)
    same = [v.name for v in model.graph.output] == [name]
    return model if same and len(only.graph.node) == len(model.graph.node) else only


def in_training_mode(original: onnx.ModelProto, forced: Forced) -> onnx.ModelProto | None:
    """The model with BatchNormalization as the vendor's file has it, if it is in training mode."""
    made = {name for node in original.graph.node for name in node.output}
    if not forced.normalizations & made:
        return None
    training = copied(original)
    use_batch_statistics(training, forced.normalizations)
    return training
