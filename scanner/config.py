"""The configuration of a scan, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters import Limits

DETECTORS = (
    "maximum_margin",
    "expected_transferability",
    "mask_pattern",
    "l_red",
    "l_red_uniform",
    "low_frequency",
    "class_pairs",
    "red_p",
    "neural_cleanse",
)
"""All searches, the cheap ones first. `l_red` is the paper's RED-A, `l_red_uniform` RED-U."""

DEFAULT_DETECTORS = DETECTORS[:-1]
"""The searches of a scan unless others are named, in the order in which they run."""


def _default_limits() -> Limits:
    from converters import Limits  # it imports the engines, which `bdscan --help` must not wait for

    return Limits()


@dataclass(frozen=True)
class LRedConfig:
    """Settings of L-RED's pattern estimation (paper, Algorithm 1 and section 4.3).

    Attributes:
        schedule: "fast" solves problem (3) in at most 120 gradients a class; "paper" is
            Algorithm 1 to the letter.
        weights: "annealed" (RED-A) by eqs. (7) and (8), or "uniform" (RED-U): fixed to w^(0).
        misclassification_fraction: the paper's pi.
        refine_from: smallest median / minimum of the coarse norms from which the `fast` schedule
            refines them; 0: always. Coarse norms are a few percent to a fifth too large.
        step_size: the paper's delta, an L2 norm on images in [0, 1]; the `paper` schedule's step.
        max_steps: the paper's tau_max, for the `paper` schedule.
    """

    schedule: str = "fast"
    weights: str = "annealed"
    misclassification_fraction: float = 0.9
    refine_from: float = 1.5
    step_size: float = 1e-4
    max_steps: int = 300_000


@dataclass(frozen=True)
class MaskPatternConfig:
    """Settings of the mask-and-pattern search (L-RED section A.3, problem (13)).

    Attributes:
        misclassification_fraction: the paper's pi.
        steps: of Adam, for all target classes together.
        learning_rate: Adam's, on the numbers behind the sigmoids.
        images_per_class: how many clean images of each class are used at most: the search needs
            fewer than the additive one, because its triggers are larger and carry over better.
    """

    misclassification_fraction: float = 0.9
    steps: int = 100
    learning_rate: float = 0.3
    images_per_class: int = 4


@dataclass(frozen=True)
class MaximumMarginConfig:
    """Settings of the maximum-margin search (MM-BD).

    Attributes:
        starts: random images for each target class.
        steps: of Adam.
        learning_rate: Adam's, in pixel values.
    """

    starts: int = 3
    steps: int = 40
    learning_rate: float = 0.1


@dataclass(frozen=True)
class TransferabilityConfig:
    """Settings of expected transferability. The paper's: scale 1, patience 4, max_rounds 50.

    Attributes:
        images: how many images outside a target class are used, spread over their classes.
        steps: gradients for one perturbation.
        scale: perturbations are tried at this multiple of their size; None: 1.25 for fewer than 5
            classes, else 2.
        patience: an image is done after so many rounds in a row that carry no further image.
        max_rounds: random starts for each image, at most. A new start hardly finds another way: on
            one MNIST model with a backdoor ET was .39 after one, .43 after three.
    """

    images: int = 20
    steps: int = 30
    scale: float | None = None
    patience: int = 1
    max_rounds: int = 1


@dataclass(frozen=True)
class ClassPairsConfig:
    """Settings of the searches over class pairs (L-RED eqs. 2 and 14).

    Attributes:
        images_per_class: clean images of the source class that the search for a perturbation (eq.
            2) uses at most.
        mask_images_per_class: the same of the search for a mask and pattern (eq. 14).
        steps: of Adam, for masks; perturbations take the steps that they need.
        all_pairs_up_to: with at most so many classes every pair is searched to the end.
        sources_per_target: with more, so many pairs for each target class are, chosen by a short
            search over all pairs.
        screening_steps: of that short search for masks, with one image of each source class.
    """

    images_per_class: int = 4
    mask_images_per_class: int = 4
    steps: int = 80
    all_pairs_up_to: int = 20
    sources_per_target: int = 3
    screening_steps: int = 10


@dataclass(frozen=True)
class NeuralCleanseConfig:
    """Settings of Neural Cleanse; the defaults are the authors'.

    Attributes:
        attack_success_threshold: L-RED's pi.
        steps: passes over the images, at most.
        batch_images: mini-batch size.
        learning_rate: Adam's, on the numbers behind the tanh.
        initial_cost: weight of ||m||_1 once the attack has succeeded `patience` times in a row.
        patience: steps in a row before the cost moves.
        cost_up, cost_down: factors by which it rises and falls.
        gain: a step that does not bring the smallest size below so many times the former one is
            no gain.
        stop_patience: steps without gain, in a row, that end the search once the cost has gone
            both up and down.
        target_class_images: search on images of the target class too.
    """

    attack_success_threshold: float = 0.99
    steps: int = 1000
    batch_images: int = 32
    learning_rate: float = 0.1
    initial_cost: float = 1e-3
    patience: int = 5
    cost_up: float = 1.5
    cost_down: float = 1.5**1.5
    gain: float = 0.99
    stop_patience: int = 10
    target_class_images: bool = False


@dataclass(frozen=True)
class VerdictConfig:
    """When an outlier is called a backdoor. Both keys are needed (see `scanner.verdict`).

    Attributes:
        significance: largest calibrated p-value that counts (the paper's theta).
        ratio_to_median: smallest r_max / median that counts; None: 2 up to K = 20, 2.5 up to 43,
            3 above.
        ratio_to_second: smallest r_max / r_2 that counts.
        min_held_out_rate: smallest share of held-out images that the trigger must carry.
    """

    significance: float = 0.05
    ratio_to_median: float | None = None
    ratio_to_second: float = 1.6
    min_held_out_rate: float = 0.5

    def required_ratio_to_median(self, classes: int) -> float:
        """The smallest r_max / median that counts among `classes` target classes."""
        if self.ratio_to_median is not None:
            return self.ratio_to_median
        return 2.0 if classes <= 20 else 2.5 if classes <= 43 else 3.0


@dataclass(frozen=True)
class PreprocessingOptions:
    """Preprocessing that the user states; None leaves a value to the other sources.

    Attributes:
        pixel_range: 1 or 255: the largest pixel value before mean and std.
        mean, std: per channel, on the scale of `pixel_range`, in the model's channel order.
        channel_order: "RGB", "BGR" or "gray".
        file: a JSON file with those keys, or a Hugging Face `preprocessor_config.json`.
    """

    pixel_range: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: str | None = None
    file: str | None = None


@dataclass(frozen=True)
class ScanConfig:
    """Everything that determines a scan's result, apart from the model and the clean set.

    Attributes:
        detectors: names of the searches to run, of `DETECTORS`.
        l_red, mask_pattern, maximum_margin, transferability, class_pairs, neural_cleanse, verdict,
            preprocessing: see their classes.
        limits: what a model file may hold and ask for, see `converters.Limits`.
        images_per_class: how many correctly classified clean images of each class are used; None:
            8 up to 20 classes, 2 up to 50, 1 above (the paper's tables use 8, and 1 from 43 on).
        target_classes: putative target classes to test; None: all.
        max_seconds: wall time for one model's scan, looked at between the passes of the search;
            None: unlimited.
        labels: a file with one class name per line (line number = class), or None.
        output: name of the model's output to use, or None.
        image_size: (height, width) for models that leave them free, or None.
        device: "auto", "cpu", "cuda" or "cuda:N".
        seed: of every random draw.
    """

    detectors: tuple[str, ...] = DEFAULT_DETECTORS
    l_red: LRedConfig = field(default_factory=LRedConfig)
    mask_pattern: MaskPatternConfig = field(default_factory=MaskPatternConfig)
    maximum_margin: MaximumMarginConfig = field(default_factory=MaximumMarginConfig)
    transferability: TransferabilityConfig = field(default_factory=TransferabilityConfig)
    class_pairs: ClassPairsConfig = field(default_factory=ClassPairsConfig)
    neural_cleanse: NeuralCleanseConfig = field(default_factory=NeuralCleanseConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    limits: Limits = field(default_factory=_default_limits)
    images_per_class: int | None = None
    target_classes: tuple[int, ...] | None = None
    max_seconds: float | None = None
    labels: str | None = None
    output: str | None = None
    image_size: tuple[int, int] | None = None
    device: str = "auto"
    seed: int = 0

    def images_for(self, classes: int) -> int:
        """How many clean images of each class are used for a model of so many classes."""
        if self.images_per_class is not None:
            return self.images_per_class
        return 8 if classes <= 20 else 2 if classes <= 50 else 1
