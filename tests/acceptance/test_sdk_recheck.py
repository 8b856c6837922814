"""Futures end even where the result stream has nothing to say of their tasks: a real relay, a stand-in endpoint."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mep_sdk import Client, Executor, status_poller
from mep_sdk import submitter as sessions
from mep_wire.errors import TaskNotFound
from mep_wire.states import TaskState
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.relay import RelayProcess

WAIT_S = 30
NOBODY = "00000000-0000-4000-8000-000000000000"


def add(a, b):
    return a + b


def fail():
    raise ValueError("as told")


class Place:
    def __init__(self, relay: RelayProcess) -> None:
        self.relay, self.token = relay, relay.add_user("ada@example.edu")
        self.endpoint = FakeEndpoint(relay, self.token)
        self.idle = FakeEndpoint(relay, self.token, serve=False)

    def executor(self) -> Executor:
        return Executor(self.endpoint.endpoint_id, client=Client(self.relay.url, self.token))

    def database(self) -> Path:
        [found] = self.relay.state.glob("*.db")
        return found


@pytest.fixture
def campus(tmp_path: Path) -> Iterator[Place]:
    with RelayProcess(tmp_path) as relay:
        made = Place(relay)
        with made.endpoint:
            yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_poller, "SETTLE_S", 0.1)


class Silent(sessions.ResultListener):
    """A stream that brings nothing."""

    def run(self) -> None:
        return


def test_tasks_that_a_restored_database_lacks_are_not_waited_for(campus: Place, tmp_path: Path, quick: None) -> None:
    with campus.executor() as executor:
        assert executor.submit(add, 1, 1).result(WAIT_S) == 2  # the group is in the copy
        executor.endpoint_id = campus.idle.endpoint_id
        kept = executor.submit(add, 1, 2)
        assert executor.flush(WAIT_S)
        campus.relay.stop()
        shutil.copytree(campus.relay.state, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
        campus.relay.start()
        lost = [executor.submit(add, number, 2) for number in range(3)]
        assert executor.flush(WAIT_S)
        campus.relay.stop()
        shutil.rmtree(campus.relay.state)
        shutil.copytree(tmp_path / "copy", campus.relay.state)
        campus.relay.start()
        for future in lost:
            with pytest.raises(TaskNotFound, match=future.task_id):
                future.result(WAIT_S)
        assert not kept.done()
        assert kept.cancel()


def test_a_task_that_was_removed_before_it_was_read_is_not_waited_for(
    campus: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_poller, "EVERY_S", 0.3)
    with campus.executor() as executor:
        assert executor.submit(add, 1, 1).result(WAIT_S) == 2
        executor.endpoint_id = campus.idle.endpoint_id
        gone, kept = executor.submit(add, 1, 2), executor.submit(add, 1, 2)
        assert executor.flush(WAIT_S)
        with closing(sqlite3.connect(campus.database(), timeout=10)) as database, database:
            database.execute("DELETE FROM tasks WHERE task_id = ?", [uuid.UUID(gone.task_id).bytes])
        with pytest.raises(TaskNotFound, match=gone.task_id):
            gone.result(WAIT_S)
        assert not kept.done()
        executor.shutdown(wait=False, cancel_futures=True)


def test_what_ended_and_the_stream_did_not_bring_is_asked_for(campus: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_poller, "EVERY_S", 0.3)
    monkeypatch.setattr(sessions, "ResultListener", Silent)
    with campus.executor() as executor:
        futures: list[Any] = [executor.submit(add, number, 1) for number in range(300)]
        failed = executor.submit(fail)
        assert [future.result(WAIT_S) for future in futures] == list(range(1, 301))
        with pytest.raises(ValueError, match="as told"):
            failed.result(WAIT_S)


def test_the_endings_of_tasks(campus: Place) -> None:
    with campus.executor() as executor:
        done = executor.submit(add, 1, 1)
        done.result(WAIT_S)
        executor.endpoint_id = campus.idle.endpoint_id
        waiting = executor.submit(add, 1, 1)
        assert executor.flush(WAIT_S)
        [ended], missing, withheld = executor.client.endings([done.task_id, waiting.task_id, NOBODY])
        assert (ended.task_id, ended.state, missing, withheld) == (done.task_id, TaskState.SUCCESS, [NOBODY], [])
        waiting.cancel()
