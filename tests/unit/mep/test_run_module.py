"""The bounds of a child that a command runs a module in: its output, its time and its exit status."""

from __future__ import annotations

import os

import pytest

from mep.cli import unprivileged_child
from mep.cli.exit_codes import CliFailed
from mep.cli.unprivileged_child import run_module


def run(module: str, *words: str, timeout_s: float = 60.0) -> bytes:
    descriptor = os.memfd_create("meptest")
    try:
        return run_module(module, words, account=None, descriptor=descriptor, timeout_s=timeout_s)
    finally:
        os.close(descriptor)


def test_the_output_of_a_child_is_returned_whole() -> None:
    assert run("calendar", "2024").count(b"\n") > 30


def test_a_child_that_prints_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unprivileged_child, "MAX_OUTPUT_BYTES", 100)
    with pytest.raises(CliFailed, match="printed more than 100 bytes"):
        run("calendar", "2024")


def test_a_child_that_does_not_end_is_killed() -> None:
    with pytest.raises(CliFailed, match="did not end within"):
        run("timeit", "-n", "1000000000000", "pass", timeout_s=0.5)


def test_a_child_that_fails_is_refused() -> None:
    with pytest.raises(CliFailed, match="failed with status 2"):
        run("json.tool", "--nosuch")
