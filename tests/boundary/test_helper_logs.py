"""A manager or mapper that was taken over has the log neither to cut short nor to write over, nor another's name."""

from __future__ import annotations

import os
import stat

from tests.support.monitor import Puppet, running_monitor, until

OWN = "2026-11-20T10:00:00.000Z INFO manager[1]: all is well key=value"
FORGED = "2026-11-20T10:00:00.000Z INFO monitor[1]: configuration reloaded"


def says(puppet: Puppet, data: bytes) -> None:
    """Write to a process's standard error as if it did."""
    descriptor = os.open(f"/proc/{puppet.pid}/fd/2", os.O_WRONLY)
    os.write(descriptor, data)
    os.close(descriptor)


def test_it_has_a_pipe() -> None:
    with running_monitor() as (_, manager, mapper):
        for puppet in (manager, mapper):
            for number in (1, 2):
                assert stat.S_ISFIFO(os.stat(f"/proc/{puppet.pid}/fd/{number}").st_mode)


def test_what_it_writes_is_its_own() -> None:
    with running_monitor() as (run, manager, _):
        says(manager, f"{OWN}\n{FORGED}\nhalf \x1b[31ma line".encode() + b"\xff\r" + b"x" * 5000 + b"\nlast\n")
        lines = until("it is there", lambda: "last" in run.log_text() and run.log_text().splitlines())
        assert OWN in lines and FORGED not in lines
        assert sum("configuration reloaded" in line and "process=manager" in line for line in lines) == 1
        assert max(map(len, lines)) < 4100 and "\x1b" not in run.log_text() and "\r" not in run.log_text()


def test_too_much_is_dropped_and_counted() -> None:
    with running_monitor() as (run, manager, _):
        for _ in range(100):
            says(manager, b"noise\n" * 1000)
        until(
            "the noise is over", lambda: "lines of its log were dropped" in run.log_text() or says(manager, b"more\n")
        )
        assert run.log_text().count("noise") < 50_000


def test_its_last_words_are_there() -> None:
    with running_monitor() as (run, _, mapper):
        says(mapper, b"a traceback\n")
        mapper.kill()
        until("it is told", lambda: "the mapper ended" in run.log_text())
        assert "a traceback" in run.log_text()
