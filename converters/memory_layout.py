"""In which order the numbers of a convolution's weights lie in memory.

torch computes a convolution in the layout of its weights or its input, and elementwise operators
keep the layout that they find. So weights that lie channels-last carry a whole network to that
layout, and no shape and no result depends on it (the sizes of a tensor stay N, C, H, W).

Measured in processor time on one core with AVX-512, forward and backward to the input, batches of
1, 8 and 64, five networks of two to four convolutions (LeNet-5 the smallest): channels-last takes
.55 to .96 of the time of the plain layout, never more. With a single
convolution it may take more, 1.55 times at worst, for its result is mostly turned back at once.
GPUs keep the plain layout: what single precision gains there was not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from converters.instructions import Instruction

_FEWEST_CONVOLUTIONS = 2


def weights_to_lay_out(
    instructions: Iterable[Instruction], constants: Mapping[str, torch.Tensor]
) -> frozenset[str]:
    """Names of the constant weights of all convolutions over images, if there are at least two."""
    readers = [i for i in instructions if (i.domain, i.op_type) == ("", "Conv")]
    names = [i.inputs[1] for i in readers if len(i.inputs) > 1 and i.inputs[1] in constants]
    names = [n for n in names if constants[n].ndim == 4 and constants[n].is_floating_point()]
    return frozenset(names) if len(names) >= _FEWEST_CONVOLUTIONS else frozenset()


def laid_out(weight: torch.Tensor) -> torch.Tensor:
    """The same weight, channels-last on a CPU and contiguous elsewhere."""
    on_cpu = weight.device.type == "cpu"
    layout = torch.channels_last if on_cpu else torch.contiguous_format
    # `contiguous` leaves alone what fits both layouts (one channel, 1x1 kernels), but a
    # convolution looks at the strides.
    moved = torch.empty_like(weight, memory_format=layout)
    return weight if weight.stride() == moved.stride() else moved.copy_(weight)
