"""The floors: what the importer must keep passing, and that it is never silently wrong."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import pytest

from .outcomes import DEFECTS, GOOD, INFERENCE, REFUSED, Outcome, is_training
from .ranks import GROUPS, NO_RANK, RANKS, rank
from .table import Conformance, as_json, counts, passing, run_all


@pytest.fixture(scope="module")
def found() -> Conformance:
    return run_all()


def lines(outcomes: Iterable[Outcome]) -> str:
    """One line for each case, for a failure's message."""
    return "\n".join(f"{o.case.suite}/{o.case.name}: {o.kind}: {o.reason}" for o in outcomes)


def not_passed(outcomes: Iterable[Outcome]) -> str:
    return lines(o for o in outcomes if o.kind not in GOOD)


def test_no_case_is_silently_different_or_crashes(found: Conformance) -> None:
    defects = [o for o in found.everything if o.kind in DEFECTS]
    assert not defects, lines(defects)


def test_only_nodes_in_training_mode_are_forced_to_inference(found: Conformance) -> None:
    forced = [o for o in found.everything if o.kind == INFERENCE]
    assert forced
    assert all(is_training(o.case.model) for o in forced), lines(forced)


def test_refusals_say_why(found: Conformance) -> None:
    assert all(o.reason for o in found.everything if o.kind == REFUSED)


def test_ranked_operators_at_opset_17(found: Conformance) -> None:
    ranked = [o for o in found.relabelled_float if rank(o.case.operator) != NO_RANK]
    assert len(ranked) > 450
    assert Fraction(passing(ranked), len(ranked)) >= Fraction(99, 100), not_passed(ranked)


def test_all_operators_at_opset_17(found: Conformance) -> None:
    outcomes = found.relabelled_float
    assert len(outcomes) >= 584
    assert passing(outcomes) >= 612, not_passed(outcomes)


def test_native_labels(found: Conformance) -> None:
    outcomes = found.native_float
    assert len(outcomes) >= 907
    assert Fraction(passing(outcomes), len(outcomes)) >= Fraction(93, 100), not_passed(outcomes)


@pytest.mark.parametrize(
    ("suite", "size", "floor"),
    [
        ("pytorch-converted", 82, 82),
        ("pytorch-operator", 35, 35),
        ("light", 8, 8),
        ("simple", 23, 21),
    ],
)
def test_models(found: Conformance, suite: str, size: int, floor: int) -> None:
    outcomes = found.models[suite]
    assert len(outcomes) == size
    assert passing(outcomes) >= floor, not_passed(outcomes)


def test_it_does_not_take_long(found: Conformance) -> None:
    assert found.seconds < 100


def test_table_adds_up(found: Conformance) -> None:
    table = as_json(found)
    total = counts(found.relabelled_float)["cases"]
    for by in ("group", "rank"):
        parts = table[f"by {by} (relabelled opset 17, float)"]
        assert sum(row["cases"] for row in parts.values()) == total


def test_no_operator_is_in_two_groups_or_ranks() -> None:
    for lists in (GROUPS, RANKS):
        names = [name for operators in lists.values() for name in operators]
        assert len(names) == len(set(names))
