"""What administrators may do through RUN/admin/socket: see, stop, drain, ban, reload. Each act is in the audit log.

These are all the powers of a member of the configured group; whatever is not here needs root. The peer is one that
admin_socket.py has admitted; every field of its messages is checked here. Called by permissions.py and monitor.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.boundary.errors import BoundaryViolation, Refusal
from mep.boundary.figures import read_page
from mep.boundary.file_trust import ours
from mep.boundary.restrictions import Restriction, RestrictionKind
from mep.root.kernel.keeper_record import open_process
from mep.root.monitor.admin_socket import AdminPeer
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.reload import Reload
from mep.root.monitor.start import verdict_on
from mep.root.monitor.to_manager import ToManager
from mep.root.monitor.user_endpoints import RunningEndpoint

MAX_FAILURES = m.MAX_ADMIN_ROWS
DRAIN_SIGNAL = signal.SIGUSR2
"""A user endpoint that handles it finishes its running tasks, takes no others, and ends."""
_RECORD_BYTES = 512
"""What an order costs in log and audit log, besides its text."""
_GOOD_ENDS = frozenset({"", "IDLE", "STOPPED"})


_Message = TypeVar("_Message", bound=m.Message)
_Act = Callable[["Administration", AdminPeer, _Message], None]


def _order(act: _Act[_Message]) -> _Act[_Message]:
    """Have members pay for an act from the day's budget, so that they can't fill the disk. It is refused beyond it."""

    def paid(self: Administration, peer: AdminPeer, message: _Message) -> None:
        if self.is_free(peer, len(getattr(message, "message", ""))):
            act(self, peer, message)

    return paid


@dataclass(slots=True, eq=False)
class _Waiting:
    """A peer that is answered once these user endpoints are gone."""

    peer: AdminPeer
    left: set[str]
    count: int


class Administration(Part):
    """The acts, and the memory that they need."""

    def __init__(
        self, shared: Shared, to_manager: ToManager, keepers: Keepers, reload: Reload, budget: DayBudget
    ) -> None:
        """`budget` is for records of members."""
        super().__init__(shared)
        self._to_manager = to_manager
        self._keepers, self._reload, self._budget = keepers, reload, budget
        self._failures: deque[m.AdminFailure] = deque(maxlen=MAX_FAILURES)
        self._stops: list[_Waiting] = []
        shared.audit.observe = self._note

    def is_free(self, peer: AdminPeer, size: int) -> bool:
        """Whether `peer` may give another order today, with a text of this size. If not, it is told so."""
        if peer.is_privileged or self._budget.take(_RECORD_BYTES + 2 * size):
            return True
        peer.send(m.AdminDone(0, 0, "members of the group have given too many orders today: ask root"))
        return False

    # --- seeing -------------------------------------------------------------------------------------------

    def show(self, peer: AdminPeer, message: m.AdminList) -> None:
        """Send the user endpoints after `message.after`, and with the first of them restrictions and failures."""
        found = sorted(uep_id for uep_id in self._endpoints if uep_id > message.after)
        for uep_id in found[: m.MAX_ADMIN_ROWS]:
            peer.send(self._row(self._endpoints[uep_id]))
        if not message.after:
            for restriction in self._restrictions.all[-m.MAX_ADMIN_ROWS :]:
                peer.send(_restriction_row(restriction))
            for failure in self._failures:
                peer.send(failure)
        peer.send(m.AdminDone(len(self._endpoints), int(len(found) > m.MAX_ADMIN_ROWS), ""))

    def show_restrictions(self, peer: AdminPeer, message: m.AdminRestrictions) -> None:
        """Send the drains and bans after the one that `message` names, whether that is still in force or not."""
        after = (message.local_user, message.kind)
        found = sorted((one for one in self._restrictions.all if _page_key(one) > after), key=_page_key)
        for restriction in found[: m.MAX_ADMIN_ROWS]:
            peer.send(_restriction_row(restriction))
        peer.send(m.AdminDone(len(self._restrictions), int(len(found) > m.MAX_ADMIN_ROWS), ""))

    def _row(self, one: RunningEndpoint) -> m.AdminEndpoint:
        calendar = time.time() - self._loop.clock()
        record = self._records.read(one.uep_id)
        return m.AdminEndpoint(
            uid=one.uid, pid=one.pid, keeper_pid=one.keeper_pid, since_ms=_ms(one.since),
            started_ms=_ms(record.started_at if record is not None else one.since),
            mapping_checked_ms=_ms(calendar + one.mapped_at if one.mapped_at else 0.0),
            account_checked_ms=_ms(calendar + one.admitted_at if one.admitted_at else 0.0),
            overdue=int(one.overdue), account_overdue=int(one.account_overdue), uep_id=one.uep_id,
            local_user=one.local_user, state=one.shown_state, identities=clip(one.identities, 4096),
            correlation_id=clip(one.correlation_id, 64),
            figures=self._figures(one, record.figures_fd) if record is not None else b"",
        )  # fmt: skip

    def _figures(self, one: RunningEndpoint, number: int) -> bytes:
        """Return the page that the user endpoint writes, by way of its keeper's descriptor."""
        if number < 0:
            return b""
        try:
            descriptor = os.open(f"/proc/{one.keeper_pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return b""
        try:
            return read_page(descriptor)
        finally:
            os.close(descriptor)

    @_order
    def open_log(self, peer: AdminPeer, _: m.AdminLog) -> None:
        """Send a descriptor of the endpoint's log, open for reading, to a peer that reads its answers.

        Others wait in the monitor, and so would their descriptors.
        """
        if not peer.reads:
            raise BoundaryViolation("AdminLog: it does not read the answers")
        path = self._configuration.resolved.log_path
        if not path:
            problem = f"the log goes to standard error: journalctl -u mep@{self._configuration.resolved.name}"
            peer.send(m.AdminDone(0, 0, problem))
            return
        try:
            descriptor = ours().open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            peer.send(m.AdminDone(0, 0, clip(str(error), 1024)))
            return
        self._record(peer, "read log")
        peer.send(m.AdminLogFile(), [descriptor])
        peer.send(m.AdminDone(1, 0, ""))

    def _note(self, event: str, fields: dict[str, object]) -> None:
        """Remember a start that was refused, and an end that was no good one, from their audit records."""
        code = str(fields.get("code", ""))
        if event not in {"start", "end", "revoke"} or code in _GOOD_ENDS or fields.get("outcome") == "try_later":
            return
        user = str(fields.get("local_user", ""))
        known = self._endpoints.get(str(fields.get("uep_id", "")))
        identities = str(fields.get("identities", "")) or (known.identities if known is not None else "")
        ended = "" if event == "start" else m.ENDED
        detail = f"{ended}{fields.get('detail') or fields.get('cause') or ''}"
        failure = m.AdminFailure(
            at_ms=_ms(time.time()), local_user=clip(user, 32), identities=clip(identities, 1024), code=clip(code, 64),
            detail=clip(detail, 1024), correlation_id=clip(str(fields.get("correlation_id", "")), 64),
        )  # fmt: skip
        known_end = bool(ended and failure.correlation_id) and any(
            (one.code, one.correlation_id) == (failure.code, failure.correlation_id) for one in self._failures
        )
        if not known_end:  # the end of a process that was revoked says less than its revocation
            self._failures.append(failure)

    # --- acting on user endpoints ----------------------------------------------------------------------------

    @_order
    def stop(self, peer: AdminPeer, message: m.AdminStop) -> None:
        """End one user endpoint, or those of one account. The answer follows their end."""
        if bool(message.uep_id) == bool(message.local_user):
            raise BoundaryViolation("AdminStop: needs either a user endpoint or an account")
        found = [
            one
            for one in self._endpoints.values()
            if one.uep_id == message.uep_id or (message.local_user and one.local_user == message.local_user)
        ]
        self._record(
            peer, "stop", uep_id=message.uep_id, local_user=message.local_user, message=message.message,
            stopped=[one.uep_id for one in found],
        )  # fmt: skip
        public = f"The site's administrators ended your process. {clip(message.message, m.MAX_ADMIN_TEXT)}".strip()
        for one in found:
            if not one.stops:
                self._keepers.end(one, "STOPPED", public)
        self._answer_when_gone(peer, found)

    def _answer_when_gone(self, peer: AdminPeer, found: list[RunningEndpoint]) -> None:
        if found:
            self._stops.append(_Waiting(peer, {one.uep_id for one in found}, len(found)))
        else:
            peer.send(m.AdminDone(0, 0, ""))

    def endpoint_gone(self, uep_id: str) -> None:
        """Answer the peers for which this was the last user endpoint to end."""
        for waiting in list(self._stops):
            waiting.left.discard(uep_id)
            if not waiting.left:
                self._stops.remove(waiting)
                waiting.peer.send(m.AdminDone(waiting.count, 0, ""))

    # --- drains and bans ------------------------------------------------------------------------------------

    @_order
    def drain(self, peer: AdminPeer, message: m.AdminDrain) -> None:
        """Start nothing new, and have running user endpoints end once their tasks have."""
        kind, user = RestrictionKind.DRAIN, message.local_user
        if self._put(peer, kind, user, uid=-1, message=message.message, refuse=bool(message.refuse)):
            found = [one for one in self._endpoints.values() if not user or one.local_user == user]
            peer.send(m.AdminDone(sum(self._drain(one) for one in found if one.runs), 0, ""))

    @_order
    def undrain(self, peer: AdminPeer, message: m.AdminUndrain) -> None:
        """Take a drain back, and have the relay ask again for waiting tasks."""
        if self._take_back(peer, RestrictionKind.DRAIN, message.local_user, answer=True):
            self._to_manager.starts_allowed()

    @_order
    def ban(self, peer: AdminPeer, message: m.AdminBan) -> None:
        """Close the endpoint to an account, end what it runs, and have the policy read again."""
        kind, user = RestrictionKind.BAN, message.local_user
        if not self._put(peer, kind, user, uid=message.uid, message=message.message, refuse=True):
            return
        count = 0
        for one in list(self._endpoints.values()):
            ban = self._restrictions.ban_of(one.local_user, one.uid)
            if ban is not None and not one.stops:
                code, detail = Refusal.ACCOUNT_BANNED, f"banned by uid {peer.uid}"
                self._keepers.revoke(one, code, verdict_on(ban).public, detail, one.correlation_id)
                count += 1
        self._reload.start()
        peer.send(m.AdminDone(count, 0, ""))

    @_order
    def unban(self, peer: AdminPeer, message: m.AdminUnban) -> None:
        """Take a ban back, and have the policy read again. The answer follows: then the account may start again."""
        if self._take_back(peer, RestrictionKind.BAN, message.local_user, answer=False):
            self._reload_for(peer)

    def _put(self, peer: AdminPeer, kind: RestrictionKind, user: str, *, uid: int, message: str, refuse: bool) -> bool:
        said = clip(message, m.MAX_ADMIN_TEXT)
        try:
            self._restrictions.put(kind, user, uid=uid, message=said, refuse=refuse, by_uid=peer.uid)
        except (OSError, ValueError) as error:
            self._record(peer, kind, local_user=user, message=said, problem=str(error))
            peer.send(m.AdminDone(0, 0, clip(str(error), 1024)))
            return False
        self._record(peer, kind, local_user=user, uid=uid, message=said, refuse=refuse)
        return True

    def _take_back(self, peer: AdminPeer, kind: RestrictionKind, user: str, *, answer: bool) -> bool:
        """Take back; return whether there was one. `answer`: whether the peer is answered if there was."""
        try:
            removed = self._restrictions.remove(kind, user)
        except OSError as error:
            peer.send(m.AdminDone(0, 0, clip(str(error), 1024)))
            return False
        self._record(peer, f"un{kind}", local_user=user, removed=removed)
        if answer or not removed:
            peer.send(m.AdminDone(int(removed), 0, ""))
        return removed

    def started(self, uep_id: str) -> None:
        """A start is over. If a drain was ordered during it, the new user endpoint is part of it."""
        one = self._endpoints.get(uep_id)
        if one is not None and one.runs and self._restrictions.drain_of(one.local_user) is not None:
            self._drain(one)

    def adopted(self) -> None:
        """At the start: drain again what a former monitor had begun to drain. The signal may come twice."""
        for uep_id in list(self._endpoints):
            self.started(uep_id)

    def _drain(self, one: RunningEndpoint) -> bool:
        """Ask a running user endpoint to end once its tasks have. One of an older version just runs on."""
        record = self._records.read(one.uep_id)
        pidfd = open_process(record.uep_pid, record.uep_start) if record is not None else None
        if record is None or pidfd is None:
            return False
        try:
            if not _catches(record.uep_pid, DRAIN_SIGNAL):  # which would kill it
                self._log.warning("a user endpoint of an older version can't be drained", uep=one.uep_id)
                return False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, DRAIN_SIGNAL)
        finally:
            os.close(pidfd)
        one.draining = True
        self._status.changed()
        return True

    # --- the configuration ------------------------------------------------------------------------------------

    @_order
    def reload(self, peer: AdminPeer, _: m.AdminReload) -> None:
        """Read the configuration again. The answer follows once that is done."""
        self._record(peer, "reload")
        self._reload_for(peer)

    def _reload_for(self, peer: AdminPeer) -> None:
        self._reload.start(lambda problem: peer.send(m.AdminDone(1, 0, clip(problem, 1024))))

    # --- the audit --------------------------------------------------------------------------------------------

    def _record(self, peer: AdminPeer, action: str, **fields: object) -> None:
        who = {"by_uid": peer.uid, "by_login_uid": peer.login_uid, "by_pid": peer.pid}
        self._audit.write("admin", action=str(action), **who, **fields)
        self._log.info("administrator's order", action=str(action), **who, **fields)


def _page_key(one: Restriction) -> tuple[str, str]:
    return one.local_user, one.kind


def _restriction_row(one: Restriction) -> m.AdminRestriction:
    return m.AdminRestriction(int(one.refuse), one.by_uid, _ms(one.since), one.kind, one.local_user, one.message)


def _ms(at: float) -> int:
    return int(at * 1000)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles this signal."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            line = next((one for one in file if one.startswith(b"SigCgt:")), b"")
    except OSError:
        return False
    return bool(line) and bool(int(line.split()[1], 16) >> (number - 1) & 1)
