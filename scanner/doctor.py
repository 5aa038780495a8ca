"""`bdscan doctor`: does this installation work, and on which device?"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from scanner import describe, sandbox, workers

ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def examine() -> dict[str, Any]:
    """Versions, providers that really start, containment, and what is wrong, as plain data.

    A provider counts only if a session that was opened with it still has it: ONNX Runtime lists
    CUDA wherever it was compiled in, and falls back to the CPU without an error.
    """
    import onnxruntime
    import torch

    problems = []
    installed = [name for name in ONNX_RUNTIMES if describe.version_of(name)]
    if len(installed) > 1:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "uninstall both, then install one"
        )
    onnxruntime.set_default_logger_severity(4)
    offered = onnxruntime.get_available_providers()
    working = [name for name in offered if _starts(name)]
    if "CPUExecutionProvider" not in working:
        problems.append("ONNX Runtime can't run on the CPU: reinstall it")
    cuda = torch.cuda.is_available()
    if cuda and "CUDAExecutionProvider" not in working:
        problems.append("torch has CUDA, ONNX Runtime has not: forward passes run on the CPU")
    return {
        "tool": describe.tool(),
        "environment": describe.environment(),
        "torch_cuda": torch.version.cuda,
        "torch_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "onnxruntime_offers": offered,
        "onnxruntime_starts": working,
        "containment": _containment(),
        "problems": problems,
    }


def _containment() -> dict[str, str]:
    """What keeps a scan's child processes in, tried out here; what is missing says why."""
    if not workers.can_contain():
        return {"child_processes": "none: this system has no fork; models are read in this process"}
    return {"child_processes": "one for each model", **sandbox.probe()}


def _starts(provider: str) -> bool:
    """Whether a session with this provider alone keeps it and gives the right answer."""
    import onnxruntime

    node = helper.make_node("Add", ["x", "x"], ["y"])
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    model = helper.make_model(
        helper.make_graph([node], "doctor", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces its fallbacks there
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=[provider]
            )
        result = session.run(None, {"x": np.ones(2, np.float32)})[0]
    except Exception:  # whatever a provider raises, it does not start
        return False
    return provider in session.get_providers() and bool((np.asarray(result) == 2).all())
