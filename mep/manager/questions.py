"""Takes questions of the endpoint's administrator from a socket in the runtime directory: `mep why` asks there.

The monitor makes the socket, which only root (or the owner) can connect to, and passes it on. A question is one line of
JSON, `{"why": ID}`; the answer is JSON until end-of-file. Everything is bounded: clients, bytes and time. Nothing here
blocks. Called by the manager's loop alone.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from mep_wire.messages import Explained

MAX_CLIENTS = 8
MAX_QUESTION_BYTES = 256
PATIENCE_S = 10.0
"""How long a client may take, and how long the relay's answer may."""
NEVER = float("inf")
_TOO_LATE = "the relay has not answered in time"


@dataclass(slots=True, eq=False)
class _Client:
    """A connection: its question so far, then the rest of its answer."""

    connection: socket.socket
    until: float
    received: bytes = b""
    asked: int = 0
    """The question's number at the relay; 0 before it is asked."""
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


class Questions:
    """The socket and its clients."""

    def __init__(
        self, listener: socket.socket, watch: Callable[[int, bool], None], forget: Callable[[int], None]
    ) -> None:
        """`watch` has a descriptor polled, for writing if so; `forget` ends that."""
        self._listener, self._watch, self._forget = listener, watch, forget
        self._clients: dict[int, _Client] = {}
        listener.setblocking(False)
        watch(listener.fileno(), False)

    def take(self, now: float, ask: Callable[[str], int | str]) -> None:
        """Read from the connection. `ask` passes a question on, and returns its number or the reason against it."""
        self._accept(now)
        for client in list(self._clients.values()):
            if client.answer:
                self._write(client)
            elif not client.asked:
                self._read(client, ask)

    def _accept(self, now: float) -> None:
        while len(self._clients) < MAX_CLIENTS:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody is there, or no descriptor is free
                return
            connection.setblocking(False)
            self._clients[connection.fileno()] = _Client(connection, now + PATIENCE_S)
            self._watch(connection.fileno(), False)

    def _read(self, client: _Client, ask: Callable[[str], int | str]) -> None:
        try:
            data = client.connection.recv(MAX_QUESTION_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.received += data
        line, newline, _ = client.received.partition(b"\n")
        if not data or (not newline and len(line) > MAX_QUESTION_BYTES):
            self._close(client)
        elif newline:
            self._ask(client, line, ask)

    def _ask(self, client: _Client, line: bytes, ask: Callable[[str], int | str]) -> None:
        try:
            question = json.loads(line)["why"]
        except (ValueError, KeyError, TypeError):
            question = None
        result = ask(question) if isinstance(question, str) else "not a question"
        if isinstance(result, int):
            client.asked = result
            self._forget(client.connection.fileno())
        else:
            self._answer(client, {"problem": result})

    def answered(self, answer: Explained) -> None:
        """Pass the relay's answer on to the client that asked, if it is still there."""
        found = next((one for one in self._clients.values() if one.asked == answer.ref), None)
        if found is not None:
            lines = [{"at": line.at, "level": line.level, "text": line.text} for line in answer.lines]
            ids = {"uep_id": answer.uep_id, "correlation_id": answer.correlation_id}
            self._answer(found, {**ids, "code": answer.code, "status": answer.status, "lines": lines})

    def _answer(self, client: _Client, value: dict[str, object]) -> None:
        client.answer = memoryview(json.dumps(value).encode())
        with contextlib.suppress(KeyError):
            self._forget(client.connection.fileno())
        self._watch(client.connection.fileno(), True)
        self._write(client)

    def _write(self, client: _Client) -> None:
        try:
            client.answer = client.answer[client.connection.send(client.answer) :]
        except BlockingIOError:
            return
        except OSError:
            client.answer = memoryview(b"")
        if not client.answer:
            self._close(client)

    def _close(self, client: _Client) -> None:
        descriptor = client.connection.fileno()
        del self._clients[descriptor]
        with contextlib.suppress(KeyError):
            self._forget(descriptor)
        client.connection.close()

    def tick(self, now: float) -> None:
        """End the clients that have had their time."""
        for client in [one for one in self._clients.values() if now >= one.until]:
            if client.asked and not client.answer:
                client.asked, client.until = 0, now + PATIENCE_S
                self._answer(client, {"problem": _TOO_LATE})
            else:
                self._close(client)

    def next_at(self) -> float:
        """Return when `tick` is due; infinity if no client is there."""
        return min((one.until for one in self._clients.values()), default=NEVER)
