"""One HTTP connection, with bounds on the memory and time that an unauthenticated peer can take.

uvicorn's own protocol keeps whatever comes before a request's blank line, for as long as it takes to come, and an
answer until it is read. Here a request's head may have MAX_HEAD_BYTES and HEAD_S, its body BODY_S, and the client has
UNREAD_S to read. Trusts nothing. Called by uvicorn.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from relay.log import RateLimitedLog
from relay.rate_limit import network_of

MAX_HEAD_BYTES = 64 * 1024
"""Longest request line and headers together."""
HEAD_S = 30.0
"""How long they may take to come, from the connection's or the request's first byte."""
BODY_S = 600.0
"""How long a body may take to come (MAX_BODY_BYTES at a megabit a second)."""
UNREAD_S = 600.0
"""How long a client may take to read the bytes in the buffer."""
MAX_SENT_UNREAD = 1024 * 1024
"""Most bytes that the client of a WebSocket may send while the buffer for it is full."""


MAX_FROM_ONE_ADDRESS = 1000
"""Most connections at once from one address, of IPv6 from one network; unlimited from this host, where a TLS proxy may
forward all."""
_LOOPBACK = ("127.", "::1")
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _ReadInTime(asyncio.Protocol):
    """A connection that ends if its client leaves the buffer full for UNREAD_S."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _unread: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._is_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The buffer is full: the client must read."""
        super().pause_writing()
        self._is_read()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)  # close() would wait for it to read

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._is_read()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class BoundedConnection(_ReadInTime, HttpToolsProtocol):
    """uvicorn's connection, within bounds."""

    _from: ClassVar[Counter[str]] = Counter()
    """Open connections by address."""
    _limited_log: ClassVar[RateLimitedLog] = RateLimitedLog()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head, self._head_bytes = True, 0
        self._deadline: asyncio.TimerHandle | None = None

    def _allow(self, seconds: float | None) -> None:
        """Set the time by which the next stage must be reached; None for any."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin to wait for a request."""
        super().connection_made(transport)
        host = str((transport.get_extra_info("peername") or ("",))[0])
        self._address = network_of(host)
        self._from[self._address] += 1
        if self._from[self._address] > MAX_FROM_ONE_ADDRESS and not host.startswith(_LOOPBACK):
            self._limited_log.warning(
                "http: too many connections from one address", limit=MAX_FROM_ONE_ADDRESS, address=self._address
            )
            transport.abort()
            return
        self._allow(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._allow(None)
        self._uncount()
        super().connection_lost(exc)

    def _uncount(self) -> None:
        self._from[self._address] -= 1
        if not self._from[self._address]:
            del self._from[self._address]

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, and close the connection if the head is too long."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's headers are too long.")

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to the protocol for WebSockets."""
        self._allow(None)
        self._is_read()
        self._uncount()  # this protocol does not hear of the connection's end any more
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        super().on_message_begin()
        self._allow(HEAD_S)

    def on_headers_complete(self) -> None:
        """The blank line."""
        self._in_head = False
        self._allow(BODY_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The last byte: another request's head follows."""
        self._in_head, self._head_bytes = True, 0
        self._allow(None)
        super().on_message_complete()


class BoundedWebSocket(_ReadInTime, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket. Its connection ends if its handshake can't be read, and if its client does not read.

    A client that sends all the same is cut off soon: the library answers each ping at once, whether or not the answers
    before have left.
    """

    _sent_unread = 0

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes. The first are a whole request, which the HTTP parser has passed on.

        The library refuses some of these: with a body, or with many or long headers. uvicorn then answers nothing,
        waits for ever, and stumbles over the connection when it shuts down.
        """
        self._sent_unread = 0 if self.writable.is_set() else self._sent_unread + len(data)
        if self._sent_unread > MAX_SENT_UNREAD:
            self.transport.abort()
            return
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.close_sent = True  # for `shutdown`
            self.transport.write(_BAD_REQUEST)
            self.transport.close()
