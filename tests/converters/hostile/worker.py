"""Loads model files one after the other in a process of its own, and measures each.

Reads a JSON line {"path": ...} from standard input for each file, and answers with a line: outcome,
reason, processor seconds, memory above the idle process, files that Python opened, and how many
sessions ONNX Runtime was asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from converters import ConverterError, OnnxClassifier, check_parity, load_classifier
from tests.converters.onnx_models import small_net

opened: list[str] = []
mark = Path(os.devnull)  # a file that exists while ONNX Runtime is at work
sessions = 0


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note every file that Python opens."""
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.fsdecode(arguments[0]))


class CountedSession(onnxruntime.InferenceSession):
    """A session that is counted, and that leaves a mark while ONNX Runtime is at work."""

    def __init__(self, model: bytes, *arguments: Any, **options: Any) -> None:
        global sessions
        sessions += 1
        nodes = onnx.ModelProto.FromString(model).graph.node
        self._operators = " ".join(sorted({node.op_type for node in nodes}))
        with self._marked():
            super().__init__(model, *arguments, **options)

    def run(self, *arguments: Any, **options: Any) -> Any:
        """As in ONNX Runtime."""
        with self._marked():
            return super().run(*arguments, **options)

    @contextlib.contextmanager
    def _marked(self) -> Iterator[None]:
        mark.write_text(self._operators)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def memory(field: str) -> int:
    """Bytes of the process, by the name that the system gives them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def load(path: str) -> OnnxClassifier:
    """A classifier from a file."""
    return load_classifier(path)


def answer(path: str) -> dict[str, Any]:
    """What becomes of one file."""
    global sessions, mark
    mark = Path(path).parent / "in_onnxruntime"
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    idle, sessions = memory("VmRSS"), 0
    opened.clear()
    begun = time.process_time()
    try:
        classifier = load(path)
        digest = _digest(classifier)
    except (ConverterError, FileNotFoundError) as error:
        reason = getattr(error, "reason", "absent")
        told = {"outcome": "refused", "reason": reason, "error": type(error).__name__}
        text = str(error)
    except Exception:
        told, text = {"outcome": "error", "reason": "error"}, traceback.format_exc()[-3000:]
    else:
        told = {"outcome": "loaded", "digest": digest}
        text = "; ".join(classifier.rewrites)
    return {
        **told,
        "text": text,
        "seconds": time.process_time() - begun,
        "memory": memory("VmHWM") - idle,
        "opened": list(opened),
        "sessions": sessions,
    }


def _digest(classifier: OnnxClassifier) -> str:
    """What the loaded network computes; parity is shown once more, on other images."""
    shape = (4, *classifier.image_input.shape)
    images = np.random.default_rng(7).random(shape, dtype=np.float32)
    feed = (images * (classifier.image_input.pixel_range_hint or 1)).astype(
        classifier.image_input.dtype
    )
    check_parity(classifier, feed)
    held = classifier.original.SerializeToString()
    return hashlib.sha256(held).hexdigest()


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    onnxruntime.InferenceSession = CountedSession
    sys.addaudithook(watch)
    tempfile.gettempdir()  # it tries the folder out
    answer_to, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:  # what is imported late is
        path = Path(folder) / "model.onnx"
        path.write_bytes(small_net().SerializeToString())
        answer(str(path))
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line)["path"])), file=answer_to, flush=True)


if __name__ == "__main__":
    main()
