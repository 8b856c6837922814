"""Who may import whom: the directions of the layout, over every import statement, lazy ones included.

The table says for each part which of the project's own modules and which installed libraries it may import.
The standard library is always allowed. The longest matching prefix decides.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ("identity", "mep", "mep_sdk", "mep_wire", "relay", "user_endpoint")


@dataclass(frozen=True)
class Rule:
    """What one part may import: own modules by prefix, and libraries (None: any)."""

    own: tuple[str, ...]
    libraries: frozenset[str] | None = frozenset()


def _libraries(*names: str) -> frozenset[str]:
    return frozenset(names)


SHARED = ("mep.boundary", "mep.errors")
RULES = {
    "mep_wire": Rule(("mep_wire",), _libraries("msgspec")),
    "mep_sdk": Rule(("mep_sdk", "mep_wire"), None),
    "relay": Rule(("relay", "mep_wire", "mep.boundary.file_trust", "mep.boundary.untraceable"), None),
    "identity": Rule(("identity", "mep.boundary.file_trust"), _libraries("re2", "ldap3", "pyasn1", "yaml")),
    "user_endpoint": Rule(
        ("user_endpoint", "mep_wire", "mep_sdk.serialize", "mep_sdk.strategies", "mep_sdk.runner"),
        _libraries(
            *("jinja2", "jsonschema", "jsonschema_specifications", "markupsafe", "msgspec"),
            *("kubernetes", "parsl", "referencing", "urllib3", "yaml", "zmq"),
        ),
    ),
    "mep": Rule(()),
    "mep.errors": Rule(()),
    "mep.boundary": Rule(SHARED),
    "mep.monitor": Rule(("mep.monitor", *SHARED)),
    "mep.manager": Rule(("mep.manager", "mep_wire", *SHARED), _libraries("msgspec", "zmq", "prometheus_client")),
    "mep.mapper": Rule(("mep.mapper", "mep_wire", "identity", *SHARED), _libraries("cryptography", "msgspec")),
    "mep.config": Rule(("mep.config", "mep_wire", "identity", *SHARED), None),
    "mep.cli": Rule(
        (
            "mep.cli",
            "mep.config",
            "identity",
            "mep.monitor.accounts",
            "mep.monitor.judging",
            "mep_wire",
            "mep.__version__",
            *SHARED,
        ),
        None,
    ),
}


def _within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def _module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _from_import(node: ast.ImportFrom, module: str, *, package: bool) -> Iterator[str]:
    base = node.module or ""
    if node.level:
        above = module.split(".")
        kept = above[: len(above) - node.level + package]
        base = ".".join([*kept, *([node.module] if node.module else [])])
    for alias in node.names:
        name = f"{base}.{alias.name}"
        is_module = (ROOT / Path(*name.split("."))).is_dir() or (ROOT / f"{name.replace('.', '/')}.py").exists()
        yield name if is_module else base


def _dynamic_import(node: ast.Call) -> Iterator[str]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called in {"import_module", "__import__"} and node.args and isinstance(node.args[0], ast.Constant):
        yield str(node.args[0].value)


def imports_of(file: Path) -> set[str]:
    """Return every module that `file` names in an import, wherever in it that stands."""
    module, found = _module_of(file), set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(_from_import(node, module, package=file.name == "__init__.py"))
        elif isinstance(node, ast.Call):
            found.update(_dynamic_import(node))
    return found


def _rule_for(module: str) -> Rule:
    return RULES[max((prefix for prefix in RULES if _within(module, prefix)), key=len)]


def _allowed(name: str, rule: Rule) -> bool:
    top = name.split(".")[0]
    if top in OWN:
        # Importing a package runs its parents, which is why the parents' own __init__ have rules too.
        return any(_within(name, prefix) for prefix in rule.own) or name == "mep"
    return top in sys.stdlib_module_names or rule.libraries is None or top in rule.libraries


FILES = sorted(file for name in OWN for file in (ROOT / name).rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_only_what_its_part_may(file: Path) -> None:
    rule = _rule_for(_module_of(file))
    wrong = sorted(name for name in imports_of(file) if not _allowed(name, rule))
    assert not wrong, f"{file.relative_to(ROOT)} may not import {', '.join(wrong)}"


def test_the_rules_notice_a_breach(tmp_path: Path) -> None:
    """The test's own test: hidden, relative and dynamic imports are found and judged."""
    text = "def f():\n    from .. import manager\n    import zmq.green\n    __import__('user_endpoint.link')\n"
    file = ROOT / "mep" / "monitor" / "never_written.py"
    names = set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(_from_import(node, _module_of(file), package=False))
        elif isinstance(node, ast.Call):
            names.update(_dynamic_import(node))
    assert names == {"mep.manager", "zmq.green", "user_endpoint.link"}
    assert not any(_allowed(name, _rule_for("mep.monitor.never_written")) for name in names)


def test_the_monitor_loads_nothing_but_the_standard_library() -> None:
    """What the statements say is also what happens: root's process has no library in it."""
    code = "import mep.monitor.main, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
    assert loaded <= {"mep", "__main__", "_distutils_hack", "sitecustomize", "usercustomize"}, loaded
