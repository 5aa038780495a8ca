"""The detectors of `bdscan samples`, opened for one model: what each needs, and what it gives.

Some score an image by itself, batch by batch. Activation Clustering and Spectral Signatures score
it within its predicted class: of them only features are taken batch by batch, and the clean images
are scored in one pool with the suspect ones, so that both are treated alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from converters.errors import ConverterError
from scanner.classifier import Classifier, Images, Logits
from scanner.detectors import cognitive_distillation as cd
from scanner.detectors.abl_isolation import EPOCHS, isolation_scores, read_losses
from scanner.detectors.activation_clustering import activation_clustering
from scanner.detectors.frequency import frequency_scores, open_frequency_classifier
from scanner.detectors.softmax_confidence import softmax_confidence
from scanner.detectors.spectral_signatures import spectral_signatures
from scanner.detectors.strip import OVERLAYS, draw_overlays, strip_entropy
from scanner.errors import BdscanError, UsageError
from scanner.layer_outputs import (
    Layers,
    check_layer,
    convolution_map,
    open_layers,
    penultimate_vector,
    rows,
)
from scanner.results import NotRun
from scanner.samples.config import SamplesConfig

Floats = npt.NDArray[np.float64]

STRIP, CONFIDENCE, FREQUENCY, ABL = "strip", "confidence", "frequency", "abl"
GROUP_DETECTORS: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], Floats]] = {
    "activation_clustering": activation_clustering,
    "spectral_signatures": spectral_signatures,
}
SCALE_IMAGES = 64  # clean images that the scale of CD-L's and CD-F's outputs is measured on


class Scored(NamedTuple):
    """What a detector says of a batch: (N,) scores, and (N, H, W) masks if it makes them."""

    scores: Floats
    masks: npt.NDArray[np.float32] | None = None


Scorer = Callable[[Images, Logits], Scored]


@dataclass
class Scorers:
    """The detectors that can run on a model.

    Attributes:
        classifier: the model.
        by_batch: those that score an image by itself.
        groups: names of those that score it within its class.
        settings: by detector, for the report.
        not_run: those that can't run on this model, and why.
        overlays: indices of the clean images that STRIP lays over others; they don't calibrate it.
        layers: gives the features for `groups`.
        abl: (suspect images,) scores by the order of the files, or None.
    """

    classifier: Classifier
    by_batch: dict[str, Scorer] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    settings: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    not_run: list[NotRun] = field(default_factory=list)
    overlays: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    layers: Layers | None = None
    abl: Floats | None = None

    @property
    def calibrated(self) -> list[str]:
        """Detectors that score clean images too."""
        return [*self.by_batch, *self.groups]

    def score(
        self, images: Images
    ) -> tuple[
        npt.NDArray[np.int64],
        dict[str, Scored],
        npt.NDArray[np.float32] | None,
        dict[str, float],
    ]:
        """(predictions, what each detector says, features or None, seconds) of a batch."""
        features, seconds, begun = None, {}, time.perf_counter()
        if self.layers is None:
            logits = self.classifier.logits(images)
        else:
            logits, (layer,) = self.layers.run(images)
            features = rows(layer)
            seconds = dict.fromkeys(self.groups, round(time.perf_counter() - begun, 4))
        scored = {}
        for name, scorer in self.by_batch.items():
            begun = time.perf_counter()
            scored[name] = scorer(images, logits)
            seconds[name] = round(time.perf_counter() - begun, 4)
        predicted: npt.NDArray[np.int64] = logits.argmax(1).astype(np.int64)
        return predicted, scored, features, seconds


def open_scorers(
    config: SamplesConfig, classifier: Classifier, clean: Images, files: tuple[str, ...]
) -> Scorers:
    """Open every detector that was asked for.

    Args:
        clean: (n, C, H, W), the clean images.
        files: of the suspect folder.

    Raises:
        UsageError: a file or a layer that was named can't be used.
    """
    opened = Scorers(classifier)
    for name in config.detectors:
        try:
            _open(opened, name, config, clean, files)
        except UsageError:
            raise
        except (BdscanError, ConverterError) as error:
            opened.not_run.append(NotRun(name, error.reason, str(error)))
    return opened


def _open(
    opened: Scorers, name: str, config: SamplesConfig, clean: Images, files: tuple[str, ...]
) -> None:
    classifier = opened.classifier
    if name in cd.VARIANTS:
        opened.by_batch[name], opened.settings[name] = _distillation(
            name, config, classifier, clean
        )
    elif name == STRIP:
        # At most half of the clean images are overlays: the other half calibrates.
        drawn = draw_overlays(len(clean), config.seed, min(OVERLAYS, len(clean) // 2))
        opened.overlays, over = drawn, clean[drawn]
        opened.by_batch[name] = lambda images, _: Scored(
            strip_entropy(classifier.logits, images, over)
        )
        opened.settings[name] = {"overlays": len(drawn), "superposition": "add"}
    elif name == CONFIDENCE:
        opened.by_batch[name] = lambda _, logits: Scored(softmax_confidence(logits))
        opened.settings[name] = {}
    elif name == FREQUENCY:
        opened.by_batch[name], opened.settings[name] = _frequency(config, classifier)
    elif name == ABL:
        if config.losses is None:
            raise UsageError("--detectors abl: give the training losses with --losses FILE")
        opened.abl = isolation_scores(read_losses(Path(config.losses)), files)
        opened.settings[name] = {"epochs": EPOCHS, "losses": config.losses}
    else:
        if opened.layers is None:
            layer = _named(config, classifier) or penultimate_vector(classifier.onnx)
            opened.layers = open_layers(classifier, [layer])
        opened.groups.append(name)
        opened.settings[name] = {"features": opened.layers.names[0], "classes": "predicted"}


def _named(config: SamplesConfig, classifier: Classifier) -> str | None:
    return None if config.features is None else check_layer(classifier.onnx, config.features)


def _frequency(config: SamplesConfig, classifier: Classifier) -> tuple[Scorer, Mapping[str, Any]]:
    if config.frequency_classifier is None:
        raise UsageError("--detectors frequency: give its classifier with --frequency-classifier")
    spectra = open_frequency_classifier(config.frequency_classifier)
    if spectra.image_shape != classifier.image_shape:
        raise UsageError(
            f"--frequency-classifier {config.frequency_classifier}: it is for images of "
            f"{spectra.image_shape}, the model takes {classifier.image_shape}"
        )
    settings = {"classifier": config.frequency_classifier}
    return lambda images, _: Scored(frequency_scores(spectra, images)), settings


def _distillation(
    name: str, config: SamplesConfig, classifier: Classifier, clean: Images
) -> tuple[Scorer, Mapping[str, Any]]:
    """A variant of Cognitive Distillation.

    Raises:
        BdscanError: the model has no gradient, or no logits for CD-L.
        LayerNotFoundError: no convolution for CD-F.
    """
    onnx = classifier.onnx
    if not onnx.differentiable:
        what = f"there is no gradient, only forward passes: {onnx.why_not_differentiable}"
        raise BdscanError(what, "no_gradient")
    if name == cd.CD_L and onnx.outputs_are_probabilities:
        raise BdscanError(
            "the model's output is a distribution and no logits were found in the graph; "
            "cd_p takes distributions",
            "probabilities_instead_of_logits",
        )
    layer = None
    if name == cd.CD_F:
        layer = _named(config, classifier) or convolution_map(onnx)
    settings = cd.DistillationConfig(steps=config.steps)
    some = torch.from_numpy(clean[:: -(-len(clean) // SCALE_IMAGES)]).to(classifier.device)
    # Probabilities have no scale of their own: that of the logits behind them counts.
    scaled = cd.CD_L if name == cd.CD_P else name
    cost = cd.empty_mask_cost(scaled, cd.outputs_of(scaled, classifier, layer), some, config.seed)
    factor = cd.output_scale_factor(scaled, cost)
    temperature = max(1.0, factor) if name == cd.CD_P else 1.0
    _, height, width = classifier.image_shape
    weights = cd.weights_of(name, height, width, factor, settings)

    ready = cd.outputs_of(name, cd.prepared(classifier), layer, temperature)

    def score(images: Images, _: Logits) -> Scored:
        masks = cd.learn_masks(name, classifier, ready, images, weights, settings, config.seed)
        return Scored(cd.mask_scores(masks), masks)

    return score, {
        "steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "size_weight": weights.size,
        "smoothness_weight": weights.smoothness,
        "empty_mask_cost": cost,
        "scale_factor": 1.0 if name == cd.CD_P else factor,
        "temperature": temperature,
        "features": layer,
    }


def group_scores(
    name: str,
    clean: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    predicted: npt.NDArray[np.int64],
    features_of: Callable[[int], Iterator[npt.NDArray[np.float32]]],
) -> tuple[Floats, Floats]:
    """Scores of (clean, suspect) images by a detector that looks at a whole class.

    Clean and suspect images of a class form one pool, so a clean suspect is scored as a clean
    image is. One class's features are held at a time.

    Args:
        clean: (n, D) features and (n,) predicted classes.
        predicted: (N,) of the suspect images.
        features_of: yields a class's suspect features, in order, in parts.
    """
    scorer = GROUP_DETECTORS[name]
    of_clean, of_suspects = np.zeros(len(clean[1])), np.zeros(len(predicted))
    for label in np.union1d(clean[1], predicted):
        own, theirs = np.flatnonzero(clean[1] == label), np.flatnonzero(predicted == label)
        pool = np.concatenate([clean[0][own], *features_of(int(label))])
        scores = scorer(pool, np.zeros(len(pool), np.int64))
        of_clean[own], of_suspects[theirs] = scores[: len(own)], scores[len(own) :]
    return of_clean, of_suspects
