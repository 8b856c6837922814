"""Adoption: a new monitor connects to the keepers of its predecessor, and reads how the others ended.

A keeper holds the lock of its directory while it lives, and listens there. The lock names the process, and the socket's
peer must be that process, of this monitor's own account. Trusts the records (root's own directory) for past events.
Called once, at startup.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from mep.boundary.channel import Channel
from mep.boundary.messages import INCARNATION_BYTES
from mep.boundary.runtime_files import KEEPER_SOCKET, open_keeper
from mep.root.kernel.keeper_record import KeeperRecord
from mep.root.kernel.unix_socket import connect, peer_of
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.user_endpoints import RunningEndpoint, UepPhase


class Adoption(Part):
    """Takes over the keepers that have a directory."""

    def __init__(self, shared: Shared, keepers: Keepers, *, adopted: Callable[[Child], None]) -> None:
        """`adopted` is called with each living keeper."""
        super().__init__(shared)
        self._keepers, self._adopted = keepers, adopted

    def adopt_all(self) -> None:
        """Adopt every living keeper, and report the end of every other recorded user endpoint."""
        for uep_id in self._records.ids():
            try:
                self._records.check(uep_id)
                found = open_keeper(self._records.path(uep_id))
            except OSError as error:
                self._log.error("a keeper's directory is not trusted, and left alone", uep=uep_id, error=str(error))
                continue
            record = self._records.read(uep_id)
            if found is not None:
                self._adopt(uep_id, record, *found)
            elif record is None or record.uep_id != uep_id:
                self._log.error("a keeper has ended, and its record cannot be read", uep=uep_id)
                self._records.remove(uep_id)
            else:
                self._keepers.gone(self._enter(record, None))

    def _adopt(self, uep_id: str, record: KeeperRecord | None, pid: int, pidfd: int) -> None:
        if record is None:  # it has just begun, or its record was damaged
            self._log.error("ending a keeper without a readable record", uep=uep_id, keeper=pid)
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            os.close(pidfd)
            return
        keeper = Child(ChildKind.KEEPER, pid, self._connect(uep_id, pid), Phase.RUNNING, self._loop, pidfd=pidfd)
        keeper.uep_id = uep_id
        self._enter(record, keeper)
        self._adopted(keeper)
        self._audit.write(
            "adopt", uep_id=uep_id, local_user=record.local_user, uid=record.uid, pid=record.uep_pid,
            keeper_pid=pid, correlation_id=record.correlation_id,
        )  # fmt: skip
        self._log.info("adopted a keeper", uep=uep_id, user=record.local_user, keeper=pid)

    def _connect(self, uep_id: str, pid: int) -> Channel:
        """Return a channel to the keeper `pid`; a closed one if it can't be reached, or another process listens."""
        try:
            connection = connect(self._records.path(uep_id), KEEPER_SOCKET)
            peer = peer_of(connection)
            if (peer.pid, peer.uid) == (pid, os.geteuid()):
                return Channel(connection)
            connection.close()
            problem = f"pid {peer.pid} of uid {peer.uid} listens at its socket"
        except OSError as error:
            problem = str(error)
        self._log.error("cannot speak to a keeper, only signal it", uep=uep_id, keeper=pid, error=problem)
        ours, theirs = Channel.pair()
        theirs.close()
        return ours

    def _enter(self, record: KeeperRecord, keeper: Child | None) -> RunningEndpoint:
        pid = keeper.pid if keeper is not None else record.keeper_pid
        endpoint = RunningEndpoint(
            record.uep_id, record.local_user, record.correlation_id, pid, keeper,
            incarnation=_unhex(record.incarnation, INCARNATION_BYTES), uid=record.uid, pid=record.uep_pid,
            phase=UepPhase.RUNNING, person=_unhex(record.person), literal=record.literal,
            identities=record.identities, mapped_at=self._records.mapped_at(record.uep_id),
        )  # fmt: skip
        self._endpoints[record.uep_id] = endpoint
        return endpoint


def _unhex(text: str, size: int = 0) -> bytes:
    """Return the bytes of a record's text, of this size if it is given; empty if it isn't that."""
    with contextlib.suppress(ValueError):
        found = bytes.fromhex(text)
        return found if size in {0, len(found)} else b""
    return b""
