"""`bdscan export`: a user's own torch module -> an ONNX file that `bdscan` reads.

Only this command imports a user's module. Weights are tensors and nothing else: safetensors, or a
state dict that torch loads with `weights_only=True`; nothing is unpickled.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from converters import ConverterError
from converters.torch_export import export_onnx
from scanner.config import PreprocessingOptions
from scanner.errors import BdscanError, UsageError
from scanner.preprocessing_sources import FIELDS, read_preprocessing_file

EXAMPLES = 4
"""Random images that ONNX Runtime is compared with torch on."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def export_module(
    factory: str,
    weights: Path,
    out: Path,
    *,
    channels: int = 3,
    image_size: tuple[int, int] = (224, 224),
    preprocessing: PreprocessingOptions | None = None,
    class_names: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Build a module, load its weights, export it, and return what was written.

    Args:
        factory: MODULE:FACTORY; FACTORY() gives the `torch.nn.Module`. MODULE is found as Python
            finds it, in the current folder first.
        weights: a .safetensors file, or a state dict that `torch.save` wrote.
        out: the ONNX file to write.
        channels, image_size: of the images, (height, width).
        preprocessing: what the file's metadata says; nothing stated: nothing written.
        class_names: a file with one class name per line, in class order.
        seed: of the random images that both engines are compared on.

    Returns:
        The path and what was stated, as values for a report.

    Raises:
        UsageError: a wrong argument: no such module, factory or file, weights that don't fit.
        BdscanError: the module can't be exported, or ONNX Runtime disagrees with torch.
    """
    module = build_module(factory)
    load_weights(module, weights)
    stated = _stated(preprocessing or PreprocessingOptions())
    names = _class_names(class_names)
    generator = torch.Generator().manual_seed(seed)
    example = torch.rand(EXAMPLES, channels, *image_size, generator=generator)
    try:
        export_onnx(module, example, out, preprocessing=stated or None, class_names=names)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except ConverterError as error:
        raise BdscanError(f"{factory}: {error}") from error
    except OSError as error:
        raise UsageError(f"{out} can't be written: {error}") from error
    return {
        "file": str(out),
        "input": [channels, *image_size],
        "preprocessing": stated,
        "class_names": len(names),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }


def build_module(factory: str) -> nn.Module:
    """Import MODULE and call FACTORY.

    Raises:
        UsageError: there is no such module or factory, or it gives no module.
    """
    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise UsageError(f"{factory!r}: expected MODULE:FACTORY such as my_models:resnet")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when it is imported
        raise UsageError(f"module {module_name} can't be imported: {error!r}") from error
    make = getattr(found, name, None)
    if not callable(make):
        raise UsageError(f"module {module_name} has no factory {name}")
    try:
        module = make()
    except Exception as error:  # as above
        raise UsageError(f"{factory}() failed: {error!r}") from error
    if not isinstance(module, nn.Module):
        what = type(module).__name__
        raise UsageError(f"{factory}() gives a {what}, expected a torch.nn.Module")
    return module


def load_weights(module: nn.Module, path: Path) -> None:
    """Load weights into `module`, on the CPU.

    A state dict may be wrapped as `{"state_dict": ...}`, and its names may begin with `module.`,
    as torch's parallel modules write them.

    Raises:
        UsageError: the file can't be read, holds more than tensors, or doesn't fit.
    """
    if not path.is_file():
        raise UsageError(f"weights {path} do not exist")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = _unwrapped(state)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(f"weights {path} hold no state dict of tensors")
    try:
        fit = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise UsageError(f"weights {path} don't fit the module: {_some(lines)}") from error
    wrong = [f"missing {key}" for key in fit.missing_keys]
    wrong += [f"unexpected {key}" for key in fit.unexpected_keys]
    if wrong:
        raise UsageError(f"weights {path} don't fit the module: {_some(wrong)}")


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UsageError(
            f"weights {path}: safetensors files need the package safetensors: "
            "pip install safetensors"
        ) from None
    try:
        state: Mapping[str, Any] = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"weights {path} can't be read: {error}") from error
    return state


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zip's and torch's own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"weights {path} can't be loaded as tensors alone; save module.state_dict(), not the "
            f"module ({reason})"
        ) from error
    return state if isinstance(state, Mapping) else {}


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    for key in _WRAPPERS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    names = [str(name) for name in state]
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    return {str(name).removeprefix(prefix): value for name, value in state.items()}


def _stated(options: PreprocessingOptions) -> dict[str, object]:
    values: dict[str, object] = {
        key: getattr(options, key) for key in FIELDS if getattr(options, key) is not None
    }
    if options.file is not None:
        values = {**read_preprocessing_file(Path(options.file)), **values}
    return values


def _class_names(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"class names {path} can't be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UsageError(f"class names {path}: the file is empty")
    return names


def _some(lines: Sequence[str]) -> str:
    shown = "; ".join(lines[:3])
    return shown if len(lines) <= 3 else f"{shown} and {len(lines) - 3} more"
