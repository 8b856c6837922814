"""The guide to root's code names every file that a long-lived root process loads, once, and tests that exist."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_imports import imports_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parts() -> Any:
    """The parts, as docs/generate.py reads them."""
    spec = importlib.util.spec_from_file_location("root_code", ROOT / "docs" / "root_code.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PARTS


def loaded_by_root() -> set[str]:
    """Return the files of mep/root, and those of mep/boundary that they import, directly or not."""
    found = {file for file in (ROOT / "mep" / "root").rglob("*.py") if file.name != "__init__.py"}
    new = found
    while new:
        names = {name for file in new for name in imports_of(file) if name.startswith("mep.boundary.")}
        new = {ROOT / f"{name.replace('.', '/')}.py" for name in names} - found
        found |= new
    return {str(file.relative_to(ROOT)) for file in found}


def test_each_file_of_roots_is_in_one_part(parts: Any) -> None:
    counts = Counter(path for part in parts for path in part.paths())
    assert set(counts) == loaded_by_root()
    assert set(counts.values()) == {1}


def test_what_helpers_put_on_themselves_is_not_among_them() -> None:
    helpers = ("seccomp", "landlock", "confinement", "child_setup")
    assert not loaded_by_root() & {f"mep/boundary/{name}.py" for name in helpers}


def test_the_named_tests_exist(parts: Any) -> None:
    named = {test for part in parts for test in part.tests}
    assert {test for test in named if not (ROOT / "tests" / test).exists()} == set()
