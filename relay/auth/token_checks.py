"""Tokens of providers: which of them were looked at, with what outcome, and who may have another looked at.

Anybody can send any number of unknown tokens, and each costs a request to a provider. Here they are few:
by address, in all, and at once; equal ones are looked at together; a refusal is remembered. A token that was good is
kept apart from all others: no number of strangers makes the relay forget it, or keeps another look at it waiting.
Called by relay.auth.people.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mep_wire.errors import IdentityUnusable, MepError, RelayBusy, TokenUnknown
from relay.auth.fetch import Lane
from relay.auth.tokens import token_hash
from relay.rate_limit import Rate, RequestSlots
from relay.store.records import Caller

REFUSED_KEPT_S = 5.0
"""How long a refused token is refused without another look: a provider may publish its key a moment later."""
INACTIVE_KEPT_S = 60.0
"""The same for one that introspection refused: such a token does not come to life."""
FAMILIAR_S = 3600.0
"""How long a token that was good is told from strangers' after it was last looked at."""
KEPT = 10_000
"""Most good tokens, and most refused ones, that are remembered."""
NEW_PER_S, ALL_NEW_PER_S = 20.0, 100.0
"""Most unknown tokens, of one address and of all, on average."""
MAX_NEW, MAX_NEW_EACH = 256, 64
"""Most requests with such tokens that wait at once, of all addresses and of one."""
MAX_CHECKS = 256
"""Most good tokens that are looked at once more at once."""
Ask = Callable[[str, Lane], Awaitable[tuple[Caller, float]]]
"""Returns the person of a token, and until when that holds."""


@dataclass(slots=True)
class _Good:
    caller: Caller
    until: float
    seen: float


class TokenChecks:
    """See the module."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.time) -> None:
        self._ask, self._clock = ask, clock
        self._good: OrderedDict[bytes, _Good] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, MepError]] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Task[Caller]] = {}
        self._new_here = Rate(NEW_PER_S, "new tokens")
        self._new = Rate(ALL_NEW_PER_S, "new tokens")
        self._slots = RequestSlots(MAX_NEW, MAX_NEW_EACH, "login")

    async def caller(self, token: str, network: str) -> Caller:
        """Return the person with a provider's token; `network` is where it comes from.

        Raises TokenUnknown, IdentityUnusable, ProviderUnavailable, RateLimited or RelayBusy.
        """
        key, now = token_hash(token), self._clock()
        good = self._good.get(key)
        if good is not None and now < good.until:
            self._good.move_to_end(key)
            return good.caller
        refused = self._refused.get(key)
        if refused is not None and now < refused[0]:
            raise _again(refused[1])
        if good is not None and now < good.seen + FAMILIAR_S:
            return await self._look(key, token, Lane.KNOWN)
        with self._slots.one(network):
            if key not in self._under_way:
                self._new_here.spend(network)
                self._new.spend("")
            return await self._look(key, token, Lane.STRANGER)

    async def _look(self, key: bytes, token: str, lane: Lane) -> Caller:
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= MAX_CHECKS + MAX_NEW:
                raise RelayBusy(what="login")
            task = self._under_way[key] = asyncio.get_running_loop().create_task(self._outcome(key, token, lane))
            task.add_done_callback(partial(self._done, key))
        return await asyncio.shield(task)

    def _done(self, key: bytes, task: asyncio.Task[Caller]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # seen, also where nothing waits any more

    async def _outcome(self, key: bytes, token: str, lane: Lane) -> Caller:
        try:
            caller, until = await self._ask(token, lane)
        except (TokenUnknown, IdentityUnusable) as error:
            self._good.pop(key, None)
            kept_s = REFUSED_KEPT_S if token.count(".") == 2 else INACTIVE_KEPT_S
            _put(self._refused, key, (self._clock() + kept_s, _again(error)))  # not the traceback, with the token
            raise
        self._refused.pop(key, None)
        _put(self._good, key, _Good(caller, until, self._clock()))
        return caller


def _put(kept: OrderedDict[bytes, Any], key: bytes, value: Any) -> None:
    """Remember something, in place of the entry that was of no use for longest."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > KEPT:
        kept.popitem(last=False)


def _again(error: MepError) -> MepError:
    """Return a refusal once more, with a correlation id of its own."""
    return type(error)(text=error.text, detail=error.detail)
