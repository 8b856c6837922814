"""How often one person may ask, how many tasks they may submit, and how much strangers may have at once.

A person may use ten seconds' worth at once, and what goes beyond becomes debt: a large submission is taken, and the
next request waits until the debt is paid. The refusal says how long that is. Called by the application, for
submissions and for logins, in the event loop's thread.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from mep_wire.errors import RateLimited, RelayBusy

BURST_S = 10.0
"""The seconds' worth that may be used at once."""
MAX_REMEMBERED = 10_000


@lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """Return the part of an address that one peer can't choose: all of IPv4, the first 64 bits of IPv6."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if known.version == 4 or known.ipv4_mapped:
        return str(known.ipv4_mapped if known.version == 6 else known)
    return str(ipaddress.ip_network((known, 64), strict=False))


class Rate:
    """Allows each account `per_s` of something in a second; 0: any number."""

    def __init__(self, per_s: float, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._what, self._clock = per_s, what, clock
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, account_id: str, amount: int = 1) -> None:
        """Count `amount` for this person. Raises RateLimited, and counts nothing, while they are in debt."""
        if not self._per_s:
            return
        now, most = self._clock(), self._per_s * BURST_S
        left, at = self._left.get(account_id, (most, now))
        left = min(most, left + (now - at) * self._per_s)
        if left < 0:
            wait_s = math.ceil(-left / self._per_s)
            raise RateLimited(what=self._what, rate=f"{self._per_s:g}", wait_s=wait_s)
        if len(self._left) >= MAX_REMEMBERED:
            self._forget(now)
        self._left[account_id] = left - amount, now

    def _forget(self, now: float) -> None:
        """Forget people without debt; those with it stay."""
        self._left = {one: (left, at) for one, (left, at) in self._left.items() if left + (now - at) * self._per_s < 0}


class RequestSlots:
    """Room for `most` at once, of which one network may take `each`."""

    def __init__(self, most: int, each: int, what: str) -> None:
        self._most, self._each, self._what = most, each, what
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one(self, network: str) -> Iterator[None]:
        """Count one more. Raises RelayBusy at the limit."""
        if self._taken[network] >= self._each or self._taken.total() >= self._most:
            self._forget(network)
            raise RelayBusy(what=self._what)
        self._taken[network] += 1
        try:
            yield
        finally:
            self._taken[network] -= 1
            self._forget(network)

    def _forget(self, network: str) -> None:
        if not self._taken[network]:
            del self._taken[network]
