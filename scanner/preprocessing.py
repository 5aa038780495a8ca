"""From images in [0, 1] to what the network was trained on, and where each value came from.

A wrong pixel range makes clean models look backdoored, so nothing is assumed: values come, in this
order, from flags, a file, a sidecar beside the model, the ONNX metadata, normalisation seen in the
graph, and last from a search over usual preprocessings scored by accuracy on the clean set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from scipy.special import log_softmax

from scanner.config import PreprocessingOptions
from scanner.errors import UsageError
from scanner.preprocessing_sources import FIELDS, normalises_itself, stated_values

UNVERIFIED = "default, unverified"
NEAR_TIE = 0.02  # accuracies this close tell nothing: the more usual preprocessing is taken ...
CLOSE_LIKELIHOOD = 0.25  # ... if its mean log-likelihood, in nats, is this close to the best one

# Name, pixel range, mean, std; one number stands for every channel.
_Usual = tuple[str, float, tuple[float, ...], tuple[float, ...]]
USUAL_ANY: tuple[_Usual, ...] = (
    ("0..1", 1, (0.0,), (1.0,)),
    ("0..255", 255, (0.0,), (1.0,)),
    ("-1..1", 1, (0.5,), (0.5,)),
    ("-0.5..0.5", 1, (0.5,), (1.0,)),
)
USUAL_GRAY: tuple[_Usual, ...] = (("MNIST mean/std", 1, (0.1307,), (0.3081,)),)
USUAL_COLOUR: tuple[_Usual, ...] = (
    ("ImageNet mean/std", 1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("CIFAR mean/std", 1, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    ("CIFAR mean/narrow std", 1, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class Preprocessing:
    """value = (pixel * pixel_range - mean) / std, channels in the model's order.

    Attributes:
        pixel_range: 1 or 255.
        mean, std: one number for each channel, in the model's channel order.
        channel_order: "RGB", "BGR" or "gray".
        origins: for each of those fields, where its value came from.
        accuracy: share of the images scored that were classified as labelled, None without labels.
        candidates: accuracy of every preprocessing that the search tried, by name.
    """

    pixel_range: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str
    origins: Mapping[str, str] = field(default_factory=dict)
    accuracy: float | None = None
    candidates: Mapping[str, float] = field(default_factory=dict)

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [0, 1], RGB or gray -> what the network takes; differentiable."""
        if self.channel_order == "BGR":
            images = images.flip(1)
        mean = images.new_tensor(self.mean).reshape(1, -1, 1, 1)
        std = images.new_tensor(self.std).reshape(1, -1, 1, 1)
        return (images * self.pixel_range - mean) / std


Scorer = Callable[[Preprocessing], npt.NDArray[np.float32]]


def resolve(
    model: onnx.ModelProto,
    model_path: Path | None,
    channels: int,
    options: PreprocessingOptions,
    labels: npt.NDArray[np.int64],
    logits_under: Scorer,
    pixel_range_hint: float | None = None,
) -> Preprocessing:
    """Find the preprocessing of a model.

    Args:
        channels: of the model's input, 1 or 3.
        labels: (N,) labels of the clean images; all -1 if there are none.
        logits_under: gives the (N, K) logits of the clean images under a preprocessing.
        pixel_range_hint: what the graph's input type says of the pixel range (255 for uint8).

    Raises:
        UsageError: stated values that can't be read or don't fit the channels.
    """
    known = _usable(stated_values(model, model_path, options), channels)
    if channels == 1:
        known["channel_order"] = ("gray", "one channel")
    if pixel_range_hint is not None:  # whole numbers leave no room for normalisation outside
        raw = {
            "pixel_range": pixel_range_hint,
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
        }
        known |= {key: (value, "input type") for key, value in raw.items() if key not in known}
    raw_only = "mean" not in known and "std" not in known and normalises_itself(model)
    candidates = list(_candidates(known, channels, raw_only))
    labelled = bool((labels >= 0).all())
    if len(candidates) == 1 or not labelled:
        name, chosen = candidates[0]
        if len(candidates) > 1:
            chosen = replace(
                chosen,
                origins={k: _default_origin(v) for k, v in chosen.origins.items()},
            )
        if not labelled:
            return chosen
        accuracy, _ = _score(logits_under(chosen), labels)
        return replace(chosen, accuracy=accuracy, candidates={name: accuracy})
    return _search(candidates, labels, logits_under)


def _default_origin(origin: str) -> str:
    return UNVERIFIED if origin.startswith("search") else origin


def _usable(stated: Mapping[str, tuple[Any, str]], channels: int) -> dict[str, tuple[Any, str]]:
    """Stated values in their final form; what a vendor states wrongly counts as not stated.

    Raises:
        UsageError: the user's own flag or file states something that can't be used.
    """
    usable = {}
    for key, (value, origin) in stated.items():
        if key == "channel_order" and channels == 1 and not origin.startswith("flag"):
            continue  # one channel has no order, whatever a colour processor's file says
        try:
            usable[key] = _checked(key, value, origin, channels), origin
        except UsageError:
            if origin.startswith(("flag", "file")):
                raise
    return usable


def _candidates(
    known: Mapping[str, tuple[Any, str]], channels: int, raw_only: bool
) -> list[tuple[str, Preprocessing]]:
    """Every preprocessing that agrees with what is known, most usual first."""
    usual = list(USUAL_ANY[:2] if raw_only else USUAL_ANY)
    if not raw_only:
        usual += USUAL_COLOUR if channels == 3 else USUAL_GRAY
    stated_order, _ = known.get("channel_order", (None, ""))
    orders = (stated_order,) if stated_order else ("RGB", "BGR")
    named = [(u, order) for u, order in itertools.product(usual, orders)]
    if "BGR" in orders and not raw_only:
        named.append((("Caffe mean", 255, CAFFE_MEAN_BGR, (1.0,)), "BGR"))
    found: dict[tuple[Any, ...], tuple[str, Preprocessing]] = {}
    for (name, pixel_range, mean, std), order in named:
        mean, std = (v if len(v) > 1 else v * channels for v in (mean, std))
        if order == "BGR" and mean != CAFFE_MEAN_BGR:
            mean, std = mean[::-1], std[::-1]
        label = name if channels == 1 else f"{name} {order}"
        origin = "graph" if raw_only else f"search: {label}"
        values: dict[str, Any] = dict(zip(FIELDS, (pixel_range, mean, std, order), strict=True))
        origins = dict.fromkeys(FIELDS, origin)
        origins["pixel_range"] = f"search: {label}"
        for key, (value, stated) in known.items():
            values[key], origins[key] = value, stated
        for key, neutral in (("mean", 0.0), ("std", 1.0)):  # both are on the range's scale
            if key not in known and values[key] != (neutral,) * channels:
                values[key] = tuple(v * values["pixel_range"] / pixel_range for v in values[key])
        found.setdefault(
            tuple(values[key] for key in FIELDS),
            (label, Preprocessing(**values, origins=origins)),
        )
    if len(found) == 1:
        ((_, only),) = found.values()
        return [("as stated", only)]
    return list(found.values())


def _checked(key: str, value: Any, origin: str, channels: int) -> Any:
    """A stated value in its final form.

    Raises:
        UsageError: a wrong number of channels, a zero std, or an unknown channel order.
    """
    if key == "channel_order":
        orders = {"rgb": "RGB", "bgr": "BGR", "gray": "gray", "grey": "gray"}
        fits = ("gray",) if channels == 1 else ("RGB", "BGR")
        order = orders.get(str(value).lower())
        if order not in fits:
            raise UsageError(f"{origin}: channel order {value!r}, expected {' or '.join(fits)}")
        return order
    if key == "pixel_range":
        if not np.isfinite(value) or value <= 0:
            raise UsageError(f"{origin}: pixel range {value}, expected 1 or 255")
        return float(value)
    numbers = value if len(value) > 1 else tuple(value) * channels
    if len(numbers) != channels:
        raise UsageError(f"{origin}: {key} has {len(numbers)} values for {channels} channels")
    if not np.isfinite(numbers).all() or (key == "std" and min(numbers) < 1e-6):
        raise UsageError(f"{origin}: {key} {numbers} is not usable")
    return numbers


def _search(
    candidates: list[tuple[str, Preprocessing]],
    labels: npt.NDArray[np.int64],
    logits_under: Scorer,
) -> Preprocessing:
    """The candidate of best accuracy; of near-ties, the most usual that is as sure of its answers.

    Likelihood alone would not do: where nearly all images are right, pixels 255 times too large
    make the network only surer. And order alone would not: pixels 255 times too small may keep the
    argmax while every answer comes near to chance.
    """
    scores = {name: _score(logits_under(p), labels) for name, p in candidates}
    best = max(accuracy for accuracy, _ in scores.values())
    close = max(NEAR_TIE, 1.01 / len(labels))
    near = [name for name, (accuracy, _) in scores.items() if accuracy >= best - close]
    surest = max(scores[name][1] for name in near)
    winner = next(name for name in near if scores[name][1] >= surest - CLOSE_LIKELIHOOD)
    return replace(
        dict(candidates)[winner],
        accuracy=scores[winner][0],
        candidates={name: accuracy for name, (accuracy, _) in scores.items()},
    )


def _score(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """(accuracy, mean log-likelihood of the labels)."""
    accuracy = float((logits.argmax(1) == labels).mean())
    likelihood = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return accuracy, float(np.nan_to_num(likelihood, nan=-1e9).mean())
