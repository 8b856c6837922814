"""The relay's figures, in Prometheus' text format (version 0.0.4): a name, a help text, a type and a value each.

No figure is of a single person or endpoint: their number has no bound, and /metrics is no list of people. Called by the
server for GET /metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

import uvicorn

from mep_wire.errors import RelayUnavailable
from mep_wire.states import TaskState
from relay.api.http_acceptor import Acceptor
from relay.dispatch.dispatcher import Dispatcher
from relay.link.zmq_link import ZmqLink
from relay.log import lines_left_out
from relay.loop_watch import LoopWatch
from relay.store.opening import AnyStore

GAUGE: Final = "gauge"
COUNTER: Final = "counter"
COUNT_EVERY_S: Final = 10.0
"""Tasks are counted at most this often, and for at most a hundredth of the time: a million take 0.1 s."""
_OPEN: Final = [state for state in TaskState if not state.is_terminal]


class Figure(NamedTuple):
    """One figure. `name` ends with its unit; that of a counter with `_total`."""

    name: str
    kind: str
    value: float
    help: str
    labels: str = ""
    """In braces, as they stand after the name."""


class Figures:
    """Reads every figure from the part that has it."""

    def __init__(
        self,
        *,
        store: AnyStore,
        dispatcher: Dispatcher,
        link_: ZmqLink,
        http: uvicorn.Server,
        acceptor: Acceptor,
        watch: LoopWatch,
    ) -> None:
        self._store, self._dispatcher, self._plane = store, dispatcher, link_
        self._http, self._acceptor, self._watch = http, acceptor, watch
        self._counts: dict[TaskState, int] = {}
        self._count_at = 0.0

    def text(self) -> str:
        """Return the figures as they are now."""
        lines: list[str] = []
        described: set[str] = set()
        for one in self._all():
            name = f"mep_relay_{one.name}"
            if name not in described:
                described.add(name)
                lines += [f"# HELP {name} {one.help}", f"# TYPE {name} {one.kind}"]
            lines.append(f"{name}{one.labels} {one.value:.12g}")
        return "\n".join([*lines, ""])

    def _all(self) -> Iterator[Figure]:
        yield from self._process()
        yield from self._commits()
        yield from self._checkpoints()
        live = self._dispatcher.live
        linked = sum(1 for uep in live.ueps.values() if uep.peer is not None)
        yield Figure("managers", GAUGE, len(live.managers), "Managers with a link.")
        yield Figure("user_endpoints", GAUGE, linked, "User endpoints with a link.")
        yield from self._tasks()

    def _process(self) -> Iterator[Figure]:
        watch = self._watch
        yield Figure("loop_lag_seconds", GAUGE, watch.longest_s, "Longest lateness of the event loop in a minute.")
        yield Figure("loop_stalls_total", COUNTER, watch.stalls, "Times that the event loop stood still.")
        connections = len(self._http.server_state.connections)
        yield Figure("http_connections", GAUGE, connections, "Open HTTP connections and streams.")
        yield Figure("http_pauses_total", COUNTER, self._acceptor.pauses, "Times that no descriptor was left for HTTP.")
        yield Figure("link_pauses_total", COUNTER, self._plane.pauses, "Times that no descriptor was left for links.")
        yield Figure("log_lines_left_out_total", COUNTER, lines_left_out(), "Log lines that were counted, not written.")

    def _tasks(self) -> Iterator[Figure]:
        now = time.monotonic()
        if now >= self._count_at:
            with suppress(RelayUnavailable):  # the other figures tell why
                self._counts = self._store.open_by_state()
            self._count_at = now + max(COUNT_EVERY_S, 100 * (time.monotonic() - now))
        for state in _OPEN:
            labels = f'{{state="{state.name.lower()}"}}'
            yield Figure("tasks", GAUGE, self._counts.get(state, 0), "Unfinished tasks, as last counted.", labels)

    def _commits(self) -> Iterator[Figure]:
        made, longest = self._store.commits, self._store.commits.take_longest_s()
        yield Figure("store_commits_total", COUNTER, made.groups, "Commits.")
        yield Figure("store_changes_total", COUNTER, made.changes, "Changes that were committed, several in a commit.")
        yield Figure("store_failures_total", COUNTER, made.failed, "Commits that failed.")
        yield Figure("store_waiting_changes", GAUGE, self._store.waiting, "Changes that wait for the writer.")
        yield Figure("store_longest_wait_seconds", GAUGE, longest, "Longest wait for lock or disk since last asked.")

    def _checkpoints(self) -> Iterator[Figure]:
        found = self._store.checkpoints
        if found is None:
            return
        yield Figure("store_checkpoints_total", COUNTER, found.done, "Checkpoints of the write-ahead log.")
        yield Figure("store_checkpoints_incomplete_total", COUNTER, found.incomplete, "Those that a reader cut short.")
        yield Figure("store_checkpoints_failed_total", COUNTER, found.failed, "Those that failed.")
        yield Figure("store_log_cuts_total", COUNTER, found.cut, "Times that a log that was too long was cut.")
        yield Figure("store_log_bytes", GAUGE, found.log_bytes, "Length of the write-ahead log.")
        yield Figure("store_log_waiting_pages", GAUGE, found.waiting_pages, "Pages of it not yet in the database.")
