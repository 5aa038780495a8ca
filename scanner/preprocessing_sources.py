"""Where preprocessing can be stated: flags, a file, sidecars, the ONNX metadata, the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from scanner.config import PreprocessingOptions
from scanner.errors import UsageError

FIELDS = ("pixel_range", "mean", "std", "channel_order")
METADATA_KEY = "bdscan.preprocessing"
MAX_SIDECAR_BYTES = 1_000_000
SIDECARS = ("preprocessor_config.json", "config.json")


def stated_values(
    model: onnx.ModelProto, model_path: Path | None, options: PreprocessingOptions
) -> dict[str, tuple[Any, str]]:
    """Every value that flags, file, sidecar or metadata state, with its origin."""
    sources: list[tuple[str, dict[str, Any]]] = [
        ("flag", {k: getattr(options, k) for k in FIELDS if getattr(options, k) is not None})
    ]
    if options.file is not None:
        sources.append((f"file {options.file}", read_preprocessing_file(Path(options.file))))
    if model_path is not None:
        sources += [
            (f"sidecar {name}", read_sidecar(model_path.parent / name))
            for name in SIDECARS
            if (model_path.parent / name).is_file()
        ]
    sources.append(("model metadata", read_metadata(model)))
    known: dict[str, tuple[Any, str]] = {}
    for origin, values in sources:
        for key, value in values.items():
            known.setdefault(key, (value, origin))
    return known


def read_preprocessing_file(path: Path) -> dict[str, Any]:
    """What a file that the user names states.

    Raises:
        UsageError: it can't be read, or states nothing.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"preprocessing file {path} can't be read: {error}") from error
    values = values_from_json(content) if isinstance(content, dict) else {}
    if not values:
        raise UsageError(f"preprocessing file {path} states none of {', '.join(FIELDS)}")
    return values


def read_sidecar(path: Path) -> dict[str, Any]:
    """What a file beside the model states; a vendor's file that can't be read states nothing."""
    try:
        if path.stat().st_size > MAX_SIDECAR_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    timm = content.get("pretrained_cfg")
    if isinstance(timm, dict):
        return {"channel_order": "RGB", **values_from_json(timm)}
    return values_from_json(content)


def values_from_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Our own keys, Hugging Face's preprocessor_config.json or timm's pretrained_cfg."""
    values: dict[str, Any] = {}
    if _is_number(content.get("pixel_range")):
        values["pixel_range"] = float(content["pixel_range"])
    if isinstance(content.get("channel_order"), str):
        values["channel_order"] = content["channel_order"]
    for key in ("mean", "std"):
        if _are_numbers(content.get(key)):
            values[key] = tuple(float(v) for v in content[key])
            values.setdefault("pixel_range", 1.0)
    if "do_rescale" in content or "do_normalize" in content or "image_mean" in content:
        factor = content.get("rescale_factor", 1 / 255)
        rescale = content.get("do_rescale", True) and _is_number(factor)
        values["pixel_range"] = round(255 * factor, 6) if rescale else 255.0
        values.setdefault("channel_order", "RGB")  # Hugging Face's processors know no other
        normalise = content.get("do_normalize", True)
        for key, neutral in (("mean", 0.0), ("std", 1.0)):
            stated = content.get(f"image_{key}")
            if normalise and _are_numbers(stated):
                values[key] = tuple(float(v) for v in stated)  # type: ignore[union-attr]
            elif not normalise:
                values[key] = (neutral,)
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _are_numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_number, value))


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """What the model's metadata says: our own key, or the ONNX specification's image keys."""
    entries = {p.key.lower(): p.value for p in model.metadata_props}
    if METADATA_KEY in entries:
        try:
            content = json.loads(entries[METADATA_KEY])
        except (ValueError, RecursionError):
            content = None
        return values_from_json(content) if isinstance(content, dict) else {}
    values: dict[str, Any] = {}
    order = entries.get("image.bitmappixelformat", "").lower()[:4]
    if order in ("gray", "rgb8", "bgr8"):
        values["channel_order"] = {"gray": "gray", "rgb8": "RGB", "bgr8": "BGR"}[order]
    nominal = entries.get("image.nominalpixelrange", "").lower()
    ranges = {
        "nominalrange_0_255": (255.0, 0.0, 1.0),
        "normalized_0_1": (1.0, 0.0, 1.0),
        "normalized_1_1": (1.0, 0.5, 0.5),
    }
    if nominal in ranges:
        pixel_range, mean, std = ranges[nominal]
        values |= {"pixel_range": pixel_range, "mean": (mean,), "std": (std,)}
    return values


def class_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Class names from the metadata: a JSON list under `class_names`, or none."""
    for entry in model.metadata_props:
        if entry.key == "class_names":
            try:
                names = json.loads(entry.value)
            except (ValueError, RecursionError):
                return ()
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return tuple(names)
    return ()


def normalises_itself(model: onnx.ModelProto) -> bool:
    """Whether the graph begins by scaling or shifting its input by constants."""
    constants = {t.name for t in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    name = next((v.name for v in model.graph.input if v.name not in constants), "")
    while True:
        readers = [n for n in model.graph.node if name in n.input]
        if len(readers) != 1:
            return False
        if readers[0].op_type in ("Sub", "Div", "Mul", "Add"):
            return any(other in constants for other in readers[0].input)
        if readers[0].op_type not in ("Cast", "Transpose", "Identity"):
            return False
        name = readers[0].output[0]
