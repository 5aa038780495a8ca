"""The README's promises: its commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.scanner.scans import bdscan

README = (ROOT / "README.md").read_text(encoding="utf-8")
FOREIGN_OPTIONS = {"--index-url", "--data", "--out"}  # of pip and of fixtures.make_fixtures


def marked_command(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```sh\n(.+?)\n```", README, re.DOTALL)
    assert found, f"README.md has no command marked {mark}"
    return found[1]


COMMANDS = ((), ("scan",), ("inspect",), ("export",), ("config",), ("samples",), ("report",))


@pytest.fixture(scope="module")
def help_texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("help")
    runs = [bdscan(*command, "--help", cwd=folder) for command in COMMANDS]
    assert [run.code for run in runs] == [0] * len(COMMANDS)
    return "\n".join(run.out for run in runs)


def test_the_scan_command_is_one_line_and_its_paths_exist() -> None:
    command = marked_command("scan")
    assert len(command.splitlines()) == 1
    found = re.search(r"bdscan (\S+) --clean-dir (\S+)$", command)
    assert found
    assert (ROOT / found[1]).is_file()
    assert (ROOT / found[2]).is_dir()
    assert (ROOT / "constraints.txt").is_file()


def test_the_tests_command_is_one_line_and_its_extra_exists() -> None:
    command = marked_command("tests")
    assert len(command.splitlines()) == 1
    assert "[dev]" in command
    assert command.endswith("pytest")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^dev = \[\s*"pytest', project, re.MULTILINE)
    assert 'bdscan = "scanner.cli:main"' in project


@pytest.mark.parametrize(
    "option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README)) - FOREIGN_OPTIONS)
)
def test_every_option_that_the_readme_names_exists(option: str, help_texts: str) -> None:
    assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_texts)


@pytest.mark.parametrize("command", ["scan", "samples", "report", "inspect", "export", "doctor"])
def test_the_commands_that_the_readme_names_exist(command: str, help_texts: str) -> None:
    assert re.search(rf"^\W*{command}\s", help_texts, re.MULTILINE)


def test_the_exit_codes_of_the_readme_are_those_of_the_help(help_texts: str) -> None:
    for row in ("`no_backdoor_found` | 0", "`backdoor_found` | 1", "`inconclusive` | 2"):
        assert row in README
    for code in ("0 every model", "1 at least one", "2 no finding", "3 nothing to scan", "4 usage"):
        assert code in " ".join(help_texts.split())


@pytest.mark.parametrize(
    "path",
    sorted(set(re.findall(r"`((?:scanner|converters|fixtures|tests|\.ci)/[\w./-]*)`", README))),
)
def test_the_paths_that_the_readme_names_exist(path: str) -> None:
    assert Path(ROOT, path).exists()
