from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from converters import DeviceError, UnsupportedModelError, open_session, run_session
from tests.converters.onnx_models import images, run_ort, small_net


@pytest.mark.skipif(
    torch.cuda.is_available() or "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="there may be a CUDA device",
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_that_is_absent_is_an_error_and_no_fallback(device: str) -> None:
    with pytest.raises(DeviceError, match=f"can't use {device}"):
        open_session(small_net(), device)


@pytest.mark.parametrize("optimize", [True, False])
def test_sessions_run_on_the_cpu(optimize: bool) -> None:
    session = open_session(small_net(), optimize=optimize)
    assert session.get_providers() == ["CPUExecutionProvider"]
    x = images(3, 1, 8, 8)
    got = run_session(session, ["logits"], x, None)[0]
    np.testing.assert_allclose(got, run_ort(small_net(), x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_fixed_batches_are_filled_up_and_cut(count: int) -> None:
    session = open_session(small_net(shape=(4, 1, 8, 8)))
    x = images(count, 1, 8, 8)
    got = run_session(session, ["logits"], x, 4)[0]
    np.testing.assert_allclose(got, run_ort(small_net(), x)[0], rtol=1e-5, atol=1e-6)


def test_batches_do_not_change_results() -> None:
    session = open_session(small_net())
    x = images(10, 1, 8, 8)
    split, pooled = run_session(session, ["logits", "logits"], x, None, default_batch=3)
    np.testing.assert_allclose(split, run_ort(small_net(), x)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(split, pooled)


def test_failed_runs_are_one_line() -> None:
    session = open_session(small_net(shape=(4, 1, 8, 8)))
    with pytest.raises(UnsupportedModelError, match="ONNX Runtime failed") as caught:
        run_session(session, ["logits"], images(3, 1, 8, 8), None)
    assert "\n" not in str(caught.value)


def test_broken_models_are_one_line() -> None:
    model = small_net()
    model.graph.node[2].op_type = "Nonsense"
    with pytest.raises(UnsupportedModelError, match="ONNX Runtime refuses the model") as caught:
        open_session(model)
    assert "\n" not in str(caught.value)
