"""What waits for a client that is slow to read the output of its tasks."""

from __future__ import annotations

import asyncio

from mep_wire.api import StreamedOutput
from relay.dispatch.live_output import FRAME_BYTES, MOST_WAITING_BYTES, OutputQueue

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
