"""2,000 seeded mutants of small models: each is refused with a reason, or both engines agree."""

from __future__ import annotations

import pytest

from converters.errors import FORMAT_REASONS
from tests.benchmarks.fuzz_import import Tally, fuzz

MUTANTS = 2_000


@pytest.fixture(scope="module")
def tally() -> Tally:
    return fuzz(MUTANTS, seed=20)


def test_no_mutant_crashes_hangs_or_fills_the_memory(tally: Tally) -> None:
    assert tally.findings == []
    assert tally.outcomes.total() == MUTANTS


def test_every_refusal_has_a_known_reason(tally: Tally) -> None:
    others = {"unsupported_model", "not_an_image_classifier", "parity"}
    assert set(tally.reasons) <= {*FORMAT_REASONS, *others}
    assert len(tally.reasons) >= 12


def test_mutants_are_not_all_refused_at_the_door(tally: Tally) -> None:
    deep = sum(tally.reasons[r] for r in ("unsupported_model", "not_an_image_classifier", "parity"))
    assert tally.outcomes["loaded"] > MUTANTS / 20
    assert deep > MUTANTS / 10
