"""Output that comes while tasks run: positions, gaps, attempts, the rest that the result brings, and the printing."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from mep_sdk import encoding, task_output
from mep_sdk.live_output import MOST_WAITING_CHARS, LiveText, Printer
from mep_sdk.serialize import serialize_arguments, wants_live_output, wants_output
from mep_sdk.shell import ShellFunction
from mep_wire.api import StreamedOutput
from tests.support.waiting import until


def piece(position: int, data: bytes, stream: int = 0, attempt: int = 1) -> StreamedOutput:
    return StreamedOutput("t", attempt, stream, position, data)


def test_pieces_in_order_make_the_text() -> None:
    live = LiveText()
    assert [live.take(each) for each in (piece(0, b"one\n"), piece(4, b"two\n"))] == ["one\n", "two\n"]
    assert live.take(piece(0, b"beware\n", stream=1)) == "beware\n"
    assert live.texts == ("one\ntwo\n", "beware\n")


def test_what_comes_twice_is_taken_once() -> None:
    live = LiveText()
    live.take(piece(0, b"one\ntwo\n"))
    assert live.take(piece(0, b"one\n")) == ""
    assert live.take(piece(4, b"two\nthree\n")) == "three\n"
    assert live.texts[0] == "one\ntwo\nthree\n"


def test_a_gap_is_told() -> None:
    live = LiveText()
    live.take(piece(0, b"one\n"))
    assert live.take(piece(1004, b"two\n")) == "\n[1,000 bytes left out]\ntwo\n"


def test_a_character_may_come_in_two_pieces() -> None:
    live, data = LiveText(), "grüße\n".encode()
    assert live.take(piece(0, data[:3])) + live.take(piece(3, data[3:])) == "grüße\n"


def test_the_next_attempt_begins_again() -> None:
    live = LiveText()
    live.take(piece(0, b"first\n"))
    assert live.take(piece(0, b"second\n", attempt=2)) == "\n[the task has begun again: attempt 2]\nsecond\n"
    assert live.take(piece(6, b"late\n", attempt=1)) == ""
    assert live.texts[0] == "second\n"


def test_the_result_brings_the_rest() -> None:
    live = LiveText()
    live.take(piece(0, b"one\n"))
    assert live.rest(encoding.with_output(b"", [b"one\ntwo\n", b"beware\n"])) == ("two\n", "beware\n")


def test_the_end_of_a_longer_output_follows_what_came() -> None:
    live = LiveText()
    live.take(piece(0, b"x" * 90 + b"\n"))
    end = b"[80 bytes came before; the worker's log at the site has more]\n" + b"x" * 10 + b"\nend\n"
    assert live.rest(encoding.with_output(b"", [end, b""])) == ("end\n", "")
    later = b"[1,091 bytes came before; the worker's log at the site has more]\nlast\n"
    live = LiveText()
    live.take(piece(0, b"x" * 90 + b"\n"))
    assert live.rest(encoding.with_output(b"", [later, b""])) == ("\n[1,000 bytes left out]\nlast\n", "")


def test_a_task_may_print_what_looks_like_such_a_note() -> None:
    for printed in (b"[, bytes came before; yes]\n", b"[ bytes came before; yes]\n"):
        live = LiveText()
        live.take(piece(0, printed))
        assert live.rest(encoding.with_output(b"", [printed + b"end\n", b""])) == ("end\n", "")


def test_without_live_output_the_result_brings_all() -> None:
    end = b"[1,091 bytes came before; the worker's log at the site has more]\nlast\n"
    assert LiveText().rest(encoding.with_output(b"", [end, b"err\n"])) == (end.decode(), "err\n")


def test_an_older_worker_sees_that_output_is_wanted() -> None:
    both, one = (serialize_arguments((1,), {}, wants_output=True, live_output=live) for live in (True, False))
    assert (wants_output(both), wants_live_output(both)) == (True, True)
    assert (wants_output(one), wants_live_output(one)) == (True, False)


def test_lines_of_several_tasks_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    for task, text in (("a", "half"), ("b", "whole\n"), ("a", "other half"), ("a", ""), ("b", "\x1b[2J 10%\r 20%\r")):
        printer.put(task, 0, text)
    assert printer.wait(30)
    assert capsys.readouterr().out == "half\nwhole\nother half\n\\x1b[2J 10%\n 20%\n"


class Stopped(io.StringIO):
    """A terminal that was stopped, until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.go.wait(60)
        return super().write(text)


def test_a_stopped_terminal_holds_nobody_up_and_is_told_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, errors = Stopped(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", errors)
    printer = Printer()
    printer.put("a", 0, "first\n")
    assert terminal.reached.wait(30)
    line = "x" * 1023 + "\n"
    for _ in range(3 * MOST_WAITING_CHARS // 1024):
        printer.put("a", 0, line)
    printer.put("a", 0, "last\n")
    terminal.go.set()
    assert printer.wait(60)
    text = terminal.getvalue()
    assert text.startswith("first\n")
    assert text.endswith("last\n")
    assert len(text) <= MOST_WAITING_CHARS + 1024
    left_out = 3 * MOST_WAITING_CHARS + 11 - len(text)
    assert errors.getvalue() == f"[{left_out:,} characters left out: the terminal is slower than the tasks]\n"


def test_a_closed_terminal_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    printer = Printer()
    printer.put("a", 0, "text\n")
    assert printer.wait(30)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes, int]]:
    """The output of a command, as a task of this process passes it on."""
    found: list[tuple[int, bytes, int]] = []
    monkeypatch.setattr(task_output, "is_live", lambda: True)
    monkeypatch.setattr(task_output, "add", lambda stream, data, skipped=0: found.append((stream, data, skipped)))
    return found


def test_a_commands_output_comes_while_it_runs(taken: list[tuple[int, bytes, int]], tmp_path) -> None:
    go = tmp_path / "go"
    command = "echo begun; echo beware >&2; while [ ! -e {go} ]; do sleep 0.05; done; echo ended"
    running = threading.Thread(target=lambda: ShellFunction(command)(go=str(go)))
    running.start()
    until("the output", lambda: {(0, b"begun\n", 0), (1, b"beware\n", 0)} <= set(taken))
    go.touch()
    running.join(60)
    assert taken[-1] == (0, b"ended\n", 0)


def test_of_a_file_that_a_command_appends_to_only_the_new_part_is_its_output(
    taken: list[tuple[int, bytes, int]], tmp_path
) -> None:
    log = tmp_path / "log"
    log.write_text("of another\n")
    ShellFunction("echo mine; echo too >&2", stdout=log, stderr=log)()
    assert b"".join(data for _, data, _ in taken) == b"mine\ntoo\n"
    assert {stream for stream, _, _ in taken} == {0}


def test_the_end_of_much_output_of_a_command_is_taken(taken: list[tuple[int, bytes, int]]) -> None:
    ShellFunction("head -c 10000000 /dev/zero; echo end")()
    assert sum(len(data) + skipped for _, data, skipped in taken) == 10_000_004
    assert taken[-1][1].endswith(b"end\n")
    assert max(len(data) for _, data, _ in taken) <= task_output.MOST_BYTES


def test_a_command_with_a_walltime_still_ends(taken: list[tuple[int, bytes, int]]) -> None:
    result = ShellFunction("echo begun; sleep 60", walltime=1)()
    assert (result.returncode, taken) == (124, [(0, b"begun\n", 0)])
