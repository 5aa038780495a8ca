"""Flags that say when a result must not be trusted, before any search is run."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from converters import OnnxClassifier, Parity
from scanner.clean_set import CleanSet
from scanner.preprocessing import UNVERIFIED, Preprocessing
from scanner.results import Note
from scanner.statistics import MIN_CLASSES
from scanner.verdict import LOW_EVIDENCE_IMAGES, MIN_IMAGES


def chance_level(accuracy: float, images: int, classes: int) -> bool:
    """Whether an accuracy tells nothing: at most 2.5 times chance, or within 3 standard errors."""
    chance = 1 / classes
    error = math.sqrt(chance * (1 - chance) / images)
    return accuracy <= max(min(2.5 * chance, 0.5 + chance / 2), chance + 3 * error)


def fewest_images(used: npt.NDArray[np.int64], targets: tuple[int, ...]) -> int:
    """Images outside the target class, for the target class that has the fewest."""
    return min(int(used.sum()) - int(used[target]) for target in targets)


def forbidding_flags(
    onnx: OnnxClassifier,
    clean: CleanSet,
    preprocessing: Preprocessing,
    accuracy: float | None,
    used: npt.NDArray[np.int64],
    targets: tuple[int, ...],
) -> list[Note]:
    """What forbids a verdict.

    Args:
        accuracy: on the clean set, None without labels.
        used: (K,) usable images of each class.
    """
    flags = []
    classes = onnx.class_count
    if not onnx.differentiable:
        what = f"there is no gradient, only forward passes: {onnx.why_not_differentiable}"
        flags.append(Note("no_gradient", what))
    if accuracy is not None and chance_level(accuracy, len(clean.labels), classes):
        flags.append(
            Note(
                "accuracy_near_chance",
                f"accuracy {accuracy:.1%} on the clean set is near chance ({1 / classes:.1%}): "
                "labels or preprocessing are wrong; give --labels or --preprocess",
            )
        )
    if min(classes, len(targets)) < MIN_CLASSES:
        what = f"the model has {classes} classes, {len(targets)} are tested"
        flags.append(Note("few_classes", f"{what}; below {MIN_CLASSES} no outlier can be told"))
    images = fewest_images(used, targets)
    if images < MIN_IMAGES:
        what = f"{images} usable clean images outside the target class, {MIN_IMAGES} are needed"
        flags.append(Note("few_images", what))
    if onnx.outputs_are_probabilities:
        what = "the model's output is a distribution and no logits were found in the graph"
        flags.append(Note("probabilities_instead_of_logits", what))
    if UNVERIFIED in preprocessing.origins.values():
        what = "no labels to verify the preprocessing with; give class folders or --preprocess"
        flags.append(Note("preprocessing_unverified", what))
    return flags


def model_flags(onnx: OnnxClassifier, parity: Parity) -> list[Note]:
    """What a verdict must be read with, of the model alone."""
    flags = []
    if onnx.other_outputs:
        names = ", ".join(onnx.other_outputs)
        what = f"output {onnx.output_name} is scanned, not {names}, which --output-name scans"
        flags.append(Note("other_outputs", what))
    if onnx.training_mode_forced:
        what = "the model is in training mode; it was scanned in inference mode"
        if parity.training_agreement is not None:
            what += f", which gives the same class on {parity.training_agreement:.1%} of the images"
        flags.append(Note("training_mode_forced", what))
    if onnx.half_precision:
        what = "gradients are computed in float32, the classes by ONNX Runtime in half precision"
        flags.append(Note("half_precision", what))
    return flags


def accompanying_flags(
    clean: CleanSet, used: npt.NDArray[np.int64], targets: tuple[int, ...]
) -> list[Note]:
    """What a verdict must be read with. Arguments as in `forbidding_flags`."""
    flags = []
    images = fewest_images(used, targets)
    if MIN_IMAGES <= images < LOW_EVIDENCE_IMAGES:
        flags.append(Note("low_evidence", f"only {images} clean images outside the target class"))
    if clean.corrupt:
        more = f" and {len(clean.corrupt) - 5} more" if len(clean.corrupt) > 5 else ""
        names = ", ".join(clean.corrupt[:5])
        flags.append(Note("corrupt_images", f"clean images not readable: {names}{more}"))
    if clean.resized:
        flags.append(Note("resized_images", f"{clean.resized} clean images had another size"))
    if not clean.labelled:
        flags.append(Note("flat_clean_set", clean.label_rule))
    imageless = int((used == 0).sum())
    if imageless:
        what = f"{imageless} of {len(used)} classes have no usable image: tested as target only"
        flags.append(Note("classes_without_images", what))
    return flags
