"""Passes the output of running tasks on to the result streams that ask for it.

None of it is stored, and nothing waits for a slow reader: each stream keeps the latest so many bytes, and its client
sees by the positions how much is missing. Used by the dispatcher and the result streams, in the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence

from mep_wire.api import StreamedOutput
from mep_wire.messages import PrintedItem
from relay.store.base import Store

MOST_WAITING_BYTES = 1024 * 1024
"""How much output waits for one slow client: the latest."""
FRAME_BYTES = 256 * 1024
MOST_ITEMS = 10_000
"""Items of one message that are looked at: each keeps the event loop from others."""
MOST_ASKED = 500
"""Tasks that the store is asked for, for one message. What others have printed is left out this time."""
_MOST_KNOWN = 10_000
_ITEM_BYTES = 128
"""What an item costs beyond its data, about."""


class OutputQueue:
    """The output that one client has yet to get."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event
        self._items: deque[StreamedOutput] = deque()
        self._bytes = 0
        self.uep_rows: set[int] = set()
        """Where the output came from: what the right to it depends on."""

    def put(self, item: StreamedOutput, uep_row: int) -> None:
        """Add an item, and drop the oldest ones where they are too many."""
        self.uep_rows.add(uep_row)
        self._items.append(item)
        self._bytes += len(item.data) + _ITEM_BYTES
        while self._bytes > MOST_WAITING_BYTES and len(self._items) > 1:
            self._forget()
        self._event.set()

    def _forget(self) -> StreamedOutput:
        item = self._items.popleft()
        self._bytes -= len(item.data) + _ITEM_BYTES
        return item

    def take(self) -> list[StreamedOutput]:
        """Take the oldest ones, as many as fit a frame; the event stays set while more wait."""
        taken: list[StreamedOutput] = []
        size = 0
        while self._items and (not taken or size + len(self._items[0].data) <= FRAME_BYTES):
            taken.append(self._forget())
            size += len(taken[-1].data)
        if self._items:
            self._event.set()
        return taken


class LiveOutput:
    """Who wants to see the output of which task group (by the store's row)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queues: defaultdict[int, set[OutputQueue]] = defaultdict(set)
        self._known: dict[str, tuple[int, int]] = {}
        """The user endpoint and the group of tasks that have printed, by their rows."""

    def join(self, group_row: int, event: asyncio.Event) -> OutputQueue:
        """Return a queue for the output of a group's tasks, which sets `event`."""
        queue = OutputQueue(event)
        self._queues[group_row].add(queue)
        return queue

    def leave(self, group_row: int, queue: OutputQueue) -> None:
        """End a `join`."""
        self._queues[group_row].discard(queue)
        if not self._queues[group_row]:
            del self._queues[group_row]

    def printed(self, uep_row: int, items: Sequence[PrintedItem]) -> None:
        """Pass on what a user endpoint says of its own tasks; what it says of others is dropped, as is too much."""
        asked = 0
        for item in items[:MOST_ITEMS] if self._queues else ():
            if item.stream not in (0, 1) or item.position < 0 or len(item.data) > FRAME_BYTES:
                continue
            asked += item.task_id not in self._known
            if asked > MOST_ASKED:
                return
            of_uep, group_row = self._of(item.task_id)
            if of_uep != uep_row:
                continue
            streamed = StreamedOutput(item.task_id, item.attempt, item.stream, item.position, item.data)
            for queue in self._queues.get(group_row, ()):
                queue.put(streamed, uep_row)

    def _of(self, task_id: str) -> tuple[int, int]:
        """Return the rows of a task's user endpoint and group; 0 for an unknown task."""
        known = self._known.get(task_id)
        if known is None:
            try:
                found = self._store.briefs([bytes.fromhex(task_id.replace("-", ""))])
            except ValueError:
                found = []
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            known = self._known[task_id[:64]] = (found[0].uep_row, found[0].group_row) if found else (0, 0)
        return known
