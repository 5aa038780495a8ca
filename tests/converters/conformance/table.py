"""All cases, run once, and what they add up to."""

from __future__ import annotations

import datetime
import platform
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from .cases import LAST_OPSET, LEFT_OUT, MODEL_SUITES, light_cases, model_cases, node_cases
from .cases import relabelled as relabel
from .outcomes import GOOD, OUTCOMES, PASS, Outcome, outcome
from .ranks import GROUPS, NO_RANK, RANKS, REST, group, rank

RULES = {
    "float": "an input is a tensor of float16, bfloat16, float32 or float64",
    "relabelled": "one node of ONNX's own domain; labelled opset 17, IR 8; accepted by "
    "onnx.checker; run by ONNX Runtime, which agrees with the suite",
    "native": f"opset <= {LAST_OPSET}, ONNX's own domain, not an _expanded case",
    "tolerance": "relative 1e-3 (float16 2e-3, bfloat16 1.6e-2), absolute 1e-5; shape and type",
    "left out": LEFT_OUT,
}


@dataclass(frozen=True)
class Conformance:
    """The outcomes of every suite.

    Attributes:
        node: the node cases as shipped.
        relabelled: those that ONNX Runtime passes under the label opset 17.
        relabelled_otherwise: those that it does not run or pass.
        models: the other suites by name.
        seconds: of one processor's time.
    """

    node: list[Outcome]
    relabelled: list[Outcome]
    relabelled_otherwise: list[Outcome]
    models: dict[str, list[Outcome]]
    seconds: float

    @property
    def relabelled_float(self) -> list[Outcome]:
        """What the floors for opset 17 are about."""
        return [o for o in self.relabelled if o.case.has_float_input]

    @property
    def native_float(self) -> list[Outcome]:
        """What the floor for native labels is about."""
        return [
            o
            for o in self.node
            if o.case.opset <= LAST_OPSET
            and o.case.has_float_input
            and o.case.is_standard
            and not o.case.is_expanded
        ]

    @property
    def everything(self) -> list[Outcome]:
        models = [o for outcomes in self.models.values() for o in outcomes]
        return [*self.node, *self.relabelled, *self.relabelled_otherwise, *models]


def run_all() -> Conformance:
    """Every case of every suite, on one thread."""
    start, threads = time.process_time(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases = node_cases()
        node = [outcome(case) for case in cases]
        at_17 = [outcome(case) for case in relabel(cases)]
        models = {suite: [outcome(c) for c in model_cases(suite)] for suite in MODEL_SUITES}
        models["light"] = [outcome(case) for case in light_cases()]
    finally:
        torch.set_num_threads(threads)
    return Conformance(
        node,
        [o for o in at_17 if o.ort_passes],
        [o for o in at_17 if not o.ort_passes],
        models,
        time.process_time() - start,
    )


def passing(outcomes: Iterable[Outcome]) -> int:
    """How many agree with the suite, or with ONNX Runtime where that does not."""
    return sum(o.kind in GOOD for o in outcomes)


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many cases of each outcome there are, in all, and how many ONNX Runtime passes."""
    found = list(outcomes)
    kinds = Counter(o.kind for o in found)
    by_kind = {kind: kinds[kind] for kind in OUTCOMES if kinds[kind]}
    return {"cases": len(found), **by_kind, "ONNX Runtime passes": sum(o.ort_passes for o in found)}


def as_json(found: Conformance) -> dict[str, Any]:
    """The table: counts by suite, operator group and rank, and every case that does not pass."""
    suites = {
        "relabelled opset 17": found.relabelled,
        "relabelled opset 17, float": found.relabelled_float,
        "relabelled opset 17, not for ONNX Runtime": found.relabelled_otherwise,
        "node as shipped": found.node,
        "node as shipped, float, native": found.native_float,
        **found.models,
    }
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
        },
        "rules": RULES,
        "processor seconds": round(found.seconds, 1),
        "suites": {name: counts(outcomes) for name, outcomes in suites.items()},
        "by group (relabelled opset 17, float)": _split(
            found.relabelled_float, group, GROUPS, REST
        ),
        "by group (node as shipped, float, native)": _split(
            found.native_float, group, GROUPS, REST
        ),
        "by rank (relabelled opset 17, float)": _split(
            found.relabelled_float, rank, RANKS, NO_RANK
        ),
        "by rank (node as shipped, float, native)": _split(
            found.native_float, rank, RANKS, NO_RANK
        ),
        "not passed": {name: _others(outcomes) for name, outcomes in suites.items()},
    }


def _split(
    outcomes: Iterable[Outcome], key: Any, keys: Iterable[str], rest: str
) -> dict[str, dict[str, int]]:
    found = list(outcomes)
    parts = {k: [o for o in found if key(o.case.operator) == k] for k in (*keys, rest)}
    return {k: counts(part) for k, part in parts.items() if part}


def _others(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """What became of each case that is not plainly passed, and why."""
    others = sorted((o for o in outcomes if o.kind != PASS), key=lambda o: o.case.name)
    return {o.case.name: f"{o.kind}: {o.reason}" for o in others}
