"""What the engine makes of tasks that an earlier process of the user endpoint had begun."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

import pytest

from mep_wire.messages import ResultItem
from user_endpoint.engines.base import EngineTask
from user_endpoint.engines.htex import GlobusComputeEngine
from user_endpoint.settings import GlobusComputeEngine as Settings


class NotingClient:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def say(self, message: Any) -> None:
        self.said.append(message)

    def flush(self) -> None: ...

    def hear(self, most: int) -> list[bytes]:
        return []


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
