"""What the detectors found out, as frozen values: the part of a report that is evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class ClassResult:
    """One detector's search for one putative target class. What a detector has not is None.

    Attributes:
        target_class: t.
        status: "found", or "censored": the search was stopped before it succeeded.
        stop_reason: why the search ended.
        norm: of the trigger: `l_red` ||v_t||_2 on images in [0, 1], a lower bound if censored;
            `mask_pattern` ||m_t||_1 in pixels.
        statistic: r_t, larger is more suspicious: 1 / norm, or the margin in logits.
        misclassification: Q_t reached, by torch.
        runtime_difference: images on which ONNX Runtime and torch disagree whether the trigger
            carries them to t.
        source_weights: w, by source class.
        source_fractions: q_st, by source class.
        gradient_evaluations: gradients of this class's objective.
        images: images used.
        clipped_share: share of perturbed pixels that clipping to [0, 1] cut.
    """

    target_class: int
    status: str
    stop_reason: str
    norm: float | None
    statistic: float | None
    gradient_evaluations: int
    misclassification: float | None = None
    runtime_difference: int | None = None
    source_weights: tuple[float, ...] = ()
    source_fractions: tuple[float, ...] = ()
    images: int = 0
    clipped_share: float | None = None


@dataclass(frozen=True)
class Statistics:
    """The outlier test over the target classes (see `scanner.statistics`).

    Attributes:
        suspect: target class of r_max.
        paper_p: the paper's order-statistic p-value; 0 where it is below 1e-300.
        log10_paper_p: its decimal logarithm.
        calibrated_p: bootstrap-calibrated p-value.
        ratio_to_median, ratio_to_second: r_max / median of r, r_max / second largest r.
        significance, required_ratio_to_median, required_ratio_to_second: the thresholds.
        significant, large: whether each of the two keys turned.
        classes_tested, classes_censored: how many target classes.
    """

    suspect: int
    paper_p: float
    log10_paper_p: float
    calibrated_p: float
    ratio_to_median: float
    ratio_to_second: float
    significance: float
    required_ratio_to_median: float
    required_ratio_to_second: float
    significant: bool
    large: bool
    classes_tested: int
    classes_censored: int


@dataclass(frozen=True)
class Corroboration:
    """Does the suspect class's trigger, found on one half of the images, carry the other half?

    Attributes:
        target_class: the suspect.
        held_out_rate: share of held-out images carried to the suspect class, class-weighted, mean
            over both halves.
        best_other_rate: the same for other classes' triggers rescaled to the same norm: the
            largest.
        required_rate: smallest held_out_rate that counts.
        corroborated: held_out_rate is at least that, and above best_other_rate and
            typical_own_rate.
        typical_own_rate: share that other classes' triggers, rescaled to the same norm, carry to
            their own classes: the median.
        size_on_halves: size of the triggers found on halves of the images, as a share of that found
            on all; small where a trigger is fitted to its images.
    """

    target_class: int
    held_out_rate: float
    best_other_rate: float
    required_rate: float
    corroborated: bool
    typical_own_rate: float = 0.0
    size_on_halves: float | None = None


@dataclass(frozen=True)
class ThresholdTest:
    """The test of a statistic that is judged by itself, without a null distribution.

    Attributes:
        suspect: the class with the largest value.
        value: that value.
        threshold: smallest value that counts.
        median: of all classes' values; the suspect must exceed three times that.
        suspects: the classes that pass, descending.
    """

    suspect: int
    value: float
    threshold: float
    median: float
    suspects: tuple[int, ...]


@dataclass(frozen=True)
class MappingResult:
    """What one class pair's trigger does to all classes: is it an all-to-all attack's?

    Attributes:
        source_class, target_class: the pair.
        mapping: by class, the class that its images go to, no two the same; -1 without images.
        rate: share of held-out images that follow it, mean over classes.
        classes: how many classes have such images.
        destinations: how many different classes more than half of some class's images go to.
        one_way: how many times larger the triggers back are, the median; None where unknown.
        all_to_all: so many that the trigger is taken for an all-to-all attack's.
    """

    source_class: int
    target_class: int
    mapping: tuple[int, ...]
    rate: float
    classes: int
    destinations: int
    one_way: float | None
    all_to_all: bool


@dataclass(frozen=True)
class PublishedTest:
    """What the rule of the detector's own paper says; it decides nothing.

    Attributes:
        rule: the paper and its rule.
        suspect: the class that it would accuse.
        value: its p-value or index.
        threshold: what that must be below (a p-value) or above (an index).
        detected: whether it is.
    """

    rule: str
    suspect: int
    value: float
    threshold: float
    detected: bool


@dataclass(frozen=True)
class DetectorResult:
    """All that one detector found out about a model."""

    name: str
    settings: Mapping[str, Any]
    classes: tuple[ClassResult, ...]
    statistics: Statistics | None
    corroboration: Corroboration | None
    image_gradients: int
    seconds: float
    threshold: ThresholdTest | None = None
    mapping: MappingResult | None = None
    published: PublishedTest | None = None


@dataclass(frozen=True)
class Arrays:
    """One target class's arrays for HDF5, None for what a detector has not.

    Attributes:
        trace: (evaluations, 2): size and Q; for `maximum_margin` the largest and smallest margin.
        source_weights: (K,).
        perturbation: (C, H, W), added to images in [0, 1].
        mask, pattern: (H, W) and (C, H, W), in [0, 1].
        image: (C, H, W) in [0, 1], where the margin is largest.
    """

    trace: npt.NDArray[np.float64]
    source_weights: npt.NDArray[np.float64] | None = None
    perturbation: npt.NDArray[np.float32] | None = None
    mask: npt.NDArray[np.float32] | None = None
    pattern: npt.NDArray[np.float32] | None = None
    image: npt.NDArray[np.float32] | None = None
