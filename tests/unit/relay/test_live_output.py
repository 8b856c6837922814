"""What waits for a client that is slow to read the output of its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from mep_wire.api import StreamedOutput
from mep_wire.ids import uuid7, uuid_text
from mep_wire.messages import PrintedItem
from relay.dispatch.live_output import FRAME_BYTES, MOST_ASKED, MOST_WAITING_BYTES, LiveOutput, OutputQueue

SIZE = 64 * 1024


def piece(number: int) -> StreamedOutput:
    return StreamedOutput("t", 1, 0, number * SIZE, b"x" * SIZE)


def test_the_latest_waits_and_the_oldest_goes() -> None:
    event = asyncio.Event()
    queue = OutputQueue(event)
    for number in range(100):
        queue.put(piece(number), 1)
    assert event.is_set()
    taken: list[StreamedOutput] = []
    while True:
        event.clear()
        part = queue.take()
        assert sum(len(each.data) for each in part) <= FRAME_BYTES
        taken += part
        if not event.is_set():
            break
    assert taken[-1] == piece(99)
    assert MOST_WAITING_BYTES // 2 < sum(len(each.data) for each in taken) <= MOST_WAITING_BYTES
    assert queue.take() == []


def test_a_piece_of_any_size_is_passed_on() -> None:
    queue = OutputQueue(asyncio.Event())
    huge = StreamedOutput("t", 1, 0, 0, b"x" * (2 * MOST_WAITING_BYTES))
    queue.put(huge, 1)
    assert queue.take() == [huge]


class Store:
    """Knows every task as one of user endpoint 1 and of group 7, and counts the questions."""

    def __init__(self) -> None:
        self.asked = 0

    def briefs(self, task_ids: Sequence[bytes]) -> list[Any]:
        self.asked += len(task_ids)
        return [SimpleNamespace(uep_row=1, group_row=7)]


def printed(data: bytes, task_id: str = "") -> PrintedItem:
    return PrintedItem(1, task_id or uuid_text(uuid7().bytes), 1, 0, 0, data)


def test_one_message_asks_the_store_for_so_many_tasks() -> None:
    store, event = Store(), asyncio.Event()
    live = LiveOutput(cast("Any", store))
    queue = live.join(7, event)
    items = [printed(b"") for _ in range(3 * MOST_ASKED)]
    live.printed(1, items)
    assert (store.asked, len(queue.take())) == (MOST_ASKED, MOST_ASKED)
    live.printed(1, items)
    assert (store.asked, len(queue.take())) == (2 * MOST_ASKED, 2 * MOST_ASKED)


def test_a_piece_that_no_user_endpoint_sends_is_dropped() -> None:
    live = LiveOutput(cast("Any", Store()))
    queue = live.join(7, asyncio.Event())
    live.printed(1, [printed(b"x" * (FRAME_BYTES + 1)), printed(b"y" * FRAME_BYTES)])
    assert [len(each.data) for each in queue.take()] == [FRAME_BYTES]
