"""From evidence to a verdict: every branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from scanner.config import VerdictConfig
from scanner.reliability import chance_level, fewest_images
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
    ThresholdTest,
)
from scanner.verdict import decide, evaluate_statistics, is_all_to_all, suspects

CLEAN = (3.0, 3.3, 3.6, 3.9, 4.2, 4.4, 4.6, 5.0, 5.4, 6.0)
ATTACKED = (0.3, *CLEAN[1:])
YES = Corroboration(
    target_class=0, held_out_rate=0.9, best_other_rate=0.1, required_rate=0.5, corroborated=True
)
NO = Corroboration(
    target_class=0, held_out_rate=0.3, best_other_rate=0.1, required_rate=0.5, corroborated=False
)


def result(
    target: int,
    norm: float,
    status: str = "found",
    stop_reason: str = "misclassification_fraction_reached",
    runtime_difference: int | None = 0,
) -> ClassResult:
    return ClassResult(
        target_class=target,
        status=status,
        stop_reason=stop_reason,
        norm=norm,
        statistic=1 / norm if norm else None,
        misclassification=0.95,
        runtime_difference=runtime_difference,
        source_weights=(),
        source_fractions=(),
        gradient_evaluations=60,
        images=72,
        clipped_share=0.0,
    )


def results(norms: Sequence[float]) -> list[ClassResult]:
    return [result(target, norm) for target, norm in enumerate(norms)]


def censor(classes: list[ClassResult], target: int, norm: float) -> None:
    classes[target] = result(target, norm, "censored", "norm_exceeds_image_range", None)


def detector(
    classes: Sequence[ClassResult],
    statistics: Statistics | None,
    corroboration: Corroboration | None = None,
    name: str = "l_red",
) -> DetectorResult:
    return DetectorResult(name, {}, tuple(classes), statistics, corroboration, 0, 0.0)


def verdict_of(
    classes: list[ClassResult],
    corroboration: Corroboration | None = None,
    config: VerdictConfig | None = None,
    unreliable: Sequence[Note] = (),
) -> tuple[str, tuple[int, ...], list[str]]:
    statistics = evaluate_statistics(classes, config or VerdictConfig())
    verdict, accused, reasons = decide([detector(classes, statistics, corroboration)], unreliable)
    return verdict, accused, [note.code for note in reasons]


def statistics(significant: bool, large: bool) -> Statistics:
    whole = evaluate_statistics(results(ATTACKED), VerdictConfig())
    assert whole is not None
    return replace(whole, significant=significant, large=large)


def test_no_outlier_is_no_backdoor_found() -> None:
    verdict, accused, reasons = verdict_of(results(CLEAN))
    assert (verdict, accused) == (NO_BACKDOOR_FOUND, ())
    assert reasons == ["largest_statistic"]


def test_both_keys_and_corroboration_are_a_backdoor_in_the_class_of_smallest_norm() -> None:
    verdict, accused, reasons = verdict_of(results(ATTACKED), YES)
    assert (verdict, accused) == (BACKDOOR_FOUND, (0,))
    assert reasons == ["largest_statistic_is_outlier", "corroborated"]


@pytest.mark.parametrize("corroboration", [NO, None])
def test_both_keys_without_corroboration_are_inconclusive(
    corroboration: Corroboration | None,
) -> None:
    verdict, accused, reasons = verdict_of(results(ATTACKED), corroboration)
    assert (verdict, accused) == (INCONCLUSIVE, ())
    refuted = ["not_corroborated"] if corroboration else []
    assert reasons == ["largest_statistic_is_outlier", *refuted, "unknown_origin"]


@pytest.mark.parametrize(
    ("significant", "large", "code"),
    [(True, False, "effect_too_small"), (False, True, "not_significant")],
)
def test_one_key_alone_is_inconclusive(significant: bool, large: bool, code: str) -> None:
    found = detector(results(ATTACKED), statistics(significant, large))
    verdict, accused, reasons = decide([found])
    assert (verdict, accused) == (INCONCLUSIVE, ())
    assert reasons[-1].code == code


def test_a_significant_small_effect_turns_one_key() -> None:
    norms = (3.0, *[4.4 + 0.01 * k for k in range(9)])
    stats = evaluate_statistics(results(norms), VerdictConfig())
    assert stats is not None
    assert (stats.significant, stats.large) == (True, False)


def test_a_large_insignificant_effect_turns_the_other() -> None:
    norms = (1.0, 1.9, 3.0, 9.0, 20.0, 50.0)
    stats = evaluate_statistics(results(norms), VerdictConfig())
    assert stats is not None
    assert (stats.significant, stats.large) == (False, True)


def test_both_ratios_are_needed_for_a_large_effect() -> None:
    norms = (0.3, 0.31, *CLEAN[2:])
    stats = evaluate_statistics(results(norms), VerdictConfig())
    assert stats is not None
    assert stats.ratio_to_median > 2
    assert stats.ratio_to_second == pytest.approx(0.31 / 0.3)
    assert not stats.large


def test_two_equal_outliers_that_mask_one_another_are_no_clean_bill() -> None:
    norms = (0.018, 0.0175, 0.32, 0.34, 0.56, 0.71)
    verdict, accused, _ = verdict_of(results(norms), YES)
    assert (verdict, accused) == (INCONCLUSIVE, ())


def test_statistics_name_suspect_ratios_thresholds_and_counts() -> None:
    classes = results(ATTACKED)
    censor(classes, 9, 7.0)
    stats = evaluate_statistics(classes, VerdictConfig(0.01, None, 1.7))
    assert stats is not None
    assert stats.suspect == 0
    assert stats.ratio_to_second == pytest.approx(3.3 / 0.3)
    assert stats.ratio_to_median == pytest.approx(
        (1 / 0.3) / np.median(1 / np.array([*ATTACKED[:9], 7.0]))
    )
    assert (stats.significance, stats.required_ratio_to_second) == (0.01, 1.7)
    assert (stats.classes_tested, stats.classes_censored) == (10, 1)


@pytest.mark.parametrize(
    ("classes", "required"), [(5, 2.0), (20, 2.0), (21, 2.5), (43, 2.5), (44, 3.0), (1000, 3.0)]
)
def test_the_required_ratio_to_median_grows_with_the_classes(classes: int, required: float) -> None:
    assert VerdictConfig().required_ratio_to_median(classes) == required
    assert VerdictConfig(ratio_to_median=1.2).required_ratio_to_median(classes) == 1.2


def test_the_significance_is_an_option() -> None:
    stats = evaluate_statistics(results(ATTACKED), VerdictConfig(significance=1e-9))
    assert stats is not None
    assert not stats.significant


def test_a_class_censored_below_the_median_forbids_no_backdoor_found() -> None:
    classes = results(CLEAN)
    censor(classes, 4, 0.5)
    assert verdict_of(classes) == (INCONCLUSIVE, (), ["largest_statistic", "censored_below_median"])


def test_a_class_censored_with_norm_zero_forbids_it_too() -> None:
    classes = results(CLEAN)
    censor(classes, 4, 0.0)
    assert verdict_of(classes) == (INCONCLUSIVE, (), ["largest_statistic", "censored_below_median"])


def test_two_target_classes_that_mask_one_another_forbid_no_backdoor_found() -> None:
    norms = [0.30, 0.31, *CLEAN[2:]]
    stats = evaluate_statistics(results(norms), VerdictConfig())
    assert stats is not None
    assert stats.ratio_to_median >= stats.required_ratio_to_median
    assert not stats.large
    verdict, accused, reasons = verdict_of(results(norms))
    assert (verdict, accused) == (INCONCLUSIVE, ())
    assert reasons[-1] == ("effect_too_small" if stats.significant else "several_outliers")


def test_more_than_a_fifth_censored_forbids_no_backdoor_found() -> None:
    classes = results(CLEAN)
    for target in (7, 8):
        censor(classes, target, 9.0)
    assert verdict_of(classes)[0] == NO_BACKDOOR_FOUND
    censor(classes, 9, 9.0)
    assert verdict_of(classes) == (INCONCLUSIVE, (), ["largest_statistic", "many_classes_censored"])


def test_a_class_censored_below_the_median_does_not_hide_a_found_backdoor() -> None:
    classes = results(ATTACKED)
    censor(classes, 4, 3.1)
    assert verdict_of(classes, YES)[:2] == (BACKDOOR_FOUND, (0,))


@pytest.mark.parametrize(("difference", "doubtful"), [(2, False), (3, True)])
def test_engines_that_disagree_on_more_than_two_images_forbid_a_verdict(
    difference: int, doubtful: bool
) -> None:
    for norms, usual in ((CLEAN, NO_BACKDOOR_FOUND), (ATTACKED, BACKDOOR_FOUND)):
        classes = results(norms)
        classes[6] = result(6, norms[6], runtime_difference=difference)
        verdict, _, reasons = verdict_of(classes, YES)
        assert verdict == (INCONCLUSIVE if doubtful else usual)
        assert ("engines_disagree_on_trigger" in reasons) == doubtful


def test_time_that_ran_out_forbids_a_verdict() -> None:
    classes = results(ATTACKED)
    classes[3] = result(3, 0.2, "censored", "time_limit", None)
    assert verdict_of(classes, YES) == (INCONCLUSIVE, (), ["time_limit"])


@pytest.mark.parametrize("count", [3, 4])
def test_fewer_than_five_classes_forbid_a_verdict(count: int) -> None:
    assert verdict_of(results(ATTACKED[:count]), YES) == (INCONCLUSIVE, (), ["few_classes"])
    assert verdict_of(results(CLEAN[:count]), YES)[0] == INCONCLUSIVE


def test_fewer_than_three_norms_are_no_statistics() -> None:
    classes = results(CLEAN)
    for target in range(8):
        censor(classes, target, 9.0)
    assert evaluate_statistics(classes, VerdictConfig()) is None
    assert verdict_of(classes) == (INCONCLUSIVE, (), ["no_statistics"])


def test_reliability_flags_forbid_a_verdict_and_are_its_reasons() -> None:
    flag = Note("few_images", "5 usable clean images")
    for norms in (CLEAN, ATTACKED):
        assert verdict_of(results(norms), YES, unreliable=[flag]) == (
            INCONCLUSIVE,
            (),
            ["few_images"],
        )


def test_every_reason_is_one_sentence_for_people() -> None:
    censored = results(CLEAN)
    censor(censored, 4, 0.5)
    for classes, corroboration in (
        (results(ATTACKED), YES),
        (results(ATTACKED), NO),
        (censored, NO),
    ):
        stats = evaluate_statistics(classes, VerdictConfig())
        for note in decide([detector(classes, stats, corroboration)])[2]:
            assert note.message
            assert "\n" not in note.message


def test_a_p_value_that_underflows_is_told_as_a_bound() -> None:
    norms = (1e-5, 1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08)
    classes = results(norms)
    stats = evaluate_statistics(classes, VerdictConfig())
    assert stats is not None
    assert stats.log10_paper_p < -300
    assert "<1e-300" in decide([detector(classes, stats, YES)])[2][0].message


@pytest.mark.parametrize(
    ("accuracy", "images", "classes", "chance"),
    [
        (0.10, 200, 10, True),
        (0.24, 200, 10, True),
        (0.40, 200, 10, False),
        (0.97, 200, 10, False),
        (0.50, 40, 2, True),
        (0.95, 40, 2, False),
        (0.40, 10, 10, False),
        (0.30, 10, 10, True),
    ],
)
def test_accuracy_near_chance(accuracy: float, images: int, classes: int, chance: bool) -> None:
    assert chance_level(accuracy, images, classes) is chance


def test_fewest_images_leave_out_the_target_class() -> None:
    assert fewest_images(np.array([8, 2, 5]), (0, 1, 2)) == 7
    assert fewest_images(np.array([8, 2, 5]), (1,)) == 13


# --- several detectors -------------------------------------------------------------------------


def margins(values: Sequence[float]) -> list[ClassResult]:
    """Results of a detector without triggers."""
    return [
        ClassResult(target, "found", "steps_done", None, value, 120)
        for target, value in enumerate(values)
    ]


def keys(suspect: int, significant: bool, large: bool) -> Statistics:
    return replace(statistics(significant, large), suspect=suspect)


def judged(
    *arms: tuple[Statistics, Corroboration | None],
) -> tuple[str, tuple[int, ...], list[str]]:
    names = ("l_red", "mask_pattern", "maximum_margin")
    detectors = [
        detector(results(ATTACKED), stats, tried, name)
        for name, (stats, tried) in zip(names, arms, strict=False)
    ]
    verdict, accused, reasons = decide(detectors)
    return verdict, accused, [note.code for note in reasons]


NONE = keys(5, False, False)


def corroborated(target: int, yes: bool = True) -> Corroboration:
    return replace(YES if yes else NO, target_class=target)


def test_one_detector_with_both_keys_and_corroboration_accuses() -> None:
    mask = (keys(2, True, True), corroborated(2))
    assert judged((NONE, None), mask, (NONE, None))[:2] == (BACKDOOR_FOUND, (2,))


def test_two_detectors_that_agree_by_effect_size_accuse() -> None:
    one, other = keys(2, False, True), keys(2, False, True)
    assert suspects([detector([], one), detector([], other, name="maximum_margin")]) == (2,)
    assert judged((one, corroborated(2)), (NONE, None), (other, None))[:2] == (BACKDOOR_FOUND, (2,))


def test_two_detectors_that_disagree_accuse_nobody() -> None:
    one, other = keys(2, False, True), keys(3, False, True)
    assert suspects([detector([], one), detector([], other)]) == ()
    verdict, accused, reasons = judged((one, None), (other, None))
    assert (verdict, accused) == (INCONCLUSIVE, ())
    assert reasons[-2:] == ["not_significant", "not_significant"]


def test_a_suspect_without_a_corroborated_trigger_is_not_accused() -> None:
    margin = (keys(2, True, True), None)
    assert judged((NONE, None), (NONE, None), margin)[:2] == (INCONCLUSIVE, ())
    refuted = (keys(2, True, True), corroborated(2, yes=False))
    assert judged(refuted, (NONE, None), margin) == (
        INCONCLUSIVE,
        (),
        [
            "largest_statistic_is_outlier",
            "largest_statistic",
            "largest_statistic_is_outlier",
            "not_corroborated",
            "unknown_origin",
        ],
    )


def test_the_trigger_of_one_detector_corroborates_the_suspect_of_another() -> None:
    mask, margin = (keys(2, False, True), corroborated(2)), (keys(2, True, True), None)
    assert judged((NONE, None), mask, margin)[:2] == (BACKDOOR_FOUND, (2,))


def test_each_of_two_target_classes_needs_its_own_corroboration() -> None:
    first, second = (keys(2, True, True), corroborated(2)), (keys(7, True, True), corroborated(7))
    assert judged(first, second)[:2] == (BACKDOOR_FOUND, (2, 7))
    refuted = (keys(7, True, True), corroborated(7, yes=False))
    assert judged(first, refuted)[:2] == (BACKDOOR_FOUND, (2,))


def test_detectors_share_the_significance() -> None:
    alone, together = (
        evaluate_statistics(results(ATTACKED), VerdictConfig(), count) for count in (1, 3)
    )
    assert alone is not None
    assert together is not None
    assert together.significance == pytest.approx(alone.significance / 3)
    assert together.calibrated_p == alone.calibrated_p


def test_margins_are_statistics_themselves() -> None:
    classes = margins([9.0, 2.0, 3.0, 2.5, 2.2, 3.1])
    classes[5] = ClassResult(5, "censored", "steps_done", None, None, 120)  # never predicted
    stats = evaluate_statistics(classes, VerdictConfig())
    assert stats is not None
    assert stats.suspect == 0
    assert stats.ratio_to_median == pytest.approx(9.0 / 2.5)
    assert stats.ratio_to_second == pytest.approx(3.0)
    assert stats.classes_censored == 1


def test_classes_that_a_model_never_predicts_hide_nothing() -> None:
    dead = [ClassResult(t, "censored", "steps_done", None, None, 120) for t in range(5, 10)]
    classes = [*margins([3.0, 3.1, 3.2, 3.3, 3.4]), *dead]
    margin = detector(classes, evaluate_statistics(classes, VerdictConfig()), None, "m")
    clean = results(CLEAN)
    l_red = detector(clean, evaluate_statistics(clean, VerdictConfig()))
    assert decide([l_red, margin])[0] == NO_BACKDOOR_FOUND


def test_two_detectors_of_one_kind_are_no_agreement() -> None:
    far = keys(2, False, True)
    same_kind = [detector([], far), detector([], far, name="l_red_uniform")]
    assert suspects(same_kind) == ()
    assert suspects([*same_kind, detector([], far, name="mask_pattern")]) == (2,)


# --- tests beside the largest statistic ---------------------------------------------------------


def transfers(values: Sequence[float], suspected: tuple[int, ...]) -> DetectorResult:
    """Expected transferability's result."""
    rates = np.array(values)
    test = ThresholdTest(
        int(rates.argmax()), float(rates.max()), 0.3, float(np.median(rates)), suspected
    )
    found = detector(margins(values), None, name="expected_transferability")
    return replace(found, threshold=test)


def test_shared_perturbations_agree_with_another_kind_of_detector() -> None:
    alone = transfers([0.1, 0.1, 0.8, 0.1, 0.1, 0.1], (2,))
    assert suspects([alone]) == ()
    assert suspects([alone, detector([], keys(2, False, True))]) == (2,)
    verdict, accused, reasons = decide([alone, detector(results(CLEAN), NONE)])
    assert (verdict, accused, reasons[-1].code) == (INCONCLUSIVE, (), "not_significant")


def test_with_few_classes_shared_perturbations_accuse_if_corroborated() -> None:
    two = transfers([0.1, 0.6], (1,))
    tried = detector(results(CLEAN[:2]), None, corroborated(1))
    assert decide([two, tried])[:2] == (BACKDOOR_FOUND, (1,))
    refuted = detector(results(CLEAN[:2]), None, corroborated(1, yes=False))
    assert decide([two, refuted])[:2] == (INCONCLUSIVE, ())
    clean = transfers([0.1, 0.1], ())
    assert decide([clean, detector(results(CLEAN[:2]), None)])[0] == INCONCLUSIVE


def test_a_shared_mapping_accuses_every_class_of_it() -> None:
    assert is_all_to_all(0.5, 5, 2.0, 10)
    assert not is_all_to_all(0.49, 5, 9.0, 10)
    assert not is_all_to_all(0.9, 4, 9.0, 10)
    assert not is_all_to_all(0.9, 9, 1.9, 10)
    assert not is_all_to_all(0.9, 9, None, 10)
    mapping = MappingResult(0, 1, (1, 2, 3, 4, 5, -1), 0.9, 5, 5, 8.0, True)
    pairs = replace(detector(results(CLEAN), NONE, name="class_pairs"), mapping=mapping)
    verdict, accused, reasons = decide([pairs])
    assert (verdict, accused) == (BACKDOOR_FOUND, (1, 2, 3, 4, 5))
    assert reasons[-1].code == "all_to_all"
    harmless = replace(pairs, mapping=replace(mapping, rate=0.1, all_to_all=False))
    assert decide([harmless])[0] == NO_BACKDOOR_FOUND


def test_an_auxiliary_search_accuses_but_leaves_no_doubt_where_it_is_refuted() -> None:
    def pairs(tried: Corroboration | None, stats: Statistics) -> DetectorResult:
        return detector(results(ATTACKED), stats, tried, "class_pairs")

    other = detector(results(CLEAN), evaluate_statistics(results(CLEAN), VerdictConfig()))
    both, half = keys(2, True, True), keys(2, False, True)
    assert decide([other, pairs(corroborated(2), both)])[:2] == (BACKDOOR_FOUND, (2,))
    assert decide([other, pairs(corroborated(2, yes=False), both)])[0] == NO_BACKDOOR_FOUND
    assert decide([other, pairs(None, both)])[0] == INCONCLUSIVE
    assert decide([other, pairs(None, half)])[0] == NO_BACKDOOR_FOUND
    agreeing = detector(results(ATTACKED), half)
    refuted = pairs(corroborated(2, yes=False), both)
    assert decide([agreeing, refuted])[0] == INCONCLUSIVE
