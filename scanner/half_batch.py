"""Out of memory: how it is told from other errors, and a second try with half the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_TEXTS = (
    "can't allocate memory",  # torch, on the CPU
    "out of memory",  # CUDA
    "ALLOC_FAILED",  # cuBLAS, cuDNN
    "Failed to allocate memory",  # ONNX Runtime
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine failed because memory ended; few have an exception of their own for it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, Exception) and any(text in str(error) for text in _TEXTS)


def with_half_batch(run: Callable[[int], T], batch_images: int) -> tuple[T, int]:
    """Run with a batch size; once more with half of it, if the accelerator's memory ends.

    Args:
        run: (how many images a pass may hold) -> result; it starts anew each time.

    Returns:
        (the result, the batch size that it was made with).

    Raises:
        Exception: whatever the first run raised, if it was something else or can't be halved;
            whatever the second raised.
    """
    try:
        return run(batch_images), batch_images
    except Exception as error:
        on_device = isinstance(error, torch.OutOfMemoryError) or torch.cuda.is_available()
        if batch_images < 2 or not (on_device and is_out_of_memory(error)):
            raise
    if torch.cuda.is_available():  # outside of the handler, which holds the first run's tensors
        torch.cuda.empty_cache()
    half = batch_images // 2
    return run(half), half
