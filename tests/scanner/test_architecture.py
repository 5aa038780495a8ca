"""The house: who imports whom, what is public, and how long files are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scanner
from tests.conftest import ROOT
from tests.scanner.scans import environment

MAX_LINES = 400
LEAVES = ("results", "evidence", "errors", "exit_codes")
SOURCES = sorted(
    path for package in ("scanner", "converters") for path in (ROOT / package).rglob("*.py")
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> set[str]:
    """Full names of all modules that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


IMPORTS = {module_name(path): imported_modules(path) for path in SOURCES}


def importers_of(name: str) -> set[str]:
    return {module for module, names in IMPORTS.items() if name in names}


def test_the_packages_are_found() -> None:
    assert {"scanner", "scanner.cli", "scanner.detectors.l_red", "converters"} <= set(IMPORTS)


def test_converters_know_nothing_of_the_scanner() -> None:
    for module, names in IMPORTS.items():
        if module.startswith("converters"):
            assert not {n for n in names if n.split(".")[0] in ("scanner", "fixtures", "tests")}


def test_the_scanner_imports_neither_fixtures_nor_tests() -> None:
    for names in IMPORTS.values():
        assert not {n for n in names if n.split(".")[0] in ("fixtures", "tests")}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_leaves_at_most(leaf: str) -> None:
    allowed = {f"scanner.{name}" for name in LEAVES}
    inside = {n for n in IMPORTS[f"scanner.{leaf}"] if n.startswith(("scanner", "converters"))}
    assert {n for n in inside if not any(n == a or n.startswith(a + ".") for a in allowed)} == set()


def test_only_main_imports_the_command_line() -> None:
    assert importers_of("scanner.cli") == {"scanner.__main__"}


def test_only_the_command_line_imports_the_command() -> None:
    assert importers_of("scanner.command") == {"scanner.commands.scan"}


@pytest.mark.parametrize("upper", ["scanning", "command", "cli", "store", "reports"])
def test_detectors_and_their_tools_do_not_import_what_runs_them(upper: str) -> None:
    lower = ("detectors", "triggers", "statistics", "classifier", "preprocessing", "clean_set")
    for module, names in IMPORTS.items():
        if module.split(".")[-2:][0] in lower or module.split(".")[-1] in lower:
            assert not {n for n in names if n.startswith(f"scanner.{upper}")}, module


def test_triggers_and_statistics_import_nothing_of_the_scanner() -> None:
    for module in ("scanner.triggers", "scanner.statistics"):
        assert not {n for n in IMPORTS[module] if n.startswith(("scanner", "converters"))}


def test_modules_of_the_scanner_import_each_other_one_way() -> None:
    # Imports for type checkers alone do not run, so they are left out of the graph.
    graph = {
        module: {n for n in names if n in IMPORTS and n != module}
        for module, names in IMPORTS.items()
        if module not in ("scanner", "converters")
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for name in graph.get(module, ()):
            if name in graph:
                visit(name, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", ["scanner", "scanner.cli", "scanner.config", "scanner.results"])
def test_importing_it_does_not_import_the_engines(module: str) -> None:
    program = f"import sys, {module}; print(*{{'torch', 'onnxruntime', 'onnx'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", scanner.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert (getattr(scanner, name).__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="frobnicate"):
        getattr(scanner, "frobnicate")  # noqa: B009 - mypy knows that it is not there


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_file_is_too_long_and_each_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), path
