"""An endpoint in one process for tests of the SDK: manager and user endpoints on the real link, tasks run inline.

It changes no account: every user endpoint is a separate link in this process, and a task is a call of
`mep_sdk.task_runner.run_task`. It comes back by itself when the relay does. `FakeEndpoint(relay, token)` starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from typing import Any, Self

import msgspec
import zmq
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from zmq.utils import z85

from mep_sdk.task_runner import FunctionCache, keep_output, run_task
from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.api import RegisterAnswer
from mep_wire.errors import TaskCancelled
from mep_wire.start_request import SEAL_CONTEXT, decode_start

CREDIT = 512
PING_S = 0.5
WORKER_PYTHON = os.environ.get("MEP_TEST_WORKER_PYTHON", "")
"""The Python that it reports for its workers."""


class FakeEndpoint:
    """Registers a multi-user endpoint as the token's owner and serves it until `stop`."""

    def __init__(self, relay: Any, token: str, *, serve: bool = True, **body: Any) -> None:
        self.unseal, (public, self.secret) = X25519PrivateKey.generate(), zmq.curve_keypair()
        keys = {
            "link_public_key": public.decode(),
            "unseal_public_key": self.unseal.public_key().public_bytes_raw().hex(),
        }
        status, answer = relay.request(
            "POST", "/v3/endpoints", token, {"endpoint_name": "stand-in", "multi_user": True, **keys, **body}
        )
        assert status == 200, answer
        self.registered = msgspec.convert(answer, RegisterAnswer)
        self.endpoint_id = self.registered.endpoint_id
        self._process: subprocess.Popen[bytes] | None = None
        if serve:
            self.start()

    def start(self) -> Self:
        """Begin to serve."""
        given = {
            "registered": msgspec.to_builtins(self.registered),
            "secret": self.secret.decode(),
            "unseal": self.unseal.private_bytes_raw().hex(),
        }
        self._process = subprocess.Popen([sys.executable, "-P", __file__], stdin=subprocess.PIPE)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(given).encode() + b"\n")
        self._process.stdin.flush()
        return self

    def stop(self) -> None:
        """End it: it ends with its standard input."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


# --- in its own process ---------------------------------------------------------------------------------


class Link:
    """A CURVE link to the relay."""

    def __init__(self, registered: RegisterAnswer, secret: bytes) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 100
        self.socket.curve_secretkey, self.socket.curve_publickey = secret, zmq.curve_public(secret)
        self.socket.curve_serverkey = z85.encode(bytes.fromhex(registered.link_public_key))
        self.socket.reconnect_ivl = 20
        self.socket.connect(registered.link_address)

    def send(self, message: Any) -> None:
        """Send a message."""
        self.socket.send(codec.encode(message))


class Uep(Link):
    """One user endpoint: takes tasks, runs them one after another, returns results."""

    def __init__(self, registered: RegisterAnswer, uep_id: str, token: bytes) -> None:
        super().__init__(registered, zmq.curve_keypair()[1])
        self.uep_id = uep_id
        self.functions: dict[str, bytes] = {}
        self.queue: deque[messages.TaskItem] = deque()
        self.spool: dict[int, messages.ResultItem] = {}
        self.ready: list[messages.ResultItem] = []
        self.cache: FunctionCache = {}
        self.send(messages.Join(protocol=PROTOCOL_VERSION, uep_id=uep_id, token=token))

    def take(self, message: Any) -> None:
        """Carry out the relay's messages."""
        if isinstance(message, messages.Tasks):
            self.functions.update({item.function_id: item.code for item in message.functions})
            self.queue.extend(message.tasks)
        elif isinstance(message, messages.ResultsDurable):
            for row in message.rows:
                self.spool.pop(row, None)
        elif isinstance(message, messages.CancelTasks):
            for task in [each for each in self.queue if each.row in message.rows]:
                self.queue.remove(task)
                self._end(messages.ResultItem(task.row, task.task_id, TaskCancelled.code, "cancelled", b""))
        elif isinstance(message, messages.Refused):
            held = [*self.spool, *(task.row for task in self.queue)]
            self.send(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id=self.uep_id, held=held))
        elif isinstance(message, messages.UepWelcome):
            if self.spool:
                self.send(messages.Results(items=list(self.spool.values())))
            self.send(messages.Credit(grant=CREDIT - len(self.queue), worker_python=WORKER_PYTHON))

    def work(self) -> None:
        """Run one task; return results once there is nothing left to run, or enough of them."""
        if self.queue:
            task = self.queue.popleft()
            began = time.time()
            code = self.functions[task.function_id]
            outcome = run_task(code, task.payload, max_result_bytes=10 << 20, cache=self.cache)
            result = messages.ResultItem(
                task.row, task.task_id, outcome.code, outcome.text, outcome.payload, began, time.time()
            )
            self._end(result)
        if self.ready and (not self.queue or len(self.ready) >= CREDIT // 4):
            self.send(messages.Credit(grant=len(self.ready), worker_python=WORKER_PYTHON))
            self.send(messages.Results(items=self.ready))
            self.ready = []

    def _end(self, result: messages.ResultItem) -> None:
        self.spool[result.row] = result
        self.ready.append(result)


class Manager(Link):
    """The manager with its mapper: every start request gets its user endpoint."""

    def __init__(self, registered: RegisterAnswer, secret: bytes, unseal: bytes) -> None:
        super().__init__(registered, secret)
        self.registered, self.unseal = registered, X25519PrivateKey.from_private_bytes(unseal)
        self.ueps: dict[str, Uep] = {}
        self.hello()

    def hello(self) -> None:
        """Say hello; on `ManagerWelcome` report the running user endpoints."""
        self.send(
            messages.ManagerHello(
                protocol=PROTOCOL_VERSION,
                endpoint_id=self.registered.endpoint_id,
                epoch=b"e" * 16,
                version="t",
                hostname="h",
            )
        )

    def take(self, message: Any) -> Uep | None:
        """Carry out the relay's messages; return a user endpoint that this started."""
        if isinstance(message, messages.Refused):
            self.hello()
        elif isinstance(message, messages.ManagerWelcome):
            self.send(messages.RunningUeps(uep_ids=list(self.ueps)))
        elif isinstance(message, messages.SignedStart):
            running = message.uep_id in self.ueps
            outcome = "already_running" if running else "started"
            self.send(
                messages.StartAnswer(uep_id=message.uep_id, outcome=outcome, code="", text="", correlation_id="c")
            )
            if not running:
                return self._start(message)
        return None

    def _start(self, message: messages.SignedStart) -> Uep:
        request = decode_start(message.request)
        suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
        token = suite.decrypt(request.sealed_join_token, self.unseal, SEAL_CONTEXT + request.uep_id.encode())
        uep = self.ueps[request.uep_id] = Uep(self.registered, request.uep_id, token)
        return uep


def serve(manager: Manager) -> None:
    """Serve until standard input ends."""
    poller = zmq.Poller()
    poller.register(0, zmq.POLLIN)
    poller.register(manager.socket, zmq.POLLIN)
    pinged = time.monotonic()
    while True:
        busy = any(uep.queue for uep in manager.ueps.values())
        ready = dict(poller.poll(0 if busy else PING_S * 1000))
        if 0 in ready:
            return
        for link in [manager, *manager.ueps.values()]:
            while link.socket.poll(0):
                data = link.socket.recv()
                if isinstance(link, Uep):
                    link.take(codec.decode_to_uep(data))
                elif (uep := link.take(codec.decode_to_manager(data))) is not None:
                    poller.register(uep.socket, zmq.POLLIN)
        for uep in manager.ueps.values():
            uep.work()
        if time.monotonic() - pinged > PING_S:
            pinged = time.monotonic()
            for link in [manager, *manager.ueps.values()]:
                link.send(messages.Ping(sent_at=pinged))  # a relay that has restarted answers with a refusal


def main() -> None:
    """Read who to be from standard input, and be it."""
    keep_output()
    given = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[attr-defined]
    registered = msgspec.convert(given["registered"], RegisterAnswer)
    serve(Manager(registered, given["secret"].encode(), bytes.fromhex(given["unseal"])))


if __name__ == "__main__":
    main()
