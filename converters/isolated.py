"""onnx's shape inference in a process of its own: a file that no engine has read can make it abort.

It is C++ that ends the process where an assertion fails (a Slice of a negative dimension, for one).
"""

from __future__ import annotations

import subprocess
import sys

import onnx

from converters.errors import UnsupportedModelError

SECONDS = 60

_SCRIPT = """
import ctypes, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: killed with its parent
import onnx
model = onnx.ModelProto.FromString(sys.stdin.buffer.read())
try:
    inferred = onnx.shape_inference.infer_shapes(model, False, sys.argv[1] == "strict", True)
except Exception as error:
    sys.exit((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
sys.stdout.buffer.write(inferred.SerializeToString())
"""


def infer_shapes(model: onnx.ModelProto, strict: bool = False) -> onnx.ModelProto:
    """The model with the shapes of its tensors, as far as onnx can tell them, numbers followed.

    Args:
        strict: an operator that contradicts its inputs is an error.

    Raises:
        UnsupportedModelError: such an error; or onnx crashed, or took too long.
    """
    command = [sys.executable, "-I", "-c", _SCRIPT, "strict" if strict else "lenient"]
    data = model.SerializeToString()
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedModelError("shapes can't be told: onnx took too long") from error
    if done.returncode < 0:
        raise UnsupportedModelError("shapes can't be told: onnx crashed on the file")
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise UnsupportedModelError(f"shapes can't be told: {lines[-1]}")
    inferred = onnx.ModelProto()
    inferred.ParseFromString(done.stdout)
    return inferred
