"""The port for a monitoring system on the relay's own host: GET /metrics, and GET /readyz with the reason.

It listens on 127.0.0.1 alone, apart from the port of the API: a proxy that passes the API on, with or without saying
so, passes nothing of this on. Any account of the host can ask, so that requests are few, short and soon over. Called
by the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from mep_wire.errors import RelayUnavailable

HOST = "127.0.0.1"
MAX_CONNECTIONS = 16
MAX_HEAD_BYTES = 8192
CLIENT_S = 10.0
"""How long a client may take, answer included."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' name for its text format."""


class MetricsListener:
    """See the module."""

    def __init__(self, figures: Callable[[], str], ready: Callable[[], Awaitable[None]]) -> None:
        self._figures, self._ready = figures, ready
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> int:
        """Begin to serve; return the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, HOST, port, limit=MAX_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Serve nothing more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections += 1
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await asyncio.wait_for(self._answer(reader, writer), CLIENT_S)
        finally:
            self._connections -= 1
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status, body = await self._answer_to(head.split(b" ", 2)[:2])
        data = body.encode()
        headers = f"content-type: {TEXT}\r\ncontent-length: {len(data)}\r\nconnection: close\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + data)
        await writer.drain()
        writer.write_eof()
        await reader.read()  # until the client has taken it all

    async def _answer_to(self, asked: list[bytes]) -> tuple[str, str]:
        if asked == [b"GET", b"/metrics"]:
            return "200 OK", self._figures()
        if asked != [b"GET", b"/readyz"]:
            return "404 Not Found", "There are /metrics and /readyz here.\n"
        try:
            await self._ready()
        except RelayUnavailable as error:
            return "503 Service Unavailable", f"{error.text}\n{error.detail}".rstrip() + "\n"
        return "200 OK", "ok\n"
