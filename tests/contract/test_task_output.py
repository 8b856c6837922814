"""The output of a task, or of a killed process, is in a log without control characters."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from mep_sdk.result_decoding import output_of
from mep_sdk.serialize import serialize_arguments
from tests.contract.test_engines import SETTINGS, Bench, place
from tests.support.waiting import until
from user_endpoint.bounded_log import BoundedFile
from user_endpoint.engines import make_engine
from user_endpoint.settings import ProcessPoolSettings

ATTACK = "\x1b]0;owned\x07\x1b[2J\u202e"


def printing(text: str) -> None:
    print(text, flush=True)
    os.write(2, text.encode() + b"\xff half")


@pytest.mark.parametrize("lines", ["one line", "two\nlines"])
def test_a_tasks_output(tmp_path: Path, lines: str) -> None:
    engine = make_engine(ProcessPoolSettings(max_workers=1), place(tmp_path))
    engine.start()
    try:
        bench = Bench(engine)
        bench.value(bench.submit(printing, f"{lines}{ATTACK}"))
    finally:
        engine.stop(2.0)
    log = tmp_path / "worker.log"
    until("the half line", lambda: b"half" in log.read_bytes(), details=log.read_bytes)
    said = log.read_text()
    assert "\x1b" not in said and "\x07" not in said and "\u202e" not in said
    assert f"{lines}\\x1b]0;owned\\x07\\x1b[2J\\u202e\n" in said and "\\xff half\n" in said


def test_the_last_words_of_a_killed_process_are_in_the_log_of_the_next(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    pid = os.fork()
    if pid == 0:
        BoundedFile(path).stand_for(1, 2)
        os.write(2, b"Fatal error\x1b[2J\n")
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    after = BoundedFile(path)
    stand_in = os.open("/dev/null", os.O_WRONLY)
    after.stand_for(stand_in)
    os.close(stand_in)
    after.close()
    assert (tmp_path / "log").read_text() == "Fatal error\\x1b[2J\n"


def chatting(name: str) -> str:
    import sys

    print("hello", name)
    sys.stderr.write("beware\n")
    return name


@pytest.mark.parametrize("engine", ["process", "htex"])
def test_the_result_has_it_where_the_caller_takes_it(tmp_path: Path, engine: str) -> None:
    made = make_engine(SETTINGS[engine](), place(tmp_path))
    made.start()
    try:
        bench = Bench(made)
        rows = []
        for name in ("ada", "bob", "eve"):
            task = bench.task(chatting)
            payload = serialize_arguments((name,), {}, wants_output=name != "bob")
            made.submit([msgspec.structs.replace(task, payload=payload)])
            rows.append(task.row)
        bench.wait(*rows)
        assert [bench.value(row) for row in rows] == ["ada", "bob", "eve"]
        printed = [output_of(bench.ended[row].payload) for row in rows]
        assert printed == [("hello ada\n", "beware\n"), ("", ""), ("hello eve\n", "beware\n")]
    finally:
        made.stop(2.0)
