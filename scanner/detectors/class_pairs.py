"""Class pairs: which source class goes to which target class more easily than the others suggest?

A search for each pair (s, t) on the images of s alone sees what a search for t on all images can't:
an attack with one source class among many, and all-to-all attacks, where every class is a target.

    minimise ||v||_2   (L-RED eq. 2, RED-P)   or   ||m||_1   (eq. 14)
    subject to the share of D_s that goes to t being at least pi

The sizes d_st of these triggers are no sample of one distribution: some source classes are easily
left, some target classes easily reached. In

    log d_st = mu + a_s + b_t + e_st

the effects a and b are taken out by median polish (J. W. Tukey, "Exploratory Data Analysis", 1977),
which a few backdoored pairs don't move, and r_t = max_s exp(-e_st) says how many times smaller than
expected the smallest trigger to t is.

With many classes all pairs are too many. A short search over all of them (one image of each source
class; masks take a few steps only) then chooses `sources_per_target` pairs for each target class,
those with the smallest e_st. A pair of similar classes is near in both directions, a backdoor leads
in one: where the way back is easy too, it is subtracted when the pairs are chosen.

An all-to-all attack carries each class to its own target class. `shared_mapping` tries the smallest
triggers of all pairs on all classes, and looks for a mapping of the classes under one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

Floats = npt.NDArray[np.float64]
Pair = tuple[int, int]

_POLISHINGS = 20
MAPPING_TRIALS = 12  # triggers that `shared_mapping` tries
MAPPING_RATIO = 3.0  # a mapping's trigger is so many times smaller than the median pair's, at least


def all_pairs(sources: Iterable[int], targets: Sequence[int]) -> list[Pair]:
    """(s, t) for all sources and targets that differ."""
    return [(s, t) for s in sources for t in targets if s != t]


def without_effects(log_sizes: Floats) -> Floats:
    """e_st: log sizes without source and target effects, by median polish.

    Args:
        log_sizes: (S, T), NaN where nothing is known.

    Returns:
        (S, T), NaN where nothing is known.
    """
    e = log_sizes.copy()
    for _ in range(_POLISHINGS):
        for axis in (1, 0):
            e -= _median(e, axis)
    return e


def _median(e: Floats, axis: int) -> Floats:
    """Median along an axis, 0 where there is nothing."""
    empty = np.isnan(e).all(axis, keepdims=True)
    filled = np.where(empty, 0.0, e)
    medians: Floats = np.nanmedian(filled, axis, keepdims=True)
    return medians


def as_matrix(pairs: Sequence[Pair], values: Sequence[float], classes: int) -> Floats:
    """(K, K), values[i] at pairs[i], NaN elsewhere."""
    matrix = np.full((classes, classes), np.nan)
    for (source, target), value in zip(pairs, values, strict=True):
        matrix[source, target] = value
    return matrix


def choose_pairs(screened: Floats, sources_per_target: int) -> list[Pair]:
    """The pairs worth a long search: for each target the sources with the smallest e_st, less what
    the way back suggests."""
    e = without_effects(screened)
    back = np.where(np.isnan(e.T), 0.0, e.T)
    score = np.where(np.isnan(e), np.inf, e + np.maximum(0.0, -back))
    chosen = []
    for target in range(len(score)):
        order = np.argsort(score[:, target], kind="stable")[:sources_per_target]
        chosen += [(int(s), target) for s in order if np.isfinite(score[s, target])]
    return sorted(chosen)


@dataclass(frozen=True)
class PairStatistic:
    """What the pairs say of one putative target class t.

    Attributes:
        target_class: t.
        index: of its most suspicious pair, in the list of pairs searched.
        statistic: r_t = max_s exp(-e_st), how many times smaller than expected its trigger is.
    """

    target_class: int
    index: int
    statistic: float


def pair_statistics(
    pairs: Sequence[Pair],
    sizes: Sequence[float | None],
    classes: int,
    screened: Floats | None = None,
) -> list[PairStatistic]:
    """r_t of every target class with a pair whose size is known.

    Args:
        pairs, sizes: what was searched, and the sizes found, None where none was.
        classes: K.
        screened: (K, K) log sizes of the short search, whose effects stand for those of the few
            pairs that were searched to the end; None: all pairs were.
    """
    known = [i for i, size in enumerate(sizes) if size]
    logs = as_matrix([pairs[i] for i in known], [np.log(sizes[i] or 1) for i in known], classes)
    if screened is None:
        e = without_effects(logs)
    else:
        e = logs - (screened - without_effects(screened))
        e -= np.nanmedian(e) if known else 0.0
    best: dict[int, PairStatistic] = {}
    for i in known:
        target, statistic = pairs[i][1], float(np.exp(-e[pairs[i]]))
        if target not in best or statistic > best[target].statistic:
            best[target] = PairStatistic(target, i, statistic)
    return [best[target] for target in sorted(best)]


@dataclass(frozen=True)
class SharedMapping:
    """The mapping of classes under one trigger.

    Attributes:
        index: of the trigger's pair in the list of pairs.
        mapping: (K,) the class that each class goes to, no two the same; -1 without images.
        rate: share of images that go there, mean over the classes with images, on images that
            neither the search nor the choice of the mapping saw.
        classes: how many classes have such images.
        destinations: how many different classes more than half of some class's images go to.
    """

    index: int
    mapping: tuple[int, ...]
    rate: float
    classes: int
    destinations: int


def one_way(
    mapping: Sequence[int], pairs: Sequence[Pair], sizes: Sequence[float | None]
) -> float | None:
    """How many times larger the triggers back are than those that follow a mapping: the median.

    Neighbours by nature are as near one way as the other; an attack leads in one direction.

    Returns:
        None where no class has both sizes.
    """
    known = {pair: size for pair, size in zip(pairs, sizes, strict=True) if size}
    moved = [(s, t) for s, t in enumerate(mapping) if t >= 0]
    ratios = [known[t, s] / known[s, t] for s, t in moved if (s, t) in known and (t, s) in known]
    return float(np.median(ratios)) if ratios else None


def one_to_one(q: Floats) -> npt.NDArray[np.int64]:
    """The mapping s -> t != s, no two the same, with the largest sum of q_st.

    Args:
        q: (K, K) shares of class s that go to t.
    """
    cost = -q.copy()
    np.fill_diagonal(cost, 1.0)
    mapping: npt.NDArray[np.int64] = linear_sum_assignment(cost)[1]
    return mapping


def shared_mapping(
    fractions: Callable[[torch.Tensor], tuple[Floats, Floats]],
    triggers: Sequence[torch.Tensor],
    sizes: Sequence[float | None],
) -> SharedMapping | None:
    """The trigger under which most images follow a one-to-one mapping of the classes.

    A trigger of a common attack carries all classes to one target class, so its rate is 1 / K. What
    a clean model does under its smallest triggers gave at most .12 on ten clean MNIST models, two
    models with all-to-all attacks .88 and .96.

    Classes that lie on a line, such as shades, are shifted along it by nature, through triggers of
    about the size of the others; so only triggers well below the median are tried.

    Args:
        fractions: trigger -> (q on images to choose the mapping by, q on images to judge it by),
            each (K, K), with NaN rows for classes without images.
        triggers, sizes: of all pairs that were searched, None where none was found.
    """
    known = [(size, i) for i, size in enumerate(sizes) if size]
    if not known:
        return None
    largest = float(np.median([size for size, _ in known])) / MAPPING_RATIO
    order = [i for size, i in sorted(known) if size <= largest][:MAPPING_TRIALS]
    tried = [_mapping_under(i, *fractions(triggers[i])) for i in order]
    return max(tried, key=lambda m: m.rate, default=None)


def _mapping_under(index: int, chosen_by: Floats, judged_by: Floats) -> SharedMapping:
    mapping = one_to_one(np.nan_to_num(chosen_by))
    present = np.isfinite(judged_by.sum(1))
    rates = judged_by[np.flatnonzero(present), mapping[present]]
    followed = mapping[present][rates > 0.5]
    return SharedMapping(
        index=index,
        mapping=tuple(np.where(present, mapping, -1).tolist()),
        rate=float(rates.mean()) if len(rates) else 0.0,
        classes=int(present.sum()),
        destinations=len(set(followed.tolist())),
    )
