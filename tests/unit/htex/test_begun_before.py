"""What the engine makes of tasks whose user endpoint or interchange has died."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import pytest

from mep_wire.messages import ResultItem
from user_endpoint.engines.base import EngineTask
from user_endpoint.engines.htex import GlobusComputeEngine
from user_endpoint.htex import protocol
from user_endpoint.htex.news import Restarted
from user_endpoint.settings import GlobusComputeEngine as Settings


class NotingClient:
    def __init__(self) -> None:
        self.said: list[Any] = []
        self.frames: list[bytes] = []

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
    done, begun, waiting = engine._numbers[1], engine._numbers[2], engine._numbers[3]
    result = protocol.Result(done, "", "", b"value", 1.0, 2.0)
    client.frames = [protocol.encode(protocol.Report(results=[result], lost=[begun, waiting], pool="pool"))]
    monkeypatch.setattr(engine._blocks, "take_news", lambda: [Restarted({done, begun})])
    ended = {event.row: event.code for event in engine.collect() if isinstance(event, ResultItem)}
    assert ended == {1: "", 2: "WORKER_LOST"}
    assert [held.task.row for held in engine._waiting] == [3]
