"""Task records: the relay's events of this endpoint's tasks, as one JSON object per line.

The relay sends each event until it is acknowledged, which happens when it is on the disk: at least once, and its `seq`
tells a repetition. Text from outside is stored in JSON strings with everything but plain ASCII escaped, so it can't
forge a line. `source` names the sender of an event. Called by mep/manager/manager.py, in its one thread.
"""

from __future__ import annotations

import json
import time
from typing import NamedTuple

from mep.boundary.log import Log
from mep.boundary.messages import EndpointAccount
from mep.manager.task_log_file import TaskLog
from mep_wire.messages import TaskEvents, TaskEventsWritten
from mep_wire.task_events import EventSource, TaskEvent

MAX_ACCOUNTS = 10_000
"""How many user endpoints' accounts are remembered. Those that ended longest ago are forgotten first."""
MAX_PROCESSES = 8
"""How many processes of one user endpoint are remembered with their account: the latest ones."""
MAX_FIELD = 256


class _Page(NamedTuple):
    message: TaskEvents
    link: int


class TaskRecords:
    """Task events on their way from the relay to the disk."""

    def __init__(self, log: Log, *, required: bool, file: TaskLog | None = None) -> None:
        self._log, self._required = log, required
        self._file = file or TaskLog()
        self._accounts: dict[str, dict[bytes, tuple[str, int]]] = {}
        """By user endpoint, then by incarnation, with the latest at the end."""
        self._next: _Page | None = None
        self._writing: _Page | None = None
        self._last: frozenset[TaskEvent] = frozenset()
        self._problem = ""

    def fileno(self) -> int:
        """The descriptor that polls readable when `collect` has work."""
        return self._file.fileno()

    @property
    def refuse_starts(self) -> bool:
        """Whether starts are refused because tasks can't be recorded."""
        return self._required and bool(self._file.problem)

    def use(self, descriptor: int) -> None:
        """Use this file from now on."""
        self._file.use(descriptor)

    def account(self, message: EndpointAccount) -> None:
        """Take the monitor's message about the account of a user endpoint."""
        processes = self._accounts.pop(message.uep_id, {})
        processes.pop(message.incarnation, None)
        processes[message.incarnation] = (message.local_user, message.uid)
        if len(processes) > MAX_PROCESSES:
            del processes[next(iter(processes))]
        self._accounts[message.uep_id] = processes
        if len(self._accounts) > MAX_ACCOUNTS:
            del self._accounts[next(iter(self._accounts))]

    def take(self, message: TaskEvents, link: int) -> TaskEventsWritten | None:
        """Start writing the relay's events from its link number `link`. Return the answer if there is one already.

        A relay that got no answer on an earlier link sends the same events again. They are written once.
        """
        self._next = _Page(message, link)
        return self._begin(link)

    def _begin(self, link: int) -> TaskEventsWritten | None:
        if self._writing is not None or self._next is None:
            return None
        page, self._next = self._next, None
        events = page.message.events
        new = [event for event in events if event not in self._last]
        dropped = page.message.dropped if len(new) == len(events) else 0
        self._last = frozenset(events)
        lines = [_line(time.time(), **self._fields(event)) for event in new]
        if dropped:
            lines.insert(0, _line(time.time(), event="DROPPED", source=EventSource.RELAY, count=dropped))
        if not lines:
            return _answer(page.message) if page.link == link else None
        self._writing = page
        self._file.write(b"".join(lines))
        return None

    def collect(self, link: int) -> TaskEventsWritten | None:
        """Read the file's progress. Return the answer to a request on the link `link`, the present one."""
        written, answer = self._file.written(), None
        if self._file.problem != self._problem:
            self._problem = self._file.problem
            if self._problem:
                self._log.error("task records cannot be written", error=self._problem)
            else:
                self._log.info("task records are being written")
        if written and self._writing is not None:
            page, self._writing = self._writing, None
            answer = _answer(page.message) if page.link == link else None
        return self._begin(link) or answer

    def _account_of(self, event: TaskEvent) -> tuple[str, int]:
        """Return the account of an event's process, never of a process with a different incarnation."""
        processes = self._accounts.get(event.uep_id, {})
        named = processes.get(event.incarnation) or processes.get(b"")
        last = next(reversed(processes.values()), None)
        return named or (last if not event.incarnation else None) or ("", -1)

    def _fields(self, event: TaskEvent) -> dict[str, object]:
        user, uid = self._account_of(event)
        return {
            "event": event.event[:MAX_FIELD],
            "source": event.source[:MAX_FIELD],
            "at": stamp(event.at),
            "seq": event.seq,
            "task_id": event.task_id[:MAX_FIELD],
            "function_id": event.function_id[:MAX_FIELD],
            "uep_id": event.uep_id[:MAX_FIELD],
            "identity_id": event.identity_id[:MAX_FIELD],
            "identity": event.username[:MAX_FIELD],
            "local_user": user,
            "uid": uid if user else None,
            "code": event.code[:MAX_FIELD],
            "block_id": event.block_id[:MAX_FIELD],
            "job_id": event.job_id[:MAX_FIELD],
        }


def _answer(message: TaskEvents) -> TaskEventsWritten:
    until = message.events[-1].seq if message.events else 0
    return TaskEventsWritten(until=until, dropped=message.dropped)


def stamp(at: float) -> str:
    """Return a time in UTC; empty if it isn't a valid time."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"
    except (OverflowError, ValueError, OSError):
        return ""


def _line(now: float, **fields: object) -> bytes:
    return json.dumps({"time": stamp(now), **fields}).encode() + b"\n"
