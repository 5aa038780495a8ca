"""The list of models to scan, with what is hidden in each."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fixtures.fleet_summary import shortfalls


@dataclass(frozen=True)
class Target:
    """A model and the truth about it.

    Attributes:
        name: of the model, for the table.
        model, clean_dir: paths.
        data: the data set.
        images: clean images of each class that a scan uses.
        attack: its name, "" for a clean model.
        targets: true target classes, separated by spaces; "all" for an all-to-all attack.
        sources: how many source classes it has, 0 for a clean model.
        asr: attack success rate, 0 for a clean model.
        counts: whether it is a fair example: the attack works and the model is accurate.
    """

    name: str
    model: str
    clean_dir: str
    data: str
    images: int
    attack: str = ""
    targets: str = ""
    sources: int = 0
    asr: float = 0.0
    counts: bool = True

    @property
    def attacked(self) -> bool:
        """Whether something is hidden in it."""
        return bool(self.attack)

    def is_right(self, accused: list[int]) -> bool:
        """Whether an accusation names the truth: one of the target classes at least, no other."""
        if self.targets == "all":
            return len(accused) > 2
        return bool(accused) and set(accused) <= {int(t) for t in self.targets.split()}


def read_targets(path: Path) -> list[Target]:
    """Read a list; its columns are the attributes of `Target`, those with defaults optional."""
    kinds = {field.name: field.type for field in fields(Target)}
    with path.open(newline="") as file:
        return [
            Target(**{k: _value(kinds[k], v) for k, v in row.items()})
            for row in csv.DictReader(file)
        ]


def _value(kind: object, text: str) -> str | int | float | bool:
    if kind == "bool":
        return text == "True"
    return int(text) if kind == "int" else float(text) if kind == "float" else text


def write_targets(targets: list[Target], path: Path) -> None:
    """Write a list."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Target)])
        writer.writeheader()
        writer.writerows(asdict(target) for target in targets)


def fleet_targets(folder: Path, clean: Mapping[str, tuple[str, int]]) -> list[Target]:
    """The models of a fleet; `clean` holds folder and images of each class by data set."""
    entries = json.loads((folder / "truth.json").read_text())["models"]
    reasons = shortfalls(entries)
    targets = []
    for name, entry in sorted(entries.items()):
        data = entry["data"]["name"]
        if data in clean:
            directory, images = clean[data]
            truth = _truth(entry["attacks"]) | {"counts": not reasons.get(name)}
            model = str(folder / f"{name}.onnx")
            targets.append(Target(name, model, directory, data, images, **truth))
    return targets


def _truth(attacks: list[dict[str, object]]) -> dict[str, object]:
    if not attacks:
        return {}
    classes = [str(t) for attack in attacks for t in attack["target_classes"]]  # type: ignore[attr-defined]
    everyone = any(attack["target"] == "next" for attack in attacks)
    return {
        "attack": "+".join(str(attack["attack"]) for attack in attacks),
        "targets": "all" if everyone else " ".join(classes),
        "sources": max(len(attack["source_classes"]) for attack in attacks),  # type: ignore[arg-type]
        "asr": min(float(attack["asr"]) for attack in attacks),  # type: ignore[arg-type]
    }
