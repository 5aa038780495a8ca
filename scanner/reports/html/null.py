"""The null that a detector's largest statistic was tested against, fitted again for the chart.

The scan stores the statistics, not the fit: it is the same Gamma (L-RED section 3.2), from the same
function, so that the picture shows the test that gave the verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from scanner.statistics import fit_gamma_censored

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedNull:
    """A Gamma fitted to every statistic but the largest, and where the two keys turn.

    Attributes:
        shape, scale: the Gamma's.
        significant_beyond: the paper's p-value is below `significance` for a largest statistic
            beyond this: the (1 - significance)^(1/K) quantile.
        significance: the p-value that the test asked for.
        far_beyond: the effect size needed: the larger of the required ratios times the median of
            all and times the second largest.
    """

    shape: float
    scale: float
    significant_beyond: float
    significance: float
    far_beyond: float

    def density(self, at: Floats) -> Floats:
        """The Gamma's density."""
        x = np.maximum(at / self.scale, np.finfo(np.float64).tiny)
        log_density = (self.shape - 1) * np.log(x) - x - special.gammaln(self.shape)
        values: Floats = np.exp(log_density) / self.scale
        return values

    @property
    def middle(self) -> tuple[float, float]:
        """The range that 90 % of the Gamma lies in."""
        low, high = special.gammaincinv(self.shape, [0.05, 0.95]) * self.scale
        return float(low), float(high)


def fit_null(detector: Mapping[str, Any]) -> FittedNull | None:
    """The null of a stored detector; None where no test was made or no Gamma fits.

    Args:
        detector: a REPORT's entry under `detectors`.
    """
    tested = detector["statistics"]
    known = [c for c in detector["classes"] if (c["statistic"] or 0) > 0]
    found = [c for c in known if c["status"] == "found"]
    if tested is None or len(found) < 3:
        return None
    largest = max(found, key=lambda c: c["statistic"])
    rest = [c for c in known if c is not largest]
    values = np.array([c["statistic"] for c in rest], dtype=np.float64)
    try:
        shape, scale = fit_gamma_censored(values, np.array([c["status"] != "found" for c in rest]))
    except ValueError:
        return None
    quantile = (1 - tested["significance"]) ** (1 / len(known))
    beyond = float(special.gammaincinv(shape, quantile) * scale)
    far = max(
        tested["required_ratio_to_median"] * float(np.median([c["statistic"] for c in known])),
        tested["required_ratio_to_second"] * float(values.max()),
    )
    if not np.isfinite((shape, scale, beyond, far)).all():
        return None
    return FittedNull(shape, scale, beyond, tested["significance"], far)
