"""The configuration of `bdscan samples`, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scanner.config import PreprocessingOptions, ScanConfig
from scanner.errors import UsageError

if TYPE_CHECKING:
    from converters import Limits

LOW, HIGH = "low", "high"
DETECTORS = {
    "cd_p": LOW,
    "cd_l": LOW,
    "cd_f": LOW,
    "strip": LOW,
    "confidence": HIGH,
    "activation_clustering": HIGH,
    "spectral_signatures": HIGH,
    "frequency": HIGH,
    "abl": LOW,
}
"""Every detector, and on which side its scores are suspicious."""

DEFAULT_DETECTORS = ("cd_p",)


def _default_limits() -> Limits:
    from converters import Limits  # it imports the engines, which `bdscan --help` must not wait for

    return Limits()


@dataclass(frozen=True)
class SamplesConfig:
    """Everything that determines a result, apart from the model and the two folders.

    Attributes:
        detectors: names of `DETECTORS`. The first one that can run decides what is flagged.
        level: an image is flagged at a conformal p-value of at most this.
        gamma: of the paper's threshold, mean - gamma * standard deviation over the clean set.
        finding_significance: the folder is a finding if so many images are flagged that a clean one
            would show as many with at most this probability.
        steps: of Cognitive Distillation's search.
        features: the tensor that `cd_f` matches and the feature detectors read; None: found.
        max_clean_images: how many clean images serve for calibration at most, spread evenly.
        losses: file of training losses for `abl`, or None.
        frequency_classifier: file of the classifier for `frequency`, or None.
        preprocessing, limits, labels, output, image_size, device, seed: see `ScanConfig`.
    """

    detectors: tuple[str, ...] = DEFAULT_DETECTORS
    level: float = 0.05
    gamma: float = 1.0
    finding_significance: float = 0.01
    steps: int = 100
    features: str | None = None
    max_clean_images: int = 1000
    losses: str | None = None
    frequency_classifier: str | None = None
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    limits: Limits = field(default_factory=_default_limits)
    labels: str | None = None
    output: str | None = None
    image_size: tuple[int, int] | None = None
    device: str = "auto"
    seed: int = 0

    def for_opening(self) -> ScanConfig:
        """What opening the model and the clean set asks for."""
        return ScanConfig(
            preprocessing=self.preprocessing,
            limits=self.limits,
            labels=self.labels,
            output=self.output,
            image_size=self.image_size,
            device=self.device,
            seed=self.seed,
        )


def parse_detectors(text: str) -> tuple[str, ...]:
    """`cd_p,strip` -> ("cd_p", "strip"): each once, in the order given.

    Raises:
        UsageError: an unknown name, or none.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in DETECTORS]
    if unknown:
        raise UsageError(f"--detectors {unknown[0]!r}: expected some of {', '.join(DETECTORS)}")
    return names
