"""Arms that search class pairs: see `scanner.detectors.class_pairs`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scanner.arms.base import (
    MARGIN,
    Progress,
    Ready,
    Searched,
    detector_result,
    split_halves,
    trigger_arrays,
)
from scanner.arms.trigger import TriggerArm
from scanner.config import ScanConfig
from scanner.detectors.class_pairs import (
    Pair,
    SharedMapping,
    all_pairs,
    as_matrix,
    choose_pairs,
    one_way,
    pair_statistics,
    shared_mapping,
)
from scanner.detectors.l_red import PatternEstimate, estimate_patterns
from scanner.detectors.mask_pattern import estimate_masks
from scanner.detectors.misclassification import Floats, GroupMisclassification
from scanner.published import published_pairs_test
from scanner.remeasure import TriggerEstimate, class_result
from scanner.results import ClassResult, MappingResult
from scanner.triggers import embed_additive, embed_mask_pattern, scale_additive, scale_mask_pattern
from scanner.verdict import is_all_to_all

Labels = npt.NDArray[np.int64]

NO_PAIRS = "no_pairs_searched"
MAX_PAIR_CLASSES = 200
"""With more classes even a short search over all pairs is too much."""


@dataclass(frozen=True)
class PairArm(TriggerArm):
    """An arm that searches a trigger for each pair of a source and a target class.

    Attributes:
        screen: a short search over all pairs, where they are too many for a long one.
    """

    screen: Callable[[GroupMisclassification, ScanConfig], Sequence[TriggerEstimate]]

    def search(self, ready: Ready, config: ScanConfig, progress: Progress | None) -> Searched:
        """Search pairs; each target class is represented by its most suspicious one."""
        begun = time.monotonic()
        some = ready.first_of_each_class(self.images_per_class(config))
        pairs, screened, spent = self._pairs(ready, config)
        if not pairs:
            classes = [_nothing_found(t, (), NO_PAIRS) for t in ready.targets]
            settings = self.settings(config) | {"pairs": 0}
            return Searched(detector_result(self.name, settings, classes, config, 0, 0.0), {}, ())
        objective = self._pair_objective(some, pairs)
        estimates = self.estimate(objective, config, progress)
        spent += objective.image_gradients
        sizes = [e.size if e.found else None for e in estimates]
        best = pair_statistics(pairs, sizes, ready.classifier.class_count, screened)
        leading = {s.target_class: estimates[s.index] for s in best}
        classes = [
            self._class_result(some, pairs[s.index][0], estimates[s.index], s.statistic)
            for s in best
        ]
        found = {c.target_class for c in classes}
        classes += [_nothing_found(t, estimates, NO_PAIRS) for t in ready.targets if t not in found]
        classes.sort(key=lambda c: c.target_class)
        settings = self.settings(config) | {"pairs": len(pairs)}
        seconds = time.monotonic() - begun
        result = detector_result(self.name, settings, classes, config, spent, seconds)
        published = None
        if self.name == "red_p" and screened is None:
            published = published_pairs_test(pairs, sizes, config.verdict)
        result = replace(
            result, published=published, mapping=self._mapping(ready, pairs, estimates)
        )
        arrays = {t: trigger_arrays(e) for t, e in leading.items()}
        return Searched(result, arrays, list(leading.values()))

    def sources_of(self, estimate: TriggerEstimate) -> Sequence[int] | None:
        return [int(estimate.source_weights.argmax())]

    def _pairs(self, ready: Ready, config: ScanConfig) -> tuple[list[Pair], Floats | None, int]:
        """(pairs to search, log sizes of the short search if there was one, its gradients)."""
        sources = np.unique(ready.labels).tolist()
        pairs = all_pairs(sources, ready.targets)
        settings = config.class_pairs
        if ready.classifier.class_count <= settings.all_pairs_up_to:
            return pairs, None, 0
        if ready.classifier.class_count > MAX_PAIR_CLASSES:
            return [], None, 0
        objective = self._pair_objective(ready.first_of_each_class(1), pairs)
        sizes = [e.size if e.found else None for e in self.screen(objective, config)]
        largest = 2 * max((size for size in sizes if size), default=1.0)
        logs = [math.log(size or largest) for size in sizes]  # not found: larger than all others
        screened = as_matrix(pairs, logs, ready.classifier.class_count)
        chosen = choose_pairs(screened, settings.sources_per_target)
        return chosen, screened, objective.image_gradients

    def _pair_objective(self, ready: Ready, pairs: Sequence[Pair]) -> GroupMisclassification:
        wanted = ready._replace(targets=tuple(t for _, t in pairs))
        return self.objective(wanted, [s for s, _ in pairs])

    def _class_result(
        self, ready: Ready, source: int, estimate: TriggerEstimate, statistic: float
    ) -> ClassResult:
        own = ready.labels == source
        result = class_result(
            ready.classifier,
            ready.images[own],
            ready.labels[own],
            estimate,
            ready.batch_images,
            self.embed,
        )
        return replace(result, statistic=statistic)

    def _mapping(
        self, ready: Ready, pairs: Sequence[Pair], estimates: Sequence[TriggerEstimate]
    ) -> MappingResult | None:
        """The mapping of all classes under one trigger; ONNX Runtime says where images go."""
        first, second = split_halves(ready.labels)
        classes = ready.classifier.class_count

        def fractions(trigger: torch.Tensor) -> tuple[Floats, Floats]:
            x = self.embed(torch.from_numpy(ready.images), self.scale(trigger, MARGIN))
            predicted = ready.classifier.predictions(x.numpy())
            q = [_destinations(ready.labels[h], predicted[h], classes) for h in (first, second)]
            return q[0], q[1]

        sizes = [e.size if e.found else None for e in estimates]
        found = shared_mapping(
            fractions,
            [torch.from_numpy(e.trigger) for e in estimates],
            sizes,
        )
        if found is None:
            return None
        back = one_way(found.mapping, pairs, sizes)
        return _mapping_result(found, pairs, back, classes)


def _mapping_result(
    found: SharedMapping, pairs: Sequence[Pair], back: float | None, classes: int
) -> MappingResult:
    source, target = pairs[found.index]
    return MappingResult(
        source_class=source,
        target_class=target,
        mapping=found.mapping,
        rate=found.rate,
        classes=found.classes,
        destinations=found.destinations,
        one_way=back,
        all_to_all=is_all_to_all(found.rate, found.destinations, back, classes),
    )


def _destinations(labels: Labels, predicted: Labels, classes: int) -> Floats:
    """(K, K) share of the images of class s that go to class t, NaN rows without images."""
    q = np.full((classes, classes), np.nan)
    for s in np.unique(labels):
        q[s] = np.bincount(predicted[labels == s], minlength=classes) / (labels == s).sum()
    return q


def _nothing_found(
    target: int, estimates: Sequence[TriggerEstimate], otherwise: str
) -> ClassResult:
    """A target class that no pair's search reached."""
    own = [e for e in estimates if e.target_class == target]
    return ClassResult(
        target_class=target,
        status="censored",
        stop_reason=own[0].stop_reason if own else otherwise,
        norm=None,
        statistic=None,
        gradient_evaluations=sum(e.gradient_evaluations for e in own),
    )


def _pair_settings(config: ScanConfig) -> dict[str, Any]:
    return asdict(config.class_pairs)


def _perturbations(
    objective: GroupMisclassification, config: ScanConfig, progress: Progress | None = None
) -> list[PatternEstimate]:
    """Norms of a search over many pairs stay coarse: they are compared with one another."""
    refine_from = math.inf if len(objective.targets) > 1 else 0.0
    settings = replace(config.l_red, weights="uniform", refine_from=refine_from)
    return estimate_patterns(objective, settings, progress)


PAIR_ARMS = {
    "class_pairs": PairArm(
        name="class_pairs",
        embed=embed_mask_pattern,
        scale=scale_mask_pattern,
        estimate=lambda objective, config, progress: estimate_masks(
            objective, replace(config.mask_pattern, steps=config.class_pairs.steps), progress
        ),
        settings=_pair_settings,
        images_per_class=lambda config: config.class_pairs.mask_images_per_class,
        screen=lambda objective, config: estimate_masks(
            objective,
            replace(config.mask_pattern, steps=config.class_pairs.screening_steps),
        ),
    ),
    "red_p": PairArm(
        name="red_p",
        embed=embed_additive,
        scale=scale_additive,
        estimate=_perturbations,
        settings=_pair_settings,
        images_per_class=lambda config: config.class_pairs.images_per_class,
        screen=_perturbations,
    ),
}
