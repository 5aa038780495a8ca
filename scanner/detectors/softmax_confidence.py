"""Softmax confidence: how sure the model is of its prediction, the trivial baseline.

D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples
in Neural Networks", ICLR 2017. A trigger that was trained on often makes a model surer than any
clean image does; a detector that does not beat this one has found nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

Floats = npt.NDArray[np.float64]


def probabilities(logits: npt.ArrayLike) -> Floats:
    """(N, K) logits -> (N, K) softmax, in double precision: sure predictions still differ."""
    shares: Floats = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return shares


def softmax_confidence(logits: npt.ArrayLike) -> Floats:
    """(N, K) logits -> (N,) the greatest softmax probability, in [1/K, 1]. Large is suspicious."""
    confidence: Floats = probabilities(logits).max(axis=1)
    return confidence
