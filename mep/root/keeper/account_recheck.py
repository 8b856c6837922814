"""A keeper's re-checks of its account: whether it exists, is open, and is admitted by the policy now in force.

A check may hang in NSS or PAM, so a child makes it (account_check.py), within CHECK_DEADLINE_S. The keeper goes on
meanwhile, whether or not a monitor runs. An answer of "unknown" ends nothing. The monitor sends another policy when its
own has changed. Called by supervisor.py, and by keeper.py during a start.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from mep.boundary.channel import Channel
from mep.boundary.errors import BoundaryViolation
from mep.boundary.log import Log
from mep.boundary.memfd import NotSealed, read_sealed
from mep.boundary.messages import (
    MAX_DOCUMENT_BYTES,
    CheckAccount,
    Message,
    NoLongerAdmitted,
    NotChecked,
    StillAdmitted,
)
from mep.root.account.account_check import AccountChecks, Subject, checker_main

CHECK_DEADLINE_S = 20.0
SOON_S = 5.0
"""Pause before another check, after one that gave no answer."""
_NEVER = float("inf")
_NO_ANSWER = f"no answer within {CHECK_DEADLINE_S:g} s, or its checker failed"

Answer = StillAdmitted | NoLongerAdmitted | NotChecked


class AccountRecheck:
    """The checks of `subject`, one at a time. They begin with `start`."""

    def __init__(self, subject: Subject, checks: AccountChecks, log: Log) -> None:
        self._subject, self._checks, self._log = subject, checks, log
        self._due = self._late = _NEVER
        self._checker: Channel | None = None
        self._pid = 0

    def start(self) -> None:
        """Make the first check after one interval, since the start has just checked, or when the monitor wants it."""
        self._due = min(self._due, self._next())

    def obey(self, order: CheckAccount, descriptor: int) -> None:
        """Check by the policy in `descriptor` from now on; closes it.

        The first check comes at a random time within the order's: other keepers got the same order.
        """
        try:
            self._checks = AccountChecks.from_json(read_sealed(descriptor, MAX_DOCUMENT_BYTES))
        except (NotSealed, ValueError, KeyError, TypeError) as error:
            self._log.error("the policy stays as it was: the new one cannot be read", error=str(error))
        os.close(descriptor)
        wait_s = order.within_ms / 1000 * int.from_bytes(os.urandom(2)) / 65536
        self._due = time.monotonic() + wait_s if self._checks.interval_s else _NEVER

    def _next(self) -> float:
        return time.monotonic() + self._checks.interval_s if self._checks.interval_s else _NEVER

    def wake_at(self) -> float:
        """Return the monotonic time at which `look` must be called; infinite for none."""
        return self._late if self._checker is not None else self._due

    def descriptors(self) -> list[int]:
        """Return the descriptors to poll."""
        return [self._checker.fileno()] if self._checker is not None else []

    def reaped(self, pid: int) -> None:
        """Record that a child has ended: its pid may be reused."""
        if pid == self._pid:
            self._pid = 0

    def look(self) -> Answer | None:
        """Fork a checker if a check is due; return the answer of one that has given it."""
        now = time.monotonic()
        if self._checker is None:
            return self._fork() if now >= self._due else None
        try:
            received = self._checker.receive()
        except BlockingIOError:
            if now < self._late:
                return None
            received = None
        except (OSError, BoundaryViolation):
            received = None
        return self._finish(received[0] if received is not None else None)

    def _fork(self) -> NotChecked | None:
        ends: Sequence[Channel] = ()
        try:
            ends = ours, theirs = Channel.pair()
            self._pid = os.fork()
        except OSError as error:  # a user may have filled the process table
            for end in ends:
                end.close()
            return self._unknown(f"cannot fork a checker: {error.strerror}", SOON_S)
        if self._pid == 0:
            checker_main(self._subject, self._checks, theirs)
        theirs.close()
        self._checker, self._late = ours, time.monotonic() + CHECK_DEADLINE_S
        return None

    def _finish(self, answer: Message | None) -> Answer:
        assert self._checker is not None
        self._checker.close()
        self._checker = None
        if isinstance(answer, NotChecked):
            return self._unknown(answer.detail, _NEVER)
        if isinstance(answer, StillAdmitted | NoLongerAdmitted):
            self._due = self._next()
            return answer
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        return self._unknown(_NO_ANSWER, SOON_S)

    def _unknown(self, reason: str, again_s: float) -> NotChecked:
        self._due = min(self._next(), time.monotonic() + again_s)
        user = self._subject.local_user
        self._log.warning("an account cannot be checked now: its processes go on", user=user, reason=reason)
        return NotChecked(detail=reason)
