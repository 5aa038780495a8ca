"""A stored result of `bdscan samples` as the template shows it: a gallery of masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scanner.reports.arrays import StoredArrays, open_arrays
from scanner.reports.html.pictures import Picture, drawable, mask_picture, picture
from scanner.reports.html.words import SampleWords, sample_words
from scanner.reports.stored import StoredResult

SHOWN_SAMPLES = 300  # the most suspicious ones; a page of more can't be looked at


@dataclass(frozen=True)
class Card:
    """One image of the gallery.

    Attributes:
        sample: the stored entry.
        pictures: its masks, and what the deciding detector's mask leaves of it.
    """

    sample: Mapping[str, Any]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class SamplesView:
    """One result.

    Attributes:
        anchor: its id in the page.
        content: the stored document.
        words: of its verdict.
        model: the model's path.
        scores: (detector, whether large scores are the suspicious ones), the deciding one first.
        cards: the most suspicious first.
        hidden, hidden_flagged: how many more images there are; how many of those are flagged.
        flagged: how many are flagged in all.
        missing: why there are no masks; None where there are.
        file: the name of the file it was read from.
    """

    anchor: str
    content: Mapping[str, Any]
    words: SampleWords
    model: str
    scores: tuple[tuple[str, bool], ...]
    cards: tuple[Card, ...]
    hidden: int
    hidden_flagged: int
    flagged: int
    missing: str | None
    file: str


def view_samples(result: StoredResult, anchor: str) -> SamplesView:
    """A stored result with its masks."""
    content = result.content
    samples, deciding = content["samples"], content["finding"]["detector"]
    order = sorted(range(len(samples)), key=lambda i: _suspicion(samples[i], deciding))
    shown, rest = order[:SHOWN_SAMPLES], order[SHOWN_SAMPLES:]
    names = sorted(content["thresholds"], key=lambda name: (name != deciding, name))
    with open_arrays(result) as (arrays, missing):
        gallery = _Gallery(arrays, tuple(names), deciding)
        cards = tuple(Card(samples[i], gallery.pictures(samples[i])) for i in shown)
    return SamplesView(
        anchor=anchor,
        content=content,
        words=sample_words(content["finding"]["verdict"]),
        model=content["model"]["path"],
        scores=tuple((n, content["thresholds"][n]["suspicious"] == "high") for n in names),
        cards=cards,
        hidden=len(rest),
        hidden_flagged=sum(bool(samples[i]["flagged"]) for i in rest),
        flagged=sum(bool(sample["flagged"]) for sample in samples),
        missing=missing if samples else None,
        file=result.file.name,
    )


def _suspicion(sample: Mapping[str, Any], deciding: str | None) -> tuple[bool, float]:
    """Flagged images first, then by the deciding p-value."""
    p = sample["p_values"].get(deciding)
    return not sample["flagged"], math.inf if p is None else p


class _Gallery:
    """The pictures of samples, found in HDF5 by their file names."""

    def __init__(self, arrays: StoredArrays, names: tuple[str, ...], deciding: str | None) -> None:
        self._arrays, self._deciding = arrays, deciding
        self._rows = {
            name: {f: i for i, f in enumerate(arrays.texts("samples", name, "file") or [])}
            for name in names
        }
        rows = arrays.integers("samples", deciding or "", "simplified_row")
        self._simplified = {row: i for i, row in enumerate(rows)}

    def pictures(self, sample: Mapping[str, Any]) -> tuple[Picture, ...]:
        """A sample's masks; of the deciding detector also what they leave, and the trigger."""
        made: list[Picture] = []
        for name, rows in self._rows.items():
            row = rows.get(sample["file"])
            if row is None:
                continue
            mask = self._arrays.item("samples", name, "mask", index=row, rank=2)
            if drawable(mask, rank=2) is not None and mask is not None:
                made.append(mask_picture(mask, f"Mask, {name}"))
            if name == self._deciding:
                made += self._of_deciding(name, row)
        return tuple(made)

    def _of_deciding(self, name: str, row: int) -> list[Picture]:
        made = []
        place = ("samples", name)
        pattern = drawable(self._arrays.item(*place, "pattern", index=row, rank=3))
        if pattern is not None:
            words = "Image through the mask"
            made.append(picture(pattern, words, f"{words}: what the model needs of it"))
        index = self._simplified.get(row)
        if index is not None:
            trigger = drawable(self._arrays.item(*place, "simplified", index=index, rank=3))
            if trigger is not None:
                words = "Same pixels, clean image"
                said = "The same pixels on another, clean image"
                made.append(picture(trigger, words, said))
        return made
