"""The table of the results, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from scipy import stats

from scanner.results import BACKDOOR_FOUND, INCONCLUSIVE, NO_BACKDOOR_FOUND
from tests.benchmarks.detection.targets import Target
from tests.benchmarks.record import write

Record = Mapping[str, Any]
Records = Mapping[tuple[str, str], Record]

LEAST_ASR = 0.8

INTRODUCTION = """# Which backdoors are found, and who is accused wrongly

Written by `python -m tests.benchmarks.detection table`. `bdscan` is the verdict of a default scan,
the other columns are what the papers' own rules say of the same searches: RED-A, RED-U, RED-P
(L-RED, p < .05), MM-BD (p < .05) and Neural Cleanse (NC, MAD index above 2); "2" and ' with two
images a class. An attack counts if its ASR is at least .8 at no more than two points of accuracy. A
detection must name the right target class. Files with the same digest count once. Bold is right,
"?" is inconclusive (missed, if something is hidden), "-" accuses nobody, empty was not run.
""".splitlines()

# What a method says of a record: the classes that it accuses, "inconclusive", or None: not run.
Answer = list[int] | str | None


def _ours(record: Record) -> Answer:
    if record.get("verdict") == BACKDOOR_FOUND:
        return list(record["accused"])
    return [] if record.get("verdict") == NO_BACKDOOR_FOUND else INCONCLUSIVE


def _published(detector: str) -> Callable[[Record], Answer]:
    """The paper's own rule for one detector."""

    def answer(record: Record) -> Answer:
        for found in record.get("detectors", []):
            if found["name"] == detector and found["published"] is not None:
                rule = found["published"]
                return [rule["suspect"]] if rule["detected"] else []
        return None

    return answer


METHODS: dict[str, tuple[str, Callable[[Record], Answer]]] = {
    "bdscan": ("default", _ours),
    "RED-A": ("default", _published("l_red")),
    "RED-U": ("default", _published("l_red_uniform")),
    "RED-P": ("default", _published("red_p")),
    "MM-BD": ("default", _published("maximum_margin")),
    "NC": ("neural_cleanse", _published("neural_cleanse")),
    "bdscan 2": ("two_images", _ours),
    "RED-A'": ("two_images", _published("l_red")),
    "RED-U 2": ("two_images", _published("l_red_uniform")),
    "RED-P 2": ("two_images", _published("red_p")),
}
"""Name -> (run, what it says). The searches are ours (`fast`), the rules those of the papers."""


def write_table(targets: Sequence[Target], results: Path, out: Path, markdown: Path) -> None:
    """Write both tables."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    records = {(r["name"], r["run"]): r for r in lines}
    summary = {method: summarise(method, targets, records) for method in METHODS}
    write(out, {"methods": summary, "models": [_row(t, records) for t in targets]}, seed=0)
    markdown.write_text("\n".join(_markdown(targets, records, summary)) + "\n")


def _answer(method: str, target: Target, records: Records) -> Answer:
    run, says = METHODS[method]
    record = records.get((target.name, run))
    return None if record is None else says(record)


def summarise(method: str, targets: Sequence[Target], records: Records) -> dict[str, Any]:
    """Detections, false alarms with their exact 95 % interval, and clean models left undecided.

    Files that hold the same network (the same digest) count once.
    """
    seen: set[str] = set()
    found = attacked = alarms = undecided = clean = 0
    for target in targets:
        answer = _answer(method, target, records)
        record = records.get((target.name, METHODS[method][0]))
        if answer is None or record is None or record.get("sha256") in seen:
            continue
        seen.add(record.get("sha256") or target.name)
        if target.attacked and target.counts and target.asr >= LEAST_ASR:
            attacked += 1
            found += isinstance(answer, list) and target.is_right(answer)
        elif not target.attacked:
            clean += 1
            undecided += answer == INCONCLUSIVE
            alarms += isinstance(answer, list) and bool(answer)
    return {
        "detected_with_right_target": found,
        "attacked": attacked,
        "false_alarms": alarms,
        "clean": clean,
        "false_alarm_interval": _interval(alarms, clean),
        "clean_inconclusive": undecided,
    }


def _interval(count: int, of: int) -> list[float] | None:
    """Clopper and Pearson's 95 % interval."""
    if not of:
        return None
    test = stats.binomtest(count, of).proportion_ci(0.95, "exact")
    return [round(float(test.low), 3), round(float(test.high), 3)]


def _row(target: Target, records: Records) -> dict[str, Any]:
    record = records.get((target.name, "default"), {})
    return {
        "name": target.name,
        "data": target.data,
        "images_per_class": target.images,
        "attack": target.attack,
        "true_targets": target.targets,
        "source_classes": target.sources,
        "asr": target.asr,
        "counts": target.counts,
        "answers": {method: _answer(method, target, records) for method in METHODS},
        "cpu_seconds": record.get("cpu_seconds"),
        "peak_megabytes": record.get("peak_megabytes"),
        "image_gradients": sum(d["image_gradients"] for d in record.get("detectors", [])),
        "tests": {d["name"]: _test(d) for d in record.get("detectors", [])},
        "reasons": record.get("reasons"),
        "flags": record.get("flags"),
    }


def _test(detector: Mapping[str, Any]) -> dict[str, Any]:
    """One detector's figures, rounded."""
    s, t, c = detector["statistics"], detector["threshold"], detector["corroboration"]
    figures: dict[str, Any] = {}
    if s is not None:
        keys = ("suspect", "calibrated_p", "paper_p", "ratio_to_median", "ratio_to_second")
        figures |= {key: s[key] for key in keys}
    if t is not None:
        figures |= {key: t[key] for key in ("suspect", "value", "median")}
    if c is not None:
        figures |= {"held_out_rate": c["held_out_rate"], "corroborated": c["corroborated"]}
    if detector["mapping"] is not None:
        figures["mapping_rate"] = detector["mapping"]["rate"]
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}


def _markdown(
    targets: Sequence[Target], records: Records, summary: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    lines = [
        *INTRODUCTION,
        "| | right target | false alarms (95 %) | clean, inconclusive |",
        "|---|---|---|---|",
    ]
    for method, s in summary.items():
        interval = s["false_alarm_interval"]
        share = f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else ""
        lines.append(
            f"| {method} | {s['detected_with_right_target']} of {s['attacked']} | "
            f"{s['false_alarms']} of {s['clean']}{share} | {s['clean_inconclusive']} |"
        )
    cost = [r["cpu_seconds"] for (_, run), r in records.items() if run == "default"]
    if cost:
        lines += [
            "",
            f"Processor seconds of a scan: median {median(cost):.0f}, most {max(cost):.0f}.",
        ]
    lines += ["", f"| model | truth | {' | '.join(METHODS)} |", "|---|---|" + "---|" * len(METHODS)]
    for target in sorted(targets, key=lambda t: (not t.attacked, t.data, t.name)):
        answers = [_cell(target, _answer(method, target, records)) for method in METHODS]
        lines.append(f"| {target.name} | {_truth(target)} | {' | '.join(answers)} |")
    return lines


def _truth(target: Target) -> str:
    if not target.attacked:
        return "clean"
    note = "" if target.counts else ", does not count"
    return f"{target.attack}, {target.sources} to {target.targets}, ASR {target.asr:.2f}{note}"


def _cell(target: Target, answer: Answer) -> str:
    """The classes accused, bold if they are the truth; "?" inconclusive; "-" nobody accused."""
    if answer is None:
        return ""
    if isinstance(answer, str):
        return "?"
    named = ("all" if len(answer) > 4 else ", ".join(map(str, answer))) or "-"
    right = target.is_right(answer) if target.attacked else not answer
    return f"**{named}**" if right else named
