"""The relay's end of the link for tests of the user endpoint alone: a real ROUTER with a real CURVE key.

It keeps only the messages received: the test decides the relay's answers.
"""

from __future__ import annotations

import time
from typing import TypeVar

import msgspec
import zmq
from zmq.utils import z85

from mep_wire import codec, messages
from tests.support.waiting import until

M = TypeVar("M", bound=msgspec.Struct)


class FakeRelay:
    """One relay at one address. `close` and a new one with the same key and port play a restart."""

    def __init__(self, port: int = 0, keys: tuple[bytes, bytes] | None = None) -> None:
        self.public, self.secret = keys or zmq.curve_keypair()
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.setsockopt(zmq.CURVE_SERVER, 1)
        self.router.setsockopt(zmq.CURVE_SECRETKEY, self.secret)
        self.router.setsockopt(zmq.SNDHWM, 0)
        self.router.setsockopt(zmq.RCVHWM, 0)
        until("the port", lambda: self.router.bind(f"tcp://127.0.0.1:{port or '*'}") or True, unready=(zmq.ZMQError,))
        self.address = self.router.getsockopt(zmq.LAST_ENDPOINT).decode()
        self.port = int(self.address.rsplit(":", 1)[1])
        self.peer = b""
        self.credit = 0
        self.backlog: list[messages.ToRelay] = []
        self.sent_functions: set[str] = set()

    @property
    def raw_key(self) -> bytes:
        """The public key as 32 bytes."""
        return z85.decode(self.public)

    def close(self) -> None:
        """Go away, at once."""
        self.router.close(linger=0)
        self.context.term()

    def restarted(self) -> FakeRelay:
        """Return a relay that came back at the same address. Call `close` first."""
        return FakeRelay(self.port, (self.public, self.secret))

    def send(self, message: messages.ToUep, peer: bytes | None = None) -> None:
        """Say something to the user endpoint that spoke last (or `peer`)."""
        self.router.send_multipart([self.peer if peer is None else peer, codec.encode(message)])

    def receive(self, timeout_s: float = 60.0) -> messages.ToRelay | None:
        """Return the next message, or None when the time is over. Credit is counted; pings are answered."""
        deadline = time.monotonic() + timeout_s
        while self.router.poll(max(0, (deadline - time.monotonic()) * 1000)):
            peer, frame = self.router.recv_multipart()
            self.peer = peer
            message = codec.decode_to_relay(frame)
            if isinstance(message, messages.Ping):
                self.send(messages.Pong(sent_at=message.sent_at))
                continue
            if isinstance(message, messages.Credit):
                self.credit += message.grant
            return message
        return None

    def expect(self, kind: type[M], timeout_s: float = 60.0) -> M:
        """Return the next message of this kind; earlier ones stay in `backlog`."""
        for at, message in enumerate(self.backlog):
            if isinstance(message, kind):
                del self.backlog[at]
                return message
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if isinstance(message, kind):
                return message
            if message is not None:
                self.backlog.append(message)
        raise AssertionError(f"no {kind.__name__} within {timeout_s} s; came: {self.backlog}")

    def welcome(self, heartbeat_s: float = 10.0, max_result_bytes: int = 10 << 20) -> messages.ToRelay:
        """Take a hello or join and welcome it."""
        hello = self.receive()
        while hello is not None and not isinstance(hello, messages.Join | messages.UepHello):
            hello = self.receive()  # the last words of another connection
        assert hello is not None, "nobody came"
        self.credit, self.backlog = 0, []
        self.sent_functions.clear()
        self.send(messages.UepWelcome(heartbeat_s=heartbeat_s, max_result_bytes=max_result_bytes))
        return hello

    def submit(self, functions: dict[str, bytes], tasks: list[messages.TaskItem]) -> None:
        """Send tasks, with the functions that this connection has not had."""
        new = [
            messages.FunctionItem(name, functions[name])
            for name in dict.fromkeys(task.function_id for task in tasks)
            if name in functions and name not in self.sent_functions
        ]
        self.sent_functions |= {item.function_id for item in new}
        self.credit -= len(tasks)
        self.send(messages.Tasks(functions=new, tasks=tasks))

    def results(self, count: int, timeout_s: float = 60.0, confirm: bool = True) -> dict[int, messages.ResultItem]:
        """Return the next `count` results by row, confirmed as durable."""
        found: dict[int, messages.ResultItem] = {}
        deadline = time.monotonic() + timeout_s
        while len(found) < count:
            message = self.expect(messages.Results, deadline - time.monotonic())
            found |= {item.row: item for item in message.items}
            if confirm:
                self.send(messages.ResultsDurable(rows=[item.row for item in message.items]))
        return found
