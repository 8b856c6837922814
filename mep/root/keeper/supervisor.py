"""The keeper's watch over a user endpoint, from exec to the end of its last descendant.

Trusts no report of the user endpoint: datagrams are clipped and passed on as text. Goes on when the monitor is gone.
Called by keeper.py.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from mep.boundary.channel import Channel, clip
from mep.boundary.errors import BoundaryViolation, Refusal, StartStage, public_text
from mep.boundary.log import Log
from mep.boundary.messages import MAX_TEXT, KeeperFailed, Message, StopUserEndpoint, UepExited, UepReady
from mep.root.keeper.cgroup import Cgroup
from mep.root.keeper.pam_session import PamProcess
from mep.root.kernel.process_tree import MAX_REAPS, kill_descendants, raise_priority, reap, reap_each
from mep.root.kernel.signals import Wakeup, wait_readable

_MAX_REPORT_BYTES = 4096
_CODE = re.compile(r"[A-Z_]{1,64}")
MAX_PUBLIC = 1024
_FAILED_EXIT_S = 5.0
_MAX_REPORTS = 64
"""A user endpoint sends two reports in its life, and at most 16 notices. After this many, its reports are ignored."""
STOPPED = "STOPPED"
_LOST = "USER_ENDPOINT_LOST"


@dataclass(frozen=True, slots=True)
class ProcessEnding:
    """How a start failed, or how a user endpoint ended that was ready. `stage` is None for the latter."""

    code: str
    public: str = ""
    detail: str = ""
    status: int = 0
    stage: StartStage | None = None
    errno: int = 0

    def message(self) -> Message:
        """Return the message for the monitor."""
        public, detail = clip(self.public, MAX_PUBLIC), clip(self.detail, MAX_TEXT)
        if self.stage is None:
            return UepExited(status=self.status, code=self.code, public=public, detail=detail)
        return KeeperFailed(stage=self.stage, errno=self.errno, code=self.code, public=public, detail=detail)


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


class Supervisor:
    """Watches one user endpoint, its reports, the monitor's orders and signals."""

    def __init__(
        self, pid: int, report: socket.socket, channel: Channel | None, wakeup: Wakeup, log: Log, *,
        stop_grace_s: float, group: Cgroup | None = None, session: PamProcess | None = None, uep_id: str = "",
    ) -> None:  # fmt: skip
        self._pid, self._report, self._channel, self._wakeup, self._log = pid, report, channel, wakeup, log
        self._grace_s, self._group, self._session, self._uep_id = stop_grace_s, group, session, uep_id
        self._ready = False
        self._status: int | None = None
        self._said: UepReport | None = None
        self._stopped: ProcessEnding | None = None
        self._kill_at = float("inf")
        self._more_ended = False
        self._report_open = True
        self._reports_left = _MAX_REPORTS

    def run(self, ready_by: float, timeout_s: float, on_ready: Callable[[], None]) -> ProcessEnding:
        """Return how it ended, once no descendant is left. `ready_by` is on the monotonic clock."""
        while self._status is None:
            now = time.monotonic()
            if not self._ready and self._stopped is None and self._said is None and now >= ready_by:
                text = public_text(Refusal.START_TIMEOUT, seconds=f"{timeout_s:g}")
                self._stop(0.0, ProcessEnding(Refusal.START_TIMEOUT, text, "it did not report that it is ready"))
            if now >= self._kill_at:
                self._kill_at = float("inf")
                raise_priority()
                self._signal(signal.SIGKILL)
            decided = self._ready or self._stopped is not None or self._said is not None
            until = self._kill_at if decided else min(ready_by, self._kill_at)
            until = now if self._more_ended else until
            wait_readable(self._descriptors(), None if until == float("inf") else max(0.0, until - now), self._urgent())
            if self._group is not None:
                self._group.look()
            self._take_signals()
            self._take_reports(on_ready)
            self._take_orders()
        self._take_reports(on_ready)
        if self._group is not None:
            self._group.end()
        if self._session is None:
            kill_descendants()
        else:
            kill_descendants(self._session.spared, self._reaped)
        return self._ending(self._status)

    def tell(self, message: Message) -> None:
        """Send `message` to the monitor, if it still runs."""
        if self._channel is None:
            return
        try:
            self._channel.send(message)
        except OSError:
            self._monitor_gone()

    def _descriptors(self) -> list[int]:
        found = [self._wakeup.fileno()]
        if self._report_open:
            found.append(self._report.fileno())
        if self._channel is not None:
            found.append(self._channel.fileno())
        return found

    def _urgent(self) -> list[int]:
        return self._group.urgent() if self._group is not None else []

    def _monitor_gone(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None

    # --- events ---------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        caught = self._wakeup.take()
        if signal.SIGTERM in caught:
            self._stop(self._grace_s, ProcessEnding(STOPPED, "The endpoint's administrator stopped it.", "SIGTERM"))
        for pid, status in reap_each([self._pid]):
            self._reaped(pid, status)
        ended, _ = reap()
        self._more_ended = len(ended) == MAX_REAPS
        for pid, status in ended:
            self._reaped(pid, status)

    def _reaped(self, pid: int, status: int) -> None:
        if pid == self._pid:
            self._status = status
        elif self._session is not None:
            self._session.reaped(pid, describe_status(status))

    def _take_reports(self, on_ready: Callable[[], None]) -> None:
        while self._report_open:
            try:
                datagram = self._report.recv(_MAX_REPORT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                datagram = b""
            if not datagram or self._reports_left == 0:
                self._report_open = False
                self._report.close()
                return
            self._reports_left -= 1
            self._take_report(parse_report(datagram), on_ready)

    def _take_report(self, report: UepReport | None, on_ready: Callable[[], None]) -> None:
        if report is None:
            self._log.warning("dropped malformed report from user endpoint", pid=self._pid)
        elif report.kind == "READY":
            if not self._ready and self._stopped is None:
                self._ready = True
                on_ready()
                self.tell(UepReady())
        elif report.kind == "NOTICE":
            uep = self._uep_id
            self._log.warning("user endpoint reports", uep=uep, pid=self._pid, code=report.code, text=report.public)
        elif self._said is None:
            self._said = report
            self._kill_at = min(self._kill_at, time.monotonic() + max(_FAILED_EXIT_S, self._grace_s))

    def _take_orders(self) -> None:
        if self._channel is None:
            return
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return
        except (OSError, BoundaryViolation):
            received = None
        if received is None:
            self._monitor_gone()
        elif isinstance(order := received[0], StopUserEndpoint):
            self._stop(order.grace_ms / 1000, ProcessEnding(order.code, order.public, "stopped by the monitor"))

    def _stop(self, grace_s: float, why: ProcessEnding) -> None:
        if self._stopped is None:
            self._stopped = why
            self._signal(signal.SIGTERM)
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)

    def _signal(self, number: signal.Signals) -> None:
        if self._status is None:  # not reaped yet, so the pid is still its own
            os.kill(self._pid, number)

    def _ending(self, status: int) -> ProcessEnding:
        detail = describe_status(status)
        if self._stopped is not None:
            why = self._stopped
            stage = None if self._ready else StartStage.READY
            return ProcessEnding(why.code, why.public, _with_status(why.detail, detail), status, stage)
        if self._group is not None and (over := self._group.excess()) and not self._ended_well():
            return ProcessEnding(*over, f"{over[1]}; {detail}", status, None if self._ready else StartStage.READY)
        if self._said is not None:
            stage = None if self._ready else StartStage.READY
            return ProcessEnding(
                self._said.code, self._said.public, _with_status(self._said.detail, detail), status, stage
            )
        if not self._ready and os.WIFSIGNALED(status):  # which says nothing against another try
            text = public_text(Refusal.START_INTERRUPTED, reason=detail)
            return ProcessEnding(
                Refusal.START_INTERRUPTED, text, f"it ended without a report: {detail}", status, StartStage.READY
            )
        if not self._ready:
            text = public_text(Refusal.START_FAILED, stage=StartStage.READY.name)
            return ProcessEnding(
                Refusal.START_FAILED, text, f"it ended without a report: {detail}", status, StartStage.READY
            )
        return ProcessEnding(_LOST, f"The user endpoint's process ended: {detail}.", detail, status)

    def _ended_well(self) -> bool:
        """Whether it ended in good order. An earlier excess of a limit is then not the reason."""
        return self._said is not None and self._said.kind == "ENDED"


def _with_status(detail: str, status: str) -> str:
    return f"{detail}; {status}" if detail else status


def describe_status(status: int) -> str:
    """Describe in words how a process with waitpid's `status` ended."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"
