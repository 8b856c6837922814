"""The starts that wait for others: who is next, and at which position each person's start waits.

A convenience, not a boundary: the monitor keeps the limits itself, and refuses a start beyond them with TRY_LATER. This
queue sends it no more than it can begin, in a fair order, by the requester's account at the relay. A start counts while
the monitor works on it. After SLOW_S without a keeper (a directory hangs) it stops counting until its keeper is there,
so slow mappings don't keep back quick ones. Pure: the caller has the clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import msgspec

from mep_wire.messages import SignedStart
from mep_wire.start_request import decode_start

SLOW_S = 1.0
"""A mapping that takes longer no longer counts as a start in progress."""
MAX_SENT = 32
"""Starts that the monitor has at a time, slow mappings included: as many as the mapper takes."""
POSITIONS_S = 1.0
"""How often waiting people are told their positions."""
MAX_WAIT_S = 60.0
"""After this time in the queue, a start is given back to the relay: its request is about to expire."""
NEVER = float("inf")


@dataclass(slots=True, eq=False)
class Waiting:
    """One start. `number` is its order of arrival."""

    start: SignedStart
    person: str
    number: int
    since: float
    position: int = 0
    """The position that was last told."""
    sent_at: float = NEVER
    in_keeper: bool = False


class StartQueue:
    """Starts that wait here, and those that the monitor has."""

    def __init__(self, slots: int) -> None:
        """`slots`: how many starts the monitor begins at a time."""
        self._slots = slots
        self._waiting: dict[str, Waiting] = {}
        self._sent: dict[int, Waiting] = {}
        self._served: dict[str, int] = {}
        """By person with a start here: the number of the latest start that was sent."""
        self._numbers = 0
        self._tell_at = NEVER

    def __len__(self) -> int:
        return len(self._waiting)

    def oldest_s(self, now: float) -> float:
        """Return for how long the oldest start waits here; 0 if none does."""
        return max((now - one.since for one in self._waiting.values()), default=0.0)

    def add(self, start: SignedStart, now: float) -> None:
        """Queue a start. If one of the same user endpoint waits already, this one takes over its turn."""
        self._numbers += 1
        waiting = Waiting(start, _person(start), self._numbers, now)
        if (former := self._waiting.get(start.uep_id)) is not None:
            waiting.number = former.number
        self._waiting[start.uep_id] = waiting
        self._tell_at = min(self._tell_at, now + POSITIONS_S)

    def take(self, now: float) -> Waiting | None:
        """Remove and return the start to be sent now: fewest in progress first, then least recently served.

        No person has more than half the slots, or the last free one besides another.
        """
        busy = self._in_progress(now)
        free = self._slots - busy.total()
        if free <= 0 or len(self._sent) >= MAX_SENT:
            return None
        most = max(1, self._slots // 2 if free > 1 else 1)
        able = [one for one in self._waiting.values() if busy[one.person] < most]
        if not able:
            return None
        chosen = min(able, key=lambda one: (busy[one.person], self._served.get(one.person, 0), one.number))
        del self._waiting[chosen.start.uep_id]
        self._served[chosen.person] = chosen.number
        return chosen

    def sent(self, ref: int, waiting: Waiting, now: float) -> None:
        """Record that the monitor has a start, as its request `ref`."""
        waiting.sent_at = now
        self._sent[ref] = waiting

    def begun(self, ref: int) -> None:
        """Record that a keeper works on request `ref`."""
        if (found := self._sent.get(ref)) is not None:
            found.in_keeper = True

    def answered(self, ref: int) -> None:
        """Record that request `ref` is answered."""
        self._sent.pop(ref, None)
        known = {one.person for one in (*self._waiting.values(), *self._sent.values())}
        self._served = {person: number for person, number in self._served.items() if person in known}

    def _in_progress(self, now: float) -> Counter[str]:
        counted = [one for one in self._sent.values() if one.in_keeper or now < one.sent_at + SLOW_S]
        return Counter(one.person for one in counted)

    def overdue(self, now: float) -> list[SignedStart]:
        """Remove and return the starts that have waited too long."""
        found = [one for one in self._waiting.values() if now >= one.since + MAX_WAIT_S]
        for one in found:
            del self._waiting[one.start.uep_id]
        return [one.start for one in found]

    def clear(self) -> list[SignedStart]:
        """Remove and return all that waits."""
        found = [one.start for one in self._waiting.values()]
        self._waiting.clear()
        return found

    def positions(self, now: float) -> list[tuple[SignedStart, int]]:
        """Return the starts to be told their position: at first, and again each time it has halved."""
        if now < self._tell_at:
            return []
        self._tell_at = now + POSITIONS_S if self._waiting else NEVER
        turns, order = self._in_progress(now), []
        for one in sorted(self._waiting.values(), key=lambda one: one.number):
            order.append((turns[one.person], self._served.get(one.person, 0), one.number, one))
            turns[one.person] += 1
        told = []
        for position, (_, _, _, one) in enumerate(sorted(order, key=lambda entry: entry[:3]), start=1):
            if not one.position or position <= one.position // 2:
                one.position = position
                told.append((one.start, position))
        return told

    def next_at(self, now: float) -> float:
        """Return when something is due; infinity if nothing is."""
        if not self._waiting:
            return NEVER
        slow = [one.sent_at + SLOW_S for one in self._sent.values() if not one.in_keeper and now < one.sent_at + SLOW_S]
        return min(self._tell_at, *slow, *(one.since + MAX_WAIT_S for one in self._waiting.values()))


def _person(start: SignedStart) -> str:
    """Return the requester's account at the relay. The mapper verifies the request, so a wrong one gains nothing."""
    try:
        return decode_start(start.request).identity_set.account_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
