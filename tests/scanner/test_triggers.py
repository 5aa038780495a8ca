"""How triggers are embedded: smooth perturbations against scipy's cosine transform."""

from __future__ import annotations

import numpy as np
import torch
from scipy import fft

from scanner.triggers import LOW_FREQUENCIES, embed_additive, embed_low_frequency, smooth_part


def low_pass(
    image: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Keep the lowest frequencies of scipy's orthonormal DCT-II."""
    spectrum = fft.dctn(image, axes=(-2, -1), norm="ortho")
    spectrum[..., LOW_FREQUENCIES:, :] = 0
    spectrum[..., :, LOW_FREQUENCIES:] = 0
    kept: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = fft.idctn(
        spectrum, axes=(-2, -1), norm="ortho"
    )
    return kept


def test_the_smooth_part_is_a_low_pass_of_the_cosine_transform() -> None:
    v = np.random.default_rng(0).normal(size=(2, 3, 20, 13))
    smooth = smooth_part(torch.from_numpy(v)).numpy()
    np.testing.assert_allclose(smooth, low_pass(v), atol=1e-6)
    np.testing.assert_allclose(smooth_part(torch.from_numpy(smooth)).numpy(), smooth, atol=1e-6)


def test_images_smaller_than_the_frequencies_keep_everything() -> None:
    v = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(smooth_part(v), v)


def test_the_smooth_part_is_what_is_added() -> None:
    generator = torch.Generator().manual_seed(2)
    x, v = (
        torch.rand(4, 1, 16, 16, generator=generator),
        torch.randn(4, 1, 16, 16, generator=generator),
    )
    torch.testing.assert_close(embed_low_frequency(x, v), embed_additive(x, smooth_part(v)))


def test_the_gradient_stays_in_the_low_frequencies() -> None:
    v = torch.zeros(1, 16, 16, requires_grad=True)
    x = torch.full((1, 1, 16, 16), 0.5)
    direction = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((embed_low_frequency(x, v) * direction).sum(), v)
    torch.testing.assert_close(gradient, smooth_part(direction)[0])
