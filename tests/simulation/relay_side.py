"""The relay: its real dispatch on a real SQLite database in memory, which outlives the relay's crashes."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar
from unittest import mock
from weakref import WeakSet

from mep_wire import codec, messages
from mep_wire.errors import RelayUnavailable
from mep_wire.limits import JOIN_LIFETIME_S
from mep_wire.start_request import incarnation_of
from relay.dispatch import live_state, start_requests
from relay.dispatch.dispatcher import Dispatcher
from relay.dispatch.live_state import Uep
from relay.dispatch.start_signing import MadeStart, join_hash
from relay.link.base import Peer
from relay.store.group_commit import MAX_GROUP, DirectWriter
from relay.store.sqlite import SqliteStore

from .network import Network, SimPlane
from .oracle import Oracle
from .world import RelayLoop, World

T = TypeVar("T")


class SimWriter:
    """`relay.store.group_commit.Writer` without its thread: a draw decides when a commit is over."""

    def __init__(self, world: World, direct: DirectWriter) -> None:
        self._world, self._commits = world, direct._commits
        self._waiting: deque[tuple[Callable[[Any], Any], Future[Any]]] = deque()
        self.refuses = False
        """Whether the disk is full."""
        self.slowest_s = 0.05

    def submit(self, change: Callable[[Any], T]) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        if not self._waiting:
            self._world.after(self._world.between(0.0005, self.slowest_s), self.commit_waiting)
        self._waiting.append((change, future))
        return future

    def commit_waiting(self) -> None:
        """Commit what waits, as a group."""
        waiting = self._waiting
        group = [waiting.popleft() for _ in range(min(len(waiting), MAX_GROUP))]
        if waiting:
            self._world.after(self._world.between(0.0005, self.slowest_s), self.commit_waiting)
        if group:
            self._commit(group)

    def _commit(self, group: list[tuple[Callable[[Any], Any], Future[Any]]]) -> None:
        if self.refuses:
            for _, future in group:
                future.set_exception(RelayUnavailable(reason="its store cannot write", detail="the simulated disk"))
            return
        self._commits.commit(group)

    def lose_waiting(self) -> None:
        """The relay has died before these were committed."""
        self._waiting.clear()

    def close(self) -> None:
        """Nothing is left to end."""


class SimStore(SqliteStore):
    """The real store in memory, with a writer that takes its time."""

    def __init__(self, world: World) -> None:
        super().__init__(None)
        assert isinstance(self._writer, DirectWriter)
        self.writer = SimWriter(world, self._writer)
        self._writer = self.writer  # type: ignore[assignment]


class _Errors(logging.Handler):
    """What the relay logs with a traceback is an error of its own."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._failed = failed

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self._failed(f"{record.getMessage()}: {record.exc_info[1]!r}")


class RelayHost:
    """Where the relay runs, dies and is started again."""

    def __init__(self, world: World, network: Network, oracle: Oracle) -> None:
        self._world, self._network, self._oracle = world, network, oracle
        self.store = SimStore(world)
        self.loop: RelayLoop | None = None
        self.dispatcher: Dispatcher | None = None
        self.failures: list[str] = []
        self._past: list[Any] = []  # so that nothing of a dead relay is collected while others live
        self._records: WeakSet[Uep] = WeakSet()

    def start(self) -> None:
        """Start a process."""
        loop = self.loop = RelayLoop(self._world, self.failures.append)
        link_ = SimPlane(self._world, loop)
        link_.watch = self._sent
        asyncio._set_running_loop(loop)
        self._records = WeakSet()
        self.dispatcher = Dispatcher(self.store, link_, _NO_SIGNER)
        link_.start(self.dispatcher)
        self._network.link_ = link_
        self.dispatcher.recover()
        self._world.say("the relay is up")

    def kill(self) -> None:
        """The process dies."""
        if self.loop is None:
            return
        self._world.say("the relay dies")
        self.loop.kill()
        self._past.append((self.loop, self.dispatcher))
        self.loop = self.dispatcher = None
        self.store.writer.lose_waiting()
        self._network.relay_is_gone()

    def _sent(self, peer: Peer, frame: bytes) -> None:
        """Check a frame that the relay sends."""
        if b"SignedStart" in frame[:16] and self.dispatcher is not None:
            start = codec.decode_to_manager(frame)
            assert isinstance(start, messages.SignedStart)
            linked = [one for one in self._records if one.record.uep_id == start.uep_id and one.peer is not None]
            if linked:
                self._oracle.broken(f"a start is asked of {start.uep_id}, which has a link")

    def made(self, record: Uep) -> None:
        """The relay makes a record of a user endpoint: no other may live."""
        uep_id = record.record.uep_id
        if any(one.record.uep_id == uep_id for one in self._records):
            self._oracle.broken(f"user endpoint {uep_id} has two records in the relay's memory")
        self._records.add(record)


class _NoSigner:
    def sign(self, data: bytes, /) -> bytes:
        return b""


_NO_SIGNER = _NoSigner()


def patches(world: World, host: RelayHost) -> list[Any]:
    """Return what stands in for the relay's cryptography, and watches its records."""

    def make_start(
        key: Any, uep: Any, identities: Any, unseal_key: bytes, epoch: bytes, now: float, *, end_users: bool = False
    ) -> MadeStart:
        token = world.token()
        incarnation = incarnation_of(token)
        message = messages.SignedStart(uep_id=uep.uep_id, request=epoch + token, signature=b"", incarnation=incarnation)
        return MadeStart(message, join_hash(token), now + JOIN_LIFETIME_S, "", incarnation)

    init = Uep.__init__

    def noted(self: Uep, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        host.made(self)

    return [
        mock.patch.object(start_requests, "make_start", make_start),
        mock.patch.object(live_state.Uep, "__init__", noted),
    ]


def errors_to(failed: Callable[[str], None]) -> logging.Handler:
    """Return a handler that reports what the relay logs with a traceback."""
    return _Errors(failed)
