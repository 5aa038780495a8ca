"""`bdscan samples` on third-party CIFAR-10 models whose triggers are known.

`python -m tests.benchmarks.third_party_samples FOLDER --data DIR`: FOLDER holds the models and
`truth.csv` that says what their triggers are, DIR holds `cifar10.h5`. Writes the figures beside
this file and a picture of five masks for each model to docs/.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from fixtures.data import ImageSet, encode_png
from fixtures.data_formats import read_pack
from scanner.classifier import Classifier
from scanner.detectors import cognitive_distillation as cd
from tests.benchmarks.record import write
from tests.benchmarks.sample_scores import auroc, open_model, scores_of
from tests.conftest import ROOT

Images = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

SEED = 0
RESULTS = Path(__file__).with_suffix(".json")
DETECTORS = ("cd_p", "cd_l", "confidence")
PICTURED = 5
ZOOM = 3


def nad_grid(images: Images) -> None:
    """3x3 at rows and columns 29..31: four white pixels, the other five black."""
    images[:, :, 29:32, 29:32] = 0
    for row, column in ((29, 29), (29, 31), (30, 30), (31, 29)):
        images[:, :, row, column] = 1


def kabu03_checkerboard(images: Images) -> None:
    """3x3 at rows and columns 29..31: white where row + column is even."""
    rows, columns = np.indices((3, 3))
    images[:, :, 29:32, 29:32] = (rows + columns) % 2 == 0


def ibau_badnets(images: Images) -> None:
    """4x4 white at rows and columns 27..30."""
    images[:, :, 27:31, 27:31] = 1


MODELS: dict[str, tuple[Callable[[Images], None], int]] = {
    "nad_backdoored_grid_t5": (nad_grid, 5),
    "kabu03_cifar_t0": (kabu03_checkerboard, 0),
    "ibau_cifar_badnets_t8": (ibau_badnets, 8),
}
"""By file name: the trigger and its target class, from truth.csv."""


def write_clean_set(test: ImageSet, positions: Indices, folder: Path) -> Path:
    """Images as class folders."""
    for position in positions:
        label = int(test.labels[position])
        path = folder / str(label) / f"{test.indices[position]:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(test.images[position]))
    return folder


def measure(name: str, folder: Path, test: ImageSet, count: int) -> dict[str, Any]:
    """AUROC of each detector on `count` clean images and as many triggered ones."""
    stamp, target = MODELS[name]
    order = np.random.default_rng(SEED).permutation(len(test.labels))
    calibration, clean_at = order[:200], order[200 : 200 + count]
    rest = order[200 + count :]
    sources = rest[test.labels[rest] != target][:count]
    triggered = test.images[sources].copy()
    stamp(triggered)
    with tempfile.TemporaryDirectory() as temporary:
        clean_dir = write_clean_set(test, calibration, Path(temporary))
        classifier = open_model(folder / f"{name}.onnx", clean_dir)
    known, clean = test.images[calibration], test.images[clean_at]
    reached = classifier.predictions(triggered) == target
    result: dict[str, Any] = {
        "target_class": target,
        "clean_images": count,
        "triggered_images": count,
        "attack_success_rate": float(reached.mean()),
        "detectors": {},
    }
    for detector in DETECTORS:
        begun = time.perf_counter()
        both = scores_of((detector,), classifier, known, np.concatenate([clean, triggered]))
        own, theirs = both[detector][:count], both[detector][count:]
        result["detectors"][detector] = {
            "auroc": round(auroc(own, theirs), 4),
            "auroc_of_images_that_reach_the_target": round(auroc(own, theirs[reached]), 4),
            "median_clean": round(float(np.median(own)), 3),
            "median_triggered": round(float(np.median(theirs)), 3),
            "seconds": round(time.perf_counter() - begun, 1),
        }
        print(name, detector, result["detectors"][detector], flush=True)
    picture(classifier, clean[:PICTURED], triggered[reached][:PICTURED]).save(
        ROOT / "docs" / f"samples-{name}.png"
    )
    return result


def picture(classifier: Classifier, clean: Images, triggered: Images) -> Image.Image:
    """Rows: image, mask, cognitive pattern; left the clean images, right the triggered ones."""
    images = np.concatenate([clean, triggered])
    config = cd.DistillationConfig()
    _, height, width = classifier.image_shape
    weights = cd.weights_of(cd.CD_P, height, width, 1.0, config)
    outputs = cd.outputs_of(cd.CD_P, cd.prepared(classifier))
    masks = cd.learn_masks(cd.CD_P, classifier, outputs, images, weights, config, SEED)
    rows = [images, np.repeat(masks[:, None], images.shape[1], 1), images * masks[:, None]]
    gap, cell = 4, height * ZOOM
    title = 14
    sheet = Image.new(
        "RGB", (len(images) * (cell + gap) + 3 * gap, title + 3 * (cell + gap)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    middle = PICTURED * (cell + gap) + 2 * gap
    draw.text((2, 1), "clean: image, mask, cognitive pattern", fill="black")
    draw.text((middle, 1), "triggered", fill="black")
    for r, row in enumerate(rows):
        for i, pixels in enumerate(row):
            values = np.rint(pixels.transpose(1, 2, 0) * 255).astype(np.uint8)
            tile = Image.fromarray(values).resize((cell, cell), Image.Resampling.NEAREST)
            left = i * (cell + gap) + (2 * gap if i >= PICTURED else 0)
            sheet.paste(tile, (left, title + r * (cell + gap)))
    return sheet


def main() -> None:
    """Measure every model and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--models", default=",".join(MODELS), help="some of them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = read_pack(options.data / "cifar10.h5", "test")
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    models: dict[str, Any] = stored.get("models", {})
    for name in options.models.split(","):
        models[name] = measure(name, options.folder, test, options.count)
        write(RESULTS, {"goal": 0.98, "models": models}, SEED)


if __name__ == "__main__":
    main()
