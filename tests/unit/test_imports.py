"""Which parts may import which: the directions of the layout, over every import statement, lazy ones included.

The table says for each part which of the project's own modules and which installed libraries it may import. The
standard library is always allowed. The longest matching prefix decides.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ("identity", "mep", "mep_link", "mep_sdk", "mep_wire", "relay", "user_endpoint")


@dataclass(frozen=True)
class Rule:
    """The imports that one part may make: own modules by prefix, and libraries (None: any)."""

    own: tuple[str, ...]
    libraries: frozenset[str] | None = frozenset()


def _libraries(*names: str) -> frozenset[str]:
    return frozenset(names)


SHARED = ("mep.boundary",)
ROOT_PARTS = {  # a part of mep.root may import those before it
    "mep.root.kernel": ("mep.root.kernel", *SHARED),
    "mep.root.account": ("mep.root.kernel", "mep.root.account", "mep.root.pam.libpam", *SHARED),
    "mep.root.pam": ("mep.root.kernel", "mep.root.account.lookup", "mep.root.pam", *SHARED),
    "mep.root.keeper": (
        *("mep.root.kernel", "mep.root.account", "mep.root.keeper", *SHARED),
        "mep.root.pam.session_process",  # what it forks
    ),
    "mep.root.monitor": (
        *("mep.root.kernel", "mep.root.monitor", *SHARED),
        *("mep.root.account.account_check", "mep.root.account.lookup", "mep.root.account.system_accounts"),
        *("mep.root.keeper.keeper", "mep.root.keeper.supervisor"),  # what it forks, and its word for a stop
        "mep.root.pam.session_process",  # how long a session may take to close
    ),
}
_ENGINE = ("user_endpoint", "mep_wire", "mep_sdk.task_runner")
RULES = {
    "mep_wire": Rule(("mep_wire",), _libraries("msgspec")),
    "mep_link": Rule(("mep_link", "mep_wire"), _libraries("zmq")),
    "mep_link.client": Rule(("mep_link", "mep_wire", "mep.boundary.fd_reserve"), _libraries("zmq")),
    "mep_link.backoff": Rule(()),
    "mep_sdk": Rule(("mep_sdk", "mep_wire", "mep_link.backoff"), None),
    "relay": Rule(("relay", "mep_wire", "mep.boundary.file_trust", "mep.boundary.untraceable"), None),
    "relay.api": Rule(
        (
            *("relay.api", "relay.audit", "relay.auth", "relay.descriptors", "relay.dispatch", "relay.log"),
            *("relay.rate_limit", "relay.store", "mep_wire"),
        ),
        _libraries(
            *("httptools", "jsonschema", "jsonschema_specifications", "msgspec", "re2", "referencing"),
            *("starlette", "uvicorn", "websockets", "zmq"),
        ),
    ),
    "relay.auth": Rule(
        ("relay.auth", "relay.rate_limit", "relay.store", "mep_wire"),
        _libraries("joserfc", "msgspec", "pam", "urllib3"),
    ),
    "relay.dispatch": Rule(
        ("relay.dispatch", "relay.link", "relay.log", "relay.state_dir", "relay.store", "mep_wire"),
        _libraries("cryptography", "msgspec"),
    ),
    "relay.link": Rule(
        ("relay.link", "relay.descriptors", "relay.log", "mep_link.zap", "mep_wire"), _libraries("msgspec", "zmq")
    ),
    "relay.store": Rule(
        ("relay.store", "relay.log", "mep_wire"), _libraries("boto3", "botocore", "msgspec", "psycopg")
    ),
    "identity": Rule(("identity", "mep.boundary.file_trust", "mep.boundary.nss_database"), _libraries("yaml")),
    "identity.expression": Rule(("identity",), _libraries("re2")),
    "identity.callout": Rule(("identity", "mep.boundary.file_trust")),
    "identity.ldap": Rule(("identity",), _libraries("ldap3", "pyasn1")),
    "user_endpoint": Rule(
        (
            "user_endpoint",
            "mep.boundary.fd_reserve",
            "mep.boundary.figures",
            "mep_link.client",
            "mep_wire",
            "mep_sdk.serialize",
            "mep_sdk.strategies",
            "mep_sdk.task_runner",
        ),
        _libraries("msgspec", "zmq"),
    ),
    "user_endpoint.render": Rule(
        ("user_endpoint", "mep_wire", "mep_sdk.strategies"),
        _libraries(
            *("jinja2", "jsonschema", "jsonschema_specifications", "markupsafe", "msgspec", "referencing", "rstr"),
            "yaml",
        ),
    ),
    "user_endpoint.engines": Rule(_ENGINE, _libraries("msgspec")),
    "user_endpoint.engines.process_pool": Rule(_ENGINE, _libraries("msgspec")),
    "user_endpoint.engines.htex": Rule(
        ("mep_link.zap", *_ENGINE), _libraries("kubernetes", "msgspec", "parsl", "urllib3", "yaml", "zmq")
    ),
    "user_endpoint.workers": Rule(
        ("user_endpoint.workers", "mep_sdk.foreign_code", "mep_sdk.when_imported", *_ENGINE), _libraries("cloudpickle")
    ),
    "mep": Rule(()),
    "mep.boundary": Rule(SHARED),
    "mep.root": Rule(()),
    **{part: Rule(own) for part, own in ROOT_PARTS.items()},
    "mep.manager": Rule(
        ("mep.manager", "mep_link.client", "mep_wire", *SHARED),
        _libraries("msgspec", "zmq", "prometheus_client", "setproctitle"),
    ),
    "mep.mapper": Rule(
        ("mep.mapper", "mep_wire", "identity", *SHARED), _libraries("cryptography", "msgspec", "setproctitle")
    ),
    "mep.config": Rule(("mep.config", "mep_wire", "identity", *SHARED), None),
    "mep.cli": Rule(
        (
            "mep.cli",
            "mep.config",
            "identity",
            "mep.root.account",
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
    text = "def f():\n    from ... import manager\n    import zmq.green\n    __import__('user_endpoint.credit')\n"
    file = ROOT / "mep" / "root" / "monitor" / "never_written.py"
    names = set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(_from_import(node, _module_of(file), package=False))
        elif isinstance(node, ast.Call):
            names.update(_dynamic_import(node))
    assert names == {"mep.manager", "zmq.green", "user_endpoint.credit"}
    assert not any(_allowed(name, _rule_for("mep.root.monitor.never_written")) for name in names)


def test_the_monitor_loads_nothing_but_the_standard_library() -> None:
    """The import statements tell the truth: root's process has no library in it."""
    code = "import mep.root.monitor.main, sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = {name for name in done.stdout.split() if name not in sys.stdlib_module_names}
    assert loaded <= {"mep", "__main__", "_distutils_hack", "sitecustomize", "usercustomize"}, loaded


def _loaded_by(*imports: str) -> set[str]:
    code = "; ".join([*imports, "import sys; print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    return set(done.stdout.split())


def test_long_lived_processes_load_no_large_modules_that_few_need() -> None:
    """Each is half a megabyte to a megabyte and a half of every monitor, user endpoint or worker."""
    monitor = _loaded_by("from mep.boundary import lazy_inspect", "import mep.root.monitor.main")
    assert monitor.isdisjoint({"inspect", "ast", "pathlib", "hashlib"})
    worker = _loaded_by("from user_endpoint import fast_msgspec_import, startup", "import user_endpoint.workers.worker")
    worker |= _loaded_by("from user_endpoint import fast_msgspec_import", "import mep_sdk.task_runner")
    assert worker.isdisjoint({"inspect", "ast", "pathlib", "hashlib", "threading", "socket", "zmq"})
    uep = _loaded_by("from user_endpoint import fast_msgspec_import, startup, event_loop")
    assert uep.isdisjoint({"inspect", "ast", "pathlib", "hashlib", "socket"})


def _circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    number, lowest, stack, circles = dict[str, int](), dict[str, int](), list[str](), list[list[str]]()

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for imported in graph[module] & graph.keys():
            if imported not in number:
                visit(imported)
            if imported in stack:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == number[module]:
            circle = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(circle) > 1:
                circles.append(sorted(circle))

    for module in graph:
        if module not in number:
            visit(module)
    return circles


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports under TYPE_CHECKING count: a type that two modules need belongs below both."""
    circles = _circles({_module_of(file): imports_of(file) - {_module_of(file)} for file in FILES})
    assert circles == []


def test_a_circle_is_noticed() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b", "os"}, "d": {"a"}}) == [["b", "c"]]


MOST_OF_ROOT, MOST_OF_MONITOR = 5860, 2960
"""Lines of code without comments, docstrings and blank lines, a little above those of today. Lower them with the code:
a reviewer reads all of this."""


@pytest.fixture(scope="module")
def generate() -> Any:
    """The program that writes the generated pages."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


def test_roots_lines_are_few_and_printed_for_each_process(generate: Any) -> None:
    print("\n".join(generate.process_lines()))
    for packages in generate.PROCESSES.values():
        assert all((ROOT / package).is_dir() for package in packages)
    assert generate.lines_of(["mep/root"])[0] <= MOST_OF_ROOT
    assert generate.lines_of(["mep/root/monitor"])[0] <= MOST_OF_MONITOR


def test_the_count_leaves_out_what_is_no_code(generate: Any) -> None:
    text = """'What it is.'

# why
X = (
    1,  # one
)

def f() -> None:
    'Do it.'
    return
"""
    assert generate._code_lines(text) == {4, 5, 6, 8, 10}


def test_what_root_parses_of_children_that_exec_is_of_no_network() -> None:
    """`run_module` returns what a child wrote, of any size and form. Children that use the network send records."""
    called = {
        found
        for file in sorted((ROOT / "mep").rglob("*.py"))
        for found in re.findall(r"run_module\(\s*[\"']([\w.]+)[\"']", file.read_text())
    }
    assert called == {"user_endpoint.render_command", "user_endpoint.template_check"}
