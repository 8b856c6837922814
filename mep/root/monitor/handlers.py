"""The monitor's handlers: one short function for each row of the table in permissions.py, named after its message.

The table has checked the sender and the phase. The channel has checked sizes and types. Handlers check the meaning
of the values. Called by permissions.py alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.boundary.errors import BoundaryViolation, Refusal
from mep.root.monitor.child import Child

if TYPE_CHECKING:
    from mep.root.monitor.monitor import Monitor

_UEP_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOCAL_USER = re.compile(r"[^\s/:\0-\x1f\x7f-][^\s/:\0-\x1f\x7f]{0,31}")
EPOCH_BYTES = 16


# --- manager --------------------------------------------------------------------------------------------


def answer_manager_ready(monitor: Monitor, child: Child, message: m.ManagerReady, _: list[int]) -> None:
    """The manager is ready: send it the epoch and the running user endpoints."""
    monitor.log.info("the manager is ready", pid=child.pid, version=message.version)
    monitor.introduce()


def answer_start_endpoint(monitor: Monitor, child: Child, message: m.StartEndpoint, descriptors: list[int]) -> None:
    """The manager asks for a start."""
    monitor.starts.ask(message.ref, descriptors[0])


def answer_link_status(monitor: Monitor, child: Child, message: m.LinkStatus, _: list[int]) -> None:
    """The manager reports the state of its link to the relay, for `mep status`."""
    monitor.status.link_state, monitor.status.link_detail = clip(message.state, 32), clip(message.detail, 1024)
    monitor.status.changed()


def answer_stop_all(monitor: Monitor, child: Child, message: m.StopAll, _: list[int]) -> None:
    """The relay has deleted this endpoint: end its user endpoints. The relay won't sign further starts."""
    monitor.log.warning("the endpoint was deleted: stopping its user endpoints", reason=clip(message.reason, 1024))
    monitor.keepers.stop_all("The endpoint was deleted.")


# --- mapper ---------------------------------------------------------------------------------------------


def answer_mapper_ready(monitor: Monitor, child: Child, message: m.MapperReady, _: list[int]) -> None:
    """The mapper is ready, with a new epoch for the relay to sign with."""
    if len(message.epoch) != EPOCH_BYTES:
        raise BoundaryViolation(f"MapperReady: an epoch of {len(message.epoch)} bytes")
    monitor.log.info("the mapper is ready", pid=child.pid)
    monitor.epoch = message.epoch
    monitor.introduce()


def answer_mapping_status(monitor: Monitor, child: Child, message: m.MappingStatus, _: list[int]) -> None:
    """The mapper reports which mapping is in force, for `mep status`."""
    monitor.status.mapping_is(clip(message.loaded, 1024), clip(message.problem, 4096))
    if not message.problem:
        monitor.rechecks.all_now()


def answer_reload_needed(monitor: Monitor, child: Child, message: m.ReloadNeeded, _: list[int]) -> None:
    """The mapping needs more or less than the mapper was started with: run root's resolver."""
    monitor.reload.start_for_mapper()


def answer_mapped(monitor: Monitor, child: Child, message: m.Mapped, descriptors: list[int]) -> None:
    """The mapper has verified a request and names its user. The id becomes a file name, so check it."""
    if not _UEP_ID.fullmatch(message.uep_id) or not _LOCAL_USER.fullmatch(message.local_user):
        child.channel.dispose(descriptors)
        raise BoundaryViolation("Mapped: uep_id or local_user is malformed")
    if len(message.incarnation) != m.INCARNATION_BYTES:
        child.channel.dispose(descriptors)
        raise BoundaryViolation(f"Mapped: an incarnation of {len(message.incarnation)} bytes")
    if len(message.person) != m.PERSON_BYTES or message.literal not in {0, 1}:
        child.channel.dispose(descriptors)
        raise BoundaryViolation("Mapped: person or literal is malformed")
    monitor.starts.mapped(message, descriptors[0])


def answer_not_mapped(monitor: Monitor, child: Child, message: m.NotMapped, _: list[int]) -> None:
    """The mapper refuses a request."""
    if message.code not in set(Refusal):
        raise BoundaryViolation("NotMapped: unknown code")
    monitor.starts.not_mapped(message)


def answer_still_mapped(monitor: Monitor, child: Child, message: m.StillMapped, _: list[int]) -> None:
    """The mapper reports the account that the owner of a user endpoint maps to now."""
    monitor.starts.rechecked(message)


def answer_no_longer_mapped(monitor: Monitor, child: Child, message: m.NoLongerMapped, _: list[int]) -> None:
    """The mapper reports that the owner of a user endpoint no longer maps to an account, or that it can't say."""
    if message.code not in set(Refusal):
        raise BoundaryViolation("NoLongerMapped: unknown code")
    monitor.starts.rechecked(message)


# --- checker --------------------------------------------------------------------------------------------


def answer_still_admitted(monitor: Monitor, child: Child, message: m.StillAdmitted, _: list[int]) -> None:
    """The account of a user endpoint may still be used."""
    monitor.rechecks.account_checked(child, "")


def answer_no_longer_admitted(monitor: Monitor, child: Child, message: m.NoLongerAdmitted, _: list[int]) -> None:
    """The account of a user endpoint may no longer be used."""
    monitor.rechecks.account_checked(child, message.detail or "refused")


def answer_not_checked(monitor: Monitor, child: Child, message: m.NotChecked, _: list[int]) -> None:
    """The account can't be checked now. Its user endpoints keep running."""
    monitor.rechecks.not_checked(child, message.detail)


# --- keeper ---------------------------------------------------------------------------------------------


def answer_ask_caps(monitor: Monitor, child: Child, message: m.AskCaps, _: list[int]) -> None:
    """A keeper has found and admitted the account, and asks whether this uid may have one more user endpoint."""
    monitor.keepers.grant_or_deny(child, message)


def answer_spawned(monitor: Monitor, child: Child, message: m.Spawned, _: list[int]) -> None:
    """A keeper's user endpoint has been exec'd."""
    monitor.keepers.spawned(child, message.pid)


def answer_uep_ready(monitor: Monitor, child: Child, message: m.UepReady, _: list[int]) -> None:
    """A user endpoint is configured and its engine runs: answer the start."""
    monitor.keepers.ready(child)


def answer_keeper_failed(monitor: Monitor, child: Child, message: m.KeeperFailed, _: list[int]) -> None:
    """A start failed, at a named stage."""
    monitor.keepers.failed(child, message)


def answer_uep_exited(monitor: Monitor, child: Child, message: m.UepExited, _: list[int]) -> None:
    """A user endpoint and all its descendants are gone."""
    monitor.keepers.exited(child, message)
