"""One connection of the relay's result stream: a WebSocket, read by the thread that owns it.

The `websockets` package frames and unframes (its protocol object holds no socket); the socket is ours, so that a
result costs no hop between threads.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import ssl
import time
from urllib.parse import urlsplit

import msgspec

from mep_sdk.connect import CONNECT_TIMEOUT_S, open_connection
from mep_sdk.errors import RelayAnswerInvalid
from mep_sdk.settings import Settings
from mep_wire import api
from mep_wire.errors import rebuild

PING_EVERY_S = 20.0
SILENT_TOO_LONG_S = 50.0
_RECEIVE_BYTES = 1 << 18
_MAX_FRAME_BYTES = 128 * 1024 * 1024

_quiet = logging.getLogger("mep_sdk.stream")
_quiet.setLevel(logging.WARNING)  # the protocol object would write the token into a debug log

_decoder: msgspec.msgpack.Decoder[api.StreamFrame] = msgspec.msgpack.Decoder(api.StreamFrame)


class StreamClosed(OSError):
    """The relay, or something on the way to it, ended the stream."""


class ResultStream:
    """An open stream. Not thread-safe, `wake` excepted."""

    def __init__(self, settings: Settings) -> None:
        """Connect and shake hands. Raises OSError, or the MepError that the relay answered (an unknown token)."""
        from websockets.client import ClientProtocol
        from websockets.uri import parse_uri

        url = f"{settings.relay_url}/v3/stream"
        self._relay_url = settings.relay_url
        self._socket = open_connection(url)
        self._parts: list[bytes] = []
        self._heard = self._pinged = time.monotonic()
        self._awake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for each in (self._socket, self._awake):
            self._selector.register(each, selectors.EVENT_READ)
        uri = parse_uri("ws" + url.removeprefix("http"))
        self._protocol = ClientProtocol(uri, max_size=_MAX_FRAME_BYTES, extensions=None, logger=_quiet)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            self._shake_hands(settings.token)
            on_failure.pop_all()

    def _shake_hands(self, token: str) -> None:
        from websockets.http11 import Response

        request = self._protocol.connect()
        request.headers["Authorization"] = f"Bearer {token}"
        self._protocol.send_request(request)
        self._flush()
        answer: Response | None = None
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        while answer is None:
            data = self._socket.recv(_RECEIVE_BYTES)
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            answer = next((event for event in self._protocol.events_received() if isinstance(event, Response)), None)
            if answer is None and not data:
                raise StreamClosed("the relay closed the connection during the handshake")
        if self._protocol.handshake_exc is not None:
            raise self._refusal(answer.status_code, bytes(answer.body or b""), answer.headers.get("Content-Type", ""))
        self._socket.settimeout(None)

    def _refusal(self, status: int, body: bytes, content_type: str) -> Exception:
        try:
            told = api.decode_error(body, content_type)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            if _may_pass(status):
                return StreamClosed(f"the relay answered {status}")
            reason = f"{status} for the result stream {urlsplit(self._relay_url).path}/v3/stream"
            return RelayAnswerInvalid(url=self._relay_url, reason=reason)
        if _may_pass(status):
            return StreamClosed(told.reason)
        return rebuild(told.code, told.reason, told.correlation_id)

    def subscribe(self, task_group_id: str, cursor: int) -> None:
        """Ask for the group's endings after `cursor`. Raises OSError."""
        self._protocol.send_binary(msgspec.msgpack.encode(api.Subscribe(task_group_id=task_group_id, cursor=cursor)))
        self._flush()

    def receive(self) -> list[api.StreamFrame]:
        """Wait for frames, or for `wake`, or until something keeps the stream alive; return what came, which may be
        nothing. Raises OSError once the stream has ended or has been silent for too long."""
        self._keep_alive()
        if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            ready = [key.fileobj for key, _ in self._selector.select(PING_EVERY_S / 2)]
            if self._awake in ready:
                self._awake.recv(64)
            if self._socket not in ready:
                return []
        data = self._socket.recv(_RECEIVE_BYTES)
        if not data:
            raise StreamClosed("the relay closed the connection")
        self._heard = time.monotonic()
        self._protocol.receive_data(data)
        frames = self._frames()
        self._flush()  # pongs
        return frames

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
    """Return whether this HTTP status says no for now, rather than for good."""
    return status == 429 or status >= 500


def refusal_of(frame: api.StreamRefused) -> Exception:
    """Return what the relay ended the stream with: the error itself, or StreamClosed where it may pass."""
    error = rebuild(frame.code, frame.text)
    return StreamClosed(error.text) if _may_pass(error.http_status) else error
