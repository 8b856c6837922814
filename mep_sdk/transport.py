"""Requests to the relay's HTTP API: kept connections, retries with back-off, errors by their own classes.

Thread-safe. Every request may be repeated, since the relay's routes are made for it (tasks carry ids that the
SDK chose). Redirects are never followed, so the token goes nowhere but to the relay.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import random
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mep_sdk.connect import open_connection
from mep_sdk.errors import RelayAnswerInvalid
from mep_sdk.settings import Settings
from mep_wire import api
from mep_wire.errors import MepError, RelayUnreachable, rebuild
from mep_wire.text import printable

log = logging.getLogger("mep_sdk")

RETRY_FOR_S = 120.0
_ANSWER_TIMEOUT_S = 90.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_RETRIED = frozenset({429, 502, 503, 504})
_NOT_REACHED = (OSError, http.client.HTTPException)


class Backoff:
    """Pauses between attempts: doubling, with full jitter, never past the deadline. Times in seconds."""

    def __init__(self, *, longest_s: float = _LONGEST_PAUSE_S, rand: Callable[[], float] = random.random) -> None:
        self.attempts = 0
        self._longest_s, self._rand = longest_s, rand

    def next_pause_s(self, at_least_s: float = 0.0) -> float:
        """Return how long to wait before the next attempt."""
        ceiling = min(self._longest_s, _FIRST_PAUSE_S * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        return max(at_least_s, ceiling * (0.5 + self._rand() / 2))


class Answer:
    """One HTTP answer."""

    __slots__ = ("body", "content_type", "reason", "retry_after", "status")

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.reason = response.status, response.reason
        self.content_type = response.getheader("Content-Type", "")
        self.retry_after = response.getheader("Retry-After")
        self.body = response.read()

    def retry_after_s(self) -> float:
        """Return the seconds that Retry-After asks for; 0 where it does not say (or gives a date)."""
        try:
            return max(0.0, float(self.retry_after or 0))
        except ValueError:
            return 0.0


class Transport:
    """Requests to one relay with one token."""

    def __init__(self, settings: Settings, *, retry_for_s: float = RETRY_FOR_S) -> None:
        self.settings, self.retry_for_s = settings, retry_for_s
        self._base_path = urlsplit(settings.relay_url).path.rstrip("/")
        self._headers = {
            "Authorization": f"Bearer {settings.token}",
            "Accept": api.MSGPACK,
            "User-Agent": "mep-sdk",
        }
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle).atexit = False
        self._pid = os.getpid()
        self._unreachable = False

    def get(self, path: str) -> bytes:
        """Return the body of the answer to a GET. Raises as `request` does."""
        return self.request("GET", path)

    def post(self, path: str, body: Any, *, retry_for_s: float | None = None) -> bytes:
        """Return the body of the answer to a POST of `body` as MessagePack. Raises as `request` does."""
        return self.request("POST", path, msgspec.msgpack.encode(body), retry_for_s=retry_for_s)

    def request(self, method: str, path: str, body: bytes | None = None, *, retry_for_s: float | None = None) -> bytes:
        """Return the body of a success.

        Failures to reach the relay and its 429 and 503 are tried again for `retry_for_s` seconds. Raises
        RelayUnreachable after that; RelayAnswerInvalid; else the error that the relay answered.
        """
        started = time.monotonic()
        allowed_s = self.retry_for_s if retry_for_s is None else retry_for_s
        backoff = Backoff()
        while True:
            at_least_s = 0.0
            try:
                answer = self._once(method, path, body)
            except ssl.SSLCertVerificationError as error:
                raise self._give_up(error, started) from error
            except _NOT_REACHED as error:
                failure: MepError = self._give_up(error, started)
                self._say_unreachable(error, backoff.attempts + 1)
            else:
                self._say_reachable()
                if answer.status < 300:
                    return answer.body
                failure = self._error(answer, path)
                if answer.status not in _RETRIED:
                    raise failure
                at_least_s = answer.retry_after_s()
                log.debug("relay asks to come back later: %s", failure)
            pause_s = backoff.next_pause_s(at_least_s)
            if time.monotonic() - started + pause_s > allowed_s:
                raise failure
            time.sleep(pause_s)

    def close(self) -> None:
        """Close the idle connections. The transport stays usable."""
        with self._lock:
            _close_all(self._idle)

    def _once(self, method: str, path: str, body: bytes | None) -> Answer:
        connection = self._take_idle()
        if connection is not None:
            try:
                return self._exchange(connection, method, path, body)
            except _NOT_REACHED:
                log.debug("kept connection was closed by the relay")  # as happens: a fresh one decides
        return self._exchange(self._connect(), method, path, body)

    def _exchange(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None) -> Answer:
        headers = self._headers if body is None else {**self._headers, "Content-Type": api.MSGPACK}
        with contextlib.ExitStack() as unless_kept:
            unless_kept.callback(connection.close)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A relay that refuses a request may answer and close before it has read the whole body.
                connection.request(method, self._base_path + path, body, headers)
            response = connection.getresponse()
            answer = Answer(response)
            if not response.will_close:
                unless_kept.pop_all()
                with self._lock:
                    self._idle.append(connection)
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.settings.relay_url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=_ANSWER_TIMEOUT_S)
        connection.sock = open_connection(self.settings.relay_url)
        connection.sock.settimeout(_ANSWER_TIMEOUT_S)
        return connection

    def _take_idle(self) -> http.client.HTTPConnection | None:
        if self._pid != os.getpid():
            # After a fork these sockets and this lock are the parent's.
            self._lock, self._pid = threading.Lock(), os.getpid()
            _close_all(self._idle)  # which closes them in this process alone
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _give_up(self, error: Exception, started: float) -> RelayUnreachable:
        waited_s = round(time.monotonic() - started, 1)
        return RelayUnreachable(url=self.settings.relay_url, reason=describe(error), waited_s=waited_s)

    def _say_unreachable(self, error: Exception, attempt: int) -> None:
        level = logging.DEBUG if self._unreachable else logging.WARNING
        self._unreachable = True
        log.log(level, "relay %s unreachable (%s), retrying (%d)", self.settings.relay_url, describe(error), attempt)

    def _say_reachable(self) -> None:
        if self._unreachable:
            self._unreachable = False
            log.warning("relay %s reachable again", self.settings.relay_url)

    def _error(self, answer: Answer, path: str) -> MepError:
        try:
            told = api.decode_error(answer.body, answer.content_type)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            reason = f"{answer.status} {answer.reason} for {path}"
            return RelayAnswerInvalid(url=self.settings.relay_url, reason=reason)
        return rebuild(told.code, told.reason, told.correlation_id)


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def describe(error: Exception) -> str:
    """Return why a connection failed, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error)) or type(error).__name__


def to_json_value(value: object) -> Any:
    """Return a deep copy of `value` as JSON would carry it. Raises TypeError or ValueError where JSON cannot."""
    return json.loads(json.dumps(value))
