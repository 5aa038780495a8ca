"""Cognitive Distillation against an independent implementation, and on models with known masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from converters import to_torch
from scanner.clean_set import decode_image
from scanner.detectors.cognitive_distillation import (
    CD_F,
    CD_L,
    CD_P,
    VARIANTS,
    DistillationConfig,
    Weights,
    distill,
    empty_mask_cost,
    learn_masks,
    mask_scores,
    noise_colours,
    output_scale_factor,
    outputs_of,
    prepared,
    simplified,
    total_variation,
    weights_of,
)
from tests.benchmarks.sample_scores import open_model
from tests.models import as_classifier, linear_model

Outputs = Callable[[torch.Tensor], torch.Tensor]


def small_network(seed: int, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, classes),
    )


def outputs(network: nn.Module, variant: str) -> Outputs:
    if variant == CD_P:
        return lambda x: network(x).softmax(1)
    assert isinstance(network, nn.Sequential)
    return network[:4] if variant == CD_F else network


def by_the_paper(
    variant: str,
    function: Outputs,
    images: torch.Tensor,
    noise: torch.Tensor,
    alpha: float,
    beta: float,
    steps: int,
) -> torch.Tensor:
    """Eqs. 1 and 2 image by image, with torch's Adam and autograd alone.

    `alpha` is for each unit of the mask's sum, `beta` for each squared difference.
    """
    masks = []
    for x, colours in zip(images, noise, strict=True):
        p = torch.ones(1, *x.shape[1:], dtype=x.dtype, requires_grad=True)
        optimiser = torch.optim.Adam([p], lr=0.1, betas=(0.1, 0.1))
        target = function(x[None]).detach()
        for t in range(steps):
            m = (torch.tanh(p) + 1) / 2
            x_cp = x * m + (1 - m) * colours[t].reshape(-1, 1, 1)
            difference = torch.abs(function(x_cp[None]) - target)
            fit = 0.5 * difference.sum() if variant == CD_P else difference.mean()
            tv = ((m[:, 1:] - m[:, :-1]) ** 2).sum() + ((m[:, :, 1:] - m[:, :, :-1]) ** 2).sum()
            loss = fit + alpha * m.sum() + beta * tv
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        masks.append(((torch.tanh(p.detach()) + 1) / 2)[0])
    return torch.stack(masks)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_are_those_of_an_independent_implementation(variant: str) -> None:
    network = small_network(1).double()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    noise = torch.from_numpy(noise_colours(images.numpy(), 10, 7)).double()
    alpha, beta = {CD_P: (1 / 1024, 10 / 1024), CD_L: (0.01, 10 / 1024), CD_F: (0.001, 10 / 1024)}[
        variant
    ]
    config = DistillationConfig(steps=10)
    weights = weights_of(variant, 32, 32, 1.0, config)
    assert weights == pytest.approx((alpha, beta))
    found = distill(variant, outputs(network, variant), images, noise, weights, config)
    expected = by_the_paper(
        variant, outputs(network, variant), images, noise, alpha, beta, steps=10
    )
    assert float((found - expected).abs().max()) < 1e-6
    assert float((found - 0.88).abs().max()) > 0.01  # it moved


@pytest.mark.parametrize("variant", [CD_P, CD_L])
def test_norms_in_float32_are_those_of_float64(shipped: Path, variant: str) -> None:
    graph = to_torch(shipped / "models" / "cifar10_cnn_clean.onnx")
    names = sorted((shipped / "clean" / "cifar10").rglob("*.jpg"))[::30]
    images = torch.from_numpy(np.stack([decode_image(name, 3, 32, 32)[0] for name in names]))
    noise = torch.from_numpy(noise_colours(images.numpy(), 100, 0))
    config = DistillationConfig()
    weights = weights_of(variant, 32, 32, 1.0, config)

    def function(x: torch.Tensor) -> torch.Tensor:
        value = graph(x)[0]
        assert isinstance(value, torch.Tensor)
        return value.softmax(1) if variant == CD_P else value

    single = distill(variant, function, images, noise, weights, config).sum((1, 2))
    graph.double()
    expected = by_the_paper(
        variant, function, images.double(), noise.double(), *weights, steps=100
    ).sum((1, 2))
    np.testing.assert_allclose(single.numpy(), expected.numpy(), rtol=0.02)


def test_total_variation_by_hand() -> None:
    mask = torch.tensor([[[0.0, 1.0, 0.0], [0.5, 0.5, 0.5], [1.0, 0.0, 1.0]]])
    rows = 0.25 + 0.25 + 0.25 + 0.25 + 0.25 + 0.25  # down: .5 -.5 .5; .5 -.5 .5
    columns = (1 + 1) + 0 + (1 + 1)
    assert float(total_variation(mask)[0]) == pytest.approx(rows + columns)


def test_a_step_by_hand_on_three_by_three() -> None:
    # Nothing depends on the image, so the gradient is that of the size and of TV alone; the first
    # step of Adam is lr times the gradient's sign. The start is flat: TV is 0 and so is its slope.
    def nothing(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] * 0

    images = torch.rand(1, 1, 3, 3)
    noise = torch.zeros(1, 1, 1)
    mask = distill(CD_L, nothing, images, noise, Weights(0.01, 5.0), DistillationConfig(steps=1))
    expected = (np.tanh(1 - 0.1) + 1) / 2
    np.testing.assert_allclose(mask.numpy(), np.full((1, 3, 3), expected), atol=1e-6)
    assert mask_scores(mask.numpy())[0] == pytest.approx(9 * expected, rel=1e-6)


def test_noise_depends_on_the_seed_and_the_image_alone() -> None:
    images = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    noise = noise_colours(images, 20, seed=4)
    assert noise.shape == (5, 20, 3)
    assert noise.min() >= 0
    assert noise.max() <= 1
    np.testing.assert_array_equal(noise_colours(images[[3, 1]], 20, seed=4), noise[[3, 1]])
    np.testing.assert_array_equal(noise_colours(images, 7, seed=4), noise[:, :7])
    assert not np.array_equal(noise_colours(images, 20, seed=5), noise)
    assert len({tuple(row) for row in noise.reshape(-1, 3).tolist()}) == 100


def test_images_do_not_influence_one_another() -> None:
    network = small_network(5).double()
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(6)).double()
    noise = torch.from_numpy(noise_colours(images.numpy(), 15, 0)).double()
    config, weights = DistillationConfig(steps=15), Weights(0.01, 0.01)
    together = distill(CD_L, network, images, noise, weights, config)
    alone = [
        distill(CD_L, network, images[i : i + 1], noise[i : i + 1], weights, config)
        for i in range(4)
    ]
    assert float((together - torch.cat(alone)).abs().max()) < 1e-9


def test_weights_are_the_papers_at_its_two_sizes() -> None:
    config = DistillationConfig()
    for variant, small, large in ((CD_L, 0.01, 0.001), (CD_F, 0.001, 0.0001)):
        assert weights_of(variant, 32, 32, 1, config).size == pytest.approx(small)
        assert weights_of(variant, 224, 224, 1, config).size == pytest.approx(large)
        middle = weights_of(variant, 64, 64, 1, config).size
        assert large < middle < small
    assert weights_of(CD_L, 224, 224, 1, config).smoothness == pytest.approx(10 / 224**2)
    assert weights_of(CD_L, 32, 32, 3.0, config) == pytest.approx((0.03, 30 / 1024))
    assert weights_of(CD_P, 224, 224, 3.0, config) == pytest.approx((1 / 224**2, 10 / 1024))


def test_the_scale_factor_leaves_usual_networks_alone() -> None:
    usual = [output_scale_factor(CD_L, cost) for cost in (0.7, 2.0, 5.9)]
    assert usual == pytest.approx([1, 1, 1])
    assert output_scale_factor(CD_L, 60.0) == pytest.approx(10)
    assert output_scale_factor(CD_L, 0.02) == pytest.approx(0.03)
    assert output_scale_factor(CD_L, 0.0) == 1
    assert output_scale_factor(CD_F, float("nan")) == 1


def patch_model(
    size: int, classes: int, scale: float, variant: str, temperature: float = 1.0
) -> tuple[Outputs, npt.NDArray[np.bool_]]:
    """A network that sees a square alone, and where that is."""
    generator = torch.Generator().manual_seed(8)
    side = size // 4
    seen = np.zeros((size, size), bool)
    seen[side : 2 * side, side : 2 * side] = True
    mixing = torch.randn(3 * 16, classes, generator=generator)

    def features(x: torch.Tensor) -> torch.Tensor:
        square = x[:, :, side : 2 * side, side : 2 * side]
        return torch.nn.functional.adaptive_avg_pool2d(square, 4).flatten(1)

    def function(x: torch.Tensor) -> torch.Tensor:
        if variant == CD_F:
            return features(x) * scale
        logits = (features(x) - 0.5) @ mixing * 2 * scale
        return (logits / temperature).softmax(1) if variant == CD_P else logits

    return function, seen


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("size", "classes", "scale"), [(32, 10, 1), (224, 100, 1), (32, 10, 50)])
def test_masks_neither_collapse_nor_fill(
    variant: str, size: int, classes: int, scale: float
) -> None:
    function, seen = patch_model(size, classes, scale, variant)
    blocks = torch.rand(2, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(9))
    images = torch.nn.functional.interpolate(blocks, scale_factor=8)
    config = DistillationConfig()
    scaled = CD_L if variant == CD_P else variant
    cost = empty_mask_cost(scaled, patch_model(size, classes, scale, scaled)[0], images, 0)
    factor = output_scale_factor(scaled, cost)
    if variant == CD_P:
        function, _ = patch_model(size, classes, scale, variant, max(1.0, factor))
    weights = weights_of(variant, size, size, factor, config)
    noise = torch.from_numpy(noise_colours(images.numpy(), config.steps, 0))
    masks = distill(variant, function, images, noise, weights, config).numpy()
    assert masks[:, seen].mean() > 0.15
    assert masks[:, ~seen].mean() < 0.1


def test_the_outputs_are_the_classifiers() -> None:
    w = np.random.default_rng(1).normal(size=(3, 16))
    classifier = as_classifier(linear_model(w))
    images = torch.rand(2, 1, 4, 4)
    logits = images.flatten(1) @ torch.from_numpy(w.T).float()
    torch.testing.assert_close(outputs_of(CD_L, classifier)(images), logits)
    torch.testing.assert_close(outputs_of(CD_P, classifier)(images), logits.softmax(1))
    with pytest.raises(ValueError, match="CD-F"):
        outputs_of(CD_F, classifier)


def test_the_simplified_trigger_keeps_what_the_mask_keeps() -> None:
    image = np.ones((1, 2, 2), np.float32)
    clean = np.zeros((3, 1, 2, 2), np.float32)
    mask = np.array([[0.04, 0.06], [1.0, 0.0]], np.float32)
    stamped = simplified(image, mask, clean)
    np.testing.assert_array_equal(stamped, np.tile([[0.0, 1.0], [1.0, 0.0]], (3, 1, 1, 1)))


def test_preprocessing_may_be_applied_before_the_search(shipped: Path) -> None:
    classifier = open_model(
        shipped / "fleets" / "cpu-small" / "cifar10-badnets.onnx", shipped / "clean" / "cifar10"
    )
    files = sorted((shipped / "clean" / "cifar10").rglob("*.jpg"))[::30]
    images = np.stack([decode_image(file, 3, 32, 32)[0] for file in files])
    assert classifier.preprocessing.mean != (0, 0, 0)
    config, weights = DistillationConfig(steps=5), Weights(1 / 1024, 10 / 1024)
    noise = torch.from_numpy(noise_colours(images, 5, 0))
    inside = distill(
        CD_P, outputs_of(CD_P, classifier), torch.from_numpy(images), noise, weights, config
    )
    outputs = outputs_of(CD_P, prepared(classifier))
    before = learn_masks(CD_P, classifier, outputs, images, weights, config, seed=0)
    np.testing.assert_allclose(before.sum((1, 2)), inside.sum((1, 2)).numpy(), rtol=1e-3)
