"""The relay's result stream: a WebSocket, and the thread that takes a task group's results off it and reconnects.

The `websockets` package connects, through a proxy where there is one, and frames and unframes. Its own connection
would start a thread for each stream; the one here is read by the thread that owns it, so that a result costs no hop.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import msgspec

from mep_link.backoff import Backoff
from mep_sdk.connection import CONNECT_TIMEOUT_S, proxy_for, tls_context
from mep_sdk.errors import RelayAnswerInvalid
from mep_sdk.http import describe, log_failure
from mep_sdk.settings import ClientSettings
from mep_wire import api
from mep_wire.errors import MepError, RelayUnreachable, TokenUnknown, rebuild

if TYPE_CHECKING:
    from websockets.client import ClientProtocol
    from websockets.http11 import Response

PING_EVERY_S = 20.0
SILENT_TOO_LONG_S = 50.0
_RECEIVE_BYTES = 1 << 18
_MAX_FRAME_BYTES = 128 * 1024 * 1024

_quiet = logging.getLogger("mep_sdk.result_stream")
_quiet.setLevel(logging.WARNING)  # the protocol object would write the token into a debug log

_decoder: msgspec.msgpack.Decoder[api.StreamFrame] = msgspec.msgpack.Decoder(api.StreamFrame)
log = logging.getLogger("mep_sdk")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_KEEP_UNUSED_S = 15.0
"""How long a connection is kept for a group that the relay does not have yet; the relay itself gives it 30 s."""


class StreamClosed(OSError):
    """The relay, or something on the way to it, ended the stream."""


class _Handshake:
    """What websockets gives the open socket to, in place of its own connection. `answer`: what the relay said."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol, **_: object) -> None:
        self.sock, self.protocol = sock, protocol
        self.answer: Response | None = None
        self.recv_events_thread = self  # is joined after a failure; there is none here

    def handshake(self, headers: dict[str, str], user_agent: str, timeout: float | None) -> None:
        """Send the request and read the relay's answer. Raises OSError, InvalidHandshake."""
        from websockets.http11 import Response

        request = self.protocol.connect()
        request.headers.update({**headers, "User-Agent": user_agent})
        self.protocol.send_request(request)
        self.sock.settimeout(timeout)
        for data in self.protocol.data_to_send():
            self.sock.sendall(data)
        while self.answer is None:
            data = self.sock.recv(_RECEIVE_BYTES)
            if data:
                self.protocol.receive_data(data)
            else:
                self.protocol.receive_eof()
            events = self.protocol.events_received()
            self.answer = next((event for event in events if isinstance(event, Response)), None)
            if self.answer is None and not data:
                raise StreamClosed("the relay closed the connection during the handshake")

    def start_keepalive(self) -> None:
        """ResultStream sends pings."""

    def close_socket(self) -> None:
        """Close it."""
        self.sock.close()

    def join(self) -> None:
        """There is no thread to wait for."""


def _opened(settings: ClientSettings, bearer: str) -> _Handshake:
    """Return an open stream. Raises OSError, or the MepError that the relay answered."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    proxy = proxy_for(settings.relay_url)
    try:
        made = connect(
            f"ws{settings.relay_url.removeprefix('http')}/v3/stream",
            ssl=tls_context() if settings.secure else None,
            proxy=proxy.address if proxy else None,
            proxy_ssl=tls_context() if proxy and proxy.scheme == "https" else None,
            additional_headers={"Authorization": f"Bearer {bearer}"},
            user_agent_header="mep-sdk",
            open_timeout=CONNECT_TIMEOUT_S,
            compression=None,
            max_size=_MAX_FRAME_BYTES,
            logger=_quiet,
            create_connection=cast("Any", _Handshake),
        )
    except WebSocketException as error:
        through = f"proxy {proxy}: " if proxy else ""
        raise StreamClosed(f"{through}{error}") from error
    opened = cast("_Handshake", made)
    opened.sock.settimeout(CONNECT_TIMEOUT_S)
    if opened.protocol.handshake_exc is not None:
        opened.sock.close()
        raise _renewed(settings, bearer, _refusal(settings.relay_url, opened.answer))
    return opened


def _renewed(settings: ClientSettings, bearer: str, refusal: Exception) -> Exception:
    """Return what a refusal means: one of a token that could be renewed passes. Raises StreamClosed, MepError."""
    if isinstance(refusal, TokenUnknown) and settings.source is not None:
        _bearer(settings, refused=bearer)
        return StreamClosed("the token was renewed")
    return refusal


def _bearer(settings: ClientSettings, refused: str = "") -> str:
    """Return the token to send: another one than that which the relay refused. Raises StreamClosed, MepError."""
    try:
        return settings.source.renewed(refused) if settings.source and refused else settings.bearer()
    except RelayUnreachable as error:
        raise StreamClosed(str(error)) from error


def _refusal(relay_url: str, answer: Response | None) -> Exception:
    """Return the error that the relay answered a handshake with: StreamClosed where it may pass."""
    if answer is None:
        return StreamClosed("the relay did not answer the handshake")
    status = answer.status_code
    try:
        told = api.decode_error(bytes(answer.body or b""), answer.headers.get("Content-Type", ""))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if _may_pass(status):
            return StreamClosed(f"the relay answered {status}")
        reason = f"{status} for the result stream {urlsplit(relay_url).path}/v3/stream"
        return RelayAnswerInvalid(url=relay_url, reason=reason)
    if _may_pass(status):
        return StreamClosed(told.reason)
    return rebuild(told.code, told.reason, told.correlation_id)


def _has_buffered(sock: Any) -> bool:
    """Return whether bytes have come that select(2) does not see, in a TLS connection or in one within another."""
    inner = getattr(sock, "ssl_object", None)
    if inner is not None:
        return bool(inner.pending() or sock.incoming.pending or _has_buffered(sock.ssl_socket))
    pending = getattr(sock, "pending", None)  # of an SSLSocket
    return pending is not None and pending() > 0


class ResultStream:
    """An open stream. Not thread-safe, `wake` excepted."""

    def __init__(self, settings: ClientSettings) -> None:
        """Connect and shake hands. Raises OSError, or the MepError that the relay answered (an unknown token)."""
        self._relay_url = settings.relay_url
        self._parts: list[bytes] = []
        self._settings, self._bearer = settings, _bearer(settings)
        opened = _opened(settings, self._bearer)
        self._socket, self._protocol = opened.sock, opened.protocol
        self._heard = self._pinged = time.monotonic()
        self._awake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for each in (self._socket, self._awake):
            self._selector.register(each, selectors.EVENT_READ)

    def subscribe(self, task_group_id: str, cursor: int, *, output: bool = False) -> None:
        """Ask for the group's endings after `cursor`, and for what its tasks print with `output`. Raises OSError."""
        wanted = api.Subscribe(task_group_id=task_group_id, cursor=cursor, output=output)
        self._protocol.send_binary(msgspec.msgpack.encode(wanted))
        self._flush()

    def receive(self) -> list[api.StreamFrame]:
        """Wait for frames, or for `wake`, or until something keeps the stream alive; return what came, which may be
        nothing. Raises OSError once the stream has ended or has been silent for too long."""
        self._keep_alive()
        if not _has_buffered(self._socket):
            ready = [key.fileobj for key, _ in self._selector.select(PING_EVERY_S / 2)]
            if self._awake in ready:
                self._awake.recv(64)
            if self._socket not in ready:
                return []
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return []  # a TLS record that carries no data, or not the whole of one
        if not data:
            raise StreamClosed("the relay closed the connection")
        self._heard = time.monotonic()
        self._protocol.receive_data(data)
        frames = self._frames()
        self._flush()  # pongs
        return frames

    def refusal(self, frame: api.StreamRefused) -> Exception:
        """Return what the relay ended the stream with: the error itself, or StreamClosed where it may pass.

        Raises StreamClosed or MepError where the token has to be renewed and cannot be.
        """
        error = rebuild(frame.code, frame.text)
        return (
            StreamClosed(error.text) if _may_pass(error.http_status) else _renewed(self._settings, self._bearer, error)
        )

    def wake(self) -> None:
        """Make `receive` return, from any thread."""
        try:
            self._waker.send(b"\0")
        except OSError:
            return  # closed already

    def close(self) -> None:
        """Close the connection."""
        self._selector.close()
        for each in (self._socket, self._awake, self._waker):
            each.close()

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if now - self._heard > SILENT_TOO_LONG_S:
            raise StreamClosed(f"nothing was heard for {SILENT_TOO_LONG_S:.0f} s")
        if now - max(self._heard, self._pinged) > PING_EVERY_S:
            self._pinged = now
            self._protocol.send_ping(b"mep")
            self._flush()

    def _frames(self) -> list[api.StreamFrame]:
        from websockets.frames import DATA_OPCODES, Frame

        found: list[api.StreamFrame] = []
        for event in self._protocol.events_received():
            if not (isinstance(event, Frame) and event.opcode in DATA_OPCODES):
                continue
            self._parts.append(bytes(event.data))
            if event.fin:
                message, self._parts = b"".join(self._parts), []
                found.append(self._decode(message))
        if not found and self._protocol.close_expected():
            raise StreamClosed(f"the relay ended the stream ({self._protocol.close_code or 'no reason given'})")
        return found

    def _decode(self, message: bytes) -> api.StreamFrame:
        try:
            return _decoder.decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RelayAnswerInvalid(url=self._relay_url, reason=f"a frame of the result stream: {error}") from error

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)


def _may_pass(status: int) -> bool:
    """Return whether this HTTP status is a temporary refusal, not a permanent one."""
    return status == 429 or status >= 500


class ResultListener(threading.Thread):
    """Streams one task group's endings into `deliver`, each at least once. A relay that is away is asked again and
    again; one that refuses ends the thread with a call of `refused`."""

    def __init__(
        self,
        settings: ClientSettings,
        task_group_id: str,
        deliver: Callable[[list[api.StreamedResult]], None],
        refused: Callable[[str, MepError], None],
        back: Callable[[], None] | None = None,
        printed: Callable[[list[api.StreamedOutput]], None] | None = None,
    ) -> None:
        """`back` is called whenever the stream is up again after a break; `printed` with what running tasks print,
        after `want_output`."""
        super().__init__(name=f"mep-results-{task_group_id[:8]}", daemon=True)
        self.task_group_id = task_group_id
        self._settings, self._deliver, self._refused = settings, deliver, refused
        self._cursor = 0
        self._change = threading.Condition()
        self._known = self._stopping = self._rewind = self._broken = False
        self._back, self._printed = back, printed
        self._wants_output = self._again = False
        self._stream: ResultStream | None = None
        self._down_since: float | None = None

    def group_known(self) -> None:
        """Tell that the relay has the group, so that it can be subscribed to."""
        if not self._known:
            with self._change:
                self._known = True
                self._change.notify_all()

    def want_output(self) -> None:
        """Ask for what the group's tasks print, from now on."""
        if self._wants_output:
            return
        with self._change:
            self._wants_output = self._again = True
            if self._stream is not None:
                self._stream.wake()

    def replay(self) -> None:
        """Stream again from the group's first ending."""
        with self._change:
            self._rewind = self._known = True
            self._change.notify_all()
            if self._stream is not None:
                self._stream.wake()

    def stop(self) -> None:
        """End the thread soon; do not wait for it."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
            if self._stream is not None:
                self._stream.wake()

    def down_for_s(self) -> float:
        """Return for how many seconds the stream has been down; 0 while it is up."""
        since = self._down_since
        return 0.0 if since is None else time.monotonic() - since

    def run(self) -> None:
        """Connect, subscribe, deliver; again after every break."""
        self._down_since = time.monotonic()
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while not self._stopping:
            try:
                self._stream_once(backoff)
                self._await_group(None)
            except OSError as error:
                self._pause(error, backoff)
            except MepError as error:
                log.error("relay refuses the result stream: %s", error)
                self._refused(self.task_group_id, error)
                return
            except Exception as error:  # noqa: BLE001 - the outermost loop of the thread: waiting callers must get the error
                log_failure("reading results failed")
                text = f"Reading results failed: {type(error).__name__}: {error}"
                self._refused(self.task_group_id, MepError(text=text))
                return

    def _stream_once(self, backoff: Backoff) -> None:
        stream = ResultStream(self._settings)
        try:
            with self._change:
                self._stream = stream
            # The first connection is made while the first submission is on its way, to save its time.
            if not self._await_group(_KEEP_UNUSED_S):
                return
            self._again = False
            stream.subscribe(self.task_group_id, self._cursor, output=self._wants_output)
            self._up(backoff)
            self._follow(stream)
        finally:
            with self._change:
                self._stream = None
            stream.close()

    def _await_group(self, timeout_s: float | None) -> bool:
        """Wait until the relay has the group or the thread is to stop; return whether to go on."""
        with self._change:
            self._change.wait_for(lambda: self._known or self._stopping, timeout_s)
            return self._known and not self._stopping

    def _follow(self, stream: ResultStream) -> None:
        while not self._stopping:
            if self._rewind:
                self._rewind, self._cursor = False, 0
                return  # and come back with a new subscription
            if self._again:
                return
            for frame in stream.receive():
                if isinstance(frame, api.StreamRefused):
                    raise stream.refusal(frame)
                if isinstance(frame, api.StreamOutput):
                    if self._printed is not None:
                        self._printed(frame.output)
                    continue
                self._deliver(frame.results)
                self._cursor = frame.cursor

    def _up(self, backoff: Backoff) -> None:
        if backoff.attempts > 1:
            log.warning("result stream of relay %s is back", self._settings.relay_url)
        backoff.reset()
        self._down_since = None
        if self._broken:
            self._broken = False
            if self._back is not None:
                self._back()

    def _pause(self, error: OSError, backoff: Backoff) -> None:
        self._broken = True
        if self._down_since is None:
            self._down_since = time.monotonic()
        pause_s = backoff.next_pause_s()
        # The first break is often a restart of the relay and not worth a word.
        level = logging.WARNING if backoff.attempts == 2 else logging.DEBUG
        log.log(
            level,
            "result stream of relay %s is down (%s), retrying (%d)",
            self._settings.relay_url,
            describe(error),
            backoff.attempts,
        )
        with self._change:
            self._change.wait_for(lambda: self._stopping, pause_s)
