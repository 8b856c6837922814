"""Forbidden in tracked files: one machine's paths, registries, leftovers; and limits on length."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SELF = Path(__file__).resolve()
KEPT_APART = {".git", ".venv", ".venv-build", ".venv-tests"}


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=False)
    if listed.returncode:  # an export without history: everything there is
        return [path for path in ROOT.rglob("*") if path.is_file() and not set(path.parts) & KEPT_APART]
    paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


TEXTS = {path: path.read_text(errors="replace") for path in _tracked() if path != SELF}
PYTHON = {path: text for path, text in TEXTS.items() if path.suffix == ".py"}
OURS = {path: text for path, text in PYTHON.items() if "tests" not in path.relative_to(ROOT).parts}

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/work/|/root/\.|/home/(?!alice|bob|\{|USER|me\b)[a-z]+/",
    "a package registry": r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org|(?:index|find)[-_](?:url|links)",
    "a private network's host": r"\b(?:10\.\d+|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d+\.\d+\b",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path, text in (OURS if "network" in what else TEXTS).items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]
    assert not found, "\n".join(found)


def test_dependencies_are_pinned_by_version_and_nothing_else() -> None:
    lines = (ROOT / "packaging" / "constraints.txt").read_text().splitlines()
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line) for line in lines)


def test_no_stubs_are_left() -> None:
    pattern = re.compile(r"\b(?:TODO|FIXME|XXX)\b|raise NotImplementedError")
    assert not [str(path.relative_to(ROOT)) for path, text in PYTHON.items() if pattern.search(text)]


def test_functions_stay_short_enough_to_read() -> None:
    long_functions = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path, text in OURS.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long_functions


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    """Whether the handler lets nothing through. One that cleans up and ends in a bare `raise` swallows nothing."""
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return False
    names = [node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)] if handler.type else []
    return handler.type is None or bool({"Exception", "BaseException"} & set(names))


def test_few_places_catch_everything() -> None:
    """`except Exception` is for a process's outermost loop; a caller of foreign code may need it as well."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, text in OURS.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ExceptHandler) and _catches_everything(node)
    ]
    assert len(found) <= 12, "\n".join(found)


def test_continuous_integration_runs_the_test_command_and_no_more() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    commands = [line for line in script.splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["exec make test"]


def test_shell_scripts_and_commands_are_executable() -> None:
    for name in (".ci/run", "packaging/install.py"):
        assert (ROOT / name).stat().st_mode & 0o100, name
