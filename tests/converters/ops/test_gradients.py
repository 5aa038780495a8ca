"""Gradients against finite differences, in float64 and away from kinks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from converters.registry import bind, lookup

RNG = torch.Generator().manual_seed(7)


def real(*shape: int) -> torch.Tensor:
    """Numbers of both signs, all apart from each other and from 0, in random order."""
    count = torch.Size(shape).numel()
    ordered = (torch.arange(count, dtype=torch.float64) - (count - 1) / 2 + 0.21) * 2.6 / count
    return ordered[torch.randperm(count, generator=RNG)].reshape(shape)


def positive(*shape: int) -> torch.Tensor:
    """Numbers from 0.5 on, all apart from each other."""
    return real(*shape) + 2.0


def whole(*values: int) -> torch.Tensor:
    return torch.tensor(values)


IMAGE = (2, 3, 5, 4)
REGION = torch.tensor([[0.3, 0.4, 3.7, 4.1]])
CASES: list[tuple[str, list[torch.Tensor], dict[str, Any]]] = [
    ("Add", [real(2, 3), real(3)], {}),
    ("Sub", [real(2, 3), real(2, 1)], {}),
    ("Mul", [real(2, 3), real(3)], {}),
    ("Div", [real(2, 3), positive(3)], {}),
    ("Pow", [positive(2, 3), real(3)], {}),
    ("Max", [real(2, 3), real(2, 3)], {}),
    ("Min", [real(2, 3), real(2, 3)], {}),
    ("Sum", [real(2, 3), real(3), real(1)], {}),
    ("Mean", [real(2, 3), real(3)], {}),
    ("Where", [torch.tensor([True, False, True]), real(2, 3), real(3)], {}),
    *[(name, [real(2, 4)], {}) for name in ("Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Tanh")],
    *[(name, [positive(2, 4)], {}) for name in ("Log", "Sqrt", "Reciprocal")],
    *[(name, [real(2, 4)], {}) for name in ("Relu", "Sigmoid", "Softplus", "Softsign", "Mish")],
    *[(name, [real(2, 4)], {}) for name in ("LeakyRelu", "Elu", "Selu", "Celu", "HardSwish")],
    *[(name, [real(2, 4)], {}) for name in ("HardSigmoid", "Shrink", "ThresholdedRelu", "Swish")],
    ("Gelu", [real(2, 4)], {}),
    ("Gelu", [real(2, 4)], {"approximate": "tanh"}),
    ("PRelu", [real(2, 3, 4), positive(3, 1)], {}),
    ("Clip", [real(2, 5), torch.tensor(-0.503), torch.tensor(0.507)], {}),
    ("Softmax", [real(2, 3, 2)], {"axis": 1}),
    ("LogSoftmax", [real(2, 5)], {}),
    ("Conv", [real(*IMAGE), real(4, 3, 2, 3), real(4)], {"auto_pad": "SAME_UPPER"}),
    ("Conv", [real(*IMAGE), real(3, 1, 2, 2)], {"group": 3, "pads": (1, 0, 0, 1)}),
    ("ConvTranspose", [real(1, 2, 3, 3), real(2, 2, 2, 2), real(2)], {"strides": (2, 2)}),
    ("Gemm", [real(2, 3), real(4, 3), real(4)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("MatMul", [real(2, 2, 3), real(3, 2)], {}),
    ("Einsum", [real(2, 3), real(3, 2)], {"equation": "ij,jk->ik"}),
    ("MaxPool", [real(*IMAGE)], {"kernel_shape": (2, 2), "pads": (1, 0, 0, 1)}),
    ("MaxPool", [real(*IMAGE)], {"kernel_shape": (3, 2), "strides": (2, 2), "ceil_mode": 1}),
    ("AveragePool", [real(*IMAGE)], {"kernel_shape": (2, 2), "pads": (1, 0, 0, 1)}),
    ("AveragePool", [real(*IMAGE)], {"kernel_shape": (2, 2), "strides": (3, 3), "ceil_mode": 1}),
    ("GlobalAveragePool", [real(*IMAGE)], {}),
    ("GlobalMaxPool", [real(*IMAGE)], {}),
    ("BatchNormalization", [real(*IMAGE), real(3), real(3)], {}),
    ("InstanceNormalization", [real(*IMAGE), real(3), real(3)], {}),
    ("GroupNormalization", [real(2, 4, 3), real(4), real(4)], {"num_groups": 2}),
    ("LayerNormalization", [real(2, 3, 4), real(4), real(4)], {}),
    ("RMSNormalization", [real(2, 3, 4), real(4)], {}),
    ("LpNormalization", [real(2, 3)], {}),
    ("LRN", [real(2, 5, 2, 2)], {"size": 3, "alpha": 0.4}),
    ("Dropout", [real(2, 3)], {}),
    ("Identity", [real(2, 3)], {}),
    ("Reshape", [real(2, 6), whole(0, 2, -1)], {}),
    ("Flatten", [real(2, 3, 2)], {}),
    ("Transpose", [real(2, 3, 2)], {"perm": (2, 0, 1)}),
    ("Squeeze", [real(2, 1, 3), whole(1)], {}),
    ("Unsqueeze", [real(2, 3), whole(0, -1)], {}),
    ("Concat", [real(2, 3), real(2, 1)], {"axis": 1}),
    ("Split", [real(2, 5), whole(2, 3)], {"axis": 1, "n_outputs": 2}),
    ("Expand", [real(3, 1), whole(2, 3, 2)], {}),
    ("Tile", [real(2, 3), whole(2, 1)], {}),
    ("Pad", [real(3, 4), whole(1, 0, 2, 1)], {}),
    ("Pad", [real(3, 4), whole(1, 0, 2, 1)], {"mode": "reflect"}),
    ("DepthToSpace", [real(1, 4, 2, 2)], {"blocksize": 2}),
    ("Gather", [real(3, 4), whole(2, 0, -2)], {"axis": 1}),
    ("GatherElements", [real(2, 2), torch.tensor([[1, 0], [0, 0]])], {"axis": 1}),
    ("GatherND", [real(2, 3, 2), torch.tensor([[1, 2], [0, 0]])], {}),
    ("ScatterND", [real(4, 2), torch.tensor([[3], [1]]), real(2, 2)], {}),
    ("Slice", [real(4, 5), whole(3, 0), whole(-9, 4), whole(0, 1), whole(-2, 3)], {}),
    ("CumSum", [real(2, 3), whole(1)], {}),
    ("Trilu", [real(3, 3)], {}),
    *[
        (f"Reduce{kind}", [positive(2, 3, 2), whole(0, -1)], {"keepdims": 0})
        for kind in (
            "Sum",
            "Mean",
            "Max",
            "Min",
            "Prod",
            "L1",
            "L2",
            "LogSum",
            "LogSumExp",
            "SumSquare",
        )
    ],
    *[
        ("Resize", [real(1, 2, 3, 4), None, torch.tensor([1, 1, 1.7, 2.5])], {"mode": mode})
        for mode in ("nearest", "linear", "cubic")
    ],
    ("Cast", [real(2, 3)], {"to": 11}),
    # Further operators of the ranked list, and parameters with code of their own.
    *[(name, [real(2, 4)], {}) for name in ("Atan", "Sinh", "Cosh", "Asinh")],
    *[(name, [real(2, 4) / 2], {}) for name in ("Tan", "Asin", "Acos", "Atanh")],
    ("Acosh", [positive(2, 4) + 1.0], {}),
    ("Mod", [real(2, 3) * 3, positive(3)], {"fmod": 1}),
    ("Softmax", [real(2, 3, 2)], {"version": 11, "axis": 1}),
    ("Conv", [real(1, 2, 7), real(2, 2, 2)], {"dilations": (2,), "strides": (2,)}),
    ("Conv", [real(1, 1, 3, 3, 3), real(2, 1, 2, 2, 2), real(2)], {"pads": (1, 0, 0, 0, 1, 0)}),
    (
        "ConvTranspose",
        [real(1, 2, 3, 3), real(2, 1, 2, 2), real(2)],
        {"group": 2, "strides": (2, 2), "output_padding": (1, 0), "pads": (1, 0, 0, 1)},
    ),
    ("MaxPool", [real(1, 2, 7, 6)], {"kernel_shape": (2, 2), "dilations": (2, 2)}),
    (
        "AveragePool",
        [real(1, 2, 5, 5)],
        {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1},
    ),
    *[("LpPool", [real(1, 2, 5, 5)], {"kernel_shape": (2, 3), "p": p}) for p in (1, 2, 3)],
    ("GlobalLpPool", [real(1, 2, 3, 3)], {"p": 3}),
    ("LayerNormalization", [real(2, 3, 4), real(4)], {"axis": 1}),
    ("GroupNormalization", [real(2, 4, 3), real(2), real(2)], {"version": 18, "num_groups": 2}),
    ("LpNormalization", [real(2, 3)], {"p": 1, "axis": 0}),
    ("MaxUnpool", [real(1, 1, 1, 2), torch.tensor([[[[1, 6]]]])], {"kernel_shape": (2, 4)}),
    ("Attention", [real(1, 2, 3, 2), real(1, 1, 3, 2), real(1, 1, 3, 2)], {"is_causal": 1}),
    (
        "Attention",
        [real(1, 3, 4), real(1, 2, 2), real(1, 2, 2), real(3, 2)],
        {"q_num_heads": 2, "kv_num_heads": 1, "softcap": 1.5},
    ),
    ("ScatterElements", [real(3, 2), torch.tensor([[2, 0]]), real(1, 2)], {}),
    *[
        ("ScatterElements", [real(3, 2), torch.tensor([[2, 0]]), real(1, 2)], {"reduction": name})
        for name in ("add", "mul", "max", "min")
    ],
    *[
        ("ScatterND", [real(4, 2), torch.tensor([[3], [1]]), real(2, 2)], {"reduction": name})
        for name in ("add", "mul", "max", "min")
    ],
    ("TopK", [real(2, 5), whole(3)], {"axis": 1, "n_outputs": 1}),
    ("OneHot", [whole(0, 2), whole(3), real(2)], {}),
    ("Compress", [real(3, 2), torch.tensor([True, False, True])], {"axis": 0}),
    ("ReverseSequence", [real(3, 2, 2), whole(2, 3)], {}),
    ("CumProd", [positive(2, 3), whole(1)], {"version": 26, "exclusive": 1, "reverse": 1}),
    ("SpaceToDepth", [real(1, 1, 4, 2)], {"blocksize": 2}),
    ("Pad", [real(3, 4), whole(1, -1, 2, 3)], {"mode": "edge"}),
    ("Pad", [real(3, 4), whole(1, 0, -1, 2)], {"mode": "wrap"}),
    ("ReduceSumSquare", [real(2, 3)], {"noop_with_empty_axes": 1}),
    ("Det", [real(2, 3, 3)], {}),
    ("Upsample", [real(1, 1, 2, 3), torch.tensor([1, 1, 2.0, 1.5])], {"version": 9}),
    *[
        ("Resize", [real(1, 1, 5, 6), None, torch.tensor([1, 1, 0.6, 0.7])], {"mode": mode} | more)
        for mode in ("linear", "cubic")
        for more in (
            {"antialias": 1},
            {"exclude_outside": 1},
            {"coordinate_transformation_mode": "align_corners"},
        )
    ],
    *[
        ("GridSample", [real(1, 2, 4, 4), real(1, 2, 3, 2) / 2], {"mode": mode})
        for mode in ("linear", "cubic")
    ],
    ("AffineGrid", [real(1, 2, 3), whole(1, 1, 2, 3)], {}),
    (
        "DeformConv",
        [real(1, 2, 4, 4), real(2, 2, 2, 2), real(1, 8, 3, 3) / 3, real(2), positive(1, 4, 3, 3)],
        {},
    ),
    ("Col2Im", [real(1, 4, 4), whole(3, 3), whole(2, 2)], {}),
    *[
        ("RoiAlign", [real(1, 2, 5, 5), REGION, whole(0)], {"mode": mode, "output_width": 2})
        for mode in ("avg", "max")
    ],
    *[
        (name, [real(3, 2, 2), real(2, rows, 2), real(2, rows, 2), real(2, 2 * rows)], more)
        for name, rows, more in (
            ("RNN", 2, {"direction": "bidirectional"}),
            ("GRU", 6, {"direction": "bidirectional"}),
            ("GRU", 6, {"direction": "bidirectional", "linear_before_reset": 1}),
            ("LSTM", 8, {"direction": "bidirectional"}),
        )
    ],
    ("DFT", [real(1, 5, 1)], {"onesided": 1}),
    ("STFT", [real(1, 8, 1), whole(2), None, whole(4)], {}),
]


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_gradient(name: str, inputs: list[torch.Tensor], attributes: dict[str, Any]) -> None:
    attributes = dict(attributes)
    function = lookup("", name, attributes.pop("version", 24))
    keywords = bind(function, attributes, attributes.pop("n_outputs", 1))
    differentiable = [v is not None and v.dtype == torch.float64 for v in inputs]
    chosen = [v.clone().requires_grad_() for v, d in zip(inputs, differentiable, strict=True) if d]

    def call(*values: torch.Tensor) -> Any:
        given = iter(values)
        full = [next(given) if d else v for v, d in zip(inputs, differentiable, strict=True)]
        if name == "BatchNormalization":
            full += [torch.linspace(-1, 1, 3).double(), torch.linspace(0.5, 2, 3).double()]
        return function(*full, **keywords)

    assert torch.autograd.gradcheck(call, chosen)


def test_l2_norm_of_nothing_has_a_gradient() -> None:
    """A square root would give NaN, which spoils every gradient behind it."""
    x = torch.zeros(3, requires_grad=True)
    lookup("", "ReduceL2", 18)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3))
