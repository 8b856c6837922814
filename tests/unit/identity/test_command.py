"""Running a callout's program: real processes that are slow, loud, broken, or leave others behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import time

import pytest

from identity.callout import process
from tests.support.waiting import until

LIBC_OWN = 1 << 31 | 1 << 32
"""Signals 32 and 33, which libc keeps for its threads: make leaves them ignored in what it starts, and the monitor,
which starts the mapper, sets them back."""


def script(tmp_path: pathlib.Path, text: str) -> str:
    """Return the path of a shell script. Each text has a separate file, which is never written while it runs."""
    path = tmp_path / f"script-{abs(hash(text))}"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def is_alive(pid: int) -> bool:
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int) -> None:
    until(f"the end of process {pid}", lambda: not is_alive(pid))


def test_input_and_output(tmp_path: pathlib.Path) -> None:
    output = process.run([script(tmp_path, 'cat; echo "$@"; echo oops >&2'), "a b", "c"], b"in\n", 5)
    assert output == process.Output(b"in\na b c\n", b"oops\n")


def test_large_input_and_output_pass_at_once(tmp_path: pathlib.Path) -> None:
    data = os.urandom(700_000)
    assert process.run([script(tmp_path, "cat")], data, 10).stdout == data


def test_input_that_nobody_reads_is_no_error(tmp_path: pathlib.Path) -> None:
    assert process.run([script(tmp_path, "exec <&-; echo done")], b"x" * 700_000, 5).stdout == b"done\n"


def test_nothing_of_ours_is_inherited(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEP_SECRET", "secret")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        text = "env | sort; pwd; ls -m /proc/$$/fd; cat /proc/$$/stat"  # ls into a pipe would list the pipe's ends too
        lines = process.run([script(tmp_path, text)], b"", 5).stdout.decode().split("\n")
    assert [line for line in lines if "=" in line] == ["LANG=C.UTF-8", f"PATH={process.PATH}", "PWD=/"]
    assert "/" in lines
    assert {"0", "1", "2"} <= set(lines[-3].split(", ")) <= {"0", "1", "2", "3", "10", "255"}
    pid, _, _, _, group, session = lines[-2].split()[:6]
    assert pid == group == session != str(os.getsid(0))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo no >&2; exit 3", "status 3"),
        ("kill -SEGV $$", "SIGSEGV"),
        ("kill -9 $$", "SIGKILL"),
        ("kill -40 $$", "signal 40"),
    ],
)
def test_a_bad_end_is_a_failure(tmp_path: pathlib.Path, text: str, reason: str) -> None:
    with pytest.raises(process.CommandFailed, match=reason):
        process.run([script(tmp_path, text)], b"", 5)


def test_what_it_said_comes_with_the_failure(tmp_path: pathlib.Path) -> None:
    with pytest.raises(process.CommandFailed) as caught:
        process.run([script(tmp_path, "echo no such table >&2; exit 1")], b"", 5)
    assert caught.value.stderr == b"no such table\n"


def test_what_cannot_be_run_is_a_failure(tmp_path: pathlib.Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    for argv in ([str(tmp_path / "nothing")], [str(plain)], ["a\0b"], [str(tmp_path)]):
        with pytest.raises(process.CommandFailed, match="cannot be run"):
            process.run(argv, b"", 5)


def test_a_slow_one_is_killed_with_its_whole_group(tmp_path: pathlib.Path) -> None:
    pids = tmp_path / "pids"
    began = time.monotonic()
    with pytest.raises(process.CommandFailed, match=r"within 0\.3 s"):
        process.run([script(tmp_path, f"trap '' TERM; sleep 60 & echo $! $$ > {pids}; wait")], b"", 0.3)
    assert time.monotonic() - began < 25
    for pid in map(int, pids.read_text().split()):
        wait_until_gone(pid)


def test_one_that_stops_itself_is_killed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(process.CommandFailed, match="within"):
        process.run([script(tmp_path, "kill -STOP $$")], b"", 0.3)


def test_too_much_output_is_a_failure_at_once(tmp_path: pathlib.Path) -> None:
    began = time.monotonic()
    with pytest.raises(process.CommandFailed, match="more than 100000 bytes"):
        process.run([script(tmp_path, "exec yes")], b"", 30, max_output=100_000)
    assert time.monotonic() - began < 25


def test_endless_standard_error_is_cut_and_ends_with_the_time(tmp_path: pathlib.Path) -> None:
    with pytest.raises(process.CommandFailed, match="within") as caught:
        process.run([script(tmp_path, "exec yes >&2")], b"", 0.3)
    assert len(caught.value.stderr) == process.MAX_STDERR_BYTES


def test_closing_its_output_is_not_its_end(tmp_path: pathlib.Path) -> None:
    began = time.monotonic()
    text = "echo out; exec >&- 2>&-; sleep 0.3"
    assert process.run([script(tmp_path, text)], b"", 5).stdout == b"out\n"
    assert time.monotonic() - began >= 0.3


def test_a_child_that_outlives_it_in_its_group_is_killed(tmp_path: pathlib.Path) -> None:
    pid_file = tmp_path / "pid"
    began = time.monotonic()
    output = process.run([script(tmp_path, f"sleep 60 & echo $! > {pid_file}; echo done")], b"", 30)
    assert output.stdout == b"done\n"
    assert time.monotonic() - began < 25
    wait_until_gone(int(pid_file.read_text()))


@pytest.mark.parametrize("loud", ["sleep 60", "exec yes", "exec yes >&2"])
def test_a_child_that_left_the_session_and_keeps_the_output_open_delays_nothing_and_is_killed(
    tmp_path: pathlib.Path, loud: str
) -> None:
    pid_file = tmp_path / "pid"
    child = script(tmp_path, f"echo $$ > {pid_file}; sleep 0.2; {loud}")
    began = time.monotonic()
    output = process.run(
        [script(tmp_path, f"setsid {child} & while [ ! -s {pid_file} ]; do :; done; echo done")], b"", 30
    )
    assert output.stdout == b"done\n"
    assert time.monotonic() - began < 25
    wait_until_gone(int(pid_file.read_text()))


ESCAPES = {
    "a session of its own": "setsid sh -c {body} &",
    "forked twice, with nobody left between": "( setsid sh -c {body} & ) &",
    "the parent goes first": "setsid sh -c 'setsid sh -c {quoted} & exit 0' &",
}


@pytest.mark.parametrize("how", ESCAPES)
@pytest.mark.parametrize("end", ["good", "slow", "crash"])
def test_nothing_that_it_started_outlives_it_however_it_hides(tmp_path: pathlib.Path, how: str, end: str) -> None:
    pid_file = tmp_path / "pid"
    body = f"trap '' TERM HUP; echo $$ > {pid_file}; sleep 60; sleep 60"
    hidden = script(tmp_path, body)
    start = ESCAPES[how].format(body=hidden, quoted=hidden)
    last = {"good": "echo done", "slow": "sleep 60", "crash": "kill -9 $$"}[end]
    argv = [script(tmp_path, f"{start}\nwhile [ ! -s {pid_file} ]; do sleep 0.01; done; {last}")]
    if end == "good":
        assert process.run(argv, b"", 30).stdout == b"done\n"
    else:
        with pytest.raises(process.CommandFailed):
            process.run(argv, b"", 2 if end == "slow" else 30)
    assert pid_file.exists()
    wait_until_gone(int(pid_file.read_text()))


def test_it_is_killed_when_the_one_who_asked_is(tmp_path: pathlib.Path) -> None:
    pid_file = tmp_path / "pid"
    path = script(tmp_path, f"echo $$ > {pid_file}; sleep 60; sleep 60")
    asker = os.fork()
    if asker == 0:
        with contextlib.suppress(BaseException):
            process.run([path], b"", 60)
        os._exit(0)
    until("the callout's pid", lambda: pid_file.exists() and pid_file.read_text())
    os.kill(asker, signal.SIGKILL)
    os.waitpid(asker, 0)
    wait_until_gone(int(pid_file.read_text()))


def test_it_cannot_gain_privilege_and_ignores_no_signal(tmp_path: pathlib.Path) -> None:
    text = process.run([script(tmp_path, "exec cat /proc/self/status")], b"", 30).stdout.decode()
    status = dict(line.split(":\t", 1) for line in text.splitlines())
    assert status["NoNewPrivs"] == "1"
    assert int(status["SigIgn"], 16) & ~LIBC_OWN == 0
    assert int(status["SigBlk"], 16) == 0


def zombies() -> set[str]:
    """Return our children that have ended and were not reaped."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(path.parent.name)
    return found


def test_no_descriptor_and_no_zombie_is_left(tmp_path: pathlib.Path) -> None:
    good, bad, slow = (script(tmp_path, text) for text in ("echo x", "exit 1", "sleep 60"))
    before, others = len(os.listdir("/proc/self/fd")), zombies()
    for argv0, timeout_s in ((good, 5), (bad, 5), (slow, 0.05), ("/nonexistent", 1)) * 5:
        try:
            process.run([argv0], b"", timeout_s)
        except process.CommandFailed:
            continue
    assert len(os.listdir("/proc/self/fd")) == before
    assert zombies() <= others


def test_many_at_once(tmp_path: pathlib.Path) -> None:
    """Each waits until the last has begun."""
    path = script(
        tmp_path, f': > {tmp_path}/begun.$1; until test -e {tmp_path}/begun.9; do sleep 0.05; done; echo "$1"'
    )
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda i: process.run([path, str(i)], b"", 60).stdout, range(10)))
    assert answers == [f"{i}\n".encode() for i in range(10)]
