"""Task events in every store, and the store that leaves one of each change of a task's state."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_wire.errors import RelayUnavailable
from mep_wire.ids import uuid7
from mep_wire.states import TaskState
from relay.store.base import Store, TaskTx
from relay.store.records import FunctionRecord, NewTask, TaskEnding, UepRecord
from relay.store.sqlite import SqliteStore
from relay.store.task_record_writes import AuditedStore, StoredEvent


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Store]:
    made: Store = SqliteStore(tmp_path / "relay.db")
    yield made
    made.close()


def keep(store: Store, endpoint_id: str, *, on: bool = True) -> None:
    store.submit(lambda tx: tx.keep_task_events(endpoint_id, keep=on)).result()


def add(store: Store, endpoint_id: str, *bodies: bytes, most: int = 100) -> None:
    store.submit(lambda tx: tx.add_task_events(endpoint_id, bodies, most)).result()


def test_events_are_kept_in_order_until_they_are_written(plain: Store) -> None:
    keep(plain, "e")
    add(plain, "e", b"1", b"2")
    add(plain, "e", b"3")
    assert plain.task_events("e", 2).events == [(1, b"1"), (2, b"2")]
    plain.submit(lambda tx: tx.task_events_written("e", 2, 0)).result()
    assert plain.task_events("e", 9).events == [(3, b"3")]


def test_nothing_is_kept_for_an_endpoint_that_has_not_asked(plain: Store) -> None:
    keep(plain, "e")
    add(plain, "other", b"1")
    assert plain.task_events("other", 9).events == []
    assert plain.task_events_kept() == ["e"]


def test_numbers_are_not_given_again_after_it_was_switched_off(plain: Store) -> None:
    keep(plain, "e")
    add(plain, "e", b"1", b"2")
    keep(plain, "e", on=False)
    assert (plain.task_events("e", 9).events, plain.task_events_kept()) == ([], [])
    add(plain, "e", b"lost")
    keep(plain, "e")
    add(plain, "e", b"3")
    assert plain.task_events("e", 9).events == [(3, b"3")]


def test_what_is_too_much_is_dropped_from_the_front_and_counted(plain: Store) -> None:
    keep(plain, "e")
    for number in range(5):
        add(plain, "e", b"%d" % number, most=3)
    page = plain.task_events("e", 9)
    assert (page.dropped, [seq for seq, _ in page.events]) == (2, [3, 4, 5])
    plain.submit(lambda tx: tx.task_events_written("e", 4, 2)).result()
    page = plain.task_events("e", 9)
    assert (page.dropped, [seq for seq, _ in page.events]) == (0, [5])


def test_keeping_outlives_the_process(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    keep(store, "e")
    add(store, "e", b"1")
    store.close()
    again = SqliteStore(tmp_path / "relay.db")
    assert AuditedStore(again).kept == {"e"}
    assert again.task_events("e", 9).events == [(1, b"1")]
    again.close()


class Audited:
    """An audited store with a user endpoint of endpoint `e` and a function."""

    def __init__(self, plain: Store) -> None:
        self.audited = AuditedStore(plain)
        self.audited.keep("e", keep=True)
        self.store: Store = self.audited
        self.told: list[Collection[str]] = []
        self.audited.tell = self.told.append
        function = FunctionRecord(
            function_id="f", owner="a", name="f", code=b"c", public=False, description="", metadata={}, created_at=1.0
        )
        self.do(lambda tx: tx.put_function(function))
        ref = plain.function_ref("f")
        assert ref is not None
        self.function = ref

    def do(self, change: Any) -> Any:
        return self.store.submit(change).result()

    def uep(self, endpoint_id: str = "e") -> int:
        record = UepRecord(
            row=0, uep_id=str(uuid.uuid4()), endpoint_id=endpoint_id, account_id="a", identity_id="i", config={},
            runtime={},
        )  # fmt: skip
        return int(self.do(lambda tx: tx.put_uep(record)).row)

    def add(self, uep: int, count: int = 1, dispatched: int = 0) -> list[int]:
        tasks = [NewTask(task_id=uuid7().bytes, function=self.function, payload=b"p") for _ in range(count)]
        return list(self.do(lambda tx: tx.add_tasks("a", "g", uep, tasks, dispatched, time.time())).rows)

    def events(self) -> list[StoredEvent]:
        return [msgspec.msgpack.decode(body, type=StoredEvent) for _, body in self.store.task_events("e", 1000).events]

    def said(self) -> list[tuple[str, str]]:
        return [(event.event, event.source) for event in self.events()]


@pytest.fixture
def scene(plain: Store) -> Audited:
    return Audited(plain)


def from_uep(scene: Audited, row: int, state: TaskState = TaskState.SUCCESS, **fields: Any) -> TaskEnding:
    record = next(
        r for r in scene.store.tasks([task_id for _, task_id in scene.store.group_tasks(1, 0, 99)]) if r.row == row
    )
    return TaskEnding(row=row, state=state, task_id=record.task_id, **fields)


def test_the_life_of_a_task(scene: Audited) -> None:
    uep = scene.uep()
    (row,) = scene.add(uep)
    scene.do(lambda tx: tx.take_queued(uep, 10, 1000))
    scene.audited.run_at(uep, [row], [("0", "4711")])
    scene.do(lambda tx: tx.record_started(uep, [row], 5.0))
    ending = from_uep(scene, row, block_id="0", job_id="4711", started_at=5.0)
    scene.do(lambda tx: tx.record_endings(uep, [ending]))
    assert scene.said() == [
        ("RECEIVED", "relay"), ("EXEC_START", "relay"), ("RUNNING", "user_endpoint"), ("EXEC_END", "user_endpoint"),
    ]  # fmt: skip
    assert {(e.block_id, e.job_id) for e in scene.events()[2:]} == {("0", "4711")}
    assert scene.told == [{"e"}] * 4


def test_an_event_names_the_process_that_joined_last(scene: Audited) -> None:
    uep = scene.uep()
    for token, name in ((b"j1", b"1" * 16), (b"j2", b"2" * 16)):
        scene.do(lambda tx, token=token: tx.add_join(uep, token, 100.0, 1.0))
        scene.do(lambda tx, token=token, name=name: tx.enrol(uep, token, token * 16, 50.0, name))
        scene.add(uep)
    scene.do(lambda tx: tx.clear_link(uep, b"j2" * 16))
    scene.add(uep)
    assert [event.uep.incarnation for event in scene.events()] == [b"1" * 16, b"2" * 16, b"2" * 16]


def test_a_result_that_comes_before_the_report_of_its_start_is_both(scene: Audited) -> None:
    uep = scene.uep()
    (row,) = scene.add(uep, dispatched=1)
    ending = from_uep(scene, row, started_at=7.0, block_id="3", job_id="x")
    scene.do(lambda tx: tx.record_endings(uep, [ending]))
    assert [event for event, _ in scene.said()] == ["RECEIVED", "EXEC_START", "RUNNING", "EXEC_END"]
    assert [(e.at, e.block_id) for e in scene.events() if e.event == "RUNNING"] == [(7.0, "3")]


def test_an_end_is_recorded_once_however_often_it_is_said(scene: Audited) -> None:
    uep = scene.uep()
    (row,) = scene.add(uep, dispatched=1)
    ending = from_uep(scene, row, TaskState.FAILED, code="X")
    for _ in range(3):
        scene.do(lambda tx: tx.record_endings(uep, [ending, ending]))
    assert [event for event, _ in scene.said()].count("FAILED") == 1


def test_ends_of_the_relays_own_are_its_word(scene: Audited) -> None:
    uep = scene.uep()
    rows = scene.add(uep, 3)
    scene.do(lambda tx: tx.end_queued(uep, TaskEnding(row=0, state=TaskState.EXPIRED, code="TASK_EXPIRED"), 2))
    scene.do(
        lambda tx: tx.record_endings(uep, [TaskEnding(row=rows[2], state=TaskState.CANCELLED, code="TASK_CANCELLED")])
    )
    ends = [(e.event, e.source, e.code) for e in scene.events() if e.event == "FAILED"]
    assert ends == [("FAILED", "relay", "TASK_EXPIRED")] * 2 + [("FAILED", "relay", "TASK_CANCELLED")]


def test_of_a_part_of_the_queue_those_are_recorded_that_ended(scene: Audited) -> None:
    uep = scene.uep()
    tasks = [
        NewTask(task_id=uuid7().bytes, function=scene.function, payload=b"p", priority=number % 3)
        for number in range(9)
    ]
    scene.do(lambda tx: tx.add_tasks("a", "g", uep, tasks, 0, 1.0))
    scene.do(lambda tx: tx.end_queued(uep, TaskEnding(row=0, state=TaskState.FAILED, code="X"), 4))
    ended = {r.task_id for r in scene.store.tasks([t.task_id for t in tasks]) if r.state is TaskState.FAILED}
    assert {e.task_id for e in scene.events() if e.event == "FAILED"} == ended
    assert len(ended) == 4


def test_a_user_endpoint_says_nothing_of_tasks_that_are_not_its_own(scene: Audited) -> None:
    mine, other = scene.uep(), scene.uep()
    (row,) = scene.add(other, dispatched=1)
    scene.audited.run_at(mine, [row], [("forged", "forged")])
    scene.do(lambda tx: tx.record_started(mine, [row], 1.0))
    ending = from_uep(scene, row, block_id="forged")
    scene.do(lambda tx: tx.record_endings(mine, [ending]))
    scene.do(lambda tx: tx.record_started(other, [row], 1.0))
    assert [event for event, _ in scene.said()] == ["RECEIVED", "EXEC_START", "RUNNING"]
    assert {e.block_id for e in scene.events()} == {""}


def test_a_long_block_id_is_clipped(scene: Audited) -> None:
    uep = scene.uep()
    (row,) = scene.add(uep, dispatched=1)
    ending = from_uep(scene, row, started_at=1.0, block_id="b" * 10_000, job_id="j" * 10_000)
    scene.do(lambda tx: tx.record_endings(uep, [ending]))
    assert {(len(e.block_id), len(e.job_id)) for e in scene.events()[2:]} == {(128, 128)}


def test_a_wish_that_could_not_be_stored_is_stored_when_it_is_said_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    audited = AuditedStore(store)
    store._write.execute("PRAGMA query_only = 1")
    audited.keep("e", keep=True)
    with pytest.raises(RelayUnavailable):
        store.submit(lambda _: None).result(20)
    store._write.execute("PRAGMA query_only = 0")
    assert audited.kept == set()
    audited.keep("e", keep=True)
    store.submit(lambda _: None).result(20)
    assert (audited.kept, store.task_events_kept()) == ({"e"}, ["e"])
    store.close()


def test_what_is_remembered_of_places_is_short(scene: Audited) -> None:
    uep = scene.uep()
    scene.audited.run_at(uep, [1, 2], [("b" * 10_000, "j" * 10_000), ("0", "1")])
    assert max(len(word) for location in scene.audited._locations.values() for word in location) == 128


def test_an_endpoint_that_has_not_asked_leaves_no_event(scene: Audited) -> None:
    uep = scene.uep("quiet")
    (row,) = scene.add(uep, dispatched=1)
    scene.do(lambda tx: tx.record_endings(uep, [TaskEnding(row=row, state=TaskState.SUCCESS)]))
    assert scene.said() == []
    assert scene.told == []


def test_a_repeated_submission_is_received_once(scene: Audited) -> None:
    uep = scene.uep()
    first, second = (NewTask(task_id=uuid7().bytes, function=scene.function, payload=b"p") for _ in range(2))
    scene.do(lambda tx: tx.add_tasks("a", "g", uep, [first], 0, 1.0))
    scene.do(lambda tx: tx.add_tasks("a", "g", uep, [first, second], 0, 2.0))
    assert [(e.event, e.at) for e in scene.events()] == [("RECEIVED", 1.0), ("RECEIVED", 2.0)]


def test_a_change_that_fails_leaves_no_event(scene: Audited) -> None:
    uep = scene.uep()

    def change(tx: Any) -> None:
        tx.add_tasks("a", "g", uep, [NewTask(task_id=os.urandom(16), function=scene.function, payload=b"p")], 0, 1.0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        scene.do(change)
    assert scene.said() == []


def test_every_change_that_may_set_a_state_is_known_here() -> None:
    """A new change must be audited, unless it takes a task to no state that has an event."""
    audited = {"add_tasks", "take_queued", "record_started", "record_endings", "end_queued"}
    silent = {
        "hold",
        "release",
        "requeue",
        "reconcile",
        "record_lost_attempts",
        "ask_cancel",
        "doubt",
        "sweep",
        "drop_inputs",
    }
    questions = {"running_rows", "active_rows", "queued_again", "queued_doubtful", "queued_before", "open_tasks_of"}
    questions |= {"cancelling", "decided_sets", "dependencies", "held_by", "is_awaited", "task_owner"}
    assert {name for name in vars(TaskTx) if not name.startswith("_")} <= audited | silent | questions
