"""Models traced for one batch size: let them take any, and prove that they still do the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import torch

from converters.convert import graph_of
from converters.errors import UnsupportedModelError
from converters.fixed_shapes import free_fixed_shapes
from converters.image_input import ImageInput
from converters.rewrite import set_input_shape
from converters.torch_graph import TorchGraph

PROOF_BATCH = 3  # images; two more where the fixed batch size is 3 itself
_LARGEST_BATCH = 64
_MOST_SIZES = 8  # tried before a file that declares a free batch size and runs at none is given up
_RANGES = ((0.0, 1.0), (-3.0, 3.0), (0.0, 255.0))  # of pixels as networks usually want them


def free_batch(
    model: onnx.ModelProto, reference: TorchGraph, image_input: ImageInput
) -> tuple[TorchGraph, int | None, list[str]]:
    """Free the batch axis of `model` where that can be proved, in place.

    Args:
        model: rewritten in place; its outputs are those of `reference`.
        reference: the model in torch as it came.

    Returns:
        (graph, the only batch size it takes or None, what was changed).
    """
    declared = image_input.batch_size
    fixed = declared or 1
    images = sample_images(image_input, PROOF_BATCH + 2 * (fixed == PROOF_BATCH))
    with torch.no_grad():
        proof = run_in_batches(reference, images, fixed)
    untouched = onnx.ModelProto()
    untouched.CopyFrom(model)
    set_input_shape(model, ("N", *image_input.shape))
    if _gives(reference, images, proof):
        return reference, None, [f"batch size {declared} freed"] if declared else []
    changed = free_fixed_shapes(model, reference, sample_images(image_input, fixed))
    if changed:
        graph = graph_of(model)
        if _gives(graph, images, proof):
            return graph, None, [f"batch size {fixed} freed (nodes changed: {changed})"]
    model.CopyFrom(untouched)
    if declared is None:
        return reference, fixed, ["images of one batch influence each other: run singly"]
    return reference, fixed, [f"batch size {fixed} could not be freed"]


def with_baked_batch_size(
    model: onnx.ModelProto, graph: TorchGraph, image_input: ImageInput
) -> ImageInput:
    """The input with the batch size that a file has baked in although it declares a free one.

    Such files come from exporters that were told of a dynamic axis and of a fixed view. Sizes tried
    are what outputs declare and what integer constants begin with.

    Args:
        model: the model.
        graph: the same in torch.
        image_input: its declared input; returned as it is if any size runs, or none is found.

    Raises:
        UnsupportedModelError: an output that is declared to be no tensor.
    """
    for value in model.graph.output:
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            what = str(kind).partition("_")[0]
            raise UnsupportedModelError(
                f"output {value.name!r} is of type {what}: name another output to use"
            )
    if image_input.batch_size is not None:
        return image_input
    for size in (PROOF_BATCH, 1, *_numbers_that_may_be_batch_sizes(model, graph)):
        if _gives_one_row_each(graph, sample_images(image_input, size)):
            return image_input if size == PROOF_BATCH else replace(image_input, batch_size=size)
    return image_input


def _numbers_that_may_be_batch_sizes(model: onnx.ModelProto, graph: TorchGraph) -> list[int]:
    """The likeliest first."""
    declared = [v.type.tensor_type.shape.dim for v in model.graph.output]
    vectors = (graph.constant(name) for name in sorted(graph.constant_names))
    shapes = [v for v in vectors if v.dtype == torch.int64 and v.ndim == 1 and v.numel()]
    counts = Counter(int(shape[0]) for shape in shapes)
    found = [dims[0].dim_value for dims in declared if len(dims)] + [
        n for n, _ in counts.most_common()
    ]
    return [n for n in dict.fromkeys(found) if 1 < n <= _LARGEST_BATCH][:_MOST_SIZES]


def _gives_one_row_each(graph: TorchGraph, images: torch.Tensor) -> bool:
    """Whether a run over these images gives an output of one entry for each."""
    try:
        with torch.no_grad():
            results = graph(images)
    except UnsupportedModelError:
        return False
    tensors = (result for result in results if isinstance(result, torch.Tensor))
    return any(result.ndim > 0 and len(result) == len(images) for result in tensors)


def run_in_batches(
    graph: TorchGraph, inputs: torch.Tensor, batch_size: int | None
) -> tuple[torch.Tensor, ...]:
    """Run a one-input graph over any number of images.

    Args:
        inputs: (N, ...).
        batch_size: the only batch size that the graph takes, or None.
    """
    if batch_size is None:
        return tuple(graph(inputs))
    parts = []
    for start in range(0, max(len(inputs), 1), batch_size):
        batch = inputs[start : start + batch_size]
        filler = batch.new_zeros(batch_size - len(batch), *batch.shape[1:])
        results = graph(torch.cat([batch, filler]) if len(filler) else batch)
        parts.append([result[: len(batch)] for result in results])
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def sample_images(image_input: ImageInput, count: int) -> torch.Tensor:
    """Seeded random images in the model's layout and type, in turn of each usual pixel range."""
    values = np.random.default_rng(1).random((count, *image_input.shape), dtype=np.float32)
    hint = image_input.pixel_range_hint
    ranges = _RANGES if hint is None else ((0.0, hint),)
    for index, image in enumerate(values):
        low, high = ranges[index % len(ranges)]
        image *= high - low
        image += low
    return torch.from_numpy(values.astype(image_input.dtype))


def _gives(graph: TorchGraph, images: torch.Tensor, proof: tuple[torch.Tensor, ...]) -> bool:
    """Whether a run over all images at once gives what runs at the fixed batch size gave."""
    try:
        with torch.no_grad():
            got = graph(images)
    except UnsupportedModelError:
        return False
    return _tells_apart(proof[0]) and all(map(_same, got, proof))


def _tells_apart(proof: torch.Tensor) -> bool:
    """Whether the images give different results: else mixing them up would not be noticed."""
    rows = _finite_rows(proof, proof)[0]
    if len(rows) < 2:
        return False
    return bool((rows.amax(0) - rows.amin(0)).max() > _tolerance(proof) * rows.abs().max())


def _same(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Same shape, and the same numbers image by image."""
    if got.shape != expected.shape:
        return False
    rows, other = _finite_rows(expected, got)
    bound = _tolerance(expected) * rows.abs().amax(1, keepdim=True)
    return bool(((other - rows).abs() <= bound).all())


def _finite_rows(expected: torch.Tensor, got: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One row for each image; without those on whose pixel range half precision overflows."""
    rows, other = (t.reshape(len(expected), -1).double() for t in (expected, got))
    finite = rows.isfinite().all(1)
    return rows[finite], other[finite]


def _tolerance(result: torch.Tensor) -> float:
    """What rounding may change, as a share of an image's largest |value|."""
    return 1e-2 if result.dtype == torch.float16 else 1e-3
