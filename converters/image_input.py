"""What the graph's input wants: layout, channels and size of an image batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto, ValueInfoProto, helper

from converters.errors import NotAnImageClassifierError
from converters.rewrite import is_float

CHANNEL_COUNTS = (1, 3)
MAX_NUMBERS = 2**28  # in a batch of the declared size; more would fill the memory with one batch


@dataclass(frozen=True)
class ImageInput:
    """An image classifier's input.

    Attributes:
        name: the tensor's name.
        elem_type: ONNX element type.
        layout: "NCHW", "NHWC", "NHW" (gray without a channel axis) or "flat" ([N, C*H*W]).
        channels: 1 or 3.
        height, width: in pixels.
        batch_size: the batch size that the file declares, None if it is free.
        pixel_range_hint: the largest pixel value, where the type tells: 255 for bytes.
    """

    name: str
    elem_type: int
    layout: str
    channels: int
    height: int
    width: int
    batch_size: int | None
    pixel_range_hint: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """One image's shape in the model's layout, without the batch axis."""
        c, h, w = self.channels, self.height, self.width
        return {
            "NCHW": (c, h, w),
            "NHWC": (h, w, c),
            "NHW": (h, w),
            "flat": (c * h * w,),
        }[self.layout]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The element type as numpy's."""
        return helper.tensor_dtype_to_np_dtype(self.elem_type)

    def arrange(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) float images -> the model's layout, for torch; differentiable.

        For a model of bytes (values in [0, 255]) or of half precision they stay float32, so that
        there is a gradient, and a fine one.
        """
        images = images.to(torch.float64 if self.elem_type == TensorProto.DOUBLE else torch.float32)
        if self.layout == "NHWC":
            return images.permute(0, 2, 3, 1)
        return images.reshape(len(images), *self.shape)

    def arrange_array(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        """(N, C, H, W) float32 images -> the model's layout and type, as a contiguous array."""
        arranged = self.arrange(torch.from_numpy(images)).numpy()
        if self.elem_type == TensorProto.UINT8:
            arranged = np.rint(np.clip(arranged, 0, 255))
        return np.ascontiguousarray(arranged.astype(self.dtype, copy=False))


def find_image_input(
    inputs: list[ValueInfoProto], image_size: tuple[int, int] | None = None
) -> ImageInput:
    """Read the layout off the declared shape of the graph's only input.

    Args:
        inputs: the graph's inputs without initializers.
        image_size: (height, width) for a model that leaves them free.

    Raises:
        NotAnImageClassifierError: none or several inputs, or a shape that is no image's.
    """
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise NotAnImageClassifierError(f"expected one image input, the graph has: {names}")
    value = inputs[0]
    tensor = value.type.tensor_type
    dims = [max(d.dim_value, 0) for d in tensor.shape.dim]  # free dimensions: 0, some write -1
    if not is_float(tensor.elem_type) and tensor.elem_type != TensorProto.UINT8:
        known = tensor.elem_type in TensorProto.DataType.values()
        kind = TensorProto.DataType.Name(tensor.elem_type) if known else str(tensor.elem_type)
        raise NotAnImageClassifierError(
            f"input {value.name!r} has type {kind.lower()}, expected float or uint8 images"
        )
    layout, channels, height, width = _layout(dims, image_size, value.name)
    if max(dims[0], 1) * channels * height * width > MAX_NUMBERS:
        shown = [dims[0] or "?", channels, height, width]
        raise NotAnImageClassifierError(f"input {value.name!r} is too large: {shown}")
    batch_size = dims[0] or None
    hint = 255.0 if tensor.elem_type == TensorProto.UINT8 else None
    return ImageInput(
        value.name, tensor.elem_type, layout, channels, height, width, batch_size, hint
    )


def _layout(
    dims: list[int], image_size: tuple[int, int] | None, name: str
) -> tuple[str, int, int, int]:
    """(layout, channels, height, width) for declared dimensions; 0 stands for a free one."""
    shown = [d or "?" for d in dims]
    if len(dims) == 2 and dims[1] > 0:
        for channels in CHANNEL_COUNTS:
            side = math.isqrt(dims[1] // channels)
            if side >= 8 and channels * side * side == dims[1]:
                return "flat", channels, side, side
    elif len(dims) == 3 and dims[1] >= 8 and dims[2] >= 8:
        return "NHW", 1, dims[1], dims[2]
    elif len(dims) == 4 and (dims[1] in CHANNEL_COUNTS or dims[3] in CHANNEL_COUNTS):
        channels_first = dims[1] in CHANNEL_COUNTS
        free = dims[2:] if channels_first else dims[1:3]
        height, width = (d or s for d, s in zip(free, image_size or (0, 0), strict=True))
        if not height or not width:
            raise NotAnImageClassifierError(
                f"input {name!r} of shape {shown} leaves the image size free; give --image-size"
            )
        layout, channels = ("NCHW", dims[1]) if channels_first else ("NHWC", dims[3])
        return layout, channels, height, width
    raise NotAnImageClassifierError(f"input {name!r} of shape {shown} is no image batch")
