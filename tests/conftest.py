"""The work of every test session: choose the tests, clear up after a killed run, and leave nothing behind.

Tests run against the installed packages, never the checkout: a mapped user may not be able to read the checkout, and
users get the installed files.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("tests") is None:
    # Shared test code lives in tests.support; the checkout itself must stay off sys.path.
    _package = types.ModuleType("tests")
    _package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = _package

from tests.support import leftovers  # noqa: E402  # after what makes it importable

IS_ROOT = os.geteuid() == 0
for _number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(_number) is signal.SIG_IGN:  # a run in the background; what tests start would inherit it
        signal.signal(_number, signal.SIG_DFL if _number == signal.SIGHUP else signal.default_int_handler)
# By itself hypothesis fails a test where one example takes 0.2 s, which it does on a busy host.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")
_LEFT_OUT = pytest.StashKey[int]()
_SLOWEST_FIRST = ("vm", "packages", "campaign", "faults", "acceptance", "privileged", "contract", "boundary")
"""Folders of tests, by how long a file takes; the others come after them."""


def _checkout_is_importable() -> bool:
    return any(Path(entry or ".").resolve() == ROOT for entry in sys.path)


def _is_development() -> bool:
    """Whether this environment points at the checkout on purpose; runs may then overlap."""
    return any(Path(entry, "mep-dev.pth").exists() for entry in sys.path)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run against the checkout, and clear up after a run that was killed."""
    if _checkout_is_importable() and not _is_development():
        raise pytest.UsageError(f"{ROOT} is on sys.path; run `make test`, which tests what is installed")
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        with leftovers.session(sys.prefix) as session:  # before workers begin: beside each other, none would be alone
            session.clear_up()


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(ROOT / "tests").parts[0]
    return _SLOWEST_FIRST.index(folder) if folder in _SLOWEST_FIRST else len(_SLOWEST_FIRST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the slowest folders first. Leave out the tests that need root, unless run as root: then nothing is left out.

    pytest-xdist by itself begins with the files of the most tests. Virtual machines, with a few tests that take
    minutes, would come last, while the other workers have nothing to do.
    """
    items.sort(key=_rank)
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


@pytest.fixture(scope="session", autouse=True)
def leave_nothing() -> Iterator[None]:
    """Clear up after a run that was killed; at the end fail if this one has left anything."""
    with leftovers.session(sys.prefix) as session:
        for line in session.clear_up():
            print(line)
        yield
        left = [] if _is_development() else session.left_behind()
    assert not left, f"left behind by the tests: {left}"
