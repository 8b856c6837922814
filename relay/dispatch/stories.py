"""Tells an endpoint's administrator what the relay knows about one start or task: `mep why`, over the manager's link.

The relay keeps the latest events of each endpoint in memory, and more of them in a file (`story_file`), in bounds. An
endpoint is told of its own user endpoints alone. Arguments and results are never part of it.
"""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from mep_wire.errors import MepError
from mep_wire.limits import MAX_PUBLIC_TEXT
from mep_wire.messages import Explain, Explained, StoryLine
from mep_wire.states import API_STATUS
from mep_wire.text import printable
from relay.dispatch.story_file import StoryEvent, StoryFile
from relay.store.base import Store, Tx
from relay.store.records import TaskRecord, UepKey

MAX_EVENTS: Final = 256
"""Events of one endpoint that are kept in memory: the latest, also those that are not in the file yet."""
MAX_ENDPOINTS: Final = 256
MAX_LINES: Final = 128
"""Lines of one answer."""
MAX_ABOUT: Final = 64
_LINK_S: Final = 60.0
"""Events of the link count from so long before the first of the start."""
_REFUSALS: Final = "/refusals"


class Stories:
    """The latest events by endpoint, and with a `file` those of earlier weeks."""

    def __init__(self, clock: Callable[[], float] = time.time, file: StoryFile | None = None) -> None:
        self._clock, self._file = clock, file
        self._of: OrderedDict[str, deque[StoryEvent]] = OrderedDict()

    def note(self, endpoint_id: str, level: str, text: str, *, uep_id: str = "", correlation_id: str = "") -> None:
        """Remember an event. `text` may hold a peer's words."""
        event = StoryEvent(self._clock(), level, _clipped(text), uep_id, correlation_id[:MAX_ABOUT])
        self._remember(endpoint_id, event)
        if self._file is not None:
            self._file.add(endpoint_id, event)

    def _remember(self, endpoint_id: str, event: StoryEvent) -> None:
        events = self._of.get(endpoint_id)
        if events is None:
            events = self._of[endpoint_id] = deque(maxlen=MAX_EVENTS)
            if len(self._of) > MAX_ENDPOINTS:
                self._of.popitem(last=False)
        self._of.move_to_end(endpoint_id)
        events.append(event)

    def refused(self, endpoint_id: str, error: MepError) -> None:
        """Remember a refused submission. Such events have a room of their own: a person can cause any number."""
        text = _clipped(f"submission refused: code={error.code} {error.text}")
        event = StoryEvent(self._clock(), "WARNING", text, "", error.correlation_id[:MAX_ABOUT])
        self._remember(endpoint_id + _REFUSALS, event)
        if self._file is not None:
            self._file.add(endpoint_id, event, refusal=True)

    def about(self, endpoint_id: str, names: Iterable[str]) -> list[StoryEvent]:
        """Return the events at this endpoint that concern one of these ids, or the link as a whole."""
        wanted = set(names)
        events = [*self._of.get(endpoint_id, ()), *self._of.get(endpoint_id + _REFUSALS, ())]
        own = [one for one in events if {one.uep_id, one.correlation_id} & wanted]
        kept = self._file.about(endpoint_id, wanted, MAX_LINES) if self._file is not None else []
        if not own and not kept:
            return []
        since = min(one.at for one in [*own, *kept] if one.uep_id or one.correlation_id) - _LINK_S
        link = [one for one in events if not one.uep_id and not one.correlation_id and one.at >= since]
        both = dict.fromkeys([*kept, *link, *own])  # the latest are in memory and in the file
        return sorted(both, key=lambda one: one.at)[-MAX_LINES:]

    def close(self) -> None:
        """Write what the file still lacks."""
        if self._file is not None:
            self._file.close()


class Explainer:
    """Answers a manager's questions from the store and the stories."""

    def __init__(self, store: Store, stories: Stories) -> None:
        self._store, self._stories = store, stories

    async def explain(
        self,
        endpoint_id: str,
        question: Explain,
        read: Callable[[Callable[[Tx], UepKey | None]], Awaitable[UepKey | None]],
    ) -> Explained:
        """Return the relay's knowledge of a task, a user endpoint or a correlation id of this endpoint.

        `read` reads in a transaction of the store.
        """
        about = question.about[:MAX_ABOUT].lower()
        task = self._task(about)
        uep_id = ""
        if task is not None:
            row = task.uep_row
            key = await read(lambda tx: tx.uep_key(row))
            if key is None or key.endpoint_id != endpoint_id:
                task = None
            else:
                uep_id = key.uep_id
        elif (record := self._store.uep(about)) is not None and record.endpoint_id == endpoint_id:
            uep_id = record.uep_id
        names = {about, uep_id, task.correlation_id if task is not None else ""} - {""}
        events = self._stories.about(endpoint_id, names)
        if not uep_id:
            uep_id = next((one.uep_id for one in events if one.correlation_id == about), "")
        if task is None:
            correlation_id = about if any(one.correlation_id == about for one in events) else ""
            return Explained(ref=question.ref, uep_id=uep_id, correlation_id=correlation_id, lines=_lines(events))
        start = _start_of(task, events)
        lines = [*_lines(_concerning(task, start, events)), *_task_lines(task)]
        return Explained(
            ref=question.ref, uep_id=uep_id, correlation_id=task.correlation_id or start, code=task.code,
            status=API_STATUS[task.state], lines=sorted(lines, key=lambda line: line.at),
        )  # fmt: skip

    def _task(self, about: str) -> TaskRecord | None:
        try:
            return self._store.task_without_result(uuid.UUID(about).bytes)
        except ValueError:
            return None


def _clipped(text: str) -> str:
    """Return a peer's words in bounds: escapes may make a text ten times as long."""
    return printable(text[:MAX_PUBLIC_TEXT])[:MAX_PUBLIC_TEXT]


def _lines(events: Iterable[StoryEvent]) -> list[StoryLine]:
    return [StoryLine(one.at, one.level, one.text) for one in events]


def _start_of(task: TaskRecord, events: Iterable[StoryEvent]) -> str:
    """Return the correlation id of the start that made the task's process; empty if none is known."""
    starts = [one.correlation_id for one in events if one.uep_id and one.correlation_id and one.at <= task.started_at]
    return starts[-1] if starts else ""


def _concerning(task: TaskRecord, start: str, events: Iterable[StoryEvent]) -> list[StoryEvent]:
    """Return the events of the task's time, and of its start: other processes of its user endpoint are left out."""
    until = task.ended_at or time.time()
    own = {start, task.correlation_id} - {""}
    return [
        one for one in events
        if one.correlation_id in own or task.submitted_at - (0 if one.uep_id else _LINK_S) <= one.at <= until
    ]  # fmt: skip


def _task_lines(task: TaskRecord) -> list[StoryLine]:
    """Return the lines of a task's own story, as the store has it."""
    name = uuid.UUID(bytes=task.task_id)
    lines = [StoryLine(task.submitted_at, "INFO", f"task {name} accepted")]
    if task.started_at:
        lines.append(StoryLine(task.started_at, "INFO", f"task {name} begun by a worker"))
    if task.state.is_terminal:
        level = "ERROR" if task.code else "INFO"
        said = f": code={task.code} {_clipped(task.text)}" if task.code else ""
        lines.append(
            StoryLine(task.ended_at or time.time(), level, f"task {name} ended: {API_STATUS[task.state]}{said}")
        )
    return lines
