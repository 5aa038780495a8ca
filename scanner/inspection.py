"""`bdscan inspect`: what a model file holds and whether it can be scanned, without scanning it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from converters import (
    ConverterError,
    ModelFile,
    OnnxClassifier,
    UnsupportedModelError,
    check_parity,
    prepare_classifier,
    read_model,
)
from converters.instructions import operator_label
from scanner import describe
from scanner.clean_set import CleanSetLoader, find_clean_images
from scanner.config import ScanConfig
from scanner.errors import BdscanError
from scanner.open_model import load_clean_set, open_classifier, sample
from scanner.preprocessing_sources import FIELDS, class_names, stated_values
from scanner.results import plain

UNKNOWN = "not stated; --clean-dir finds it"


def inspect_model(path: Path, config: ScanConfig, clean_dir: Path | None = None) -> dict[str, Any]:
    """Inputs, outputs, operators, what is not supported, and the preprocessing.

    Args:
        clean_dir: clean images to find the preprocessing with; without them only stated values
            are shown.

    Returns:
        Plain data. `problem` is None if the model can be scanned, else the reason (`no_gradient` if
        only by detectors that need forward passes alone); facts that could not be learned are None.

    Raises:
        ConverterError, FileNotFoundError: the file is not a readable ONNX model.
        UsageError: the clean set does not exist or holds no images.
    """
    file = read_model(path, config.limits)
    loader = CleanSetLoader(find_clean_images(clean_dir)) if clean_dir else None
    facts: dict[str, Any] = {
        "model": plain(describe.model(file, str(path))),
        **_operators(file),
        "unsupported_operators": [],
        "differentiable": None,
        "other_outputs": [],
        "preprocessing": _stated(file, config),
        "class_names": list(class_names(file.proto)),
        "accuracy": None,
        "parity": None,
        "problem": None,
    }
    try:
        size = config.image_size or (loader.common_size() if loader else None)
        onnx = prepare_classifier(file, config.output, size)
        facts["model"] = plain(describe.classifier(onnx, str(path)))
        facts |= {
            "differentiable": onnx.differentiable,
            "other_outputs": list(onnx.other_outputs),
        }
        facts |= _run(onnx, loader, config)
        if not onnx.differentiable:
            message = f"only forward passes, no gradient: {onnx.why_not_differentiable}"
            facts["problem"] = {"code": "no_gradient", "message": message}
    except (ConverterError, BdscanError) as error:
        facts["problem"] = {"code": error.reason, "message": str(error)}
        if isinstance(error, UnsupportedModelError):
            facts["unsupported_operators"] = list(error.operators)
    return facts


def _operators(file: ModelFile) -> dict[str, Any]:
    versions = {o.domain: o.version for o in file.proto.opset_import}
    counts = Counter(
        operator_label(n.domain, n.op_type, versions.get(n.domain)) for n in file.proto.graph.node
    )
    opsets = {domain or "ai.onnx": version for domain, version in versions.items()}
    return {"opsets": opsets, "operators": dict(counts.most_common())}


def _stated(file: ModelFile, config: ScanConfig) -> dict[str, Any]:
    stated = stated_values(file.proto, file.path, config.preprocessing)
    return {
        key: {"value": value, "origin": origin}
        for key, (value, origin) in {**dict.fromkeys(FIELDS, (None, UNKNOWN)), **stated}.items()
    }


def _run(onnx: OnnxClassifier, loader: CleanSetLoader | None, config: ScanConfig) -> dict[str, Any]:
    """Parity on random or clean images; with clean images, preprocessing and accuracy too."""
    if loader is None:
        shape = (4, *onnx.image_input.shape)
        random = np.random.default_rng(0).random(shape, dtype=np.float32)
        parity = check_parity(onnx, random.astype(onnx.image_input.dtype))
        return {"parity": plain(describe.parity(parity))}
    clean = load_clean_set(onnx, loader, config)
    opened = open_classifier(onnx, clean, config)
    classifier = opened.classifier
    compared = classifier.inputs(clean.images[sample(clean.images)])
    parity = check_parity(onnx, compared, classifier.session)
    return {
        "preprocessing": plain(describe.preprocessing(onnx, classifier.preprocessing)),
        "accuracy": opened.accuracy,
        "parity": plain(describe.parity(parity)),
    }
