"""Errors that users see: one line each, with what, where and what to do."""

from __future__ import annotations

from scanner.exit_codes import ExitCode


class BdscanError(Exception):
    """Base of every error that ends a command.

    Attributes:
        exit_code: what the command exits with.
        reason: short machine-readable word for reports.
    """

    exit_code = ExitCode.INCOMPLETE
    reason = "error"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


class UsageError(BdscanError):
    """A wrong path, option or configuration; found before anything is scanned."""

    exit_code = ExitCode.USAGE
    reason = "usage"


class NothingToScanError(BdscanError):
    """A folder without ONNX files."""

    exit_code = ExitCode.NOTHING_TO_SCAN
    reason = "nothing_to_scan"


class CleanSetMismatchError(BdscanError):
    """The clean set does not fit this model; another model may still be scanned with it."""

    reason = "clean_set_mismatch"
