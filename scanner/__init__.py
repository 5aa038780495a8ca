"""bdscan: does an image classifier in an ONNX file hide a backdoor?

    from scanner import ScanConfig, scan
    report = scan("model.onnx", "imgs", ScanConfig())
    report.models[0].verdict

torch and ONNX Runtime are imported at the first use of `scan`, not with this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scanner.config import LRedConfig, PreprocessingOptions, ScanConfig, VerdictConfig
from scanner.errors import BdscanError, CleanSetMismatchError, NothingToScanError, UsageError
from scanner.exit_codes import ExitCode

if TYPE_CHECKING:
    from scanner.results import ModelReport, ScanReport, to_json
    from scanner.scanning import scan

__all__ = [
    "BdscanError",
    "CleanSetMismatchError",
    "ExitCode",
    "LRedConfig",
    "ModelReport",
    "NothingToScanError",
    "PreprocessingOptions",
    "ScanConfig",
    "ScanReport",
    "UsageError",
    "VerdictConfig",
    "scan",
    "to_json",
]


def __getattr__(name: str) -> Any:
    if name in ("ModelReport", "ScanReport", "to_json"):
        from scanner import results

        return getattr(results, name)
    if name == "scan":
        from scanner.scanning import scan

        return scan
    raise AttributeError(f"module 'scanner' has no attribute {name!r}")
