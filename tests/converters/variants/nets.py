"""Tiny image classifiers in torch, one for each family that vendors export, and images for them.

All take (N, 3, 16, 16) images in [0, 1] and give (N, 10) logits. Their weights are seeded, and the
statistics of BatchNormalization are those of images, as after training.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 10
SHAPE = (3, 16, 16)


def patterns(count: int, seed: int) -> np.ndarray:
    """Images in [0, 1] that differ in colour and in coarse shapes, (count, 3, 16, 16)."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 3, 4, 4)).astype(np.float32))
    tint = torch.from_numpy(rng.random((count, 3, 1, 1)).astype(np.float32))
    return F.interpolate(coarse * tint, size=SHAPE[1:], mode="bilinear").numpy()


class ConvNet(nn.Module):
    """Convolutions, BatchNorm, ReLU, both kinds of pooling and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class MobileNet(nn.Module):
    """A depthwise block with hard-swish, squeeze and excitation, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
        )
        self.expand = nn.Sequential(
            nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 5, padding=2, groups=16, bias=False), nn.BatchNorm2d(16)
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(16, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 16, 1),
            nn.Hardsigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Sequential(nn.Linear(8, 24), nn.Hardswish(), nn.Linear(24, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        x = x + self.project(F.hardswish(y * self.gate(y)))
        return self.head(x.mean([2, 3]))


class ShuffleNet(nn.Module):
    """Two branches, grouped convolution and a channel shuffle by views of computed shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
        self.branch = nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.1),
            nn.Conv2d(8, 4, 3, padding=1, groups=2),
        )
        self.head = nn.Linear(8 * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = F.max_pool2d(F.pad(torch.relu(x), (0, 1, 0, 1)), 3, 2)
        x = F.avg_pool2d(x, 2)
        return self.head(x.view(x.size(0), -1))


class VisionTransformer(nn.Module):
    """Patches, a class token, positions, one block of attention and a perceptron."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width))
        with torch.no_grad():  # so that what is in the patches counts
            self.patches.weight *= 10
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        n, t, c = x.shape
        qkv = self.qkv(self.norms[0](x)).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        x = x + self.project((weights @ v).transpose(1, 2).reshape(n, t, c))
        x = x + self.perceptron(self.norms[1](x))
        return self.head(self.norms[2](x)[:, 0])


class SmoothNet(nn.Module):
    """The smooth activations, group normalization and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm(self.first(x)))
        y = F.gelu(self.second(x))
        z = F.mish(self.third(y))
        z = F.interpolate(z, scale_factor=2.0, mode="nearest")
        y = F.elu(torch.cat([y, z], 1))
        return self.head(F.softplus(y).mean((2, 3)))


class ResidualNet(nn.Module):
    """What ONNX Runtime's quantiser has operators for: sum, concatenation, pool, activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(32, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first) + first)
        both = torch.cat([F.avg_pool2d(second, 2), first[:, :, ::2, ::2]], 1)
        third = F.leaky_relu(self.third(both), 0.1)
        third = third * torch.sigmoid(third)
        return self.head(third.mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "conv": ConvNet,
    "mobile": MobileNet,
    "shuffle": ShuffleNet,
    "vit": VisionTransformer,
    "smooth": SmoothNet,
    "residual": ResidualNet,
}


@functools.cache
def net(name: str) -> nn.Module:
    """A network of `NETS` in inference mode, every class of which wins on some images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = NETS[name]()
        given = torch.from_numpy(patterns(64, seed=5))
        with torch.no_grad():
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = None  # the statistics are the mean over all batches seen
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.normal_(0, 0.2)
            module(given)
            module.eval()
            last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
            if name == "vit":
                last = module.head
            last.weight /= module(given).std(0).mean()
            last.bias -= module(given).mean(0)
    return module.requires_grad_(False)


@functools.cache
def in_float64(name: str) -> nn.Module:
    """The same network in float64: the truth that imported ones are held against."""
    return copy.deepcopy(net(name)).double()
