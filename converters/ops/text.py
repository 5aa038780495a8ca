"""Text. Classifiers of images have it beside their scores, if anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from converters.registry import op
from converters.values import Text

_CASES: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}


@op("StringNormalizer", since=10)
def string_normalizer(
    x: Text,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "en_US",
    stopwords: Sequence[str] = (),
) -> tuple[Any]:
    """x, (C) or (1, C), without the stop words, in another case; one empty text if none is left.

    Upper and lower case are Unicode's, whatever the locale.
    """
    if not isinstance(x, np.ndarray) or x.ndim not in (1, 2) or (x.ndim == 2 and len(x) != 1):
        raise ValueError("the input must be texts of shape (C) or (1, C)")
    if case_change_action not in _CASES:
        raise ValueError(f"unknown case_change_action {case_change_action!r}")
    alike = str if is_case_sensitive else str.lower
    dropped = {alike(word) for word in stopwords}
    change = _CASES[case_change_action]
    kept = [change(str(text)) for text in x.flat if alike(str(text)) not in dropped]
    return (np.array(kept or [""], dtype=object).reshape((1,) * (x.ndim - 1) + (-1,)),)
