"""`bdscan export` and the README's five lines: a user's own module becomes a file that is scanned.

The weights files are hostile ones too: nothing in them may run.
"""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from scanner.config import PreprocessingOptions
from scanner.errors import BdscanError, UsageError
from scanner.exporting import export_module, load_weights
from scanner.preprocessing_sources import class_names, read_metadata
from tests.conftest import ROOT

SIZE = (8, 8)
CLASSES = [f"shade {number}" for number in range(5)]
MODULE = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

def broken():
    raise OSError("no disk")

number = 3
def not_a_module():
    return 3

def stateful():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
"""


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a user's module `their_models` in it."""
    (tmp_path / "their_models.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("their_models", None)


def _save(module: nn.Module, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(module.state_dict(), path)
    else:
        torch.save(module.state_dict(), path)
    return path


def _export(weights: Path, factory: str = "their_models:make", **options: object) -> Path:
    out = Path("out.onnx")
    export_module(factory, weights, out, image_size=SIZE, **options)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_the_file_has_the_weights_that_were_given(name: str, folder: Path) -> None:
    module = make()
    path = _export(_save(module, folder / name))
    images = torch.rand(3, 3, *SIZE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        assert np.allclose(logits, module(images).numpy(), atol=1e-6)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_wrapped_and_parallel_weights_are_understood(key: str, folder: Path) -> None:
    module, other = make(), make()
    state = {f"module.{name}": value + 1 for name, value in module.state_dict().items()}
    torch.save({"epoch": 3, key: state}, folder / "checkpoint.pt")
    load_weights(other, folder / "checkpoint.pt")
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value + 1)


def test_what_is_stated_is_what_the_scanner_reads_back(folder: Path) -> None:
    (folder / "names.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    (folder / "prep.json").write_text('{"mean": [0.1, 0.2, 0.3], "channel_order": "BGR"}')
    options = PreprocessingOptions(pixel_range=255, std=(2.0, 2.0, 2.0), file="prep.json")
    path = _export(
        _save(make(), folder / "w.pt"), preprocessing=options, class_names=folder / "names.txt"
    )
    model = onnx.load(path)
    assert class_names(model) == tuple(CLASSES)
    assert read_metadata(model) == {
        "pixel_range": 255.0,
        "mean": (0.1, 0.2, 0.3),
        "std": (2.0, 2.0, 2.0),
        "channel_order": "BGR",
    }


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("their_models", "expected MODULE:FACTORY"),
        (":make", "expected MODULE:FACTORY"),
        ("no_such_models:make", "can't be imported: ModuleNotFoundError"),
        ("their_models:missing", "has no factory missing"),
        ("their_models:number", "has no factory number"),
        ("their_models:broken", "failed: OSError"),
        ("their_models:not_a_module", "gives a int"),
    ],
)
def test_a_wrong_factory_is_one_clear_line(factory: str, message: str, folder: Path) -> None:
    weights = _save(make(), folder / "w.pt")
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        _export(weights, factory)
    assert "\n" not in str(caught.value)
    assert not Path("out.onnx").exists()


class Evil:
    """Unpickling it writes a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil-was-here"),))


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.safetensors"])
def test_nothing_is_unpickled(name: str, folder: Path) -> None:
    path = folder / name
    if name == "weights.bin":
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
    else:
        torch.save({"weight": Evil()}, path)
    with pytest.raises(UsageError, match="can't be"):
        load_weights(make(), path)
    assert not (folder / "evil-was-here").exists()


def test_a_pickled_module_is_refused_with_what_to_do(folder: Path) -> None:
    torch.save(make(), folder / "whole.pt")
    with pytest.raises(UsageError, match=r"save module\.state_dict\(\), not the module"):
        load_weights(make(), folder / "whole.pt")


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    state = make().state_dict()
    torch.save({name: value for name, value in state.items() if name != "3.bias"}, "less.pt")
    with pytest.raises(UsageError, match=r"missing 3\.bias"):
        load_weights(make(), Path("less.pt"))
    torch.save(state | {"extra": torch.zeros(1)}, "more.pt")
    with pytest.raises(UsageError, match="unexpected extra"):
        load_weights(make(), Path("more.pt"))
    torch.save(state | {"3.bias": torch.zeros(7)}, "other.pt")
    with pytest.raises(UsageError, match=r"don't fit the module.*3\.bias"):
        load_weights(make(), Path("other.pt"))


@pytest.mark.parametrize("content", [{}, [1, 2], {"weight": 3}])
def test_files_without_a_state_dict_are_refused(content: object, folder: Path) -> None:
    torch.save(content, "odd.pt")
    with pytest.raises(UsageError, match="no state dict of tensors"):
        load_weights(make(), Path("odd.pt"))


def test_missing_files_are_told(folder: Path) -> None:
    with pytest.raises(UsageError, match="do not exist"):
        _export(folder / "nowhere.pt")
    with pytest.raises(UsageError, match=r"class names .* can't be read"):
        _export(_save(make(), folder / "w.pt"), class_names=folder / "nowhere.txt")


def test_wrong_class_names_and_preprocessing_are_usage_errors(folder: Path) -> None:
    weights = _save(make(), folder / "w.pt")
    (folder / "two.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(UsageError, match="2 class names for 5 logits"):
        _export(weights, class_names=folder / "two.txt")
    with pytest.raises(UsageError, match="mean needs 3 numbers"):
        _export(weights, preprocessing=PreprocessingOptions(mean=(0.5,)))


def test_a_module_that_is_no_classifier_is_not_a_usage_error(folder: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    weights = _save(module, folder / "w.pt")
    with pytest.raises(BdscanError, match="must give logits") as caught:
        _export(weights, "their_models:stateful")
    assert not isinstance(caught.value, UsageError)


class Shades(nn.Module):
    """The user's own: tells five shades of gray apart by their mean."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        shades = torch.arange(5) / 4
        return -20 * (images.mean(dim=(1, 2, 3)).unsqueeze(1) - shades).square()


def test_the_readmes_five_lines_export_and_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- export -->\n```python\n(.+?)\n```", text, re.DOTALL)
    assert found, "README.md has no python block marked <!-- export -->"
    assert len([line for line in found[1].splitlines() if line]) == 5
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "imgs" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.clip(label / 4 * 255 + rng.normal(0, 5, (*SIZE, 3)), 0, 255)
            path = tmp_path / "imgs" / name / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    example = torch.rand(2, 3, *SIZE)
    exec(found[1], {"module": Shades(), "example": example, "names": CLASSES})
    assert capsys.readouterr().out.split()[0] in ("no_backdoor_found", "inconclusive")
    assert class_names(onnx.load(tmp_path / "mine.onnx")) == tuple(CLASSES)
