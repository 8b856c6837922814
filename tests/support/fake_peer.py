"""The other end of the endpoint link, for tests of the relay: a manager and user endpoints over real ZeroMQ.

On the wire it behaves as mep.manager and user_endpoint do, on order of the test: nothing happens by itself.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import zmq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from zmq.utils import z85

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.start_request import SEAL_CONTEXT, SIGNATURE_CONTEXT, StartRequest, decode_start, incarnation_of

M = TypeVar("M")
WAIT_MS = 10_000


class Nothing(Exception):
    """Nothing came in the time given."""


class FakeLink:
    """One CURVE link to a relay."""

    def __init__(
        self, address: str, relay_key: bytes, decode: Any, secret: bytes | None = None, routing_id: bytes | None = None
    ) -> None:
        self._address, self._relay_key, self._decode = address, relay_key, decode
        _, made = zmq.curve_keypair()
        self._secret = z85.encode(secret) if secret else made
        self.secret_key = z85.decode(self._secret)
        self.public_key = z85.decode(zmq.curve_public(self._secret))
        self._routing_id = routing_id
        self._kept: list[Any] = []
        self.connect()

    def connect(self, rcvhwm: int = 1000) -> None:
        """Open a new link with the same key; ZeroMQ accepts about `rcvhwm` messages before the test reads one."""
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = rcvhwm
        self.socket.curve_secretkey, self.socket.curve_publickey = self._secret, zmq.curve_public(self._secret)
        self.socket.curve_serverkey = z85.encode(self._relay_key)
        if self._routing_id:
            self.socket.routing_id = self._routing_id
        self.socket.reconnect_ivl = 50
        self.socket.connect(self._address)

    def close(self) -> None:
        """Drop the link."""
        self.socket.close()

    def send(self, message: Any) -> None:
        """Send a message."""
        self.socket.send(codec.encode(message))

    def send_raw(self, *frames: bytes) -> None:
        """Send bytes."""
        self.socket.send_multipart(frames)

    def receive(self, wait_ms: int = WAIT_MS) -> Any:
        """Return the next message, Pongs left out. Raises Nothing."""
        if self._kept:
            return self._kept.pop(0)
        while self.socket.poll(wait_ms):
            message = self._decode(self.socket.recv())
            if not isinstance(message, messages.Pong):
                return message
        raise Nothing

    def expect(self, kind: type[M], wait_ms: int = WAIT_MS) -> M:
        """Return the next message of this kind; others before it are kept for `receive`."""
        for index, message in enumerate(self._kept):
            if isinstance(message, kind):
                return self._kept.pop(index)
        while self.socket.poll(wait_ms):
            message = self._decode(self.socket.recv())
            if isinstance(message, kind):
                return message
            self._kept.append(message)
        raise Nothing(f"no {kind.__name__}; got {self._kept}")


class FakeManager(FakeLink):
    """A manager with its mapper: registers an endpoint, takes start requests, verifies and opens them."""

    def __init__(self, relay: Any, token: str, **body: Any) -> None:
        self.unseal = X25519PrivateKey.generate()
        self.epoch = os.urandom(16)
        public, secret = zmq.curve_keypair()
        status, answer = relay.request(
            "POST",
            "/v3/endpoints",
            token,
            {
                "endpoint_name": "lab",
                "multi_user": True,
                "link_public_key": public.decode(),
                "unseal_public_key": self.unseal.public_key().public_bytes_raw().hex(),
                **body,
            },
        )
        assert status == 200, answer
        self.endpoint_id = answer["endpoint_id"]
        self.signing_key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(answer["signing_public_key"]))
        self.relay_key = bytes.fromhex(answer["link_public_key"])
        super().__init__(answer["link_address"], self.relay_key, codec.decode_to_manager, z85.decode(secret))

    def hello(self, running: list[str] | None = None, incarnations: list[bytes] | None = None) -> FakeManager:
        """Say hello and report the running user endpoints; without incarnations, as an older manager does."""
        self.send(
            messages.ManagerHello(
                protocol=PROTOCOL_VERSION, endpoint_id=self.endpoint_id, epoch=self.epoch, version="t", hostname="h"
            )
        )
        self.expect(messages.ManagerWelcome)
        self.send(messages.RunningUeps(uep_ids=running or [], incarnations=incarnations or []))
        return self

    def take_start(self, wait_ms: int = WAIT_MS) -> tuple[StartRequest, bytes]:
        """Return the next start request, verified, and its opened join token."""
        signed = self.expect(messages.SignedStart, wait_ms)
        self.signing_key.verify(signed.signature, SIGNATURE_CONTEXT + signed.request)
        request = decode_start(signed.request)
        suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
        token = suite.decrypt(request.sealed_join_token, self.unseal, SEAL_CONTEXT + request.uep_id.encode())
        return request, token

    def answer(self, uep_id: str, outcome: str, code: str = "", text: str = "", **named: bytes) -> None:
        """Answer a start request. `named`: `asked` and `incarnation`, of which an older manager says nothing."""
        said = {"outcome": outcome, "code": code, "text": text}
        self.send(messages.StartAnswer(uep_id=uep_id, correlation_id="c-1", **said, **named))

    def start(self, **options: Any) -> FakeUep:
        """Take a start request, answer it and return the user endpoint, joined."""
        request, token = self.take_start()
        self.answer(request.uep_id, "started")
        return FakeUep(self, request, token, **options).join()

    def ended(self, uep_id: str, code: str = "KILLED", text: str = "killed", incarnation: bytes = b"") -> None:
        """Report the end of a user endpoint's process."""
        said = {"code": code, "text": text, "correlation_id": "c-2"}
        self.send(messages.UepEnded(uep_id=uep_id, **said, incarnation=incarnation))


class FakeUep(FakeLink):
    """A user endpoint."""

    takes_inputs = False
    """Whether it takes the results of other tasks; one of an older version does not."""

    def __init__(self, manager: FakeManager, request: StartRequest, token: bytes, **options: Any) -> None:
        self.request, self.token, self.uep_id = request, token, request.uep_id
        self.incarnation = incarnation_of(token)
        self.functions: dict[str, bytes] = {}
        super().__init__(manager._address, manager.relay_key, codec.decode_to_uep, **options)

    def join(self) -> FakeUep:
        """Spend the join token."""
        takes = {"takes_inputs": self.takes_inputs}
        self.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=self.uep_id, token=self.token, **takes))
        self.expect(messages.UepWelcome)
        return self

    def hello(self, held: list[int]) -> FakeUep:
        """Come back on a new link."""
        takes = {"takes_inputs": self.takes_inputs}
        self.send(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id=self.uep_id, held=held, **takes))
        self.expect(messages.UepWelcome)
        return self

    def credit(self, grant: int) -> None:
        """Ask for tasks."""
        self.send(messages.Credit(grant=grant))

    def take(self, count: int, wait_ms: int = WAIT_MS) -> list[messages.TaskItem]:
        """Return the next `count` tasks, however many messages they come in."""
        tasks: list[messages.TaskItem] = []
        while len(tasks) < count:
            message = self.expect(messages.Tasks, wait_ms)
            self.functions.update({item.function_id: item.code for item in message.functions})
            tasks += message.tasks
        return tasks

    def finish(self, tasks: list[messages.TaskItem], value: bytes = b"done", code: str = "", text: str = "") -> None:
        """Return results and wait until they are durable."""
        self.send_results(tasks, value, code, text)
        rows: set[int] = set()
        while rows < {task.row for task in tasks}:
            rows |= set(self.expect(messages.ResultsDurable).rows)

    def send_results(self, tasks: list[messages.TaskItem], value: bytes, code: str = "", text: str = "") -> None:
        """Return results."""
        items = [messages.ResultItem(t.row, t.task_id, code, text, value, 1.0, 2.0) for t in tasks]
        self.send(messages.Results(items=items))
