"""Third-party files: read with parity at any batch size, or refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from converters import ConverterError, check_parity, load_classifier

FOLDER = Path(os.environ.get("BDSCAN_SHARED", ""), "models", "vendor-onnx")
FILES = sorted(FOLDER.glob("*.onnx")) if "BDSCAN_SHARED" in os.environ else []


@pytest.mark.shared
@pytest.mark.skipif(not FILES, reason="BDSCAN_SHARED names no folder with models/vendor-onnx")
@pytest.mark.parametrize("path", FILES or [Path("none")], ids=lambda path: path.stem)
def test_third_party_file(path: Path) -> None:
    try:
        classifier = load_classifier(path)
    except ConverterError as error:
        pytest.skip(f"refused: {error}")
    wanted = classifier.image_input
    for size in (1, 3, 8):
        pixels = np.random.default_rng(size).random((size, *wanted.shape), dtype=np.float32)
        pixels *= wanted.pixel_range_hint or 1
        parity = check_parity(classifier, pixels.astype(wanted.dtype))
        assert parity.images == size
