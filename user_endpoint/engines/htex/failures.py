"""Decides, after a failure of blocks or of the interchange, when to try again and when to give up.

A block that finds a full disk, no memory or no descriptor, or that is killed, says nothing against the next one. Tasks
then wait, and the pauses between two tries grow. A block that ends by itself for another reason, as with a broken
worker_init, is tried three times. Called by `blocks`, on its thread.
"""

from __future__ import annotations

import enum
import errno
import os
import random
import re
import subprocess
import uuid
from dataclasses import dataclass
from typing import Any, Final

FIRST_PAUSE_S: Final = 1.0
MOST_PAUSE_S: Final = 30.0
MOST_WAIT_S: Final = 600.0
"""How long tasks wait while every try fails for want of something or is killed."""
MAX_BROKEN: Final = 3
"""Tries in a row that may fail for another reason, before the tasks that wait fail."""
HOLD_OFF_S: Final = 60.0
"""Seconds after which, when tasks still come, one more try is made after that."""
_SHORT: Final = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files on the host",
    errno.ENOMEM: "no memory left",
    errno.EAGAIN: "no further process can be started",
}
_SAYS: Final = {
    **{os.strerror(number): text for number, text in _SHORT.items()},
    "fork: retry": _SHORT[errno.EAGAIN],
    "can't start new thread": _SHORT[errno.EAGAIN],
    "MemoryError": _SHORT[errno.ENOMEM],
    "oom_kill": _SHORT[errno.ENOMEM],
    "OUT_OF_MEMORY": _SHORT[errno.ENOMEM],
    "Cannot parse exit code: ": _SHORT[errno.ENOSPC],  # LocalProvider's file for it is empty
}
"""What programs and Parsl write where something is short."""
_KILLED: Final = re.compile(r"\bKilled\b")


class Cause(enum.Enum):
    """What a failure says about the next try."""

    SHORT = "something is short"
    KILLED = "killed from outside"
    BROKEN = "nothing else is known: it may be the configuration"


@dataclass(frozen=True, slots=True)
class BlockFailure:
    """One failure, with the text that a person reads about it."""

    cause: Cause
    text: str


def of_block(what: str, status: Any, directory: str) -> BlockFailure:
    """Return why a block failed, going by Parsl's JobStatus, and by whether `directory` can be written to now."""
    said = f"{status.message or ''}\n{status.stderr_summary or ''}"
    words = (status.stderr_summary or status.message or "").strip()[-600:]
    text = f"{what}: {words}" if words else what
    short = next((reason for sign, reason in _SAYS.items() if sign in said), "") or shortage_in(directory)
    if short:
        return BlockFailure(Cause.SHORT, text if short in text else f"{text} ({short})")
    if _is_killed(status.exit_code) or _KILLED.search(status.message or ""):
        return BlockFailure(Cause.KILLED, f"{text} (it was killed)")
    return BlockFailure(Cause.BROKEN, text)


def of_error(error: BaseException) -> BlockFailure:
    """Return why the interchange could not be started."""
    if isinstance(error, subprocess.TimeoutExpired):
        return BlockFailure(Cause.SHORT, no_answer(error))
    short = _SHORT.get(getattr(error, "errno", None) or 0, "")
    return BlockFailure(Cause.SHORT if short else Cause.BROKEN, f"{type(error).__name__}: {error}")


def no_answer(error: subprocess.TimeoutExpired) -> str:
    """Return, in words, that a command of the scheduler's was ended without an answer."""
    command = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
    return (
        f"the scheduler did not answer `{command[:200]}` within {error.timeout:g} s (cmd_timeout of the provider); try "
        "the command on the endpoint's host"
    )


def _is_killed(exit_code: int | None) -> bool:
    """Whether a shell's exit status says that a signal ended its program: 128 and the signal's number."""
    return exit_code is not None and (exit_code < 0 or 128 < exit_code <= 128 + 64)


def shortage_in(directory: str) -> str:
    """Return what is short when a small file is written to `directory`, empty if nothing is."""
    name = f"{directory}/room-{uuid.uuid4().hex}"
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)  # where a file server tells of a full disk
        finally:
            os.close(descriptor)
            os.unlink(name)  # noqa: PTH108 - no pathlib here
    except OSError as error:
        return _SHORT.get(error.errno or 0, "")
    return ""


class Failures:
    """Failures in a row. Times are on time.monotonic. `what` is their subject in the text for a person."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.next_at = 0.0
        """No try is made before this time."""
        self._rounds = self._broken = 0
        self._since = self._last = 0.0

    def __len__(self) -> int:
        return self._rounds

    def over(self) -> None:
        """A try has succeeded."""
        self._rounds = self._broken = 0
        self.next_at = 0.0

    def note(self, now: float, tried_at: float, failure: BlockFailure) -> str:
        """Note a failure of what was tried at `tried_at`; return the reason why tasks should fail, empty if none.

        Whatever was tried before the last failure was noted has failed for the same cause, and is not counted.
        """
        if self._rounds and tried_at <= self._last:
            return ""
        if not self._rounds:
            self._since = now
        self._rounds, self._last = self._rounds + 1, now
        self._broken += failure.cause is Cause.BROKEN
        self.next_at = now + self._pause()
        if failure.cause is Cause.BROKEN and self._broken >= MAX_BROKEN:
            self.next_at = now + HOLD_OFF_S
            return f"{self._what} failed {self._rounds} times in a row; the last: {failure.text}"
        if now - self._since >= MOST_WAIT_S:
            return f"{self._what} failed {self._rounds} times in {now - self._since:.0f} s; the last: {failure.text}"
        return ""

    def so_far(self, failure: BlockFailure) -> str:
        """Return, for a person with waiting tasks, what failed and is tried again."""
        times = "once" if self._rounds == 1 else f"{self._rounds} times"
        return f"{self._what} failed {times} and will be tried again; the last: {failure.text}"

    def _pause(self) -> float:
        return min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._rounds - 1, 16)) * random.uniform(0.8, 1.2)  # noqa: S311
