"""A server that speaks just enough LDAP to be a bad one: it answers binds, and searches as the test has it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

BIND, SEARCH = 0x60, 0x63
DRIP_S = 0.1


def _element(data: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the BER element at `at` begins and ends."""
    length, begin = data[at + 1], at + 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(data[at + 2 : begin], "big")
    return begin, begin + length


def request(data: bytes) -> tuple[int, int]:
    """Return the number of the request in `data`, which is whole, and the tag of its operation."""
    begin, _ = _element(data, 0)
    number_at, end = _element(data, begin)
    return int.from_bytes(data[number_at:end], "big"), data[end]


def done(number: int, tag: int) -> bytes:
    """Return the success that ends an answer: tag 0x61 for a bind, 0x65 for a search."""
    body = b"\x02\x02" + number.to_bytes(2, "big") + bytes([tag, 7]) + b"\x0a\x01\x00\x04\x00\x04\x00"
    return b"\x30" + bytes([len(body)]) + body


Answer = Callable[[socket.socket, int], None]
"""Called on a connection when a search arrives, with the number of that search."""


def drip(connection: socket.socket, data: bytes = b"\x30\x84\x00\x01\x00\x00" + bytes(600)) -> None:
    """Send `data` byte by byte, so slowly that no single read ever times out."""
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(DRIP_S)


@contextlib.contextmanager
def serve(on_search: Answer, on_connect: Callable[[socket.socket], None] | None = None) -> Iterator[int]:
    """Serve on a port, which is yielded, each connection in a thread, until the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, on_search, on_connect), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, on_search: Answer, on_connect: Callable[[socket.socket], None] | None) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_talk, args=(connection, on_search, on_connect), daemon=True).start()


def _talk(connection: socket.socket, on_search: Answer, on_connect: Callable[[socket.socket], None] | None) -> None:
    with contextlib.suppress(OSError), connection:
        if on_connect:
            on_connect(connection)
        while data := connection.recv(65536):
            number, tag = request(data)
            if tag == BIND:
                connection.sendall(done(number, 0x61))
            elif tag == SEARCH:
                on_search(connection, number)
