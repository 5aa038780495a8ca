"""Spectral Signatures: poisoned images stand out along their class's top singular vector.

B. Tran, J. Li, A. Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, Algorithm 1. For
the images x_i of one label, with R(x) their deep features and v the top right singular vector of
the matrix of R(x_i) - mean R,

    tau_i = ((R(x_i) - mean R) . v)^2

The paper removes the images of greatest tau from each label. Scores are not normalised between
labels there, and are not here. Without labels the model's predictions stand in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scanner.principal_components import principal_components

Floats = npt.NDArray[np.float64]


def spectral_signatures(features: npt.ArrayLike, classes: npt.ArrayLike) -> Floats:
    """tau of each image within its class. Large is suspicious.

    Args:
        features: (N, D), what the last linear layer reads (`layer_outputs.rows`).
        classes: (N,) labels, or predictions in their place.

    Returns:
        (N,) squared lengths in the features' unit; 0 in a class of one image; NaN
        for an image whose features are not finite.

    Raises:
        ValueError: features and classes are of different number.
    """
    rows, owner = np.asarray(features, dtype=np.float64), np.asarray(classes)
    if rows.ndim != 2 or len(rows) != len(owner):
        raise ValueError(f"features {rows.shape} for {len(owner)} classes")
    finite = np.isfinite(rows).all(1)
    scores = np.where(finite, 0.0, np.nan)
    for label in np.unique(owner[finite]):
        members = np.flatnonzero(finite & (owner == label))
        projections, _ = principal_components(rows[members], 1)
        scores[members] = (projections**2).sum(1)
    return scores
