"""Task records: the file and its contents."""

from __future__ import annotations

import json
import os
import re
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mep.boundary.log import Log
from mep.boundary.messages import EndpointAccount
from mep.manager.task_log_file import TaskLog
from mep.manager.task_records import TaskRecords, stamp
from mep_wire.messages import TaskEvents, TaskEventsWritten
from mep_wire.task_events import TaskEvent
from tests.support.waiting import until

WAIT_S = 30


def event(seq: int, **fields: Any) -> TaskEvent:
    values = {
        "seq": seq, "event": "RUNNING", "source": "user_endpoint", "at": 0.0, "task_id": f"t{seq}", "function_id": "f",
        "uep_id": "u", "identity_id": "i", "username": "alice@example.edu", "code": "", "block_id": "", "job_id": "",
    }  # fmt: skip
    return TaskEvent(**{**values, **fields})


def page(*numbers: int, dropped: int = 0, **fields: Any) -> TaskEvents:
    return TaskEvents(dropped=dropped, events=[event(number, **fields) for number in numbers])


class Scene:
    """Records, and the file that they go to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = TaskRecords(Log("manager"), required=True, file=TaskLog(retry_s=0.05))

    def open(self) -> None:
        self.records.use(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))

    def answer(self, link: int = 1) -> TaskEventsWritten:
        """Wait for the next answer."""
        deadline = time.monotonic() + WAIT_S
        while (found := self.records.collect(link)) is None:
            assert select.select([self.records.fileno()], [], [], deadline - time.monotonic())[0], "no answer"
        return found

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "tasks.log")


def test_a_page_is_acknowledged_once_it_is_written(scene: Scene) -> None:
    scene.open()
    scene.records.account(EndpointAccount(uid=1001, uep_id="u", local_user="alice"))
    assert scene.records.take(page(1, 2), 1) is None
    assert scene.answer() == TaskEventsWritten(until=2, dropped=0)
    assert [(line["seq"], line["local_user"], line["uid"]) for line in scene.lines()] == [
        (1, "alice", 1001), (2, "alice", 1001),
    ]  # fmt: skip


def test_what_comes_before_the_file_waits_for_it(scene: Scene) -> None:
    assert scene.records.refuse_starts
    scene.records.take(page(1), 1)
    assert scene.records.collect(1) is None
    scene.open()
    assert scene.answer().until == 1
    assert not scene.records.refuse_starts


def test_what_is_sent_again_on_a_new_link_is_written_once(scene: Scene) -> None:
    scene.open()
    scene.records.take(page(1, 2), 1)
    assert scene.answer(1).until == 2
    assert scene.records.take(page(1, 2), 2) == TaskEventsWritten(until=2, dropped=0)
    scene.records.take(page(1, 2, 3), 3)
    assert scene.answer(3).until == 3
    assert [line["seq"] for line in scene.lines()] == [1, 2, 3]


def test_an_answer_goes_to_the_link_that_asked(scene: Scene) -> None:
    scene.records.take(page(1), 1)
    scene.records.take(page(1, 2), 2)  # the first link is gone, its page is not written yet
    scene.open()
    assert scene.answer(2).until == 2
    assert [line["seq"] for line in scene.lines()] == [1, 2]


def test_dropped_events_are_a_record_of_their_own(scene: Scene) -> None:
    scene.open()
    scene.records.take(page(8, dropped=7), 1)
    assert scene.answer() == TaskEventsWritten(until=8, dropped=7)
    assert [(line["event"], line.get("count")) for line in scene.lines()] == [("DROPPED", 7), ("RUNNING", None)]


@pytest.mark.parametrize(
    "text", ['x"}\n{"event": "EXEC_END"', "a\rb\x00c\x1b[2J", "\u2028\u2029\x85", "\ud800", "é" * 999]
)
def test_no_text_of_a_user_endpoint_forges_a_line(scene: Scene, text: str) -> None:
    scene.open()
    scene.records.take(page(1, block_id=text, job_id=text, code=text, username=text), 1)
    scene.answer()
    raw = scene.path.read_bytes()
    assert raw.count(b"\n") == 1
    assert re.fullmatch(rb"[\x20-\x7e]+\n", raw)
    assert len(scene.lines()) == 1


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1e300, 1e300, 1e18])
def test_a_time_that_is_none_is_empty(at: float) -> None:
    assert stamp(at) == ""


def test_a_rotated_file_gets_no_more(scene: Scene, tmp_path: Path) -> None:
    scene.open()
    scene.records.take(page(1), 1)
    scene.answer()
    scene.path.rename(tmp_path / "tasks.log.1")
    scene.open()
    scene.records.take(page(2), 1)
    scene.answer()
    assert [line["seq"] for line in scene.lines()] == [2]


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, which stands for a full disk."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def test_a_disk_that_hangs_holds_up_nobody(scene: Scene, fifo: tuple[int, int]) -> None:
    reader, writer = fifo
    scene.records.use(writer)
    big = page(*range(1, 1001), job_id="j" * 100)
    began = threading.active_count()
    scene.records.take(big, 1)
    assert scene.records.collect(1) is None  # at once, while the thread is stuck in write
    assert threading.active_count() == began
    assert os.read(reader, 10)


def test_a_full_disk_is_tried_again_and_starts_are_refused_meanwhile(scene: Scene) -> None:
    scene.records.use(os.open("/dev/full", os.O_WRONLY))
    scene.records.take(page(1), 1)

    def refuses() -> bool:
        scene.records.collect(1)
        return scene.records.refuse_starts and "space" in scene.records._file.problem

    until("starts are refused", refuses)
    scene.open()
    assert scene.answer().until == 1
    assert not scene.records.refuse_starts


def test_an_event_has_the_account_of_its_own_process(scene: Scene) -> None:
    scene.open()
    for incarnation, user, uid in ((b"1" * 16, "alice", 1001), (b"2" * 16, "alice2", 1002)):
        scene.records.account(EndpointAccount(uid, "u", user, incarnation))
    named = [b"1" * 16, b"2" * 16, b"3" * 16, b""]  # the last: of a relay that names none
    events = [event(number, incarnation=named[number - 1]) for number in range(1, 5)]
    scene.records.take(TaskEvents(dropped=0, events=events), 1)
    assert scene.answer()
    assert [line["local_user"] for line in scene.lines()] == ["alice", "alice2", "", "alice2"]
