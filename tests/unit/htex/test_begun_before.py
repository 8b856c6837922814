"""What the engine makes of tasks whose user endpoint or interchange has died."""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import pytest

from mep_wire.errors import EngineFailed
from mep_wire.messages import ResultItem
from user_endpoint.engines.base import EngineTask
from user_endpoint.engines.htex import protocol
from user_endpoint.engines.htex.block_events import Broken, Restarted
from user_endpoint.engines.htex.engine import GlobusComputeEngine
from user_endpoint.settings import GlobusComputeEngine as Settings
from user_endpoint.workers import start_journal


class NotingClient:
    def __init__(self) -> None:
        self.said: list[Any] = []
        self.frames: list[bytes] = []
        self.begun_directory = ""

    def say(self, message: Any) -> None:
        self.said.append(message)

    def flush(self) -> None: ...

    def hear(self, most: int) -> list[bytes]:
        frames, self.frames = self.frames, []
        return frames


def test_no_block_is_wanted_for_a_walltime_of_a_task_that_ended_as_it_came(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = GlobusComputeEngine(Settings(), run_directory=str(tmp_path))
    client, wanted = NotingClient(), list[tuple[int, list[float]]]()

    def want(outstanding: int, walltimes: Iterable[float] = ()) -> None:
        wanted.append((outstanding, list(walltimes)))

    monkeypatch.setattr(engine, "_client", client)
    monkeypatch.setattr(engine._blocks, "want", want)
    monkeypatch.setattr(engine._notes, "was_begun", lambda task_id, attempt: task_id == "begun")
    engine.submit([EngineTask(1, "begun", "f", b"", b"", b"", 60.0), EngineTask(2, "new", "f", b"", b"", b"", 30.0)])
    assert wanted[-1] == (1, [30.0])
    (event,) = engine.collect()
    assert isinstance(event, ResultItem)
    assert (event.row, event.code) == (1, "USER_ENDPOINT_LOST")
    assert len(client.said) == 1


def test_results_that_had_left_the_interchange_before_it_died_are_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = GlobusComputeEngine(Settings(), run_directory=str(tmp_path))
    client = NotingClient()
    monkeypatch.setattr(engine, "_client", client)
    monkeypatch.setattr(engine, "_drop_client", lambda: setattr(engine, "_client", None))
    engine.submit([EngineTask(row, f"task-{row}", "f", b"", b"", b"", 0.0) for row in (1, 2, 3)])
    done, started, waiting = engine._numbers[1], engine._numbers[2], engine._numbers[3]
    result = protocol.Result(done, "", "", b"value", 1.0, 2.0)
    client.frames = [protocol.encode(protocol.Report(results=[result], lost=[started, waiting], pool="pool"))]
    monkeypatch.setattr(engine._blocks, "take_news", lambda: [Restarted({done, started})])
    ended = {event.row: event.code for event in engine.collect() if isinstance(event, ResultItem)}
    assert ended == {1: "", 2: "WORKER_LOST"}
    assert [held.task.row for held in engine._waiting] == [3]


@pytest.fixture
def given_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine with tasks 1 (begun, not yet reported) and 2 handed over, and a client that a test speaks for."""
    engine = GlobusComputeEngine(Settings(), run_directory=str(tmp_path))
    engine._notes.look_back()
    client = NotingClient()
    client.begun_directory = engine._notes.open()
    monkeypatch.setattr(engine, "_client", client)
    monkeypatch.setattr(engine, "_drop_client", lambda: setattr(engine, "_client", None))
    news: list[Any] = []
    monkeypatch.setattr(engine._blocks, "take_news", lambda: [news.pop()] if news else [])
    monkeypatch.setattr(engine._blocks, "place", lambda block_id: ("", ""))
    engine.submit([EngineTask(row, f"task-{row}", "f", b"", b"", b"", 0.0) for row in (1, 2)])
    start_journal.create(f"{client.begun_directory}/pool.0", start_journal.FENCED)
    worker = start_journal.BegunLog(f"{client.begun_directory}/pool.0", start_journal.FENCED)
    assert worker.note(engine._numbers[1], "task-1")
    return engine, client, worker, news


def codes(engine: GlobusComputeEngine) -> dict[int, str]:
    return {event.row: event.code for event in engine.collect() if isinstance(event, ResultItem)}


def test_the_notes_are_read_before_the_engine_is_said_to_have_failed(given_up: Any) -> None:
    engine, _, worker, news = given_up
    news.append(Broken(EngineFailed(reason="Parsl's interchange has died 3 times"), math.inf))
    assert codes(engine) == {1: "WORKER_LOST", 2: "ENGINE_FAILED"}
    assert not worker.note(2, "task-2"), "it may begin nothing more"


def test_blocks_that_fail_end_only_what_is_given_back_unbegun(given_up: Any) -> None:
    engine, client, _, news = given_up
    first, second = engine._numbers[1], engine._numbers[2]
    news.append(Broken(EngineFailed(reason="3 blocks of workers failed in a row"), time.monotonic() + 60))
    assert codes(engine) == {}
    assert client.said[-1] == protocol.Cancel([first, second])
    back = protocol.Result(second, "TASK_CANCELLED", "", b"", 0.0, 1.0)
    client.frames = [protocol.encode(protocol.Report(results=[back], lost=[first], pool="pool"))]
    assert codes(engine) == {1: "WORKER_LOST", 2: "ENGINE_FAILED"}


def test_a_task_that_was_killed_to_be_given_back_had_begun(given_up: Any) -> None:
    engine, client, _, news = given_up
    first = engine._numbers[1]
    news.append(Broken(EngineFailed(reason="3 blocks of workers failed in a row"), time.monotonic() + 60))
    engine.collect()
    killed = protocol.Result(first, "TASK_CANCELLED", "", b"", 0.0, 1.0)
    client.frames = [protocol.encode(protocol.Report(started=[first], results=[killed], pool="pool"))]
    assert codes(engine) == {1: "WORKER_LOST"}


@pytest.mark.parametrize("when", ["waits", "comes later", "while it drains"])
def test_what_an_earlier_process_had_begun_is_lost_whatever_fails_now(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    engine = GlobusComputeEngine(Settings(), run_directory=str(tmp_path))
    monkeypatch.setattr(engine._notes, "was_begun", lambda task_id, attempt: task_id == "begun")
    tasks = [EngineTask(1, "begun", "f", b"", b"", b"", 0.0), EngineTask(2, "new", "f", b"", b"", b"", 0.0)]
    broken = [Broken(EngineFailed(reason="no block starts"), time.monotonic() + 60)]
    monkeypatch.setattr(engine._blocks, "take_news", lambda: [broken.pop()] if broken else [])
    if when == "while it drains":
        broken.clear()
        engine.drain()
    elif when == "comes later":
        engine.collect()
    engine.submit(tasks)
    found = codes(engine)
    assert found == ({1: "USER_ENDPOINT_LOST"} | ({} if when == "while it drains" else {2: "ENGINE_FAILED"}))
