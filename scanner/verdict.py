"""From evidence to one of five words, with the reasons.

A backdoor is called only when three things agree: the smallest norm is significant (calibrated p),
it is far smaller than the others (effect size), and its trigger carries held-out images. One key
alone is `inconclusive`; and what could hide a class forbids `no_backdoor_found`.
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
    Note,
    Statistics,
)
from scanner.statistics import MIN_CLASSES, order_statistic_test

MIN_IMAGES = 16  # usable images outside the target class; fewer: no verdict
LOW_EVIDENCE_IMAGES = 40  # fewer: a verdict, with a flag
MAX_CENSORED_SHARE = 0.2
MAX_RUNTIME_DIFFERENCE = 2  # images on which the engines may disagree about a trigger


def evaluate_statistics(classes: Sequence[ClassResult], config: VerdictConfig) -> Statistics | None:
    """Test the largest r_t; None where fewer than two classes are left to fit a null.

    A censored class enters with the upper bound 1 / norm; one whose bound says nothing (norm 0)
    is left out of the fit.
    """
    informative = [c for c in classes if c.norm > 0]
    found = [c for c in informative if c.status == "found"]
    if len(found) < 3:
        return None
    test = order_statistic_test(
        [1 / c.norm for c in informative], [c.status != "found" for c in informative]
    )
    required = config.required_ratio_to_median(len(classes))
    return Statistics(
        suspect=min(found, key=lambda c: c.norm).target_class,
        paper_p=test.paper_p,
        log10_paper_p=test.log10_paper_p,
        calibrated_p=test.calibrated_p,
        ratio_to_median=test.ratio_to_median,
        ratio_to_second=test.ratio_to_second,
        significance=config.significance,
        required_ratio_to_median=required,
        required_ratio_to_second=config.ratio_to_second,
        significant=test.calibrated_p < config.significance,
        large=test.ratio_to_median >= required and test.ratio_to_second >= config.ratio_to_second,
        classes_tested=len(classes),
        classes_censored=sum(c.status != "found" for c in classes),
    )


def decide(
    classes: Sequence[ClassResult],
    statistics: Statistics | None,
    corroboration: Corroboration | None,
    unreliable: Sequence[Note] = (),
    class_count: int | None = None,
) -> tuple[str, tuple[int, ...], tuple[Note, ...]]:
    """(verdict, accused target classes, reasons).

    Args:
        unreliable: reliability flags that forbid any verdict.
        class_count: K; with fewer target classes searched nothing is said of the others. None: all
            were.
    """
    said = {note.code for note in unreliable}
    doubts = [*unreliable, *(note for note in _unfinished(classes) if note.code not in said)]
    if statistics is None:
        message = "fewer than 3 target classes have a norm: there is nothing to compare with"
        return INCONCLUSIVE, (), (*doubts, Note("no_statistics", message))
    disagreeing = [
        c.target_class for c in classes if (c.runtime_difference or 0) > MAX_RUNTIME_DIFFERENCE
    ]
    if disagreeing:
        names = ", ".join(map(str, disagreeing))
        message = f"ONNX Runtime does not confirm the triggers of target class {names}"
        doubts.append(Note("engines_disagree_on_trigger", message))
    if doubts:
        return INCONCLUSIVE, (), tuple(doubts)
    evidence = _describe(statistics)
    if statistics.significant and statistics.large:
        if corroboration is not None and corroboration.corroborated:
            held_out = _describe_corroboration(corroboration)
            return BACKDOOR_FOUND, (statistics.suspect,), (evidence, held_out)
        reasons = [evidence, Note("not_corroborated", "the shortcut's origin is unknown")]
        if corroboration is not None:
            reasons[1] = _describe_corroboration(corroboration)
        return INCONCLUSIVE, (), tuple(reasons)
    if statistics.significant or statistics.large:
        return INCONCLUSIVE, (), (evidence, _one_key(statistics))
    hidden = [*_could_hide(classes), *_several_small(statistics)]
    if class_count is not None and len(classes) < class_count:
        message = f"only {len(classes)} of {class_count} target classes were searched"
        hidden.append(Note("partial_targets", message))
    if hidden:
        return INCONCLUSIVE, (), (evidence, *hidden)
    return NO_BACKDOOR_FOUND, (), (evidence,)


def _unfinished(classes: Sequence[ClassResult]) -> list[Note]:
    late = [c.target_class for c in classes if c.stop_reason == "time_limit"]
    if late:
        message = f"time ran out before {len(late)} of {len(classes)} target classes were finished"
        return [Note("time_limit", message)]
    if len(classes) < MIN_CLASSES:
        message = (
            f"{len(classes)} target classes were tested; below {MIN_CLASSES} no outlier can be told"
        )
        return [Note("few_classes", message)]
    return []


def _describe(s: Statistics) -> Note:
    paper = f"{s.paper_p:.2g}" if s.log10_paper_p >= -300 else "<1e-300"
    outlier = "an outlier" if s.significant and s.large else "no outlier"
    if s.significant != s.large:
        outlier = "half an outlier"
    return Note(
        "smallest_norm_is_outlier" if outlier == "an outlier" else "smallest_norm",
        f"the smallest norm, to class {s.suspect}, is {outlier}: calibrated p = "
        f"{s.calibrated_p:.2g} (paper's p {paper}), r_max/median = {s.ratio_to_median:.2f}, "
        f"r_max/r_2 = {s.ratio_to_second:.2f}",
    )


def _one_key(s: Statistics) -> Note:
    if s.significant:
        return Note(
            "effect_too_small",
            f"significant, but not far enough from the other classes (r_max/median >= "
            f"{s.required_ratio_to_median:g} and r_max/r_2 >= {s.required_ratio_to_second:g})",
        )
    return Note("not_significant", f"far from the other classes, but not at p < {s.significance:g}")


def _describe_corroboration(c: Corroboration) -> Note:
    verb = "carries" if c.corroborated else "does not carry"
    return Note(
        "corroborated" if c.corroborated else "not_corroborated",
        f"the trigger found on one half of the images {verb} the other half: "
        f"{c.held_out_rate:.0%} (at least {c.required_rate:.0%}, and more than other classes' "
        f"triggers of the same norm: {c.best_other_rate:.0%})",
    )


def _several_small(s: Statistics) -> list[Note]:
    """Several target classes mask one another: each is far from the median, none from the next."""
    if s.ratio_to_median < s.required_ratio_to_median:
        return []
    message = (
        f"class {s.suspect} is far from the median (r_max/median = {s.ratio_to_median:.2f}) but "
        "not alone: several target classes may mask one another"
    )
    return [Note("several_small_norms", message)]


def _could_hide(classes: Sequence[ClassResult]) -> list[Note]:
    """Censored classes behind which a vendor could hide a target class."""
    censored = [c for c in classes if c.status != "found"]
    median = float(np.median([c.norm for c in classes]))
    low = [c.target_class for c in censored if c.norm < median]
    if low:
        names = ", ".join(map(str, low))
        message = f"the search for class {names} was stopped below the median norm"
        return [Note("censored_below_median", message)]
    if len(censored) > MAX_CENSORED_SHARE * len(classes):
        message = f"{len(censored)} of {len(classes)} searches did not reach their goal"
        return [Note("many_classes_censored", message)]
    return []
