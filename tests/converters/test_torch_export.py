"""What torch computes is what ONNX Runtime computes from the file, and the file says how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from converters.errors import NotAnImageClassifierError, ParityError, UnsupportedModelError
from converters.load import load_classifier
from converters.torch_export import export_onnx

COLOURS = ("red", "green", "blue")


def _network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def _images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("exported_with", [1, 2, 5])
def test_the_file_computes_what_the_module_does_for_any_batch(
    exported_with: int, tmp_path: Path
) -> None:
    module, path = _network(), tmp_path / "new" / "model.onnx"
    export_onnx(module, _images(exported_with), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input"]
    for count in (1, 3, 7):
        (logits,) = session.run(["logits"], {"input": _images(count).numpy()})
        with torch.no_grad():
            expected = module.eval()(_images(count)).numpy()
        assert np.allclose(logits, expected, atol=1e-6)


def test_opset_and_file_version_are_ones_that_are_read_everywhere(tmp_path: Path) -> None:
    export_onnx(_network(), _images(2), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_our_importer_reads_it(tmp_path: Path) -> None:
    export_onnx(_network(), _images(2), tmp_path / "model.onnx")
    assert load_classifier(tmp_path / "model.onnx").class_count == 3


def test_metadata_is_what_was_stated(tmp_path: Path) -> None:
    stated = {"mean": [0.1, 0.2, 0.3], "std": (0.5, 0.5, 0.25), "channel_order": "BGR"}
    export_onnx(
        _network(), _images(2), tmp_path / "m.onnx", preprocessing=stated, class_names=COLOURS
    )
    metadata = {e.key: e.value for e in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(metadata["class_names"]) == list(COLOURS)
    assert json.loads(metadata["bdscan.preprocessing"]) == {
        "pixel_range": 1,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.25],
        "channel_order": "BGR",
        "layout": "NCHW",
    }


def test_nothing_stated_is_nothing_written(tmp_path: Path) -> None:
    export_onnx(_network(), _images(2), tmp_path / "model.onnx")
    assert not onnx.load(tmp_path / "model.onnx").metadata_props


def test_the_module_keeps_its_mode_and_its_statistics(tmp_path: Path) -> None:
    module = _network()
    module.train()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export_onnx(module, _images(4), tmp_path / "model.onnx")
    assert module.training
    assert module[0].training
    assert not module[1].training
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"means": [0.5]}, "no field means"),
        ({"mean": [0.5]}, "mean needs 3 numbers"),
        ({"mean": [0.5, 0.5, float("nan")]}, "finite"),
        ({"mean": "abc"}, "finite"),
        ({"std": [0.5, 0.5, 0.0]}, "std must be positive"),
        ({"pixel_range": 0}, "expected 1 or 255"),
        ({"channel_order": "gray"}, "RGB or BGR"),
        ({"layout": "NHWC"}, "NCHW"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(
    stated: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(_network(), _images(2), tmp_path / "m.onnx", preprocessing=stated)
    assert not list(tmp_path.iterdir())


def test_class_names_must_be_as_many_as_the_logits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 class names for 3 logits"):
        export_onnx(_network(), _images(2), tmp_path / "m.onnx", class_names=["a", "b"])


def test_example_must_be_a_batch_of_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        export_onnx(_network(), _images(2)[0], tmp_path / "m.onnx")


class Frozen(nn.Module):
    """Remembers the batch size that it was traced with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3] * len(images)


class Drawing(nn.Module):
    """Gives other logits at each call."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3] + torch.rand(1)


def test_a_module_that_depends_on_the_batch_size_is_told(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="differs from torch"):
        export_onnx(Frozen(), _images(4), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_that_draws_is_told(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="differs from torch"):
        export_onnx(Drawing(), _images(4), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images: images,
        lambda images: images.flatten(1)[:, :1],
        lambda images: (images.flatten(1),),
        lambda images: images.flatten(1)[:, :3] / 0,
    ],
)
def test_what_is_no_classifier_is_refused(
    wrong: Callable[[torch.Tensor], object], tmp_path: Path
) -> None:
    class Wrong(nn.Module):
        def forward(self, images: torch.Tensor) -> object:
            return wrong(images)

    with pytest.raises(NotAnImageClassifierError, match="logits"):
        export_onnx(Wrong(), _images(2), tmp_path / "m.onnx")


def test_a_module_that_fails_on_the_images_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"fails on images of shape \(1, 8, 8\)"):
        export_onnx(_network(), torch.rand(2, 1, 8, 8), tmp_path / "m.onnx")
