"""The test cases that the onnx package carries, as models with arrays.

Five suites: `node` (one operator each, labelled with the operator's newest version), `simple`,
`pytorch-converted` and `pytorch-operator` (opset 6 to 9), `light` (real architectures whose
weights are constants). `relabelled` makes opset-17 cases of the node cases.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

LAST_IR = 13
LAST_OPSET = 26
"""What ONNX Runtime 1.31 reads."""

MODEL_SUITES = ("simple", "pytorch-converted", "pytorch-operator")
LEFT_OUT = {"light_vgg19": "0.6 GB of weights take longer than all other cases together"}


@dataclass(frozen=True)
class Case:
    """A model with what it must compute.

    Attributes:
        suite: where it is from.
        name: as the ONNX project calls it.
        data_sets: pairs of inputs and expected outputs, in the order of the graph's.
    """

    suite: str
    name: str
    model: onnx.ModelProto
    data_sets: tuple[tuple[tuple[Any, ...], tuple[Any, ...]], ...]

    @property
    def operator(self) -> str:
        """The operator that the case is about: the first of its nodes."""
        return self.model.graph.node[0].op_type

    @property
    def is_single_node(self) -> bool:
        return len(self.model.graph.node) == 1 and not self.model.functions

    @property
    def is_expanded(self) -> bool:
        """Whether it is another case again, written as the body of the operator's function."""
        return "_expanded" in self.name

    @property
    def is_standard(self) -> bool:
        """Whether all its operators are of ONNX's own domain."""
        return all(n.domain in ("", "ai.onnx") for n in self.model.graph.node)

    @property
    def opset(self) -> int:
        """The greatest version of ONNX's own operator set that it imports, or 0."""
        versions = [o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")]
        return max(versions, default=0)

    @property
    def has_float_input(self) -> bool:
        """Whether an input is a tensor of float16, bfloat16, float32 or float64.

        Floats of 8 and 4 bits do not count: they are storage formats, and only casts, Quantize-
        and DequantizeLinear read them.
        """
        kinds = (np.float16, np.float32, np.float64)
        return any(
            isinstance(value, np.ndarray)
            and (value.dtype in kinds or value.dtype.name == "bfloat16")
            for value in self.data_sets[0][0]
        )


def node_cases() -> list[Case]:
    """The cases of suite `node`, those of newer operator sets than ONNX Runtime reads included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows that the cases mean to make
        return [_from_memory(case) for case in load_model_tests(kind="node")]


def relabelled(cases: Sequence[Case], opset: int = 17) -> list[Case]:
    """The single-node cases with another label, where onnx's checker accepts them under it.

    Whether ONNX Runtime runs them and agrees with the expected outputs is for the caller to see.
    """
    found = []
    for case in cases:
        if not case.is_single_node or not case.is_standard:
            continue
        model = onnx.ModelProto.FromString(case.model.SerializeToString())
        model.ir_version = 8
        del model.opset_import[:]
        model.opset_import.append(onnx.helper.make_opsetid("", opset))
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError:
            continue
        found.append(replace(case, suite=f"node-{opset}", model=model))
    return found


def model_cases(suite: str) -> Iterator[Case]:
    """The cases of one of `MODEL_SUITES`."""
    for case in sorted(load_model_tests(kind=suite), key=lambda c: c.name):
        folder = Path(case.model_dir)
        model = onnx.load(str(folder / "model.onnx"))
        data_sets = tuple(
            (_read(data, "input", model.graph.input), _read(data, "output", model.graph.output))
            for data in sorted(folder.glob("test_data_set_*"))
        )
        yield Case(suite, case.name, model, data_sets)


def light_cases() -> Iterator[Case]:
    """The real architectures, on the ramp from 0 to 1 that the suite's own runner feeds."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(folder.glob("light_*.onnx")):
        if path.stem in LEFT_OUT:
            continue
        model = onnx.load(str(path))
        known = {t.name for t in model.graph.initializer}
        (value,) = (v for v in model.graph.input if v.name not in known)
        shape = [d.dim_value or 1 for d in value.type.tensor_type.shape.dim]
        count = int(np.prod(shape))
        ramp = (np.arange(count).reshape(shape) / count).astype(np.float32)
        proto = onnx.TensorProto.FromString((folder / f"{path.stem}_output_0.pb").read_bytes())
        yield Case("light", path.stem, model, (((ramp,), (numpy_helper.to_array(proto),)),))


def _from_memory(case: TestCase) -> Case:
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    model.ir_version = min(model.ir_version, LAST_IR)
    data_sets = tuple(
        (tuple(map(_array, inputs)), tuple(map(_array, expected)))
        for inputs, expected in case.data_sets
    )
    return Case("node", case.name, model, data_sets)


def _array(value: Any) -> Any:
    """A tensor as an array, a sequence as a list; anything else as it is."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, list):
        return [_array(v) for v in value]
    return value if value is None else np.asarray(value)


def _read(folder: Path, kind: str, values: Sequence[onnx.ValueInfoProto]) -> tuple[Any, ...]:
    """The numbered files of a data set, each of the type that the graph declares."""
    paths = sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.rpartition("_")[2]))
    return tuple(_parsed(p.read_bytes(), v) for p, v in zip(paths, values, strict=False))


def _parsed(data: bytes, value: onnx.ValueInfoProto) -> Any:
    if value.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))
