"""Tells a start that found no memory, descriptor, process or space from one that can never succeed.

The first kind is reported as START_INTERRUPTED, and the relay has another process started after a pause. Called by
main, startup and the child that renders.
"""

from __future__ import annotations

import errno
import signal
from typing import Final

from mep_wire.errors import StartInterrupted
from user_endpoint.keeper_report import StartFailure

SCARCE: Final = {
    errno.EMFILE: "it had too many files open",
    errno.ENFILE: "the host had too many files open",
    errno.ENOMEM: "no memory was left",
    errno.EAGAIN: "no process or thread could be added",
    errno.ENOSPC: "no space was left on a disk",
    errno.EDQUOT: "a disk quota was used up",
}
"""errno values of a temporary shortage, and what they say to the person."""


def reason_of(error: BaseException) -> str:
    """Return what was short where `error` says so, else an empty string. ZeroMQ's errors have an errno as well."""
    if isinstance(error, MemoryError):
        return SCARCE[errno.ENOMEM]
    number = getattr(error, "errno", None)
    return SCARCE.get(number, "") if isinstance(number, int) else ""


def interrupted(reason: str, detail: str = "") -> StartFailure:
    """Return the failure of a start that may succeed when it is tried again."""
    return StartFailure(StartInterrupted.code, StartInterrupted(reason=reason).text, detail)


def killed(what: str, status: int) -> StartFailure | None:
    """Return the failure where a child that the start needs was killed by a signal, going by its wait status."""
    number = status & 0x7F
    if number in (0, 0x7F):
        return None
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return interrupted(f"{what} was killed by {name}")
