"""The keeper's watch over one user endpoint, from exec until no descendant is left.

`TABLE` has all that may happen to the process. The phase in which it ends decides the report of its end. Trusts no
report of the user endpoint: a malformed one is dropped, texts are clipped, and the count is bounded. A report or an
order without a row in the table changes nothing. Made and run by keeper.py.
"""

from __future__ import annotations

import enum
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from mep.boundary.channel import clip
from mep.boundary.errors import Refusal, StartStage, public_text
from mep.boundary.log import Log
from mep.boundary.messages import (
    CheckAccount,
    NoLongerAdmitted,
    StopUserEndpoint,
    UepReady,
)
from mep.root.keeper.account_recheck import AccountRecheck
from mep.root.keeper.monitor_link import MonitorLink
from mep.root.keeper.pam_session import PamProcess
from mep.root.kernel.cgroup import Cgroup
from mep.root.kernel.process_tree import MAX_REAPS, describe_status, kill_descendants, raise_priority, reap, reap_each
from mep.root.kernel.signals import Wakeup, wait_readable

MAX_PUBLIC = 1024
STOPPED = "STOPPED"
_MAX_REPORT_BYTES = 4096
_MAX_REPORTS = 64
"""A user endpoint sends two reports in its life, and at most 16 notices. After this many, its reports are ignored."""
_CODE = re.compile(r"[A-Z_]{1,64}")
_FAILED_EXIT_S = 5.0
_LOST = "USER_ENDPOINT_LOST"
_NEVER = float("inf")


class Phase(enum.Enum):
    """A phase of the process."""

    STARTING = "starting"
    FAILING = "it said that it ends, before it was ready"
    CANCELLING = "told to stop before it was ready"
    RUNNING = "ready"
    LEAVING = "it said that it ends"
    STOPPING = "told to stop"


class Event(enum.Enum):
    """Something that happens to the process. Its end is no event: nothing follows it."""

    READY = "it says that it is ready"
    LEAVE = "it says that it has failed, or ends"
    STOP = "it is to end: an order, a signal, a re-check, or no time left"


P, E = Phase, Event
TABLE: dict[tuple[Phase, Event], Phase] = {
    (P.STARTING, E.READY): P.RUNNING,
    (P.STARTING, E.LEAVE): P.FAILING,
    (P.STARTING, E.STOP): P.CANCELLING,
    (P.FAILING, E.STOP): P.CANCELLING,
    (P.RUNNING, E.LEAVE): P.LEAVING,
    (P.RUNNING, E.STOP): P.STOPPING,
    (P.LEAVING, E.STOP): P.STOPPING,
}
"""The phase that follows. All other pairs change nothing: the first report counts, and the first order."""
_NEVER_READY = frozenset({P.STARTING, P.FAILING, P.CANCELLING})
_TOLD = frozenset({P.CANCELLING, P.STOPPING})


@dataclass(frozen=True, slots=True)
class ProcessEnding:
    """How a start failed at `stage`, or how a user endpoint ended that was ready (None)."""

    code: str
    public: str = ""
    detail: str = ""
    status: int = 0
    stage: StartStage | None = None
    errno: int = 0


@dataclass(frozen=True, slots=True)
class UepReport:
    """One datagram of the user endpoint: READY, FAILED, ENDED or NOTICE."""

    kind: str
    code: str = ""
    public: str = ""
    detail: str = ""


def parse_report(datagram: bytes) -> UepReport | None:
    """Return the report in a datagram of the user endpoint, clipped; None if it is malformed."""
    lines = datagram[:_MAX_REPORT_BYTES].decode("utf-8", "replace").split("\n")
    kind, rest = lines[0], [*lines[1:4], "", "", ""]
    if kind == "READY":
        return UepReport(kind)
    if kind not in {"FAILED", "ENDED", "NOTICE"} or not _CODE.fullmatch(rest[0]):
        return None
    return UepReport(kind, rest[0], clip(rest[1], MAX_PUBLIC), clip(rest[2], 2048))


@dataclass(slots=True)
class Life:
    """The phase of one process, and the reason that was given for its end."""

    phase: Phase = Phase.STARTING
    """Changed by `take` alone."""
    why: UepReport | ProcessEnding | None = None
    """The user endpoint's own report, or the reason of the one that had it stopped."""

    def take(self, event: Event, why: UepReport | ProcessEnding | None = None) -> bool:
        """Change the phase by the table. Return False if there is no row."""
        then = TABLE.get((self.phase, event))
        if then is not None:
            self.phase, self.why = then, why
        return then is not None

    @property
    def is_told(self) -> bool:
        """Whether it was told to stop."""
        return self.phase in {P.CANCELLING, P.STOPPING}

    def ending(self, status: int, excess: tuple[Refusal, str] | None) -> ProcessEnding:
        """Return how it ended with waitpid's `status`. `excess` is the limit that was exceeded, and its public text."""
        how, why, ready = describe_status(status), self.why, self.phase not in _NEVER_READY
        in_good_order = isinstance(why, UepReport) and why.kind == "ENDED"
        code, detail = str(Refusal.START_FAILED), f"it ended without a report: {how}"
        if excess is not None and not self.is_told and not in_good_order:
            (code, public), detail = excess, f"{excess[1]}; {how}"
        elif why is not None:
            code, public, detail = why.code, why.public, f"{why.detail}; {how}" if why.detail else how
        elif ready:
            code, public, detail = _LOST, f"The user endpoint's process ended: {how}.", how
        elif os.WIFSIGNALED(status):  # which says nothing against another try
            code, public = Refusal.START_INTERRUPTED, public_text(Refusal.START_INTERRUPTED, reason=how)
        else:
            public = public_text(Refusal.START_FAILED, stage=StartStage.READY.name)
        return ProcessEnding(code, public, detail, status, None if ready else StartStage.READY)


class Supervisor:
    """Acts on the user endpoint's reports, the monitor's orders, signals and time."""

    def __init__(
        self, pid: int, report: socket.socket, link: MonitorLink, wakeup: Wakeup, log: Log, recheck: AccountRecheck, *,
        stop_grace_s: float, group: Cgroup | None = None, session: PamProcess | None = None, uep_id: str = "",
    ) -> None:  # fmt: skip
        self._pid, self._link, self._wakeup, self._log, self._recheck = pid, link, wakeup, log, recheck
        self._report: socket.socket | None = report
        self._grace_s, self._group, self._session, self._uep_id = stop_grace_s, group, session, uep_id
        self._life = Life()
        self._status: int | None = None
        """As from waitpid, once the process is reaped."""
        self._kill_at = _NEVER
        self._reports_left = _MAX_REPORTS

    def run(self, ready_by: float, timeout_s: float, on_ready: Callable[[], None]) -> ProcessEnding:
        """Return how it ended, once no descendant is left. `ready_by` is on the monotonic clock."""
        more = False
        while self._status is None:
            now = time.monotonic()
            if self._life.phase is Phase.STARTING and now >= ready_by:
                text = public_text(Refusal.START_TIMEOUT, seconds=f"{timeout_s:g}")
                self._stop(0.0, ProcessEnding(Refusal.START_TIMEOUT, text, "it did not report that it is ready"))
            if now >= self._kill_at:
                self._kill_at = _NEVER
                raise_priority()
                self._signal(signal.SIGKILL)
            starting = self._life.phase is Phase.STARTING
            self._wait(now if more else ready_by if starting else _NEVER)
            more = self._take_signals()
            self._take_reports(on_ready)
            self._take_order()
            self._recheck_account()
        self._take_reports(on_ready)
        self._kill_rest()
        return self._life.ending(self._status, self._group.excess() if self._group is not None else None)

    def _wait(self, until: float) -> None:
        """Wait for anything to act on, no longer than `until`."""
        descriptors = [self._wakeup.fileno(), *self._link.descriptors(), *self._recheck.descriptors()]
        if self._report is not None:
            descriptors.append(self._report.fileno())
        until = min(until, self._kill_at, self._recheck.wake_at())
        left = None if until == _NEVER else max(0.0, until - time.monotonic())
        wait_readable(descriptors, left, self._group.urgent() if self._group is not None else [])
        if self._group is not None:
            self._group.look()

    def _kill_rest(self) -> None:
        """Kill what the process has left: its group, and every descendant but the PAM process."""
        if self._group is not None:
            self._group.end()
        if self._session is None:
            kill_descendants()
        else:
            kill_descendants(self._session.spared, self._reaped)

    # --- events ---------------------------------------------------------------------------------------

    def _take_signals(self) -> bool:
        """Return whether more processes may have ended than were reaped."""
        if signal.SIGTERM in self._wakeup.take():
            self._stop(self._grace_s, ProcessEnding(STOPPED, "The endpoint's administrator stopped it.", "SIGTERM"))
        for pid, status in reap_each([self._pid]):
            self._reaped(pid, status)
        ended, _ = reap()
        for pid, status in ended:
            self._reaped(pid, status)
        return len(ended) == MAX_REAPS

    def _reaped(self, pid: int, status: int) -> None:
        self._recheck.reaped(pid)
        if pid == self._pid:
            self._status = status
        elif self._session is not None:
            self._session.reaped(pid, describe_status(status))

    def _take_reports(self, on_ready: Callable[[], None]) -> None:
        while self._report is not None:
            try:
                datagram = self._report.recv(_MAX_REPORT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                datagram = b""
            if not datagram or self._reports_left == 0:
                self._report.close()
                self._report = None
                return
            self._reports_left -= 1
            self._take_report(parse_report(datagram), on_ready)

    def _take_report(self, report: UepReport | None, on_ready: Callable[[], None]) -> None:
        if report is None:
            self._log.warning("dropped malformed report from user endpoint", pid=self._pid)
        elif report.kind == "NOTICE":
            uep = self._uep_id
            self._log.warning("user endpoint reports", uep=uep, pid=self._pid, code=report.code, text=report.public)
        elif report.kind != "READY":
            self._life.take(Event.LEAVE, report)
            self._kill_within(max(_FAILED_EXIT_S, self._grace_s))
        elif self._life.take(Event.READY):
            on_ready()
            if not self._link.is_new:
                self._link.send(UepReady())
            self._recheck.start()

    def _take_order(self) -> None:
        order, descriptors = self._link.receive() or (None, [])
        if isinstance(order, StopUserEndpoint):
            self._stop(order.grace_ms / 1000, ProcessEnding(order.code, order.public, "stopped by the monitor"))
        elif isinstance(order, CheckAccount):
            self._recheck.obey(order, descriptors[0])

    def _recheck_account(self) -> None:
        answer = self._recheck.look()
        if answer is None or self._life.is_told:
            return
        self._link.send(answer)
        if isinstance(answer, NoLongerAdmitted):
            code = Refusal.ACCOUNT_REFUSED
            self._stop(self._grace_s, ProcessEnding(code, public_text(code), answer.detail))

    def _stop(self, grace_s: float, why: ProcessEnding) -> None:
        if self._life.take(Event.STOP, why):
            self._signal(signal.SIGTERM)
        self._kill_within(grace_s)

    def _kill_within(self, seconds: float) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + seconds)

    def _signal(self, number: signal.Signals) -> None:
        if self._status is None:  # not reaped yet, so the pid is still its own
            os.kill(self._pid, number)
