"""Adoption: a new monitor takes over the keepers of its predecessor, and reads how the others ended.

Trusts the records (root's own directory) for past events and the kernel for running processes. A pid counts only
together with its start time and this boot's id, and a pidfd is opened before it is believed. Called once, at startup.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from mep.boundary.messages import INCARNATION_BYTES
from mep.root.kernel.keeper_record import KeeperRecord, open_keeper
from mep.root.monitor.user_endpoints import UserEndpoint

if TYPE_CHECKING:
    from mep.root.monitor.monitor import Monitor


def adopt_keepers(monitor: Monitor) -> None:
    """Adopt every living keeper, and report the end of every other recorded user endpoint."""
    for uep_id in monitor.records.ids():
        record = monitor.records.read(uep_id)
        if record is None or record.uep_id != uep_id:
            monitor.log.error("a keeper's record cannot be read", uep=uep_id)
            monitor.records.remove(uep_id)
            continue
        pidfd = open_keeper(record)
        if pidfd is None:
            _bury(monitor, record)
        else:
            _adopt(monitor, record, pidfd)


def _adopt(monitor: Monitor, record: KeeperRecord, pidfd: int) -> None:
    endpoint = UserEndpoint(
        record.uep_id, record.local_user, record.correlation_id, record.keeper_pid, None,
        incarnation=_incarnation(record), pidfd=pidfd, uid=record.uid, pid=record.uep_pid, ready=True,
    )  # fmt: skip
    endpoint.source = record.source
    endpoint.person, endpoint.literal, endpoint.identities = _person(record), record.literal, record.identities
    endpoint.mapped_at = monitor.records.mapped_at(record.uep_id, endpoint.incarnation)
    monitor.endpoints[record.uep_id] = endpoint
    monitor.loop.watch(pidfd, lambda: monitor.keepers.gone(endpoint))
    monitor.audit.write(
        "adopt", uep_id=record.uep_id, local_user=record.local_user, uid=record.uid, pid=record.uep_pid,
        keeper_pid=record.keeper_pid, correlation_id=record.correlation_id,
    )  # fmt: skip
    monitor.log.info("adopted a keeper", uep=record.uep_id, user=record.local_user, keeper=record.keeper_pid)


def _person(record: KeeperRecord) -> bytes:
    """Return the digest of the user endpoint's owner; empty if it isn't known."""
    try:
        return bytes.fromhex(record.person)
    except ValueError:
        return b""


def _bury(monitor: Monitor, record: KeeperRecord) -> None:
    """Report the end of a user endpoint without a keeper, and kill any processes it left."""
    endpoint = UserEndpoint(
        record.uep_id, record.local_user, record.correlation_id, record.keeper_pid, None,
        incarnation=_incarnation(record), uid=record.uid, pid=record.uep_pid, ready=True,
    )  # fmt: skip
    monitor.endpoints[record.uep_id] = endpoint
    monitor.keepers.gone(endpoint)


def _incarnation(record: KeeperRecord) -> bytes:
    """Return the incarnation of the recorded process; empty if it can't be read."""
    with contextlib.suppress(ValueError):
        found = bytes.fromhex(record.incarnation)
        return found if len(found) == INCARNATION_BYTES else b""
    return b""
