"""Scores of all clean and suspect images, chunk by chunk, going on where a run was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from scanner.clean_set import CleanSet
from scanner.samples.partial import Part, PartialRun
from scanner.samples.scorers import ABL, Scorers, group_scores
from scanner.samples.suspects import Chunk, SuspectFolder, read_chunk

Floats = npt.NDArray[np.float64]
CLEAN, SUSPECT = "clean", "suspect"

Progress = Callable[[int, int, int], None]
"""(images done, images in all, images whose scores were there already)."""


@dataclass
class Scores:
    """What is known of all images of a group; masks and features stay on disk.

    Attributes:
        files: names of the images that were scored.
        predicted: (N,) the model's classes.
        by_detector: (N,) scores.
        corrupt: names of those that could not be read.
        resized, resumed: how many.
        seconds: by detector.
    """

    files: list[str] = field(default_factory=list)
    predicted: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    by_detector: dict[str, Floats] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)
    resized: int = 0
    resumed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What is scored, and how.

    Attributes:
        clean: the calibration images.
        suspects: the folder.
        size: images of a chunk: they are optimised together.
        partial: where finished chunks are kept.
    """

    scorers: Scorers
    clean: CleanSet
    suspects: SuspectFolder
    size: int
    partial: PartialRun

    def chunks(self, group: str) -> list[tuple[str, ...]]:
        """The files of each chunk."""
        files = self.clean.files if group == CLEAN else self.suspects.files
        return [files[i : i + self.size] for i in range(0, len(files), self.size)]

    def read(self, group: str, index: int) -> Chunk:
        """A chunk's images."""
        files = self.chunks(group)[index]
        if group == CLEAN:
            start = index * self.size
            return Chunk(self.clean.images[start : start + len(files)], files, (), 0)
        return read_chunk(self.suspects, files, self.scorers.classifier.image_shape)

    def parts(self, group: str, masks: bool = False) -> Iterator[Part]:
        """The finished chunks, in order, with or without their masks."""
        for index in range(len(self.chunks(group))):
            part = self.partial.load(group, index, masks)
            if part is None:
                raise OSError(f"{self.partial.path(group, index)} is gone")
            yield part


def score_all(work: Work, progress: Progress) -> tuple[Scores, Scores]:
    """The scores of the (clean, suspect) images.

    Raises:
        OSError: a chunk could not be kept.
    """
    whole = len(work.clean.files) + len(work.suspects.files)
    done = resumed = 0
    for group in (CLEAN, SUSPECT):
        for index, files in enumerate(work.chunks(group)):
            if work.partial.load(group, index, masks=False) is None:
                work.partial.save(group, index, _score(work, group, index))
            else:
                resumed += len(files)
            done += len(files)
            progress(done, whole, resumed)
    clean, suspects = _collect(work, CLEAN), _collect(work, SUSPECT)
    clean.resumed = min(resumed, len(work.clean.files))
    suspects.resumed = resumed - clean.resumed
    _add_groups(work, clean, suspects)
    if work.scorers.abl is not None:
        place = {file: i for i, file in enumerate(work.suspects.files)}
        kept = [place[file] for file in suspects.files]
        suspects.by_detector[ABL] = work.scorers.abl[kept]
    clean.by_detector = {
        name: _calibrating(work, name, scores) for name, scores in clean.by_detector.items()
    }
    return clean, suspects


def _score(work: Work, group: str, index: int) -> Part:
    """Run every detector on a chunk."""
    chunk = work.read(group, index)
    if not len(chunk.images):
        nothing = np.zeros(0, np.int64)
        return Part((), nothing, {}, corrupt=chunk.corrupt, resized=chunk.resized)
    predicted, scored, features, seconds = work.scorers.score(chunk.images)
    return Part(
        files=chunk.files,
        predicted=predicted,
        scores={name: one.scores for name, one in scored.items()},
        masks={name: one.masks for name, one in scored.items() if one.masks is not None},
        features=features,
        corrupt=chunk.corrupt,
        resized=chunk.resized,
        seconds=seconds,
    )


def _collect(work: Work, group: str) -> Scores:
    """Everything of a group's chunks but masks and features."""
    result = Scores(seconds=dict.fromkeys(work.scorers.calibrated, 0.0))
    predicted: list[npt.NDArray[np.int64]] = []
    scores: dict[str, list[Floats]] = {name: [] for name in work.scorers.by_batch}
    for part in work.parts(group):
        result.files += part.files
        result.corrupt += part.corrupt
        result.resized += part.resized
        predicted.append(part.predicted)
        for name in scores:
            scores[name].append(part.scores.get(name, np.zeros(0)))
        for name, seconds in part.seconds.items():
            result.seconds[name] = result.seconds.get(name, 0.0) + seconds
    result.predicted = np.concatenate(predicted)
    result.by_detector = {name: np.concatenate(parts) for name, parts in scores.items()}
    return result


def _add_groups(work: Work, clean: Scores, suspects: Scores) -> None:
    """The scores of detectors that look at a whole class."""
    if not work.scorers.groups:
        return
    features = np.concatenate([p.features for p in work.parts(CLEAN) if p.features is not None])

    def features_of(label: int) -> Iterator[npt.NDArray[np.float32]]:
        for part in work.parts(SUSPECT):
            if part.features is not None:
                yield part.features[part.predicted == label]

    for name in work.scorers.groups:
        begun = time.perf_counter()
        found = group_scores(name, (features, clean.predicted), suspects.predicted, features_of)
        clean.by_detector[name], suspects.by_detector[name] = found
        suspects.seconds[name] += time.perf_counter() - begun


def _calibrating(work: Work, name: str, scores: Floats) -> Floats:
    """The clean scores that calibrate: finite ones, for STRIP without its own overlays."""
    if name == "strip":
        scores = np.delete(scores, work.scorers.overlays)
    return scores[np.isfinite(scores)]
