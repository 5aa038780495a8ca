"""Fourier transforms and what goes with them (the windows are bodies in `onnx.defs`)."""

from __future__ import annotations

import math

import torch
from onnx import TensorProto

from converters.ops._values import affordable, beside, ints, one_axis
from converters.ops.constant import torch_type
from converters.registry import op


@op("DFT", since=17)
def dft_17(
    x: torch.Tensor,
    dft_length: torch.Tensor | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
) -> torch.Tensor:
    """As version 20, the axis being an attribute."""
    length = None if dft_length is None else ints(dft_length)[0]
    return _dft(x, length, axis, inverse, onesided)


@op("DFT", since=20)
def dft(
    x: torch.Tensor,
    dft_length: torch.Tensor | None = None,
    axis: torch.Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> torch.Tensor:
    """Discrete Fourier transform along an axis of x (..., 1 or 2), whose last axis is re, im.

    With `onesided` only the first half of the frequencies of a real signal; its inverse is real.
    """
    length = None if dft_length is None else ints(dft_length)[0]
    return _dft(x, length, -2 if axis is None else ints(axis)[0], inverse, onesided)


def _dft(
    x: torch.Tensor, length: int | None, axis: int, inverse: int, onesided: int
) -> torch.Tensor:
    axis = one_axis(axis, x.ndim)
    if axis == x.ndim - 1 or x.shape[-1] not in (1, 2):
        raise ValueError("the last axis holds real and imaginary parts")
    real = x.shape[-1] == 1
    if length is not None:
        affordable([*x.shape[:axis], length, *x.shape[axis + 1 :]], x.dtype)
    signal = x[..., 0] if real else torch.complex(x[..., 0], x[..., 1])
    if inverse and onesided:
        real_signal: torch.Tensor = torch.fft.irfft(signal, n=length, dim=axis)
        return real_signal.unsqueeze(-1).to(x.dtype)
    if onesided and not real:
        raise ValueError("a complex signal has no one-sided transform")
    if onesided:
        found = torch.fft.rfft(signal, n=length, dim=axis)
    else:
        transform = torch.fft.ifft if inverse else torch.fft.fft
        found = transform(signal, n=length, dim=axis)
    return torch.view_as_real(found.resolve_conj()).to(x.dtype)


@op("STFT", since=17)
def stft(
    signal: torch.Tensor,
    frame_step: torch.Tensor,
    window: torch.Tensor | None = None,
    frame_length: torch.Tensor | None = None,
    *,
    onesided: int = 1,
) -> torch.Tensor:
    """Transforms of the frames of a signal (N, length, 1 or 2): (N, frames, frequencies, 2)."""
    step = ints(frame_step)[0]
    size = signal.shape[1] if window is None else len(window)
    size = size if frame_length is None else ints(frame_length)[0]
    if step < 1 or not 0 < size <= signal.shape[1]:
        raise ValueError(f"frames of {size} in steps of {step} of {signal.shape[1]} numbers")
    if window is not None and len(window) != size:
        raise ValueError(f"a window of {len(window)} for frames of {size}")
    frames = signal.unfold(1, size, step).transpose(2, 3)  # (N, frames, size, 1 or 2)
    affordable(frames.shape, signal.dtype)
    if window is not None:
        frames = frames * beside(window, signal).reshape(-1, 1)
    return _dft(frames, None, 2, 0, onesided)


@op("MelWeightMatrix", since=17)
def mel_weight_matrix(
    num_mel_bins: torch.Tensor,
    dft_length: torch.Tensor,
    sample_rate: torch.Tensor,
    lower_edge_hertz: torch.Tensor,
    upper_edge_hertz: torch.Tensor,
    *,
    output_datatype: int = TensorProto.FLOAT,
) -> torch.Tensor:
    """Triangles (dft_length // 2 + 1, num_mel_bins) that are evenly spaced on the mel scale."""
    bins, length, rate = (ints(value)[0] for value in (num_mel_bins, dft_length, sample_rate))
    edges = [float(v.reshape(())) for v in (lower_edge_hertz, upper_edge_hertz)]
    low, high = (2595 * math.log10(1 + edge / 700) for edge in edges)
    rows, _ = affordable([length // 2 + 1, bins], torch.float64)
    mel = low + torch.arange(bins + 2, dtype=torch.float64) * (high - low) / (bins + 2)
    hertz = 700 * (torch.pow(10.0, mel / 2595) - 1)
    corners = torch.floor((length + 1) * hertz / rate)
    left, top, right = corners[:-2], corners[1:-1], corners[2:]
    at = torch.arange(rows, dtype=torch.float64).reshape(-1, 1)
    rising = torch.where(top > left, (at - left) / (top - left), (at == top).double())
    rising = torch.where((at >= left) & (at <= top), rising, 0.0)
    falling = torch.where((at >= top) & (at < right), (right - at) / (right - top), 0.0)
    weights = torch.where(at >= top, torch.where(right > top, falling, rising), rising)
    return weights.to(torch_type(output_datatype))
