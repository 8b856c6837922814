"""What every test session does: choose the tests, clear up after a killed run, and leave nothing behind.

Tests run against the installed packages, never the checkout: a mapped user may not be able to read the
checkout, and what is installed is what people get.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from sitekit import ledger

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("tests") is None:
    # What tests share lives in tests.support; the checkout itself must stay off sys.path.
    _package = types.ModuleType("tests")
    _package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = _package

IS_ROOT = os.geteuid() == 0
_LEFT_OUT = pytest.StashKey[int]()


def _checkout_is_importable() -> bool:
    return any(Path(entry or ".").resolve() == ROOT for entry in sys.path)


def _is_development() -> bool:
    """Whether this environment points at the checkout on purpose; runs may then overlap."""
    return any(Path(entry, "mep-dev.pth").exists() for entry in sys.path)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run against the checkout."""
    if _checkout_is_importable() and not _is_development():
        raise pytest.UsageError(f"{ROOT} is on sys.path; run `make test`, which tests what is installed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs root, for anybody else. As root nothing is left out."""
    privileged = ROOT / "tests" / "privileged"
    needs_root = [item for item in items if item.get_closest_marker("root") or privileged in item.path.parents]
    if IS_ROOT or not needs_root:
        return
    config.hook.pytest_deselected(items=needs_root)
    config.stash[_LEFT_OUT] = len(needs_root)
    items[:] = [item for item in items if item not in set(needs_root)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests were left out and how to run them."""
    if left_out := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"not root: {left_out} privileged tests left out; `make test` as root runs them")


def _our_processes() -> set[tuple[int, int]]:
    """Return (pid, start ticks) of every process of the installed project."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            ours = words[0].startswith(os.fsencode(sys.prefix) + b"/")
            if ours and (ticks := ledger.start_ticks(int(entry.name))) is not None:
                found.add((int(entry.name), ticks))
    return found


def _describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}"
    return str(pid)


@pytest.fixture(scope="session", autouse=True)
def leave_nothing() -> Iterator[None]:
    """Clear up after a run that was killed; at the end fail if this one has left a process."""
    for line in ledger.sweep():
        print(line)
    before = _our_processes()
    yield
    if _is_development():
        return
    deadline = time.monotonic() + 5
    while (left := _our_processes() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    descriptions = [_describe(pid) for pid, _ in left]
    ledger.end_processes(left)
    assert not left, f"processes left behind by the tests: {descriptions}"
