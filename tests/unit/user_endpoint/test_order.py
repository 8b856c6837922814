"""The order of an engine's waiting tasks."""

from __future__ import annotations

from collections import deque

from user_endpoint.engines.base import EngineTask
from user_endpoint.engines.process_pool.task_order import enqueue
from user_endpoint.workers.start_journal import key_of


def task(row: int, priority: int = 0) -> EngineTask:
    return EngineTask(row, str(row), "f", b"", b"", b"", 0.0, priority=priority)


def test_higher_priorities_come_first_and_older_ones_among_equals() -> None:
    queue: deque[EngineTask] = deque()
    enqueue(queue, [task(1), task(2)])
    enqueue(queue, [task(3, 5), task(4, -1), task(5), task(6, 5)])
    assert [each.row for each in queue] == [3, 6, 1, 2, 5, 4]


def test_tasks_of_one_millisecond_have_different_keys_in_the_begun_notes() -> None:
    first, second = "01a1f9c2-74d9-7000-9a3c-0242ac120001", "01a1f9c2-74d9-7000-9a3c-0242ac120002"
    assert len({key_of(first, 1), key_of(second, 1), key_of(first, 2)}) == 3
