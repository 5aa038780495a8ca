"""A second try with half the batch, once, and for memory alone."""

from __future__ import annotations

import pytest
import torch

from scanner.half_batch import is_out_of_memory, with_half_batch


def test_the_batch_is_halved_once() -> None:
    tried = []

    def run(batch: int) -> str:
        tried.append(batch)
        if batch > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert with_half_batch(run, 64) == ("done", 32)
    assert with_half_batch(run, 30) == ("done", 30)
    assert tried == [64, 32, 30]
    with pytest.raises(torch.OutOfMemoryError):
        with_half_batch(run, 200)
    assert tried[3:] == [200, 100]


@pytest.mark.parametrize(("error", "batch"), [(ValueError("x"), 8), (torch.OutOfMemoryError(), 1)])
def test_nothing_else_is_tried_again(error: Exception, batch: int) -> None:
    tried = []

    def run(size: int) -> None:
        tried.append(size)
        raise error

    with pytest.raises(type(error)):
        with_half_batch(run, batch)
    assert tried == [batch]


def test_an_allocation_that_fails_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(KeyboardInterrupt("out of memory"))
