"""The permission table of the privilege boundary: every message a child may send, when, how often, and its effect.

One row is one privilege of root's. A message that isn't in the table doesn't exist. If a message is unknown,
malformed, oversized, out of phase, repeated or too fast, the monitor kills its sender and logs the message and the
phase. Trusts nothing that it reads. The monitor calls it for each readable child.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mep.boundary import messages as m
from mep.boundary.channel import DescriptorsLost
from mep.boundary.errors import BoundaryViolation
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.handlers import Handlers

Handler = Callable[[Handlers, Child, Any, list[int]], None]
AT_ONCE = 32
"""Messages read from one child before the others have their turn. From an administrator it is one: an answer may take
64 records to be read."""
ONCE, MANY = True, False


@dataclass(frozen=True, slots=True)
class Power:
    """One row: the sender, the phases, whether the message may be repeated, its handler and the next phase."""

    kind: ChildKind
    message: type[m.Message]
    phase: Phase
    once: bool
    handler: Handler
    then: Phase | None = None


P = Phase
TABLE = (
    Power(ChildKind.MANAGER, m.ManagerReady, P.BEGINNING, ONCE, Handlers.answer_manager_ready, P.SERVING),
    Power(ChildKind.MANAGER, m.StartEndpoint, P.SERVING, MANY, Handlers.answer_start_endpoint),
    Power(ChildKind.MANAGER, m.LinkStatus, P.SERVING, MANY, Handlers.answer_link_status),
    Power(ChildKind.MANAGER, m.StopAll, P.SERVING, ONCE, Handlers.answer_stop_all),
    Power(ChildKind.MANAGER, m.StopEndpoint, P.SERVING, ONCE, Handlers.answer_stop_endpoint),
    Power(ChildKind.MAPPER, m.MappingStatus, P.BEGINNING | P.SERVING, MANY, Handlers.answer_mapping_status),
    Power(ChildKind.MAPPER, m.ReloadNeeded, P.BEGINNING | P.SERVING, MANY, Handlers.answer_reload_needed),
    Power(ChildKind.MAPPER, m.MapperReady, P.BEGINNING, ONCE, Handlers.answer_mapper_ready, P.SERVING),
    Power(ChildKind.MAPPER, m.Mapped, P.SERVING, MANY, Handlers.answer_mapped),
    Power(ChildKind.MAPPER, m.NotMapped, P.SERVING, MANY, Handlers.answer_not_mapped),
    Power(ChildKind.MAPPER, m.StillMapped, P.SERVING, MANY, Handlers.answer_still_mapped),
    Power(ChildKind.MAPPER, m.NoLongerMapped, P.SERVING, MANY, Handlers.answer_no_longer_mapped),
    Power(ChildKind.KEEPER, m.AskCaps, P.ADMITTING, ONCE, Handlers.answer_ask_caps, P.SPAWNING),
    Power(ChildKind.KEEPER, m.Spawned, P.SPAWNING, ONCE, Handlers.answer_spawned, P.STARTING),
    Power(ChildKind.KEEPER, m.UepReady, P.STARTING, ONCE, Handlers.answer_uep_ready, P.RUNNING),
    Power(
        ChildKind.KEEPER,
        m.KeeperFailed,
        P.ADMITTING | P.SPAWNING | P.STARTING,
        ONCE,
        Handlers.answer_keeper_failed,
        P.ENDING,
    ),
    Power(ChildKind.KEEPER, m.StillAdmitted, P.RUNNING, MANY, Handlers.answer_still_admitted),
    Power(ChildKind.KEEPER, m.NoLongerAdmitted, P.RUNNING, MANY, Handlers.answer_no_longer_admitted),
    Power(ChildKind.KEEPER, m.NotChecked, P.RUNNING, MANY, Handlers.answer_not_checked),
    Power(ChildKind.KEEPER, m.UepExited, P.RUNNING, ONCE, Handlers.answer_uep_exited, P.ENDING),
    Power(ChildKind.ADMIN, m.AdminList, P.SERVING, MANY, Handlers.answer_admin_list),
    Power(ChildKind.ADMIN, m.AdminStop, P.SERVING, MANY, Handlers.answer_admin_stop),
    Power(ChildKind.ADMIN, m.AdminDrain, P.SERVING, MANY, Handlers.answer_admin_drain),
    Power(ChildKind.ADMIN, m.AdminUndrain, P.SERVING, MANY, Handlers.answer_admin_undrain),
    Power(ChildKind.ADMIN, m.AdminBan, P.SERVING, MANY, Handlers.answer_admin_ban),
    Power(ChildKind.ADMIN, m.AdminUnban, P.SERVING, MANY, Handlers.answer_admin_unban),
    Power(ChildKind.ADMIN, m.AdminReload, P.SERVING, MANY, Handlers.answer_admin_reload),
    Power(ChildKind.ADMIN, m.AdminLog, P.SERVING, MANY, Handlers.answer_admin_log),
)
_POWERS = {(power.kind, power.message): power for power in TABLE}


def take_messages(handlers: Handlers, child: Child) -> None:
    """Read the messages of `child` and handle them by the table. Raises BoundaryViolation for anything else."""
    for _ in range(1 if child.kind is ChildKind.ADMIN else AT_ONCE):
        try:
            received = child.channel.receive() if child.open else None
        except BlockingIOError:
            return
        except DescriptorsLost as lost:
            _dispatch(handlers, child, lost.message, None)
            continue
        except OSError:
            received = None
        if received is None:
            child.close()
            return
        if not child.bucket.take():
            child.channel.dispose(received[1])
            raise BoundaryViolation(f"{type(received[0]).__name__}: too many messages a second")
        _dispatch(handlers, child, *received)


def _dispatch(handlers: Handlers, child: Child, message: m.Message, descriptors: list[int] | None) -> None:
    """Handle `message` by the table. `descriptors` is None if the monitor had no room for them."""
    power = _POWERS.get((child.kind, type(message)))
    if power is None or not child.phase & power.phase or (power.once and power.message in child.seen):
        child.channel.dispose(descriptors or [])
        raise BoundaryViolation(f"{type(message).__name__} is not allowed to it in this phase")
    child.seen.add(power.message)
    if power.then is not None:
        child.phase = power.then
    if descriptors is None:
        handlers.answer_without_descriptors(message)
    else:
        power.handler(handlers, child, message, descriptors)
