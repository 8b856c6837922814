"""The statements of README and docs hold: links, commands, code, generated pages."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from user_endpoint.settings import EngineSettings, settings_from

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "mep").rglob("*.md"))]
MADE = {"build", "dist"}
"""Directories that `make packages` makes: their contents depend on how far it got."""
_by_path = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _generated() -> dict[str, Callable[[], str]]:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, Callable[[], str]] = module.PAGES
    return pages


def _packages() -> list[Path]:
    tops = ("mep", "identity", "user_endpoint", "relay", "mep_link", "mep_wire", "mep_sdk")
    return [path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("__init__.py")]


@pytest.mark.parametrize("name", _generated())
def test_a_generated_page_is_current(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == _generated()[name](), f"docs/{name} is old: run `make docs`"


@pytest.mark.parametrize("package", sorted({path.parent for path in _packages()}), ids=str)
def test_a_package_says_where_it_runs_what_it_trusts_and_who_imports_it(package: Path) -> None:
    about = (ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text())) or "").split("\n\n")[1]
    about = " ".join(about.split())
    for words in ("run|process|forks|starts", "trust", "may import"):
        assert re.search(words, about), f"{package}: its docstring's second paragraph lacks {words!r}"


@pytest.mark.parametrize("kind", get_args(EngineSettings), ids=lambda kind: kind.__struct_config__.tag)
def test_an_engine_can_be_chosen_and_has_its_section(kind: type) -> None:
    assert isinstance(settings_from({"engine": {"type": kind.__struct_config__.tag}}).engine, kind)
    assert f"\n## engine: type: {kind.__struct_config__.tag}\n" in (ROOT / "docs" / "engines.md").read_text()


@_by_path
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md" and page.name not in index]
    assert not missing


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@_by_path
def test_python_blocks_are_python_and_what_they_import_exists(page: Path) -> None:
    for block in _blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("mep", "relay")):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@_by_path
def test_make_commands_exist(page: Path) -> None:
    named = set(re.findall(r"(?:`|^ {4})make ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named <= _make_targets()


@_by_path
def test_paths_of_the_repository_exist(page: Path) -> None:
    tracked = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - MADE
    tops = "|".join(sorted(tracked))
    for name in re.findall(rf"`((?:{tops})/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_commands_are_installed() -> None:
    bin_directory = Path(sys.prefix, "bin")
    for command in ("mep", "mep-relay", "globus-compute-endpoint", "mep-diagnostic"):
        assert shutil.which(command, path=str(bin_directory)), command


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 90
