"""Group misclassification under a trigger, for many target classes at once.

For putative target class t, trigger v and class weights w (L-RED eqs. 3 and 5; the same for a mask
and a pattern, eqs. 12 and 14):

    q_st(v)   = share of the images of source class s that m(x; v) sends to t
    J_t(v, w) = sum_s w_s mean_{x in D_s} log p(t | m(x; v))

All target classes are evaluated in one batch; one forward pass gives q and, once the weights that
follow from q are known, the gradient of J.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from scanner.classifier import Classifier
from scanner.triggers import Embed, embed_additive

Floats = npt.NDArray[np.float64]

# (positions of n target classes, their q (n, K)) -> class weights (n, K)
Weigh = Callable[[list[int], Floats], Floats]


class OutOfTime(Exception):
    """The deadline passed in the middle of an evaluation."""


class GroupMisclassification:
    """q_st(v) and the gradient of J_t(v, w) on a fixed set of clean images.

    Args:
        classifier: the model.
        images: (M, C, H, W) in [0, 1], all classified as labelled.
        labels: (M,) class indices.
        targets: the putative target classes; "position" below is an index into this list.
        batch_images: how many images one pass may hold.
        deadline: `time.monotonic()` after which no further pass is begun.
        embed: how a trigger is embedded (see `scanner.triggers`); "(n, C, H, W)" below is one
            trigger for each of n target classes in the form that it takes.
        sources: the only source class of each target, for a search over class pairs (eqs. 2 and
            14); None: all classes but the target.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        targets: Sequence[int],
        batch_images: int,
        deadline: float | None = None,
        embed: Embed = embed_additive,
        sources: Sequence[int] | None = None,
    ) -> None:
        self.classifier = classifier
        self.embed = embed
        self.targets = tuple(targets)
        self.sources = None if sources is None else tuple(sources)
        self.batch_images = batch_images
        self.deadline = deadline
        self.images = torch.from_numpy(images).to(classifier.device)
        self.labels = torch.from_numpy(labels)
        self.image_gradients = 0
        chosen = (
            [self.labels != t for t in self.targets]
            if sources is None
            else [self.labels == s for s in sources]
        )
        self._rows = [torch.nonzero(rows).flatten() for rows in chosen]
        self.counts = np.stack(
            [
                np.bincount(labels[rows.numpy()], minlength=classifier.class_count)
                for rows in self._rows
            ]
        ).astype(np.float64)

    @property
    def device(self) -> torch.device:
        """Where images and perturbations live."""
        return self.images.device

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(source class, target class) of every position of a search over class pairs."""
        if self.sources is None:
            return []
        return list(zip(self.sources, self.targets, strict=True))

    @property
    def uniform_weights(self) -> Floats:
        """(T, K): w^(0), uniform over the classes that have images, 0 for t itself."""
        present = (self.counts > 0).astype(np.float64)
        weights: Floats = present / np.maximum(present.sum(1, keepdims=True), 1)
        return weights

    def image_count(self, position: int) -> int:
        """How many images the search for a target class uses."""
        return len(self._rows[position])

    def evaluate(self, positions: list[int], v: torch.Tensor, weigh: Weigh) -> torch.Tensor:
        """The gradient of J at v under the weights that `weigh` makes of q at v.

        Args:
            positions: n positions of target classes.
            v: (n, C, H, W) triggers.

        Returns:
            (n, C, H, W) gradients.

        Raises:
            OutOfTime: the deadline has passed.
        """
        gradient = torch.zeros_like(v)
        for here in self._groups(positions):
            group, part = [positions[i] for i in here], v[here]
            rows, owner = self._batch_of(group)
            self.image_gradients += len(rows)
            if len(rows) <= self.batch_images:
                logits, leaf = self._forward(rows, owner, part)
                q = self._fractions(group, rows, owner, logits)
                share = self._shares(group, rows, owner, weigh(group, q))
                gradient[here] = self._backward(group, owner, logits, share, leaf)
                continue
            share = self._shares(group, rows, owner, weigh(group, self.fractions(group, part)))
            for piece in self._pieces(len(rows)):
                logits, leaf = self._forward(rows[piece], owner[piece], part)
                gradient[here] += self._backward(group, owner[piece], logits, share[piece], leaf)
        return gradient

    @torch.no_grad()
    def fractions(self, positions: list[int], v: torch.Tensor) -> Floats:
        """(n, K) q at v alone, without a gradient."""
        rows, owner = self._batch_of(positions)
        logits = [self._forward(rows[p], owner[p], v)[0] for p in self._pieces(len(rows))]
        return self._fractions(positions, rows, owner, torch.cat(logits))

    def _pieces(self, count: int) -> list[torch.Tensor]:
        """Indices 0 to count - 1 in runs of at most `batch_images`."""
        return list(torch.split(torch.arange(count), self.batch_images))

    def _groups(self, positions: list[int]) -> Iterator[list[int]]:
        """Indices into `positions`, in runs whose images fit into one pass (at least one)."""
        group: list[int] = []
        size = 0
        for index, position in enumerate(positions):
            if group and size + len(self._rows[position]) > self.batch_images:
                yield group
                group, size = [], 0
            group.append(index)
            size += len(self._rows[position])
        if group:
            yield group

    def _batch_of(self, group: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(image index, index into `group`) for every image and target class of a group."""
        rows = torch.cat([self._rows[p] for p in group])
        sizes = torch.tensor([len(self._rows[p]) for p in group])
        return rows, torch.repeat_interleave(torch.arange(len(group)), sizes)

    def _forward(
        self, rows: torch.Tensor, owner: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise OutOfTime
        leaf = v.detach().requires_grad_(torch.is_grad_enabled())
        device = self.images.device
        embedded = self.embed(self.images[rows.to(device)], leaf[owner.to(device)])
        return self.classifier.differentiable_logits(embedded), leaf

    def _backward(
        self,
        group: list[int],
        owner: torch.Tensor,
        logits: torch.Tensor,
        share: torch.Tensor,
        leaf: torch.Tensor,
    ) -> torch.Tensor:
        wanted = self._target_of(group)[owner].to(logits.device)
        log_p = logits.log_softmax(1).gather(1, wanted[:, None])[:, 0]
        objective = (share.to(logits) * log_p).sum()
        return torch.autograd.grad(objective, leaf)[0]

    def _target_of(self, group: list[int]) -> torch.Tensor:
        return torch.tensor([self.targets[p] for p in group])

    def _fractions(
        self, group: list[int], rows: torch.Tensor, owner: torch.Tensor, logits: torch.Tensor
    ) -> Floats:
        flipped = logits.detach().argmax(1).cpu() == self._target_of(group)[owner]
        classes = self.classifier.class_count
        cells = owner[flipped] * classes + self.labels[rows[flipped]]
        hits = torch.bincount(cells, minlength=len(group) * classes).numpy()
        return hits.reshape(len(group), classes) / np.maximum(self.counts[group], 1)

    def _shares(
        self, group: list[int], rows: torch.Tensor, owner: torch.Tensor, weights: Floats
    ) -> torch.Tensor:
        """w_s / |D_s| for every row: what its log-posterior counts in J."""
        per_class = torch.from_numpy(weights / np.maximum(self.counts[group], 1))
        return per_class[owner, self.labels[rows]]
