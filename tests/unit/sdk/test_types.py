"""A type checker knows what a future brings, and refuses wrong arguments."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

MYPY = Path(sys.prefix).with_name(Path(sys.prefix).name + "-tests") / "bin" / "mypy"
HEAD = """
    from collections.abc import Iterator
    from concurrent.futures import as_completed
    from typing import assert_type
    from mep_sdk import Client, Executor, MepError, ShellFunction, ShellResult, TaskFailed, TaskFuture

    def add(a: int, b: int = 2) -> float:
        return a + b

    executor = Executor("4b116d3c-1703-4f8f-9f6f-39921e5864df", Client())
"""
RIGHT = """
    assert_type(executor.submit(add, 1, b=3), TaskFuture[float])
    assert_type(executor.submit(add, 1).result(), float)
    assert_type(executor.submit(ShellFunction("ls {x}"), x=1).result(), ShellResult)
    assert_type([each.result() for each in as_completed([executor.submit(add, 1)])], list[float])
    assert_type(executor.map(add, [1, 2]), Iterator[float])
    assert_type(executor.submit(len, "abc").running(), bool)
    assert_type(executor.submit(len, "abc").reason, str)
    executor.submit(add, 1).add_done_callback(lambda future: print(future.result()))
    try:
        executor.submit(add, 1).result()
    except TaskFailed as error:
        print(error.code, error.remote_data)
    except MepError as error:
        print(error.correlation_id)
"""


def checked(text: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(HEAD) + textwrap.dedent(text))
    command = [MYPY, "--strict", "--no-incremental", "--python-executable", sys.executable, "--config-file=", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=110)


@pytest.mark.skipif(not MYPY.exists(), reason="mypy is not here")
def test_right_calls_are_accepted_and_wrong_ones_refused(tmp_path: Path) -> None:
    ran = checked(RIGHT, tmp_path)
    assert ran.returncode == 0, ran.stdout
    wrong = ['executor.submit(add, "1")', "executor.submit(add, 1, c=3)", "x: str = executor.submit(add, 1).result()"]
    ran = checked("\n".join(wrong), tmp_path)
    assert ran.stdout.count(": error:") == len(wrong), ran.stdout
