from __future__ import annotations

import ast
import functools
import inspect
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import converters

FOLDER = Path(converters.__file__).parent
SOURCES = sorted(FOLDER.rglob("*.py"))


@pytest.mark.parametrize("name", converters.__all__)
def test_public_names_are_documented_and_typed(name: str) -> None:
    thing = getattr(converters, name)
    assert inspect.getdoc(thing)
    functions = [thing] if inspect.isfunction(thing) else []
    if inspect.isclass(thing):
        members = vars(thing).items()
        functions = [f for n, f in members if inspect.isfunction(f) and not n.startswith("_")]
        functions += [p.fget for _, p in members if isinstance(p, property)]
    for function in functions:
        assert inspect.getdoc(function), function
        untyped = set(inspect.signature(function).parameters) - {"self"}
        hints = get_type_hints(function)
        assert untyped <= set(hints)
        assert "return" in hints


def test_all_is_sorted_and_complete() -> None:
    imported = {
        alias.name
        for node in ast.parse((FOLDER / "__init__.py").read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert set(converters.__all__) == imported
    assert list(converters.__all__) == sorted(converters.__all__)


def imported_modules(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_converters_know_nothing_of_backdoors(path: Path) -> None:
    third_party = {"google", "numpy", "onnx", "onnxruntime", "torch"}
    assert imported_modules(path) <= third_party | {"converters"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_imports_stand_at_the_top(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    inside = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in top
    ]
    assert not inside


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_each_module_can_be_imported_first(path: Path) -> None:
    """No import cycle that works only in one order."""
    reached: set[Path] = set()
    waiting = list(_internal_imports(path))
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += _internal_imports(module)
    assert path not in reached


@functools.cache
def _internal_imports(path: Path) -> tuple[Path, ...]:
    found: list[Path] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("converters"):
            base = FOLDER.parent / str(node.module).replace(".", "/")
            names = [base / f"{alias.name}.py" for alias in node.names]
            names += [base / alias.name / "__init__.py" for alias in node.names]
            found += [p for p in (*names, base.with_suffix(".py")) if p in SOURCES]
    return tuple(found)


def test_errors_share_a_base_and_have_reasons() -> None:
    errors = [getattr(converters, n) for n in converters.__all__ if n.endswith("Error")]
    own = [e for e in errors if issubclass(e, converters.ConverterError)]
    assert len(own) == 5
    assert len({error.reason for error in own}) == 5
    assert [e.__name__ for e in errors if e not in own] == ["DeviceError"]
