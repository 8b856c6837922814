"""The relay's log: unauthenticated peers can cause few lines in each logger, and a stuck log delays nothing."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from datetime import datetime

import pytest

from relay import log
from tests.support.waiting import until


class Stuck(io.StringIO):
    """A pipe that nobody reads until `gate` opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.reached = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.gate.wait(60)
        return super().write(text)


@pytest.fixture
def stream() -> Iterator[Stuck]:
    made = Stuck()
    yield made
    made.gate.set()


def handler(stream: Stuck, now: list[float]) -> log._Background:
    made = log._Background(stream)
    made.setFormatter(log.formatter())
    made._limiter = log.Limiter(10.0, lambda: now[0])
    return made


def record(name: str, text: str, *args: object, line: int = 1) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, logging.WARNING, "f.py", line, text, args, None)


@pytest.mark.parametrize("name", ["uvicorn.error", "websockets.server", "asyncio", "something.new"])
def test_a_librarys_line_is_written_once_in_ten_seconds_with_a_count(stream: Stuck, name: str) -> None:
    stream.gate.set()
    now = [0.0]
    made = handler(stream, now)
    for number in range(1000):
        made.handle(record(name, "no descriptor for %s", number))
    made.handle(record(name, "another kind", line=2))
    now[0] = 10.0
    made.handle(record(name, "no descriptor for %s", "x"))
    made.flush()
    lines = [line.partition(": ")[2] for line in stream.getvalue().splitlines()]
    assert lines == ["no descriptor for 0", "another kind", "no descriptor for x (999 more like it before)"]


def test_the_relays_own_lines_are_all_written(stream: Stuck) -> None:
    stream.gate.set()
    made = handler(stream, [0.0])
    for number in range(100):
        made.handle(record("relay", "user endpoint %s is here", number))
    made.flush()
    assert len(stream.getvalue().splitlines()) == 100


def test_kinds_are_bounded() -> None:
    limiter = log.Limiter(10.0, lambda: 0.0)
    for number in range(3 * log.MAX_KINDS):
        assert limiter.admit(number) == ""
    assert len(limiter._last) <= log.MAX_KINDS


def test_a_log_that_nobody_reads_holds_up_nobody(stream: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one thread: this goes on only where no line waits to be written."""
    monkeypatch.setattr(log, "MAX_LINES", 10)
    monkeypatch.setattr(log, "FLUSH_S", 0.01)
    made = handler(stream, [0.0])
    made.handle(record("relay", "first"))
    assert stream.reached.wait(60)
    for _ in range(30):
        made.handle(record("relay", "more"))
    made.flush()
    stream.gate.set()
    until("the dropped lines", lambda: "20 lines before were dropped" in stream.getvalue())


def test_as_json_each_line_is_an_object_whatever_a_peer_said(stream: Stuck) -> None:
    stream.gate.set()
    now = [0.0]
    made = handler(stream, now)
    made.setFormatter(log.json_formatter())
    hostile = 'x"}\n{"level": "ERROR"\x1b[2J\u2028'
    own = record("relay", "a peer was refused")
    own.fields = {"peer": hostile, "number": 7}  # as relay.log adds them
    made.handle(own)
    for _ in range(3):
        made.handle(record("uvicorn.error", "bad"))
    now[0] = 10.0
    made.handle(record("uvicorn.error", "bad"))
    try:
        raise ValueError(hostile)
    except ValueError:
        made.handle(logging.getLogger("relay").makeRecord("relay", 40, "f", 1, "failed", (), sys.exc_info()))
    made.flush()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["logger"] for line in lines] == ["relay", "uvicorn.error", "uvicorn.error", "relay"]
    assert (lines[0]["level"], lines[0]["text"], lines[0]["fields"]["number"]) == ("WARNING", "a peer was refused", 7)
    assert lines[0]["fields"]["peer"].isprintable() and "fields" not in lines[1]
    assert lines[2]["text"] == "bad (2 more like it before)"
    assert lines[3]["traceback"].startswith("Traceback")
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)


def test_an_exception_that_a_peer_causes_again_and_again_has_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    sparing = log.RateLimitedLog(10.0, lambda: 0.0)
    for number in range(100):
        try:
            raise (ValueError if number % 2 else LookupError)("unforeseen")
        except (ValueError, LookupError):
            sparing.exception("link: a message failed", peer=number)
    assert [one.exc_info[0] for one in caplog.records if one.exc_info] == [LookupError, ValueError]


def test_what_a_peer_causes_is_written_a_few_times_in_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    peers = log.PeerLog(10.0, lambda: now[0])
    caplog.set_level(logging.INFO, "relay")
    for _ in range(100):
        peers.info("user endpoint is here", uep="a")
    peers.info("user endpoint is here", uep="b")
    peers.warning("start refused", uep="a", reason="x")
    now[0] = 10.0
    peers.info("user endpoint is here", uep="a")
    said = [(one.getMessage(), one.fields) for one in caplog.records]  # type: ignore[attr-defined]
    here = "user endpoint is here"
    assert said[: log.PEER_BURST] == [(here, {"uep": "a"})] * log.PEER_BURST
    assert said[log.PEER_BURST :] == [
        (here, {"uep": "b"}),
        ("start refused", {"uep": "a", "reason": "x"}),
        (f"{here} ({100 - log.PEER_BURST} more like it before)", {"uep": "a"}),
    ]
