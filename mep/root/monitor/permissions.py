"""The permission table of the privilege boundary: every message a child may send, when, how often, and its effect.

One row is one privilege of root's. A message that isn't in the table doesn't exist. If a message is unknown,
malformed, oversized, out of phase, repeated or too fast, the monitor kills its sender and logs the message and the
phase. The channel has checked sizes, types and forms; the effects check the meaning of values. Trusts nothing that it
reads. The monitor calls it for each readable child.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mep.boundary import messages as m
from mep.boundary.channel import DescriptorsLost
from mep.boundary.errors import BoundaryViolation
from mep.root.monitor.administration import Administration
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.rechecks import Rechecks
from mep.root.monitor.reload import Reload
from mep.root.monitor.start_requests import StartRequests

AT_ONCE = 32
"""Messages read from one child before the others have their turn. From an administrator it is one: an answer may take
64 records to be read."""
ONCE, MANY = True, False


@dataclass(frozen=True, slots=True)
class Effects:
    """What messages act on: the monitor's parts, and what the monitor itself does."""

    starts: StartRequests
    keepers: Keepers
    rechecks: Rechecks
    reload: Reload
    administration: Administration
    manager_ready: Callable[[Child, m.ManagerReady], None]
    mapper_ready: Callable[[Child, m.MapperReady], None]
    link_is: Callable[[m.LinkStatus], None]
    deleted: Callable[[str], None]
    """Ends the user endpoints, for this reason: the relay won't sign further starts."""
    stop: Callable[[str], None]
    """Ends the endpoint, for this reason."""


Effect = Callable[[Effects, Any, Any, list[int]], None]
"""Called with the effects (`on` in the table), the sender (`by`), its message (`it`) and the descriptors (`fds`)."""


@dataclass(frozen=True, slots=True)
class Power:
    """One row: the sender, the phases, whether the message may be repeated, its effect and the next phase."""

    kind: ChildKind
    message: type[m.Message]
    phase: Phase
    once: bool
    effect: Effect
    then: Phase | None = None
    lost: Effect | None = None
    """The effect if there was no room for the descriptors."""


K, P = ChildKind, Phase
_UNREADY = P.ADMITTING | P.SPAWNING | P.STARTING
TABLE = (
    Power(K.MANAGER, m.ManagerReady, P.BEGINNING, ONCE, lambda on, by, it, _: on.manager_ready(by, it), P.SERVING),
    Power(K.MANAGER, m.StartEndpoint, P.SERVING, MANY, lambda on, by, it, fds: on.starts.request(it.ref, fds[0]),
          lost=lambda on, by, it, _: on.starts.request_lost(it.ref)),
    Power(K.MANAGER, m.LinkStatus, P.SERVING, MANY, lambda on, by, it, _: on.link_is(it)),
    Power(K.MANAGER, m.StopAll, P.SERVING, ONCE, lambda on, by, it, _: on.deleted(it.reason)),
    Power(K.MANAGER, m.StopEndpoint, P.SERVING, ONCE, lambda on, by, it, _: on.stop(it.reason)),
    Power(K.MAPPER, m.MapperReady, P.BEGINNING, ONCE, lambda on, by, it, _: on.mapper_ready(by, it), P.SERVING),
    Power(K.MAPPER, m.MappingStatus, P.BEGINNING | P.SERVING, MANY, lambda on, by, it, _: on.rechecks.mapping_is(it)),
    Power(K.MAPPER, m.ReloadNeeded, P.BEGINNING | P.SERVING, MANY, lambda on, by, it, _: on.reload.start_for_mapper()),
    Power(K.MAPPER, m.Mapped, P.SERVING, MANY, lambda on, by, it, fds: on.starts.mapped(it, fds[0]),
          lost=lambda on, by, it, _: on.starts.mapped_lost(it.ref)),
    Power(K.MAPPER, m.NotMapped, P.SERVING, MANY, lambda on, by, it, _: on.starts.not_mapped(it)),
    Power(K.MAPPER, m.StillMapped, P.SERVING, MANY, lambda on, by, it, _: on.starts.rechecked(it)),
    Power(K.MAPPER, m.NoLongerMapped, P.SERVING, MANY, lambda on, by, it, _: on.starts.rechecked(it)),
    Power(K.KEEPER, m.AskCaps, P.ADMITTING, ONCE, lambda on, by, it, _: on.keepers.grant_or_deny(by, it), P.SPAWNING),
    Power(K.KEEPER, m.Spawned, P.SPAWNING, ONCE, lambda on, by, it, _: on.keepers.spawned(by, it.pid), P.STARTING),
    Power(K.KEEPER, m.UepReady, P.STARTING, ONCE, lambda on, by, it, _: on.keepers.ready(by), P.RUNNING),
    Power(K.KEEPER, m.StillAdmitted, P.RUNNING, MANY, lambda on, by, it, _: on.rechecks.account_checked(by.uep_id)),
    Power(K.KEEPER, m.NoLongerAdmitted, P.RUNNING, MANY,
          lambda on, by, it, _: on.rechecks.account_refused(by.uep_id, it.detail)),
    Power(K.KEEPER, m.NotChecked, P.RUNNING, MANY, lambda on, by, it, _: on.keepers.account_checked(by.uep_id)),
    Power(K.KEEPER, m.UepEnded, _UNREADY | P.RUNNING, ONCE, lambda on, by, it, _: on.keepers.ended(by, it), P.ENDING),
    Power(K.ADMIN, m.AdminList, P.SERVING, MANY, lambda on, by, it, _: on.administration.show(by, it)),
    Power(K.ADMIN, m.AdminRestrictions, P.SERVING, MANY,
          lambda on, by, it, _: on.administration.show_restrictions(by, it)),
    Power(K.ADMIN, m.AdminStop, P.SERVING, MANY, lambda on, by, it, _: on.administration.stop(by, it)),
    Power(K.ADMIN, m.AdminDrain, P.SERVING, MANY, lambda on, by, it, _: on.administration.drain(by, it)),
    Power(K.ADMIN, m.AdminUndrain, P.SERVING, MANY, lambda on, by, it, _: on.administration.undrain(by, it)),
    Power(K.ADMIN, m.AdminBan, P.SERVING, MANY, lambda on, by, it, _: on.administration.ban(by, it)),
    Power(K.ADMIN, m.AdminUnban, P.SERVING, MANY, lambda on, by, it, _: on.administration.unban(by, it)),
    Power(K.ADMIN, m.AdminReload, P.SERVING, MANY, lambda on, by, it, _: on.administration.reload(by, it)),
    Power(K.ADMIN, m.AdminLog, P.SERVING, MANY, lambda on, by, it, _: on.administration.open_log(by, it)),
)  # fmt: skip
_POWERS = {(power.kind, power.message): power for power in TABLE}


def take_messages(effects: Effects, child: Child) -> None:
    """Read the messages of `child` and handle them by the table. Raises BoundaryViolation for anything else."""
    for _ in range(1 if child.kind is ChildKind.ADMIN else AT_ONCE):
        try:
            received = child.channel.receive() if child.open else None
        except BlockingIOError:
            return
        except DescriptorsLost as lost:
            _dispatch(effects, child, lost.message, None)
            continue
        except OSError:
            received = None
        if received is None:
            child.close()
            return
        if not child.bucket.take():
            child.channel.dispose(received[1])
            raise BoundaryViolation(f"{type(received[0]).__name__}: too many messages a second")
        _dispatch(effects, child, *received)


def _dispatch(effects: Effects, child: Child, message: m.Message, descriptors: list[int] | None) -> None:
    """Handle `message` by the table. `descriptors` is None if the monitor had no room for them."""
    power = _POWERS.get((child.kind, type(message)))
    if power is None or not child.phase & power.phase or (power.once and power.message in child.seen):
        child.channel.dispose(descriptors or [])
        raise BoundaryViolation(f"{type(message).__name__} is not allowed to it in this phase")
    child.seen.add(power.message)
    if power.then is not None:
        child.phase = power.then
    effect = power.lost if descriptors is None else power.effect
    if effect is not None:
        effect(effects, child, message, descriptors or [])
