"""Graphs in the manner of exporters that are not at hand: TensorFlow's, MXNet's and so on."""

from __future__ import annotations

import pytest
import torch

from tests.converters.variants.checks import check_gradient, check_variant
from tests.converters.variants.hand_built import HAND_BUILT


@pytest.mark.parametrize("name", HAND_BUILT)
def test_hand_built(name: str) -> None:
    built = HAND_BUILT[name]()
    classifier = check_variant(
        built.model, built.truth, activation=built.activation, inputs=built.inputs
    )
    some = torch.from_numpy(built.inputs[:4]).float()
    check_gradient(classifier, some, None, 1e-3)  # by finite differences in float64, too


def test_bytes_are_fed_as_numbers_that_have_a_gradient() -> None:
    built = HAND_BUILT["tf2onnx uint8 NHWC"]()
    classifier = check_variant(built.model, built.truth, activation="softmax", inputs=built.inputs)
    assert classifier.image_input.layout == "NHWC"
    assert classifier.image_input.pixel_range_hint == 255
    assert classifier.output_name == "probabilities"
