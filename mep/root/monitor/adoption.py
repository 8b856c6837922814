"""Adoption: a new monitor takes over the keepers of its predecessor, and reads how the others ended.

Trusts the records (root's own directory) for past events and the kernel for running processes. A pid counts only
together with its start time and this boot's id, and a pidfd is opened before it is believed. Called once, at startup.
"""

from __future__ import annotations

import contextlib

from mep.boundary.log import Log
from mep.boundary.messages import INCARNATION_BYTES
from mep.root.kernel.keeper_record import KeeperRecord, Records, open_keeper
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.user_endpoints import Endpoints, RunningEndpoint, UepPhase


class Adoption:
    """Takes over the keepers that the records name."""

    def __init__(
        self, loop: PollLoop, endpoints: Endpoints, records: Records, keepers: Keepers, log: Log, audit: Audit
    ) -> None:
        self._loop, self._endpoints, self._records, self._keepers = loop, endpoints, records, keepers
        self._log, self._audit = log, audit

    def adopt_all(self) -> None:
        """Adopt every living keeper, and report the end of every other recorded user endpoint."""
        for uep_id in self._records.ids():
            record = self._records.read(uep_id)
            if record is None or record.uep_id != uep_id:
                self._log.error("a keeper's record cannot be read", uep=uep_id)
                self._records.remove(uep_id)
                continue
            pidfd = open_keeper(record)
            if pidfd is None:
                self._clean_up(record)
            else:
                self._adopt(record, pidfd)

    def _adopt(self, record: KeeperRecord, pidfd: int) -> None:
        endpoint = RunningEndpoint(
            record.uep_id, record.local_user, record.correlation_id, record.keeper_pid, None,
            incarnation=_incarnation(record), pidfd=pidfd, uid=record.uid, pid=record.uep_pid, phase=UepPhase.RUNNING,
        )  # fmt: skip
        endpoint.source = record.source
        endpoint.person, endpoint.literal, endpoint.identities = _person(record), record.literal, record.identities
        endpoint.mapped_at = self._records.mapped_at(record.uep_id, endpoint.incarnation)
        self._endpoints[record.uep_id] = endpoint
        self._loop.watch(pidfd, lambda: self._keepers.gone(endpoint))
        self._audit.write(
            "adopt", uep_id=record.uep_id, local_user=record.local_user, uid=record.uid, pid=record.uep_pid,
            keeper_pid=record.keeper_pid, correlation_id=record.correlation_id,
        )  # fmt: skip
        self._log.info("adopted a keeper", uep=record.uep_id, user=record.local_user, keeper=record.keeper_pid)

    def _clean_up(self, record: KeeperRecord) -> None:
        """Report the end of a user endpoint without a keeper, and kill any processes it left."""
        endpoint = RunningEndpoint(
            record.uep_id, record.local_user, record.correlation_id, record.keeper_pid, None,
            incarnation=_incarnation(record), uid=record.uid, pid=record.uep_pid, phase=UepPhase.RUNNING,
        )  # fmt: skip
        self._endpoints[record.uep_id] = endpoint
        self._keepers.gone(endpoint)


def _person(record: KeeperRecord) -> bytes:
    """Return the digest of the user endpoint's owner; empty if it isn't known."""
    try:
        return bytes.fromhex(record.person)
    except ValueError:
        return b""


def _incarnation(record: KeeperRecord) -> bytes:
    """Return the incarnation of the recorded process; empty if it can't be read."""
    with contextlib.suppress(ValueError):
        found = bytes.fromhex(record.incarnation)
        return found if len(found) == INCARNATION_BYTES else b""
    return b""
