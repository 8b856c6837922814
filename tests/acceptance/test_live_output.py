"""`stream_output=True` at a real site: output is on the person's terminal while the task runs."""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import pytest

from mep_sdk import Executor, ShellFunction
from tests.support.campus import Campus
from tests.support.waiting import until

WAIT_S = 120
ENGINES = ["ProcessPoolEngine", "GlobusComputeEngine"]


def count(name: str, go: str) -> str:
    import pathlib
    import sys
    import time

    print(name, "begins")
    print(name, "warns", file=sys.stderr)
    while not pathlib.Path(go).exists():
        time.sleep(0.05)
    print(name, "ends")
    return name


def flood(lines: int) -> int:
    for number in range(lines):
        print(f"{number:>63}")
    return lines


def plain(value: int) -> int:
    return value


@pytest.fixture(params=ENGINES)
def executor(request: pytest.FixtureRequest, multi_user: Campus) -> Iterator[Executor]:
    with multi_user.executor("alice", engine=request.param) as made:
        yield made


@pytest.fixture
def go() -> Iterator[pathlib.Path]:
    """A file that tasks wait for; all accounts see its directory."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield pathlib.Path(directory) / "go"


@pytest.mark.root
def test_it_is_there_while_tasks_run(executor: Executor, go: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    executor.stream_output = True
    futures = [executor.submit(count, name, str(go)) for name in ("ada", "bob")]
    for future, name in zip(futures, ("ada", "bob"), strict=True):
        until("its output", lambda: future.stdout and future.stderr, WAIT_S)  # noqa: B023 - called at once
        assert (future.stdout, future.stderr, future.done()) == (f"{name} begins\n", f"{name} warns\n", False)
    seen = {"out": "", "err": ""}

    def shown() -> bool:
        new = capsys.readouterr()
        seen["out"] += new.out
        seen["err"] += new.err
        return "ada begins\n" in seen["out"] and "bob warns\n" in seen["err"]

    until("it on the terminal", shown)
    go.touch()
    assert [future.result(WAIT_S) for future in futures] == ["ada", "bob"]
    assert futures[0].stdout == "ada begins\nada ends\n"
    executor.shutdown()
    seen["out"] += capsys.readouterr().out
    assert sorted(seen["out"].splitlines()) == ["ada begins", "ada ends", "bob begins", "bob ends"]
    assert sorted(seen["err"].splitlines()) == ["ada warns", "bob warns"]


@pytest.mark.root
def test_that_of_a_command_too(executor: Executor, go: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    executor.stream_output = True
    future = executor.submit(
        ShellFunction("echo begun; echo beware >&2; while [ ! -e {go} ]; do sleep 0.1; done; echo ended"), go=str(go)
    )
    until("its output", lambda: future.stdout and future.stderr, WAIT_S)
    assert (future.stdout, future.stderr, future.done()) == ("begun\n", "beware\n", False)
    go.touch()
    assert future.result(WAIT_S).stdout == "begun\nended\n"
    assert future.stdout == "begun\nended\n"
    executor.shutdown()
    assert capsys.readouterr().out == "begun\nended\n"


@pytest.mark.root
def test_a_flood_holds_nobody_up_and_tells_what_is_left_out(
    executor: Executor, capsys: pytest.CaptureFixture[str]
) -> None:
    executor.stream_output = True
    loud = executor.submit(flood, 1_000_000)  # 64 MB
    executor.stream_output = False
    assert executor.submit(plain, 3).result(WAIT_S) == 3
    assert loud.result(WAIT_S) == 1_000_000
    executor.shutdown()
    out = capsys.readouterr().out
    assert out.endswith(f"{999_999:>63}\n")
    notes = re.findall(r"\n\[([0-9,]+) bytes left out\]\n", out)
    assert notes
    left_out = sum(int(each.replace(",", "")) for each in notes)
    assert len(re.sub(r"\n\[[0-9,]+ bytes left out\]\n", "", out)) + left_out == 64_000_000


@pytest.mark.root
def test_it_may_be_asked_for_later(executor: Executor, go: pathlib.Path) -> None:
    assert executor.submit(plain, 3).result(WAIT_S) == 3
    executor.stream_output = True
    future = executor.submit(count, "ada", str(go))
    until("its output", lambda: future.stdout, WAIT_S)
    go.touch()
    assert future.result(WAIT_S) == "ada"
