"""A manager or mapper that was taken over has the log neither to cut short nor to write over, nor another's name."""

from __future__ import annotations

import json
import os
import pathlib
import stat

from mep.boundary.errors import Refusal
from mep.boundary.log import Log
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import MapRequest, NotMapped, StartAnswered, StartEndpoint, StartOutcome
from mep.boundary.text import MAX_JSON_LINE, json_line
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.log_budget import DAY_S, DayBudget
from tests.support.monitor import Puppet, running_monitor
from tests.support.waiting import until

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


def test_what_it_writes_in_json_is_its_own() -> None:
    own = json_line("manager", "INFO", "all is well", {"key": 'a "value"\n'}, pid=1)
    forged = [json_line("monitor", "INFO", "configuration reloaded", {}), own[:-1] + ', "process": "monitor"}']
    with running_monitor(log_format="json") as (run, manager, _):
        says(manager, "\n".join([own, *forged, f"half \x1b[31ma line\r{'x' * 5000}", "last", ""]).encode())
        log = until("it is there", lambda: '"last"' in run.log_text() and run.log_text())
        lines = [json.loads(line) for line in log.splitlines()]
        assert own in log.splitlines() and not set(forged) & set(log.splitlines())
        quoted = [line["line"] for line in lines if line["event"] == "a process wrote to its standard error"]
        assert quoted[:2] == forged
        assert {line["process_"] for line in lines if "line" in line} == {"manager"}
        assert max(map(len, log.splitlines())) <= MAX_JSON_LINE and log.isascii()


def test_too_much_is_dropped_and_counted() -> None:
    with running_monitor() as (run, manager, _):
        for _ in range(100):
            says(manager, b"noise\n" * 1000)
        until(
            "the noise is over", lambda: "dropped log lines of a helper" in run.log_text() or says(manager, b"more\n")
        )
        assert run.log_text().count("noise") < 50_000


def test_its_last_words_are_there() -> None:
    with running_monitor() as (run, _, mapper):
        says(mapper, b"a traceback\n")
        mapper.kill()
        until("it is told", lambda: "the mapper ended" in run.log_text())
        assert "a traceback" in run.log_text()


A_DAY = 50_000
"""The budget of a test."""


def test_what_it_writes_in_a_day_is_bounded() -> None:
    with running_monitor(log_bytes_a_day=A_DAY) as (run, manager, _):
        for _ in range(100):
            says(manager, (b"x" * 1000 + b"\n") * 10)
        until("the budget is used up", lambda: "log budget used up" in run.log_text())
        assert run.log_text().count("log budget used up") == 1
        assert len(run.log_text()) < 2 * A_DAY
        [record] = [one for one in run.audit_records() if one["event"] == "log_budget_used_up"]
        assert record["lines"] == "of the manager" and record["bytes"] == A_DAY


def test_the_budget_outlives_the_process() -> None:
    with running_monitor(log_bytes_a_day=A_DAY) as (run, manager, _):
        says(manager, (b"x" * 1000 + b"\n") * 60)
        until("the budget is used up", lambda: "log budget used up" in run.log_text())
        manager.kill()
        until("it is gone", lambda: "the manager ended" in run.log_text())
        before = run.log_text().count("x" * 1000)
        again = run.puppet("manager")
        says(again, b"x" * 1000 + b"\n")
        again.kill()
        until("it was heard to its end", lambda: run.log_text().count("the manager ended") == 2)
        assert run.log_text().count("x" * 1000) == before


def test_what_manager_and_mapper_make_root_record_in_a_day_is_bounded() -> None:
    """Together they have starts asked for and refused, with as much text as fits, as fast as they may."""
    with running_monitor(log_bytes_a_day=A_DAY) as (run, manager, mapper):
        for ref in range(100):
            manager.send(StartEndpoint(ref=ref), sealed_memfd("request", b"request"))
            request, descriptors = mapper.take(MapRequest)
            os.close(descriptors[0])
            code = Refusal.IDENTITY_NOT_MAPPED.value
            mapper.send(NotMapped(request.ref, "", code, "no", "x" * 4000, "corr", "y" * 4000))
            assert manager.take(StartAnswered)[0].outcome == StartOutcome.REFUSED
        assert run.audit.stat().st_size + run.log.stat().st_size < 2 * A_DAY
        assert "log_budget_used_up" in {record["event"] for record in run.audit_records()}


def test_what_was_left_out_is_counted_when_the_day_is_over(tmp_path: pathlib.Path) -> None:
    now = 0.0
    loop, path = PollLoop(lambda: now), str(tmp_path / "audit")
    budget = DayBudget("of a test", 100, loop, Log("test"), Audit(path, Log("test")))
    assert [budget.take(60), budget.take(60), budget.take(30)] == [True, False, False]
    now = DAY_S - 1
    assert not budget.take(1)
    now = DAY_S + 1
    loop.turn()
    assert '"event": "left_out", "lines": "of a test", "count": 3, "bytes": 91' in pathlib.Path(path).read_text()
    assert budget.take(60)
