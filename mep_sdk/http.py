"""Requests to the relay's HTTP API: retries with back-off, errors by their own classes.

Thread-safe. urllib3 keeps the connections, and knows proxies and TLS. Its own retries are not used: they log each
attempt and know no deadline. Every request may be repeated, since the relay's routes are made for it (tasks carry ids
that the SDK chose). Redirects are never followed, so the token goes nowhere but to the relay.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from mep_link.backoff import Backoff
from mep_sdk.connection import CONNECT_TIMEOUT_S, Proxy, proxy_for, tls_context
from mep_sdk.errors import RelayAnswerInvalid
from mep_sdk.settings import ClientSettings
from mep_wire import api
from mep_wire.errors import MepError, NotConfigured, RelayUnreachable, TokenUnknown, rebuild
from mep_wire.text import printable, printable_lines

if TYPE_CHECKING:
    import urllib3

log = logging.getLogger("mep_sdk")

RETRY_FOR_S = 120.0
SILENT_S = 9.0
"""How long a call of the person's waits for a relay that says nothing."""
PATIENT_S = 90.0
"""The same for background threads."""
_FIRST_PAUSE_S = 0.1
_SAY_AFTER_S = 2.0
"""A relay that answers that it can't is warned of where that takes longer than this."""
_RETRIED = frozenset({429, 502, 503, 504})
_MOST_KEPT = 64
"""Connections that are kept at most. urllib3 warns of each that it closes beyond."""
_BLOCK_BYTES = 1 << 18
"""A body larger than this is sent in blocks of this size, each with a timeout of its own."""


Retrying = Callable[[MepError], object]
"""Called with an error after which a request is tried again."""


class HttpAnswer:
    """One HTTP answer."""

    __slots__ = ("body", "content_type", "date", "reason", "retry_after", "status")

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.status, self.reason = response.status, response.reason
        self.content_type = response.headers.get("Content-Type", "")
        self.date = response.headers.get("Date", "")
        self.retry_after = response.headers.get("Retry-After")
        self.body = response.data

    def retry_after_s(self) -> float:
        """Return the seconds that Retry-After asks for; 0 if it is absent or invalid."""
        from urllib3.exceptions import InvalidHeader
        from urllib3.util import Retry

        try:
            return max(0.0, Retry().parse_retry_after(self.retry_after or "0"))
        except (InvalidHeader, ValueError, OverflowError):  # the last two: a year or a number beyond Python's
            return 0.0


class Transport:
    """Requests to one relay with one token."""

    def __init__(self, settings: ClientSettings, *, retry_for_s: float = RETRY_FOR_S) -> None:
        self.settings, self.retry_for_s = settings, retry_for_s
        self._logged_out = False
        self._headers = {
            "Accept": api.MSGPACK,
            "User-Agent": "mep-sdk",
        }
        self._connections: Connections | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._unreachable = False
        self._refusing: set[str] = set()
        """Codes of the answers that were warned of, each until a request that met it succeeds."""

    def get(self, path: str) -> bytes:
        """Return the body of the answer to a GET. Raises as `request` does."""
        return self.request("GET", path)

    def post(
        self,
        path: str,
        body: Any,
        *,
        retry_for_s: float | None = None,
        silent_s: float = SILENT_S,
        retrying: Retrying | None = None,
    ) -> bytes:
        """Return the body of the answer to a POST of `body` as MessagePack. Raises as `request` does."""
        encoded = msgspec.msgpack.encode(body)
        return self.request("POST", path, encoded, retry_for_s=retry_for_s, silent_s=silent_s, retrying=retrying)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        retry_for_s: float | None = None,
        silent_s: float = SILENT_S,
        retrying: Retrying | None = None,
    ) -> bytes:
        """Return the body of a success. `retrying` is called with each error after which it is tried again.

        Failures to reach the relay and its 429 and 503 are tried again for `retry_for_s` seconds. A relay that says
        nothing for `silent_s` seconds is not tried again within SILENT_S. Raises RelayUnreachable after that;
        RelayAnswerInvalid; else the error that the relay answered.
        """
        if self._logged_out:
            raise NotConfigured(what="A token", remedy="This client has logged out: make a new one.")
        started = time.monotonic()
        allowed_s = self.retry_for_s if retry_for_s is None else retry_for_s
        backoff = Backoff(_FIRST_PAUSE_S)
        met: set[str] = set()
        refused = ""
        while True:
            at_least_s = 0.0
            try:
                bearer = self._bearer(refused)
                answer = self._once(method, path, body, bearer, silent_s)
            except RelayUnreachable as error:  # for another token
                failure: MepError = error
                self._say_unreachable(error, backoff.attempts + 1)
            except (OSError, _http_error()) as error:
                failure = self._give_up(error, started)
                silent = silent_s <= SILENT_S and _is_timeout(error)
                if silent or type(_root(error)).__name__ == "SSLCertVerificationError":
                    raise failure from error
                self._say_unreachable(error, backoff.attempts + 1)
            else:
                self._say_reachable()
                if answer.status < 300:
                    self._say_taken(met)
                    return answer.body
                failure = self._error(answer, path)
                if isinstance(failure, TokenUnknown) and self.settings.source is not None and not refused:
                    refused = bearer
                    continue
                if answer.status not in _RETRIED:
                    raise failure
                at_least_s = answer.retry_after_s()
                met.add(failure.code)
            pause_s = backoff.next_pause_s(at_least_s)
            spent_s = time.monotonic() - started + pause_s
            if spent_s > allowed_s:
                raise failure
            if failure.code in met:
                self._say_refusing(failure, spent_s)
            if retrying is not None:
                retrying(failure)
            time.sleep(pause_s)

    def close(self) -> None:
        """Close the idle connections. The transport stays usable."""
        with self._lock:
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    def log_out(self) -> None:
        """Forget the token; one that a source gave is revoked. Raises what the source raises."""
        source = self.settings.source
        if source is not None and not self._logged_out:
            source.end()
        self._logged_out = True
        self.settings = ClientSettings(self.settings.relay_url, "")
        self.close()

    def _bearer(self, refused: str) -> str:
        """Return the token to send: another one than that which the relay refused. Raises what the source raises."""
        source = self.settings.source
        return source.renewed(refused) if source is not None and refused else self.settings.bearer()

    def _once(self, method: str, path: str, body: bytes | None, bearer: str, silent_s: float) -> HttpAnswer:
        from urllib3.exceptions import ProtocolError

        connections = self._opened()
        headers = {**self._headers, "Authorization": f"Bearer {bearer}"}
        if body is not None:
            headers["Content-Type"] = api.MSGPACK
        try:
            return connections.ask(method, path, body, headers, silent_s)
        except ProtocolError:
            log.debug("kept connection was closed by the relay")  # as happens: a fresh one decides
        return connections.ask(method, path, body, headers, silent_s)

    def _opened(self) -> Connections:
        """Return this process's connections. Raises ProxyUnsupported, CaBundleUnusable."""
        if self._pid != os.getpid():
            # After a fork these sockets and this lock are the parent's.
            self._lock, self._pid, self._connections = threading.Lock(), os.getpid(), None
        with self._lock:
            if self._connections is None:
                self._connections = Connections(self.settings)
            return self._connections

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

    def _say_refusing(self, failure: MepError, spent_s: float) -> None:
        is_news = spent_s > _SAY_AFTER_S and failure.code not in self._refusing
        if is_news:
            self._refusing.add(failure.code)
        level = logging.WARNING if is_news else logging.DEBUG
        log.log(level, "relay %s is asked again later: %s", self.settings.relay_url, failure)

    def _say_taken(self, met: set[str]) -> None:
        if met & self._refusing:
            self._refusing -= met
            log.warning("relay %s has taken the request now", self.settings.relay_url)

    def _error(self, answer: HttpAnswer, path: str) -> MepError:
        try:
            told = api.decode_error(answer.body, answer.content_type)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            reason = f"{answer.status} {answer.reason} for {path}"
            return RelayAnswerInvalid(url=self.settings.relay_url, reason=reason)
        return rebuild(told.code, told.reason, told.correlation_id)


class Connections:
    """The connections to one relay: direct, or through the environment's proxy."""

    def __init__(self, settings: ClientSettings) -> None:
        self._proxy = proxy_for(settings.relay_url)
        self._manager = _manager(settings, self._proxy)
        self._prefix = settings.relay_url
        self._ask: Callable[..., urllib3.BaseHTTPResponse] = self._manager.urlopen
        if settings.secure or self._proxy is None or self._proxy.is_socks:
            # A proxy gets whole addresses of a relay without TLS. All else goes to one pool, which spares a look-up.
            self._ask = self._manager.connection_from_url(settings.relay_url).urlopen
            self._prefix = urlsplit(settings.relay_url).path.rstrip("/")

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str], silent_s: float) -> HttpAnswer:
        """Return the answer to one request. Raises OSError, urllib3.exceptions.HTTPError."""
        from urllib3 import Timeout

        timeout = Timeout(connect=min(CONNECT_TIMEOUT_S, silent_s), read=silent_s, total=silent_s)
        sent: bytes | io.BytesIO | None = body
        if body is not None and len(body) > _BLOCK_BYTES:
            sent, headers = io.BytesIO(body), {**headers, "Content-Length": str(len(body))}
        return HttpAnswer(
            self._ask(method, self._prefix + path, body=sent, headers=headers, timeout=timeout, redirect=False)
        )

    def close(self) -> None:
        """Close those that are idle."""
        self._manager.clear()


def _manager(settings: ClientSettings, proxy: Proxy | None) -> urllib3.PoolManager:
    import urllib3

    options: dict[str, Any] = {
        "maxsize": _MOST_KEPT,
        "retries": False,
        "blocksize": _BLOCK_BYTES,
    }
    if settings.secure:
        options["ssl_context"] = tls_context()
    if proxy is None:
        return urllib3.PoolManager(1, **options)
    if proxy.is_socks:
        from urllib3.contrib.socks import SOCKSProxyManager

        return SOCKSProxyManager(str(proxy), proxy.username, proxy.password, 1, **options)
    if proxy.username is not None:
        pair = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        options["proxy_headers"] = {"Proxy-Authorization": f"Basic {pair}"}
    if proxy.scheme == "https":
        options["proxy_ssl_context"] = tls_context()
    return urllib3.ProxyManager(str(proxy), 1, **options)


def _http_error() -> type[Exception]:
    from urllib3.exceptions import HTTPError

    return HTTPError


def _is_timeout(error: Exception) -> bool:
    from urllib3 import exceptions

    silent = (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError)
    refused = isinstance(error, exceptions.NewConnectionError)  # which is a timeout to urllib3
    return (isinstance(error, silent) and not refused) or isinstance(_root(error), TimeoutError)


def _root(error: BaseException) -> BaseException:
    """Return the cause of a library's error."""
    for _ in range(8):
        inside = [getattr(error, "original_error", None), *error.args, error.__cause__]
        found = next((each for each in inside if isinstance(each, Exception) and each is not error), None)
        if found is None:
            break
        error = found
    return error


def describe(error: Exception) -> str:
    """Return why a connection failed, in a few words."""
    root = _root(error)
    where = "proxy: " if type(error).__name__ == "ProxyError" else ""
    if isinstance(root, OSError) and root.strerror:
        return where + printable(root.strerror)
    return where + (printable(str(root)) or type(root).__name__)


def log_failure(what: str) -> None:
    """Log the current exception with its traceback. Its text may be a relay's, and the log is mostly a terminal."""
    import traceback

    log.error("%s\n%s", what, printable_lines(traceback.format_exc().rstrip()))
