"""The tests' own wait helper, and that it is the only one."""

from __future__ import annotations

import ast
import asyncio
import itertools
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import until, until_async

ROOT = Path(__file__).resolve().parents[2]
WAITING = ROOT / "tests" / "support" / "waiting.py"
IN_WORKERS = {
    "tests/acceptance/test_slurm.py": 1,
    "tests/acceptance/test_user_endpoint_descriptors.py": 1,
    "tests/acceptance/test_wait_reasons.py": 1,
}
"""Loops in functions that run where the tests' code is not."""


@given(st.integers())
@hypothesis.settings(max_examples=2)
def test_an_example_may_take_long(_number: int) -> None:
    time.sleep(0.3)  # hypothesis by itself allows 0.2 s


def test_the_first_true_value_is_returned() -> None:
    values = iter([0, "", None, "here"])
    assert until("a value", lambda: next(values)) == "here"


def test_a_value_that_is_not_there_yet_is_waited_for() -> None:
    found: dict[str, int] = {}
    looks = itertools.count()

    def look() -> int:
        if next(looks) == 3:
            found["key"] = 7
        return found["key"]

    assert until("a key", look) == 7
    with pytest.raises(ZeroDivisionError):
        until("no more than the named errors are passed over", lambda: 1 // 0)


def test_in_the_end_it_says_what_did_not_come() -> None:
    with pytest.raises(AssertionError, match=r"^not in time \(0.01 s\): the moon \[1, 2\]$"):
        until("the moon", lambda: False, 0.01, details=lambda: [1, 2])
    with pytest.raises(AssertionError, match="the moon"):
        asyncio.run(until_async("the moon", lambda: False, 0.01))


def own_waits(text: str) -> list[int]:
    """Return the lines of the loops in `text` that sleep and look at the clock."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.While) and {"sleep", "monotonic"} <= {_called(each) for each in ast.walk(node)}
    ]


def _called(node: ast.AST) -> str:
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""


def test_a_wait_by_hand_is_noticed() -> None:
    text = "while not ready():\n    assert time.monotonic() < deadline\n    time.sleep(0.05)\n"
    assert own_waits(text) == [1]
    assert own_waits("while x:\n    time.sleep(1)\n") == []


def test_no_test_waits_by_hand() -> None:
    """The fault campaign is none: its waits may fail, and it goes on."""
    files = [file for file in (ROOT / "tests").rglob("*.py") if file.parent.name != "campaign" and file != WAITING]
    found = {str(file.relative_to(ROOT)): len(lines) for file in files if (lines := own_waits(file.read_text()))}
    assert found == IN_WORKERS, "use tests.support.waiting.until"
