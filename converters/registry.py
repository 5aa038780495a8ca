"""Which Python function computes which ONNX operator.

An operator is a plain function on torch tensors. Its positional parameters are the operator's
inputs (`None` where an optional input is absent), its keyword-only parameters are the attributes
with the specification's defaults. `@op("Softmax", since=13)` registers it from operator version 13
on; a model of opset 17 gets the greatest registered version <= 17, which is how the ONNX
specification resolves versions too. A function that must know how many outputs the node asks for
takes the keyword `n_outputs`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

OperatorFunction = Callable[..., "torch.Tensor | tuple[torch.Tensor, ...]"]
_Function = TypeVar("_Function", bound=OperatorFunction)

_REGISTRY: dict[tuple[str, str], dict[int, OperatorFunction]] = {}


@dataclass(frozen=True)
class Signature:
    """What an operator's function accepts: attribute names, required ones, and `n_outputs`."""

    attributes: frozenset[str]
    required: frozenset[str]
    takes_n_outputs: bool


def op(name: str, since: int = 1, domain: str = "") -> Callable[[_Function], _Function]:
    """Register a function as operator `name` of `domain` from version `since` on."""

    def register(function: _Function) -> _Function:
        versions = _REGISTRY.setdefault((domain, name), {})
        if since in versions:
            raise ValueError(f"{domain or 'ai.onnx'}.{name}-{since} is registered twice")
        versions[since] = function
        return function

    return register


def lookup(domain: str, name: str, opset: int) -> OperatorFunction | None:
    """The function for operator `name` in a model that imports `domain` at `opset`, or None."""
    versions = _REGISTRY.get((normal_domain(domain), name), {})
    usable = [since for since in versions if since <= opset]
    return versions[max(usable)] if usable else None


def is_registered(domain: str, name: str) -> bool:
    """Whether there is a function for any version of this operator."""
    return (normal_domain(domain), name) in _REGISTRY


def normal_domain(domain: str) -> str:
    """ONNX writes its default domain as '' or as 'ai.onnx'; here it is ''."""
    return "" if domain == "ai.onnx" else domain


@functools.cache
def signature(function: OperatorFunction) -> Signature:
    """The attribute side of an operator function's signature."""
    keywords = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    attributes = [p for p in keywords if p.name != "n_outputs"]
    return Signature(
        attributes=frozenset(p.name for p in attributes),
        required=frozenset(p.name for p in attributes if p.default is inspect.Parameter.empty),
        takes_n_outputs=len(attributes) < len(keywords),
    )


def registered() -> Iterable[tuple[str, str, int]]:
    """Every registered (domain, operator, since-version)."""
    return ((d, n, since) for (d, n), versions in _REGISTRY.items() for since in versions)


def bind(function: OperatorFunction, attributes: dict[str, Any], n_outputs: int) -> dict[str, Any]:
    """The keyword arguments for `function`, checked against its signature.

    Raises:
        ValueError: an attribute that the function does not know, or a required one that is absent.
    """
    accepted = signature(function)
    unknown = set(attributes) - accepted.attributes
    missing = accepted.required - set(attributes)
    if unknown or missing:
        what = [f"unknown attribute {n}" for n in sorted(unknown)]
        what += [f"missing attribute {n}" for n in sorted(missing)]
        raise ValueError(", ".join(what))
    return attributes | ({"n_outputs": n_outputs} if accepted.takes_n_outputs else {})
