"""A graph by way of torch.compile, where that pays and works."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

from converters.values import Value

Run = Callable[..., tuple[Value, ...]]


class CompiledGraph:
    """A graph's function as machine code, made at the first call; differentiable.

    Compiling takes long: on one idle core 24 to 29 s for the first call of ResNet-18 and 29 to 39 s
    for its first backward pass, 46 and 100 s for MobileNetV2, and as much again for each further
    shape of the inputs. So it pays beyond some hundreds of steps at one shape, if at all: what is
    left to gain is little where convolutions take nearly all of the time. The code needs a C++
    compiler (on GPUs Triton).
    Where torch.compile fails, for want of a compiler or because results decide about what is
    computed next, a RuntimeWarning says so once, and every call runs the graph as it is.

    Args:
        graph: the function as it is; its errors are those that a call raises.
        outputs: the same, without Python that torch.compile can't follow; None if there is no
            such function, for branches and loops are Python.
        backend: of torch.compile.
    """

    def __init__(self, graph: Run, outputs: Run | None, backend: str | Callable[..., Any]) -> None:
        self._graph = graph
        self._call: Run | None = None
        if outputs is None:
            _warn("it has branches or loops")
            return
        # torch keeps what it has compiled by code object and stops after a few variants: each
        # graph gets a code object of its own.
        code = outputs.__code__.replace()
        own = types.FunctionType(code, outputs.__globals__, closure=outputs.__closure__)
        self._call = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)

    @property
    def in_use(self) -> bool:
        """False if the graph can't be compiled, or once that has failed."""
        return self._call is not None

    def __call__(self, *inputs: Value) -> tuple[Value, ...]:
        """The graph's outputs, in order, for inputs in the order of its inputs.

        Raises:
            What the graph raises for these inputs.
        """
        if self._call is None:
            return self._graph(*inputs)
        try:
            return self._call(*inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            results = self._graph(*inputs)  # raises if it is the inputs that are wrong
            self._call = None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:2]) or repr(error)  # torch says who failed, then why
            _warn(f"torch.compile failed: {reason}")
            return results


def _warn(reason: str) -> None:
    warnings.warn(
        f"the model runs uncompiled: {reason}",
        RuntimeWarning,
        stacklevel=3,
    )
