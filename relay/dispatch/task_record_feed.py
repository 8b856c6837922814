"""Task events on their way to the managers of endpoints that keep task records.

The store keeps each event until the manager confirms that it is on that host's disk. None is lost when a manager, link
or relay fails; after a reconnect some may be sent again, with the same numbers. Each endpoint has one message in
flight, so that a slow disk there holds up nothing here. Called by the dispatcher, in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from mep_wire import codec, messages
from mep_wire.task_events import MAX_PAGE_EVENTS, TaskEvent
from relay.dispatch.live_state import LiveState, ManagerLink
from relay.link.base import Peer
from relay.log import peer_log
from relay.store.task_record_writes import AuditedStore, decode_event

GATHER_S = 0.05
"""How long events wait to share a message."""
MAX_NAMES = 10_000
NAMES_S = 300.0
"""How long a username that was looked up is taken for true."""


@dataclass(eq=False, slots=True)
class _Outgoing:
    """One manager that wants events."""

    peer: Peer
    until: int = 0
    """Number of the last event under way; 0 for none."""
    dropped: int = 0
    timer: asyncio.TimerHandle | None = None


class TaskRecordFeed:
    """Sends the events of every endpoint with a connected manager."""

    def __init__(self, live: LiveState, store: AuditedStore) -> None:
        self._live, self._store = live, store
        self._outgoing: dict[str, _Outgoing] = {}
        self._names: dict[tuple[str, str], tuple[str, float]] = {}
        store.tell = self._tell

    def hello(self, link: ManagerLink, *, wanted: bool) -> None:
        """A manager says whether its endpoint keeps task records."""
        if not wanted and link.endpoint_id in self._store.kept:
            peer_log.info("endpoint keeps no further task records", endpoint=link.endpoint_id)
        self._store.keep(link.endpoint_id, keep=wanted)
        known = self._outgoing.get(link.endpoint_id)
        if not wanted:
            self._forget(link.endpoint_id)
        elif known is None or known.peer is not link.peer:
            self._forget(link.endpoint_id)
            self._outgoing[link.endpoint_id] = _Outgoing(link.peer)
            self._soon(link.endpoint_id)

    def gone(self, link: ManagerLink) -> None:
        """A manager's link is down: the events in flight are sent again."""
        known = self._outgoing.get(link.endpoint_id)
        if known is not None and known.peer is link.peer:
            self._forget(link.endpoint_id)

    def _forget(self, endpoint_id: str) -> None:
        known = self._outgoing.pop(endpoint_id, None)
        if known is not None and known.timer is not None:
            known.timer.cancel()

    def written(self, link: ManagerLink, message: messages.TaskEventsWritten) -> None:
        """A manager has the events under way on its disk."""
        out = self._outgoing.get(link.endpoint_id)
        if out is None or out.peer is not link.peer or (message.until, message.dropped) != (out.until, out.dropped):
            peer_log.warning("manager has written task events that it was not sent", endpoint=link.endpoint_id)
            return

        def forgotten(_: None) -> None:
            out.until = out.dropped = 0
            self._send(link.endpoint_id)

        done = self._store.submit(lambda tx: tx.task_events_written(link.endpoint_id, message.until, message.dropped))
        self._live.when_durable(link.peer, done, forgotten)

    def _tell(self, endpoints: Collection[str]) -> None:
        """Events of these endpoints are durable. Called in the store's thread too."""
        self._live.loop.call_soon_threadsafe(self._all_soon, endpoints)

    def _all_soon(self, endpoints: Collection[str]) -> None:
        for endpoint_id in endpoints:
            self._soon(endpoint_id)

    def _soon(self, endpoint_id: str) -> None:
        out = self._outgoing.get(endpoint_id)
        if out is not None and out.timer is None:
            out.timer = self._live.loop.call_later(GATHER_S, self._send, endpoint_id)

    def _send(self, endpoint_id: str) -> None:
        """Send the stored events, unless some are under way."""
        out = self._outgoing.get(endpoint_id)
        if out is None:
            return
        out.timer = None
        if out.until or out.dropped:
            return
        page = self._store.task_events(endpoint_id, MAX_PAGE_EVENTS)
        if not page.events and not page.dropped:
            return
        events = [self._event(seq, body) for seq, body in page.events]
        out.until, out.dropped = page.events[-1][0] if page.events else 0, page.dropped
        self._live.link_.send(out.peer, codec.encode(messages.TaskEvents(dropped=page.dropped, events=events)))

    def _event(self, seq: int, body: bytes) -> TaskEvent:
        e = decode_event(body)
        uep = e.uep
        name = self._username(uep.account_id, uep.identity_id)
        task_id = str(uuid.UUID(bytes=e.task_id))
        return TaskEvent(
            seq=seq,
            event=e.event,
            source=e.source,
            at=e.at,
            task_id=task_id,
            function_id=e.function_id,
            uep_id=uep.uep_id,
            identity_id=uep.identity_id,
            username=name,
            code=e.code,
            block_id=e.block_id,
            job_id=e.job_id,
            incarnation=uep.incarnation,
        )

    def _username(self, account_id: str, identity_id: str) -> str:
        """Return the name of an identity, empty if the relay no longer has it."""
        name, until = self._names.get((account_id, identity_id), ("", 0.0))
        now = time.monotonic()
        if now >= until:
            if len(self._names) > MAX_NAMES:
                self._names.clear()
            found = self._store.identity_set(account_id, identity_id)
            mine = [one.username for one in found.identities if one.id == identity_id] if found else []
            name = mine[0] if mine else ""
            self._names[account_id, identity_id] = (name, now + NAMES_S)
        return name
