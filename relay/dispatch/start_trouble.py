"""Counts the starts and processes that one user endpoint loses in a row: when to ask again, and when to give up.

A process that is killed, or finds no memory or no descriptor, says nothing against the next one. Its tasks therefore
wait, and another is asked for after a pause that grows. No I/O. Used by `start_requests`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from mep_wire.errors import OutOfMemory, StartInterrupted, TooManyProcesses

TRANSIENT: Final = frozenset({StartInterrupted.code, OutOfMemory.code, TooManyProcesses.code})
"""Codes of starts that failed although neither configuration nor policy is against them."""
MAX_TROUBLE_S: Final = 600.0
"""How long tasks wait while process after process is lost. After this many seconds they fail with the last reason."""
FIRST_PAUSE_S: Final = 0.25
MAX_PAUSE_S: Final = 60.0


@dataclass(slots=True)
class StartTrouble:
    """Processes lost in a row, at their start or later, with no task ended in between."""

    count: int = 0
    since: float = 0.0
    """When the first of them was lost. Times are the event loop's, in seconds."""
    last: float = 0.0
    code: str = ""
    """The error's code of the last one."""
    text: str = ""
    """How the last one was lost, as the site has told it to the person."""

    def note(self, now: float, text: str, code: str = "") -> bool:
        """Note one more; return whether tasks have waited for too long. Old trouble has nothing to do with new."""
        if not self.count or now - self.last > MAX_TROUBLE_S:
            self.count, self.since = 0, now
        self.count, self.last, self.text, self.code = self.count + 1, now, text, code
        return now - self.since >= MAX_TROUBLE_S

    def over(self) -> None:
        """A process has ended a task, or the tasks that waited have failed."""
        self.count, self.text = 0, ""

    def pause(self, *, first_at_once: bool) -> float:
        """Return the seconds to wait before the next start, about twice as many as the last time."""
        doublings = min(self.count - (2 if first_at_once else 1), 16)
        return 0.0 if doublings < 0 else min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**doublings) * random.uniform(0.8, 1.2)  # noqa: S311

    def so_far(self, now: float) -> str:
        """Return, for the person, how the last one was lost, how many were, and in which time."""
        times = "once" if self.count == 1 else f"{self.count} times"
        text = f"{self.text[:1].upper()}{self.text[1:]}"
        return f"{text} This has happened {times} in {max(1, round(now - self.since))} s."


def sentence(text: str) -> str:
    """Return a manager's text with a full stop, so that another sentence can follow."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
