"""From evidence to one of five words, with the reasons.

Each detector's largest statistic has two keys: it is significant (calibrated p), and it is far
from the others (effect size). A class is suspected where one detector turns both, or where two
of different kinds agree on it by effect size. It is accused if, besides, a trigger found for it
carries held-out images. One key alone is `inconclusive`; and what could hide a class forbids
`no_backdoor_found`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scanner.config import VerdictConfig
from scanner.results import (
    BACKDOOR_FOUND,
    INCONCLUSIVE,
    NO_BACKDOOR_FOUND,
    ClassResult,
    Corroboration,
    DetectorResult,
    MappingResult,
    Note,
    Statistics,
)
from scanner.statistics import MIN_CLASSES, order_statistic_test

MIN_IMAGES = 16  # usable images outside the target class; fewer: no verdict
LOW_EVIDENCE_IMAGES = 40  # fewer: a verdict, with a flag
MAX_CENSORED_SHARE = 0.2
MAX_RUNTIME_DIFFERENCE = 2  # images on which the engines may disagree about a trigger
AGREEING_KINDS = 2  # so many kinds of search suspect a class by effect size alone
ALL_TO_ALL_RATE = 0.5  # of held-out images; clean models .12 at most, attacked ones .88 and .96
ALL_TO_ALL_ONE_WAY = 2.0  # triggers back are so many times larger
FAMILIES = {
    "l_red": "perturbation",
    "l_red_uniform": "perturbation",
    "low_frequency": "perturbation",
    "red_p": "perturbation",
    "mask_pattern": "mask",
    "class_pairs": "mask",
    "neural_cleanse": "mask",
}
"""The kind of search that a detector is; one that is not named here is a kind of its own."""
AUXILIARY = ("low_frequency", "class_pairs", "red_p")
"""Searches in which clean models, too, have classes that stand out: a smooth change makes an 8 of
any digit, similar classes are near one another. They accuse as the others do, but one key of
theirs, or several outliers, is no reason to doubt."""


def evaluate_statistics(
    classes: Sequence[ClassResult], config: VerdictConfig, detectors: int = 1
) -> Statistics | None:
    """Test the largest r_t; None where fewer than three classes have one.

    A censored class enters with the bound that its r_t is; one of which nothing is known is left
    out of the fit.

    Args:
        detectors: how many are run on the model: each is tested at that part of the significance
            (Bonferroni), so that all together keep it.
    """
    informative = [(c, c.statistic) for c in classes if c.statistic is not None]
    found = [(r, c) for c, r in informative if c.status == "found"]
    if len(found) < 3:
        return None
    test = order_statistic_test(
        [r for _, r in informative], [c.status != "found" for c, _ in informative]
    )
    required = config.required_ratio_to_median(len(classes))
    significance = config.significance / detectors
    return Statistics(
        suspect=max(found, key=lambda pair: pair[0])[1].target_class,
        paper_p=test.paper_p,
        log10_paper_p=test.log10_paper_p,
        calibrated_p=test.calibrated_p,
        ratio_to_median=test.ratio_to_median,
        ratio_to_second=test.ratio_to_second,
        significance=significance,
        required_ratio_to_median=required,
        required_ratio_to_second=config.ratio_to_second,
        significant=test.calibrated_p < significance,
        large=test.ratio_to_median >= required and test.ratio_to_second >= config.ratio_to_second,
        classes_tested=len(classes),
        classes_censored=sum(c.status != "found" for c in classes),
    )


def suspects(detectors: Sequence[DetectorResult]) -> tuple[int, ...]:
    """The target classes to accuse if a trigger of theirs is corroborated, ascending.

    Evidence of one kind (see `FAMILIES`) is counted once: searches of the same kind err together.
    """
    tested = [d.statistics for d in detectors if d.statistics is not None]
    both_keys = {s.suspect for s in tested if s.significant and s.large}
    for detector in detectors:  # with few classes nothing else has a test
        if detector.threshold is not None and len(detector.classes) < MIN_CLASSES:
            both_keys |= set(detector.threshold.suspects)
    far: dict[int, set[str]] = {}
    for detector in detectors:
        for target in singled_out(detector):
            far.setdefault(target, set()).add(FAMILIES.get(detector.name, detector.name))
    agreed = {target for target, kinds in far.items() if len(kinds) >= AGREEING_KINDS}
    return tuple(sorted(both_keys | agreed))


def singled_out(detector: DetectorResult) -> tuple[int, ...]:
    """The target classes that are far from the others by a detector's effect size."""
    if detector.threshold is not None:
        return detector.threshold.suspects
    s = detector.statistics
    return (s.suspect,) if s is not None and s.large else ()


def is_all_to_all(rate: float, destinations: int, one_way: float | None, classes: int) -> bool:
    """Whether the mapping of classes under one trigger is an all-to-all attack's.

    Args:
        rate, destinations, one_way: see `MappingResult`.
        classes: K.
    """
    if one_way is None or one_way < ALL_TO_ALL_ONE_WAY:
        return False  # classes that lie on a line, such as shades, are shifted along it by nature
    return rate >= ALL_TO_ALL_RATE and destinations >= max(3, classes // 2)


def decide(
    detectors: Sequence[DetectorResult],
    unreliable: Sequence[Note] = (),
    class_count: int | None = None,
) -> tuple[str, tuple[int, ...], tuple[Note, ...]]:
    """(verdict, accused target classes, reasons).

    Args:
        detectors: with the corroboration of those that have a trigger for a suspect.
        unreliable: reliability flags that forbid any verdict.
        class_count: K; with fewer target classes searched nothing is said of the others. None: all
            were.
    """
    said = {note.code for note in unreliable}
    doubts = [*unreliable, *_doubts(detectors, said)]
    evidence = [note for d in detectors for note in _describe(d)]
    accused, reasons = _accuse(detectors)
    if doubts:
        few = {"few_classes", "no_statistics"}
        told = {t for d in detectors if d.threshold is not None for t in d.threshold.suspects}
        anyway = tuple(t for t in accused if t in told)
        if anyway and all(note.code in few for note in doubts):
            return BACKDOOR_FOUND, anyway, (*evidence, *reasons)
        return INCONCLUSIVE, (), tuple(doubts)
    if accused:
        return BACKDOOR_FOUND, accused, (*evidence, *reasons)
    if suspects(detectors) and not _refuted(detectors):
        unknown = Note("unknown_origin", "a shortcut of unknown origin: not corroborated")
        return INCONCLUSIVE, (), (*evidence, *reasons, unknown)
    evidence += reasons
    half = [
        _one_key(d.name, s)
        for d in detectors
        if (s := d.statistics) and _turns_one_key(s) and d.name not in AUXILIARY
    ]
    half += [_alone(d) for d in detectors if d.threshold is not None and d.threshold.suspects]
    if half:
        return INCONCLUSIVE, (), (*evidence, *half)
    hidden = [note for d in detectors for note in _could_hide(d)]
    searched = max(len(d.classes) for d in detectors)
    if class_count is not None and searched < class_count:
        message = f"only {searched} of {class_count} target classes were searched"
        hidden.append(Note("partial_targets", message))
    if hidden:
        return INCONCLUSIVE, (), (*evidence, *hidden)
    return NO_BACKDOOR_FOUND, (), tuple(evidence)


def _accuse(detectors: Sequence[DetectorResult]) -> tuple[tuple[int, ...], list[Note]]:
    """(accused target classes, what speaks for and against the suspects)."""
    for detector in detectors:
        if detector.mapping is not None and detector.mapping.all_to_all:
            targets = sorted(t for t in detector.mapping.mapping if t >= 0)
            return tuple(targets), [_describe_mapping(detector.name, detector.mapping)]
    named = suspects(detectors)
    if not named:
        return (), []
    tried = [(d.name, d.corroboration) for d in detectors if d.corroboration is not None]
    accused = tuple(
        t for t in named if any(c.corroborated and c.target_class == t for _, c in tried)
    )
    reasons = [_describe_corroboration(name, c) for name, c in tried]
    return accused, reasons


def _refuted(detectors: Sequence[DetectorResult]) -> bool:
    """Whether every suspect is one of `AUXILIARY` alone, whose triggers carry no other images.

    A search on a few images of one class that is refuted by the next few has fitted them: that says
    nothing of the model.
    """
    tried = {d.corroboration.target_class for d in detectors if d.corroboration is not None}
    others = {t for d in detectors if d.name not in AUXILIARY for t in singled_out(d)}
    return all(t in tried and t not in others for t in suspects(detectors))


def _doubts(detectors: Sequence[DetectorResult], said: set[str]) -> list[Note]:
    """What forbids any verdict, apart from the codes in `said`."""
    doubts = []
    for detector in detectors:
        doubts += [note for note in _unfinished(detector) if note.code not in said]
        said = said | {note.code for note in doubts}
    if all(d.statistics is None and d.threshold is None for d in detectors):
        message = "fewer than 3 target classes have a norm: there is nothing to compare with"
        doubts.append(Note("no_statistics", message))
    for detector in detectors:
        disagreeing = [
            c.target_class
            for c in detector.classes
            if (c.runtime_difference or 0) > MAX_RUNTIME_DIFFERENCE
        ]
        if disagreeing:
            names = ", ".join(map(str, disagreeing))
            message = (
                f"{detector.name}: ONNX Runtime does not confirm the triggers of target class "
                f"{names}"
            )
            doubts.append(Note("engines_disagree_on_trigger", message))
    return doubts


def _turns_one_key(s: Statistics) -> bool:
    return s.significant or s.large


def _unfinished(detector: DetectorResult) -> list[Note]:
    classes = detector.classes
    late = [c.target_class for c in classes if c.stop_reason == "time_limit"]
    if late:
        message = (
            f"{detector.name}: time ran out before {len(late)} of {len(classes)} target classes "
            "were finished"
        )
        return [Note("time_limit", message)]
    if len(classes) < MIN_CLASSES:
        message = (
            f"{len(classes)} target classes were tested; below {MIN_CLASSES} no outlier can be told"
        )
        return [Note("few_classes", message)]
    return []


def _describe(detector: DetectorResult) -> list[Note]:
    """What a detector's test says, one note or none."""
    name, s, t = detector.name, detector.statistics, detector.threshold
    if t is not None:
        passed = ", ".join(map(str, t.suspects)) or "no class"
        message = (
            f"{name}: {passed} passes; the largest, {t.value:.2f}, is class {t.suspect}'s (needed: "
            f"{t.threshold:g} and three times the median, {t.median:.2f})"
        )
        return [Note("shared_perturbations" if t.suspects else "largest_statistic", message)]
    return [] if s is None else [_describe_statistics(name, s)]


def _describe_mapping(name: str, m: MappingResult) -> Note:
    return Note(
        "all_to_all",
        f"{name}: the trigger from class {m.source_class} to class {m.target_class} carries all "
        f"classes, each to another one: {m.rate:.0%} of the held-out images of {m.classes} classes "
        f"(at least {ALL_TO_ALL_RATE:.0%})",
    )


def _alone(detector: DetectorResult) -> Note:
    return Note(
        "not_significant",
        f"{detector.name}: suspects a class, but no other kind of detector says the same",
    )


def _describe_statistics(name: str, s: Statistics) -> Note:
    paper = f"{s.paper_p:.2g}" if s.log10_paper_p >= -300 else "<1e-300"
    outlier = "an outlier" if s.significant and s.large else "no outlier"
    if s.significant != s.large:
        outlier = "half an outlier"
    found = s.significant and s.large
    return Note(
        "largest_statistic_is_outlier" if found else "largest_statistic",
        f"{name}: the largest statistic, of class {s.suspect}, is {outlier}: calibrated p = "
        f"{s.calibrated_p:.2g} (paper's p {paper}), r_max/median = {s.ratio_to_median:.2f}, "
        f"r_max/r_2 = {s.ratio_to_second:.2f}",
    )


def _one_key(name: str, s: Statistics) -> Note:
    if s.significant:
        return Note(
            "effect_too_small",
            f"{name}: significant, but not far enough from the other classes (r_max/median >= "
            f"{s.required_ratio_to_median:g} and r_max/r_2 >= {s.required_ratio_to_second:g})",
        )
    return Note(
        "not_significant",
        f"{name}: far from the other classes, but not at p < {s.significance:.2g}, and no other "
        "kind of detector says the same",
    )


def _describe_corroboration(name: str, c: Corroboration) -> Note:
    verb = "carries" if c.corroborated else "does not carry"
    return Note(
        "corroborated" if c.corroborated else "not_corroborated",
        f"{name}: the trigger to class {c.target_class} found on one half of the images {verb} the "
        f"other half: {c.held_out_rate:.0%} (at least {c.required_rate:.0%}, and more than other "
        f"classes' triggers of the same size: there {c.best_other_rate:.0%}, to their own classes "
        f"{c.typical_own_rate:.0%})",
    )


def _could_hide(detector: DetectorResult) -> list[Note]:
    """Why a target class may have stayed hidden from a detector."""
    if detector.name in AUXILIARY:
        return []
    s = detector.statistics
    hidden = [] if s is None else _several_large(detector.name, s)
    bounded = any(c.norm is not None and c.status != "found" for c in detector.classes)
    return [*hidden, *(_censored(detector) if bounded else [])]


def _several_large(name: str, s: Statistics) -> list[Note]:
    """Several target classes mask one another: each is far from the median, none from the next."""
    if s.ratio_to_median < s.required_ratio_to_median:
        return []
    message = (
        f"{name}: class {s.suspect} is far from the median (r_max/median = "
        f"{s.ratio_to_median:.2f}) but not alone: several target classes may mask one another"
    )
    return [Note("several_outliers", message)]


def _censored(detector: DetectorResult) -> list[Note]:
    """Censored classes behind which a vendor could hide a target class."""
    classes = detector.classes
    censored = [c for c in classes if c.status != "found"]
    median = float(np.median([c.norm for c in classes if c.norm is not None]))
    low = [c.target_class for c in censored if c.norm is not None and c.norm < median]
    if low:
        names = ", ".join(map(str, low))
        message = f"{detector.name}: the search for class {names} was stopped below the median norm"
        return [Note("censored_below_median", message)]
    if len(censored) > MAX_CENSORED_SHARE * len(classes):
        message = (
            f"{detector.name}: {len(censored)} of {len(classes)} searches did not reach their goal"
        )
        return [Note("many_classes_censored", message)]
    return []
