"""Shared by all tests: one thread for torch, and where the repository and its fixtures lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The shipped models and clean images."""
    return ROOT / "fixtures"
