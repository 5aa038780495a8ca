"""Class pairs: effects taken out, pairs chosen, mappings of classes found, and planted pairs."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from scanner.arms import Ready, search
from scanner.config import ClassPairsConfig, MaskPatternConfig, ScanConfig
from scanner.detectors.class_pairs import (
    all_pairs,
    choose_pairs,
    one_to_one,
    one_way,
    pair_statistics,
    shared_mapping,
    without_effects,
)
from scanner.results import DetectorResult
from tests.models import as_classifier, two_layer_model

Floats = npt.NDArray[np.float64]


def additive(classes: int, seed: int) -> Floats:
    """log sizes with source and target effects alone, nothing on the diagonal."""
    generator = np.random.default_rng(seed)
    sizes: Floats = generator.normal(size=(classes, 1)) + generator.normal(size=(1, classes))
    np.fill_diagonal(sizes, np.nan)
    return sizes


def test_pairs_are_all_but_the_diagonal() -> None:
    assert all_pairs([0, 2], [0, 1, 2]) == [(0, 1), (0, 2), (2, 0), (2, 1)]


def test_effects_are_taken_out_and_a_planted_pair_is_left() -> None:
    sizes = additive(8, 0)
    np.testing.assert_allclose(np.nan_to_num(without_effects(sizes)), 0, atol=0.1)
    sizes[3, 5] -= 2.0
    e = without_effects(sizes)
    assert e[3, 5] == pytest.approx(-2.0, abs=0.1)
    e[3, 5] = 0
    np.testing.assert_allclose(np.nan_to_num(e), 0, atol=0.1)


def test_a_row_without_sizes_changes_nothing() -> None:
    sizes = additive(6, 1)
    sizes[2] = np.nan
    sizes[0, 4] -= 1.5
    e = without_effects(sizes)
    assert np.isnan(e[2]).all()
    assert e[0, 4] == pytest.approx(-1.5, abs=0.1)


def test_the_statistic_says_how_many_times_smaller_than_expected() -> None:
    sizes = additive(7, 2)
    sizes[1, 4] -= np.log(5)
    pairs = all_pairs(range(7), range(7))
    found = pair_statistics(pairs, [float(np.exp(sizes[p])) for p in pairs], 7)
    by_target = {s.target_class: s for s in found}
    assert by_target[4].statistic == pytest.approx(5.0, rel=0.1)
    assert pairs[by_target[4].index] == (1, 4)
    assert all(s.statistic == pytest.approx(1.0, rel=0.1) for s in found if s.target_class != 4)


def test_pairs_without_a_size_are_left_out() -> None:
    pairs = all_pairs(range(5), range(5))
    sizes: list[float | None] = [1.0 if t != 2 else None for _, t in pairs]
    assert [s.target_class for s in pair_statistics(pairs, sizes, 5)] == [0, 1, 3, 4]


def test_screening_keeps_a_planted_pair_and_discounts_one_that_is_near_both_ways() -> None:
    sizes = additive(12, 3) + np.random.default_rng(4).normal(scale=0.1, size=(12, 12))
    sizes[2, 7] -= 1.0  # one way
    sizes[4, 9] -= 1.2
    sizes[9, 4] -= 1.2
    chosen = choose_pairs(sizes, 1)
    assert len(chosen) == 12
    assert (2, 7) in chosen
    assert (4, 9) not in chosen
    assert (9, 4) not in chosen


def test_effects_of_the_screening_serve_few_final_pairs() -> None:
    screened = additive(12, 5)
    pairs = [(s, (s + 1) % 12) for s in range(12)]
    sizes = [float(np.exp(screened[p] - 0.7)) for p in pairs]
    sizes[3] /= 4
    found = pair_statistics(pairs, sizes, 12, screened)
    best = max(found, key=lambda s: s.statistic)
    assert (pairs[best.index], best.statistic) == ((3, 4), pytest.approx(4.0, rel=0.15))


@pytest.mark.parametrize("seed", range(3))
def test_the_mapping_is_the_best_of_all_permutations_without_fixed_points(seed: int) -> None:
    q = np.random.default_rng(seed).random((5, 5))
    best = max(
        (p for p in itertools.permutations(range(5)) if all(s != t for s, t in enumerate(p))),
        key=lambda p: sum(q[s, t] for s, t in enumerate(p)),
    )
    assert tuple(one_to_one(q)) == best


def test_a_trigger_for_one_target_class_is_no_mapping() -> None:
    everyone_to_zero = np.zeros((5, 5))
    everyone_to_zero[:, 0] = 1.0
    shift = np.roll(np.eye(5), 1, axis=1)
    q = [everyone_to_zero, shift]
    others, far = [torch.tensor(0)] * 4, [9.0] * 4
    found = shared_mapping(
        lambda v: (q[int(v)], q[int(v)]),
        [torch.tensor(0), torch.tensor(1), *others],
        [1.0, 2.0, *far],
    )
    assert found is not None
    assert (found.index, found.mapping, found.rate) == (1, (1, 2, 3, 4, 0), 1.0)
    alone = shared_mapping(lambda v: (q[0], q[0]), [torch.tensor(0), *others], [1.0, *far])
    assert alone is not None
    assert alone.rate == pytest.approx(0.2)
    near = shared_mapping(lambda v: (shift, shift), [torch.tensor(1)] * 3, [1.0, 1.5, 2.0])
    assert near is None


def test_one_way_compares_the_triggers_back() -> None:
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1), (2, 0)]
    assert one_way((1, 2, 0), pairs, [1.0, 3.0, 2.0, 10.0, 4.0]) == pytest.approx(4.0)
    assert one_way((1, 2, 0), pairs, [1.0, None, 2.0, 10.0, 4.0]) == pytest.approx(5.0)
    assert one_way((1, -1, 0), pairs[:1], [1.0]) is None


# --- planted models -----------------------------------------------------------------------------


def planted(mapping: dict[int, int], classes: int) -> onnx.ModelProto:
    """Class k is pixel k; the last pixel, 0 in clean images, moves class s to mapping[s].

    Hidden unit s is relu(pixel s + last pixel - .95): it answers the trigger in class s alone.
    """
    size = 16
    first, bias = np.zeros((2 * classes, size)), np.zeros(2 * classes)
    second = np.zeros((classes, 2 * classes))
    for k in range(classes):
        first[k, k] = 1.0
        second[k, k] = 10.0
        if k in mapping:
            first[classes + k, [k, size - 1]] = 1.0
            bias[classes + k] = -0.95  # just awake
            second[mapping[k], classes + k] = 100.0
    return two_layer_model(first, bias, second, np.zeros(classes), (1, 4, 4))


def identity(classes: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Weights and biases of a network whose logit k is ten times pixel k."""
    first, second = np.eye(25), np.zeros((classes, 25))
    second[:, :classes] = 10 * np.eye(classes)
    return first, np.zeros(25), second, np.zeros(classes)


def scanned(model: onnx.ModelProto, classes: int, name: str, per_class: int = 4) -> DetectorResult:
    labels = np.repeat(np.arange(classes), per_class)
    classifier = as_classifier(model)
    shape = classifier.image_shape
    images = np.random.default_rng(0).uniform(0, 0.1, size=(len(labels), int(np.prod(shape))))
    images[:, -1] = 0.0
    images[np.arange(len(labels)), labels] = np.random.default_rng(1).uniform(
        0.9, 1.0, size=len(labels)
    )
    ready = Ready(
        classifier,
        images.reshape(-1, *shape).astype(np.float32),
        labels,
        tuple(range(classes)),
        512,
        None,
    )
    config = ScanConfig(
        detectors=(name,),
        mask_pattern=MaskPatternConfig(),
        class_pairs=ClassPairsConfig(steps=60),
    )
    return search(name, ready, config).result


def test_one_source_class_is_found() -> None:
    result = scanned(planted({2: 5}, 8), 8, "red_p")
    statistics = result.statistics
    assert statistics is not None
    assert statistics.suspect == 5
    (own,) = [c for c in result.classes if c.target_class == 5]
    assert int(np.argmax(own.source_weights)) == 2
    assert result.mapping is not None
    assert not result.mapping.all_to_all


@pytest.mark.parametrize("name", ["class_pairs", "red_p"])
def test_all_to_all_is_found_as_the_mapping_that_it_is(name: str) -> None:
    result = scanned(planted({s: (s + 1) % 6 for s in range(6)}, 6), 6, name)
    assert result.mapping is not None
    assert result.mapping.mapping == (1, 2, 3, 4, 5, 0)
    assert result.mapping.all_to_all
    assert result.mapping.rate > 0.75
    clean = scanned(planted({}, 6), 6, name)
    assert clean.mapping is None or not clean.mapping.all_to_all


@pytest.mark.parametrize("name", ["class_pairs", "red_p"])
def test_too_many_classes_for_pairs_are_told_and_end_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scanner.arms.pairs.MAX_PAIR_CLASSES", 21)
    result = scanned(two_layer_model(*identity(22), (1, 5, 5)), 22, name)
    assert result.statistics is None
    assert [c.stop_reason for c in result.classes] == ["no_pairs_searched"] * 22
