"""A vendor's folder for tests of whole audits, and the digests of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.models import save_clean_set, save_model, stated, template_model
from tests.scanner.test_cli import CLASSES, backdoored_model, tiny_images


def save_vendor(folder: Path) -> Path:
    """`bad.onnx` with a backdoor to class 3, `good.onnx`, `text.onnx`, and the clean set `clean`.

    `l_red` and `mask_pattern` find the backdoor within a second.
    """
    save_clean_set(*tiny_images(), folder / "clean")
    save_model(backdoored_model(), folder / "bad.onnx")
    save_model(template_model(CLASSES, metadata=stated()), folder / "good.onnx")
    (folder / "text.onnx").write_text("this is no model", encoding="utf-8")
    return folder


def digest(path: Path) -> str:
    """A file's sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
