"""What the tensors of a graph may be beside numbers: sequences, texts, and nothing at all.

Classifiers hardly need more than tensors. But exporters write sequences where a network splits a
tensor and picks parts of it, and a graph may have text or something optional beside its scores.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Text: TypeAlias = npt.NDArray[np.object_]
"""A tensor of texts: an array of str."""

Entries: TypeAlias = tuple[torch.Tensor | Text, ...]
"""A sequence."""

Value: TypeAlias = torch.Tensor | Entries | Text | None
"""What an ONNX name may stand for; None is what is optional and not there."""

_ENTRY = 64  # bytes of an object that holds next to nothing


def size_of(value: Value) -> int:
    """How much memory a value takes at most, in bytes; tensors that share memory count singly."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(size_of, value)) + _ENTRY * len(value)
    if value is None:
        return 0
    return sum(_ENTRY + 4 * len(str(text)) for text in value.flat)  # 4 bytes a character at most
