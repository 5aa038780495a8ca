"""Principal components of feature vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

Floats = npt.NDArray[np.float64]

_RELATIVE_RANK = 1e-10  # variances below this share of the greatest are rounding


def principal_components(features: npt.ArrayLike, count: int) -> tuple[Floats, Floats]:
    """Project centred rows on their top right singular vectors.

    The smaller of the two Gram matrices is decomposed, so n rows of D numbers take
    min(n, D)^2 memory. Signs are arbitrary, but the same for the same input.

    Args:
        features: (n, D), finite.
        count: how many components at most; there may be fewer, down to none for equal rows.

    Returns:
        (n, c) projections, greatest variance first, and (c,) singular values, all above zero.
    """
    rows = np.asarray(features, dtype=np.float64)
    rows = rows - rows.mean(0)
    tall = rows.shape[0] >= rows.shape[1]
    gram = rows.T @ rows if tall else rows @ rows.T
    wanted = min(count, len(gram))
    squares, vectors = eigh(gram, subset_by_index=(len(gram) - wanted, len(gram) - 1))
    squares, vectors = squares[::-1], vectors[:, ::-1]
    kept = squares > _RELATIVE_RANK * max(float(np.trace(gram)), np.finfo(np.float64).tiny)
    singular: Floats = np.sqrt(squares[kept])
    projections: Floats = rows @ vectors[:, kept] if tall else vectors[:, kept] * singular
    return projections, singular
