"""HTTP requests to one identity provider: bounded in size, time and number, never redirected, never in clear.

A provider may be down, slow or hostile, so it has threads of its own and can keep nothing waiting but its own logins.
Strangers may be hostile too: each purpose is a lane with threads, a queue and a circuit breaker of its own. Unknown
tokens then keep neither logins nor signed-in people waiting. Called by relay.auth.provider.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from typing import Any
from urllib.parse import urlencode

import msgspec
import urllib3

from mep_wire.errors import ProviderUnavailable
from relay.auth.settings import is_safe_url

DEADLINE_S = 10.0
"""Longest time for one request, waiting for a thread included."""
STEP_S = 5.0
"""Longest silence."""
MAX_BYTES = 512 * 1024
FAILURES = 3
"""How often in a row a provider may fail to answer before it is left alone for a while."""
FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 60.0
"""How long that is; twice as long each time that it fails again."""
_OVERLOADED = frozenset({429, 502, 503, 504})
_decoder = msgspec.json.Decoder(dict[str, Any])


class Lane(Enum):
    """What a request is for: the most at once, and the most that run or wait."""

    KEYS = (1, 4)
    """Its keys and its discovery document, for all."""
    LOGIN = (2, 32)
    """The end of a login in a browser."""
    KNOWN = (4, 256)
    """A token that was good before, or that the provider has just proved to be its own."""
    STRANGER = (2, 16)
    """A token that was not seen before."""


class Breaker:
    """Leaves a provider that does not answer alone. After the pause one request tries it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause_s = 0.0
        self._until = float("-inf")

    def left_s(self) -> float:
        """Return for how long nothing is to be asked; 0 where a request may be made now."""
        left_s = self._until - self._clock()
        if left_s > 0:
            return left_s
        if self._pause_s:
            self._until = self._clock() + self._pause_s  # this request is the one that tries; others wait for it
        return 0.0

    def note(self, *, answered: bool) -> None:
        """Count how a request ended."""
        if answered:
            self._failures, self._pause_s, self._until = 0, 0.0, float("-inf")
            return
        self._failures += 1
        if self._failures >= FAILURES:
            self._pause_s = min(LAST_PAUSE_S, 2 * self._pause_s or FIRST_PAUSE_S)
            self._until = self._clock() + self._pause_s


class _Road:
    """The requests of one lane."""

    def __init__(self, name: str, lane: Lane) -> None:
        threads, self.most_waiting = lane.value
        self.threads = ThreadPoolExecutor(threads, f"{name}-{lane.name.lower()}")
        self.waiting = 0
        self.breaker = Breaker()


class _TurnTooLate(OSError):
    """The request was not made: no time was left for it."""


class Fetch:
    """Requests to one provider, by its name."""

    def __init__(self, name: str, ca_file: str = "") -> None:
        self._name = name
        self._roads = {lane: _Road(name, lane) for lane in Lane}
        self._pool = urllib3.PoolManager(
            maxsize=sum(lane.value[0] for lane in Lane),
            retries=False,
            timeout=urllib3.Timeout(STEP_S),
            ca_certs=ca_file or None,
        )

    async def json(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        *,
        lane: Lane,
    ) -> tuple[int, dict[str, Any]]:
        """Return status and the JSON object of an answer. Raises ProviderUnavailable."""
        if not is_safe_url(url):
            raise self._unavailable("it names an address without TLS", url[:200])
        road = self._roads[lane]
        if road.waiting >= road.most_waiting:
            raise self._unavailable("too many logins wait for it")
        if left_s := road.breaker.left_s():
            raise self._unavailable(f"it did not answer several times and is asked again in {math.ceil(left_s)} s")
        road.waiting += 1
        call = asyncio.get_running_loop().run_in_executor(
            road.threads, self._request, method, url, dict(headers or {}), form, time.monotonic() + DEADLINE_S
        )
        call.add_done_callback(partial(self._done, road))
        try:
            status, found = await asyncio.wait_for(asyncio.shield(call), DEADLINE_S)
        except TimeoutError as error:
            raise self._unavailable(f"no answer in {DEADLINE_S:g} s") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unavailable("it cannot be reached", f"{method} {url}: {error!r}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise self._unavailable("its answer cannot be understood", f"{method} {url}: {error!r}") from error
        if status in _OVERLOADED:
            raise self._unavailable(f"it answers {status}")
        return status, found

    def _unavailable(self, reason: str, detail: str = "") -> ProviderUnavailable:
        return ProviderUnavailable(provider=self._name, reason=reason, detail=detail)

    @staticmethod
    def _done(road: _Road, call: asyncio.Future[Any]) -> None:
        """Count how a request ended, also where nothing waits for it any more."""
        road.waiting -= 1
        if call.cancelled():
            return
        error = call.exception()
        if isinstance(error, _TurnTooLate):
            return
        silent = isinstance(error, urllib3.exceptions.HTTPError | OSError)
        road.breaker.note(answered=not silent and (error is not None or call.result()[0] not in _OVERLOADED))

    def _request(
        self, method: str, url: str, headers: dict[str, str], form: Mapping[str, str] | None, until: float
    ) -> tuple[int, dict[str, Any]]:
        if time.monotonic() > until - STEP_S:
            raise _TurnTooLate("its turn came too late")
        headers = {"Accept": "application/json", "User-Agent": "mep-relay", **headers}
        body = None
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(form).encode()
        answer = self._pool.request(
            method, url, headers=headers, body=body, redirect=False, preload_content=False, decode_content=False
        )
        try:
            data = _read(answer, until)
            return answer.status, {} if answer.status in _OVERLOADED else _decoder.decode(data)
        finally:
            answer.close()

    def close(self) -> None:
        """Wait for nothing more."""
        for road in self._roads.values():
            road.threads.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()


def _read(answer: urllib3.BaseHTTPResponse, until: float) -> bytes:
    """Return an answer's body. Raises OSError once it is too long or too late."""
    data = b""
    while chunk := answer.read1(65536):
        data += chunk
        if len(data) > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES} bytes")
        if time.monotonic() > until:
            raise OSError("too slow")
    return data
