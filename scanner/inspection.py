"""`bdscan inspect`: what a model file holds and whether it can be scanned, without scanning it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from converters import (
    ConverterError,
    UnsupportedModelError,
    check_parity,
    prepare_classifier,
    read_model,
)
from converters.instructions import operator_label
from scanner import describe
from scanner.config import PreprocessingOptions
from scanner.preprocessing_sources import class_names, stated_values
from scanner.results import ModelReport, Note, to_json


def inspect_model(
    path: Path, output: str | None = None, image_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Inputs, outputs, operators, what is not supported, and the preprocessing that is stated.

    Returns:
        Plain data. `problem` is None if the model can be scanned, else the reason; facts that
        could not be learned are None.

    Raises:
        ConverterError, FileNotFoundError: the file is not a readable ONNX model.
    """
    import numpy as np

    file = read_model(path)
    proto = file.proto
    versions = {o.domain: o.version for o in proto.opset_import}
    operators = Counter(
        operator_label(n.domain, n.op_type, versions.get(n.domain)) for n in proto.graph.node
    )
    info = describe.model(file, str(path))
    problem, parity = None, None
    unsupported: tuple[str, ...] = ()
    try:
        onnx = prepare_classifier(file, output, image_size)
        info = describe.classifier(onnx, str(path))
        shape = (4, *onnx.image_input.shape)
        random = np.random.default_rng(0).random(shape, dtype=np.float32)
        parity = check_parity(onnx, random.astype(onnx.image_input.dtype)).max_difference
    except ConverterError as error:
        problem = {"code": error.reason, "message": str(error)}
        if isinstance(error, UnsupportedModelError):
            unsupported = error.operators
    stated = stated_values(proto, path, PreprocessingOptions())
    report = ModelReport(info, "skipped", reasons=(Note("inspected", "not scanned"),))
    return {
        "model": to_json(report)["model"],
        "opsets": {domain or "ai.onnx": version for domain, version in versions.items()},
        "operators": dict(operators.most_common()),
        "unsupported_operators": list(unsupported),
        "preprocessing": {
            key: {"value": value, "origin": origin} for key, (value, origin) in stated.items()
        },
        "class_names": list(class_names(proto)),
        "parity_on_random_images": parity,
        "problem": problem,
    }
