"""How the engine treats tasks after their user endpoint or interchange has died."""

from __future__ import annotations

import errno
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
from user_endpoint.engines.htex.blocks import BlocksFailed, ExecutorReady, InterchangeRestarted
from user_endpoint.engines.htex.engine import HtexEngine
from user_endpoint.settings import GlobusComputeSettings as Settings
from user_endpoint.workers import start_journal


class NotingClient:
    def __init__(self) -> None:
        self.said: list[Any] = []
        self.frames: list[bytes] = []
        self.begun_directory = ""

    def say(self, message: Any) -> None:
        self.said.append(message)

    def flush(self) -> None: ...

    def descriptor(self) -> int:
        return -1

    def hear(self, most: int) -> list[bytes]:
        frames, self.frames = self.frames, []
        return frames


def test_no_block_is_wanted_for_a_walltime_of_a_task_that_ended_as_it_came(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HtexEngine(Settings(), run_directory=str(tmp_path))
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
    engine = HtexEngine(Settings(), run_directory=str(tmp_path))
    client = NotingClient()
    monkeypatch.setattr(engine, "_client", client)
    monkeypatch.setattr(engine, "_drop_client", lambda: setattr(engine, "_client", None))
    engine.submit([EngineTask(row, f"task-{row}", "f", b"", b"", b"", 0.0) for row in (1, 2, 3)])
    done, started, waiting = engine._numbers[1], engine._numbers[2], engine._numbers[3]
    result = protocol.Result(done, "", "", b"value", 1.0, 2.0)
    client.frames = [protocol.encode(protocol.WorkerReport(results=[result], lost=[started, waiting], pool="pool"))]
    monkeypatch.setattr(engine._blocks, "take_events", lambda: [InterchangeRestarted({done, started})])
    ended = {event.row: event.code for event in engine.collect() if isinstance(event, ResultItem)}
    assert ended == {1: "", 2: "WORKER_LOST"}
    assert [held.task.row for held in engine._waiting] == [3]


@pytest.fixture
def given_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine with tasks 1 (begun, not yet reported) and 2 handed over, and a client that a test speaks for."""
    engine = HtexEngine(Settings(), run_directory=str(tmp_path))
    engine._notes.look_back()
    client = NotingClient()
    client.begun_directory = engine._notes.open()
    monkeypatch.setattr(engine, "_client", client)
    monkeypatch.setattr(engine, "_drop_client", lambda: setattr(engine, "_client", None))
    block_event: list[Any] = []
    monkeypatch.setattr(engine._blocks, "take_events", lambda: [block_event.pop()] if block_event else [])
    monkeypatch.setattr(engine._blocks, "location", lambda block_id: ("", ""))
    engine.submit([EngineTask(row, f"task-{row}", "f", b"", b"", b"", 0.0) for row in (1, 2)])
    start_journal.create(f"{client.begun_directory}/pool.0", start_journal.FENCED)
    worker = start_journal.StartJournal(f"{client.begun_directory}/pool.0", start_journal.FENCED)
    assert worker.note(engine._numbers[1], "task-1")
    return engine, client, worker, block_event


def codes(engine: HtexEngine) -> dict[int, str]:
    return {event.row: event.code for event in engine.collect() if isinstance(event, ResultItem)}


def test_the_notes_are_read_before_the_engine_is_said_to_have_failed(
    given_up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, client, worker, block_event = given_up
    engine._blocks._client = client
    monkeypatch.setattr(engine._blocks, "_tell", block_event.append)
    engine._blocks._over(EngineFailed(reason="Parsl's interchange has died 3 times"))  # on the blocks' thread
    assert codes(engine) == {1: "WORKER_LOST", 2: "ENGINE_FAILED"}
    assert not worker.note(2, "task-2"), "it may begin nothing more"


def test_where_the_notes_cannot_be_read_every_task_counts_as_begun(
    given_up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_: str) -> set[int]:
        raise OSError(errno.ESTALE, "stale file handle")

    engine, client, _, block_event = given_up
    engine._blocks._client = client
    monkeypatch.setattr(engine._blocks, "_tell", block_event.append)
    monkeypatch.setattr(engine._notes, "close", unreadable)
    engine._blocks._over(EngineFailed(reason="Parsl's interchange has died 3 times"))
    assert codes(engine) == {1: "WORKER_LOST", 2: "WORKER_LOST"}


def test_blocks_that_fail_end_only_what_is_given_back_unbegun(given_up: Any) -> None:
    engine, client, _, block_event = given_up
    first, second = engine._numbers[1], engine._numbers[2]
    block_event.append(BlocksFailed(EngineFailed(reason="3 blocks of workers failed in a row"), time.monotonic() + 60))
    assert codes(engine) == {}
    assert client.said[-1] == protocol.Cancel([first, second])
    back = protocol.Result(second, "TASK_CANCELLED", "", b"", 0.0, 1.0)
    client.frames = [protocol.encode(protocol.WorkerReport(results=[back], lost=[first], pool="pool"))]
    assert codes(engine) == {1: "WORKER_LOST", 2: "ENGINE_FAILED"}


def test_a_task_that_was_killed_to_be_given_back_had_begun(given_up: Any) -> None:
    engine, client, _, block_event = given_up
    first = engine._numbers[1]
    block_event.append(BlocksFailed(EngineFailed(reason="3 blocks of workers failed in a row"), time.monotonic() + 60))
    engine.collect()
    killed = protocol.Result(first, "TASK_CANCELLED", "", b"", 0.0, 1.0)
    client.frames = [protocol.encode(protocol.WorkerReport(started=[first], results=[killed], pool="pool"))]
    assert codes(engine) == {1: "WORKER_LOST"}


@pytest.mark.parametrize("when", ["waits", "comes later", "while it drains"])
def test_what_an_earlier_process_had_begun_is_lost_whatever_fails_now(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    engine = HtexEngine(Settings(), run_directory=str(tmp_path))
    monkeypatch.setattr(engine._notes, "was_begun", lambda task_id, attempt: task_id == "begun")
    tasks = [EngineTask(1, "begun", "f", b"", b"", b"", 0.0), EngineTask(2, "new", "f", b"", b"", b"", 0.0)]
    broken = [BlocksFailed(EngineFailed(reason="no block starts"), time.monotonic() + 60)]
    monkeypatch.setattr(engine._blocks, "take_events", lambda: [broken.pop()] if broken else [])
    if when == "while it drains":
        broken.clear()
        engine.drain()
    elif when == "comes later":
        engine.collect()
    engine.submit(tasks)
    found = codes(engine)
    assert found == ({1: "USER_ENDPOINT_LOST"} | ({} if when == "while it drains" else {2: "ENGINE_FAILED"}))


BLOCKS_OF_A_MINUTE: dict[str, Any] = {
    "provider": {"type": "SlurmProvider", "partition": "p", "walltime": "00:01:00"},
    "address": "127.0.0.1",
}


@pytest.fixture
def after_a_kill(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> HtexEngine:
    """An engine with an earlier user endpoint process, which was killed while a worker ran the task "begun"."""
    directory = tmp_path / "begun" / "open-1"
    directory.mkdir(parents=True)
    start_journal.create(str(directory / "w1"), start_journal.FENCED)
    start_journal.StartJournal(str(directory / "w1"), start_journal.FENCED).note(7, "begun")
    engine = HtexEngine(Settings(**BLOCKS_OF_A_MINUTE), run_directory=str(tmp_path))
    monkeypatch.setattr(engine, "_drop_client", lambda: setattr(engine, "_client", None))
    return engine


def task(row: int, name: str, walltime_s: float = 0.0) -> EngineTask:
    return EngineTask(row, name, "f", b"", b"", b"", walltime_s)


def ends(engine: HtexEngine, monkeypatch: pytest.MonkeyPatch, *block_event: object) -> dict[str, str]:
    """Tell the engine this news; return the codes with which tasks end."""
    monkeypatch.setattr(engine._blocks, "take_events", lambda: list(block_event))
    return {event.task_id: event.code for event in engine.collect() if isinstance(event, ResultItem)}


def test_where_notes_of_an_earlier_process_cannot_be_read_no_task_is_said_to_be_unbegun(
    after_a_kill: HtexEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = after_a_kill
    engine.submit([task(1, "begun")])
    block_event = BlocksFailed(EngineFailed(reason="OSError: stale file handle"), math.inf)
    assert ends(engine, monkeypatch, block_event) == {"begun": "USER_ENDPOINT_LOST"}


def test_a_walltime_that_fits_no_block_is_judged_after_what_had_begun(
    after_a_kill: HtexEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = after_a_kill
    engine.submit([task(1, "begun", 600.0), task(2, "new", 600.0)])  # the template's blocks were longer then
    assert ends(engine, monkeypatch) == {}
    engine._notes.look_back()
    monkeypatch.setattr(engine, "_epoll", Registry())
    assert ends(engine, monkeypatch, ExecutorReady(NotingClient())) == {  # type: ignore[arg-type]
        "begun": "USER_ENDPOINT_LOST",
        "new": "WALLTIME_TOO_LONG",
    }
    engine.submit([task(3, "later", 600.0)])
    assert ends(engine, monkeypatch) == {"later": "WALLTIME_TOO_LONG"}


class Registry:
    def register(self, descriptor: int, events: int) -> None: ...


def test_results_that_had_arrived_when_the_engine_is_over_are_taken(given_up: Any) -> None:
    engine, client, _, block_event = given_up
    done = protocol.Result(engine._numbers[1], "", "", b"value", 1.0, 2.0)
    client.frames = [protocol.encode(protocol.WorkerReport(results=[done], block_id="0"))]
    block_event.append(BlocksFailed(EngineFailed(reason="OSError: no such directory"), math.inf, set()))
    assert codes(engine) == {1: "", 2: "ENGINE_FAILED"}


def test_a_task_that_a_node_had_is_not_said_to_be_unbegun(given_up: Any) -> None:
    """A node reports no start of a task that ends in the same report."""
    engine, client, _, block_event = given_up
    first, second = engine._numbers[1], engine._numbers[2]
    block_event.append(BlocksFailed(EngineFailed(reason="3 blocks of workers failed in a row"), time.monotonic() + 60))
    engine.collect()
    killed, back = (protocol.Result(number, "TASK_CANCELLED", "", b"", 0.0, 1.0) for number in (first, second))
    reports = [
        protocol.WorkerReport(results=[killed], block_id="0"),
        protocol.WorkerReport(results=[back]),
    ]  # node, interchange
    client.frames = [protocol.encode(report) for report in reports]
    assert codes(engine) == {1: "WORKER_LOST", 2: "ENGINE_FAILED"}


@pytest.mark.parametrize(("block_id", "code"), [("0", "WORKER_LOST"), ("", "WALLTIME_TOO_LONG")])
def test_a_walltime_that_fits_no_new_block_ends_by_what_the_answer_says(
    given_up: Any, monkeypatch: pytest.MonkeyPatch, block_id: str, code: str
) -> None:
    engine, client, _, _ = given_up
    monkeypatch.setattr(engine._blocks, "registered", lambda *_: True)
    engine.submit([task(3, "long", 50.0)])
    for _ in range(2):
        client.frames.append(protocol.encode(protocol.Registered("1", 1, 20.0, "3.11.2")))
    assert codes(engine) == {}, "a node may have begun it"
    assert client.said[-1] == protocol.Cancel([engine._numbers[3]])
    back = protocol.Result(engine._numbers[3], "TASK_CANCELLED", "", b"", 0.0, 1.0)
    client.frames = [protocol.encode(protocol.WorkerReport(results=[back], block_id=block_id))]
    assert codes(engine) == {3: code}
