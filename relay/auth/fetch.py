"""HTTP requests to one identity provider: bounded in size, time and number, never redirected, never in clear.

A provider may be down, slow or hostile. Each has its own two threads, so that it can keep nothing waiting but its own
logins. Called by relay.auth.provider.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
MAX_WAITING = 32
"""Most requests to one provider that run or wait."""
_decoder = msgspec.json.Decoder(dict[str, Any])


class Fetch:
    """Requests to one provider, by its name."""

    def __init__(self, name: str, ca_file: str = "") -> None:
        self._name = name
        self._pool = urllib3.PoolManager(
            maxsize=2, retries=False, timeout=urllib3.Timeout(STEP_S), ca_certs=ca_file or None
        )
        self._threads = ThreadPoolExecutor(2, f"provider-{name}")
        self._waiting = 0

    async def json(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Return status and the JSON object of an answer. Raises ProviderUnavailable."""
        if not is_safe_url(url):
            raise ProviderUnavailable(provider=self._name, reason="it names an address without TLS", detail=url[:200])
        if self._waiting >= MAX_WAITING:
            raise ProviderUnavailable(provider=self._name, reason="too many logins wait for it")
        self._waiting += 1
        call = asyncio.get_running_loop().run_in_executor(
            self._threads, self._request, method, url, dict(headers or {}), form, time.monotonic() + DEADLINE_S
        )
        call.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(call), DEADLINE_S)
        except TimeoutError as error:
            raise ProviderUnavailable(provider=self._name, reason=f"no answer in {DEADLINE_S:g} s") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ProviderUnavailable(
                provider=self._name, reason="it cannot be reached", detail=f"{method} {url}: {error!r}"
            ) from error
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise ProviderUnavailable(
                provider=self._name, reason="its answer cannot be understood", detail=f"{method} {url}: {error!r}"
            ) from error

    def _done(self, call: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not call.cancelled():
            call.exception()  # seen, also where nothing waits any more

    def _request(
        self, method: str, url: str, headers: dict[str, str], form: Mapping[str, str] | None, until: float
    ) -> tuple[int, dict[str, Any]]:
        if time.monotonic() > until:
            raise OSError("its turn came too late")
        headers = {"Accept": "application/json", "User-Agent": "mep-relay", **headers}
        body = None
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(form).encode()
        answer = self._pool.request(
            method, url, headers=headers, body=body, redirect=False, preload_content=False, decode_content=False
        )
        try:
            return answer.status, _decoder.decode(_read(answer, until))
        finally:
            answer.close()

    def close(self) -> None:
        """Wait for nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
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
