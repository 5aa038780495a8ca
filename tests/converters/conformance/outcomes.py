"""What the importer makes of one case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from converters import ConverterError, Limits, TorchGraph, to_torch

from .cases import LAST_OPSET, Case

PASS = "pass"
AS_ORT = "as ONNX Runtime"
INFERENCE = "inference forced"
REFUSED = "refused"
DIFFERENT = "silently different"
CRASHED = "crashed"
OUTCOMES = (PASS, AS_ORT, INFERENCE, REFUSED, DIFFERENT, CRASHED)
GOOD = (PASS, AS_ORT)
DEFECTS = (DIFFERENT, CRASHED)

LIMITS = Limits(input_batch=2**20)
"""What is no image may be longer than any batch."""

RELATIVE, ABSOLUTE = 1e-3, 1e-5
STEPS_OF_HALF = {"float16": 2**-9, "bfloat16": 2**-6}
"""Two steps of the type, relative: what order of rounding alone can make."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        kind: one of `OUTCOMES`. `AS_ORT`: the importer agrees with ONNX Runtime, which does not
            agree with the suite. `INFERENCE`: the node asks for training, which the importer never
            does, and the result is that of inference.
        reason: of a refusal or a defect, one line.
        ort_passes: whether ONNX Runtime runs the case and agrees with the suite.
    """

    case: Case
    kind: str
    reason: str = ""
    ort_passes: bool = False


def outcome(case: Case) -> Outcome:
    """Run one case with the importer and with ONNX Runtime."""
    by_ort = ort_outputs(case)
    expected = [outputs for _, outputs in case.data_sets]
    ort_passes = by_ort is not None and not difference(by_ort, expected)
    try:
        graph = to_torch(case.model, LIMITS)
        actual = [_called(graph, inputs) for inputs, _ in case.data_sets]
    except ConverterError as error:
        line = str(error).splitlines()[0]
        return Outcome(case, REFUSED if _names(line, case) else CRASHED, line, ort_passes)
    except Exception as error:  # whatever it is, it is a defect
        return Outcome(case, CRASHED, f"{type(error).__name__}: {error}".split("\n")[0], ort_passes)
    wrong = difference(actual, expected)
    if not wrong:
        return Outcome(case, PASS, "", ort_passes)
    if by_ort is not None and not ort_passes and not difference(actual, by_ort):
        return Outcome(case, AS_ORT, wrong, ort_passes)
    if is_training(case.model):
        return Outcome(case, INFERENCE, wrong, ort_passes)
    return Outcome(case, DIFFERENT, wrong, ort_passes)


def _names(line: str, case: Case) -> bool:
    """Whether a refusal says what it is about."""
    operators = {node.op_type for node in case.model.graph.node}
    words = ("operators: ", "tensor '", "an input of type", *(f"({name})" for name in operators))
    return any(word in line for word in words)


class NoTensor(ConverterError):
    """An input that torch has no tensor for."""


def _called(graph: TorchGraph, inputs: Sequence[Any]) -> list[Any]:
    # What is None may be an input of the graph, or one of the node that the graph does not have.
    every = len(inputs) == len(graph.input_names)
    return list(map(_plain, graph(*(_value(v) for v in inputs if every or v is not None))))


def _plain(value: Any) -> Any:
    """What a graph gives as the suite has it: arrays, and lists for sequences."""
    if isinstance(value, tuple):
        return list(map(_plain, value))
    plain = not isinstance(value, torch.Tensor) or value.dtype == torch.bfloat16
    return value if plain else value.numpy()


def _value(value: Any) -> Any:
    """What the suite has as a graph takes it."""
    if isinstance(value, list):
        return tuple(map(_value, value))
    if value is None or (isinstance(value, np.ndarray) and value.dtype.kind in "OU"):
        return value
    return _tensor(value)


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, np.ndarray) and value.dtype.name == "bfloat16":
        return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
    try:
        if not isinstance(value, np.ndarray):
            raise TypeError
        return torch.from_numpy(value.copy())
    except (TypeError, ValueError) as error:
        raise NoTensor(f"an input of type {getattr(value, 'dtype', type(value))}") from error


def ort_outputs(case: Case) -> list[list[Any]] | None:
    """The outputs of ONNX Runtime for each data set, or None if it does not run the case."""
    if case.opset > LAST_OPSET:
        return None
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        model = case.model.SerializeToString()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return [
            session.run(None, dict(zip(names, _present(inputs), strict=False)))
            for inputs, _ in case.data_sets
        ]
    except Exception:  # its errors share no public base class
        return None


def _present(inputs: Sequence[Any]) -> list[Any]:
    return [value for value in inputs if value is not None]


def difference(actual: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> str:
    """How the outputs of some data sets differ from the expected ones, '' if they don't."""
    for got, wanted in zip(actual, expected, strict=True):
        if len(got) < len(wanted):
            return f"{len(got)} outputs, not {len(wanted)}"
        for i, (a, b) in enumerate(zip(got, wanted, strict=False)):
            found = _array_difference(a, b)
            if found:
                return f"output {i}: {found}"
    return ""


def _array_difference(got: Any, wanted: Any) -> str:
    if isinstance(wanted, list) or isinstance(got, list):
        if not isinstance(got, list) or not isinstance(wanted, list) or len(got) != len(wanted):
            return "not the same sequence"
        parts = (_array_difference(a, b) for a, b in zip(got, wanted, strict=True))
        return next(filter(None, parts), "")
    if isinstance(got, torch.Tensor):  # numpy has no bfloat16 of its own
        got = got.float().numpy().astype(wanted.dtype)
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.dtype != wanted.dtype:
        return f"type {got.dtype}, not {wanted.dtype}"
    if got.shape != wanted.shape:
        return f"shape {got.shape}, not {wanted.shape}"
    if wanted.dtype.kind not in "fc" and wanted.dtype.name != "bfloat16":
        return "" if np.array_equal(got, wanted) else "other numbers"
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    tolerance = max(RELATIVE, STEPS_OF_HALF.get(wanted.dtype.name, 0))
    if np.allclose(a, b, rtol=tolerance, atol=ABSOLUTE, equal_nan=True):
        return ""
    return f"off by up to {np.nanmax(np.abs(a - b)):.2g} of {np.nanmax(np.abs(b)):.2g}"


def is_training(model: onnx.ModelProto) -> bool:
    """Whether a node asks for training mode."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            if any(a.name == "training_mode" and a.i for a in node.attribute):
                return True
        elif node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
            return True
    return False
