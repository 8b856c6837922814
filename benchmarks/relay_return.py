"""Measures how soon work goes on once the relay is back: real relay, manager, user endpoint and SDK.

The monitor is a thread here: it opens start requests as the mapper would, and starts the user endpoint. A task is
submitted during the outage, and another after it. The figures are seconds from the relay's return.
Run: `python benchmarks/relay_return.py [restart frozen flapping accepting many]`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last, so that the installed code is measured

import msgspec
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from mep.boundary.channel import Channel
from mep.boundary.log import Log
from mep.boundary.memfd import read_sealed
from mep.boundary.messages import MapperEpoch, StartAnswered, StartEndpoint, StartOutcome
from mep.boundary.resolved_config import ManagerSection
from mep.manager.manager import Manager
from mep_link.client import LinkClient, options
from mep_sdk import Client, Executor
from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.start_request import SEAL_CONTEXT, VerifiedStart, decode_start, incarnation_of
from tests.support.fake_peer import FakeManager
from tests.support.link_proxy import LinkProxy
from tests.support.relay import RelayProcess
from tests.support.uep_process import TEMPLATE, UepProcess, account, private_home

OUTAGE_S = 33.0
DURING_S = 10.0
"""When, from the outage's start, the first of the two tasks is submitted."""
GIVE_UP_S = 180.0
MANY, HOSTS = 1000, 4


def add(a: int, b: int) -> int:
    """The function of every task."""
    return a + b


class Joining(UepProcess):
    """A user endpoint with the relay's own start request."""

    def __init__(self, address: str, key: bytes, home: Path, request: bytes, token: bytes) -> None:
        self._request, self._token = request, token
        self.address, self.raw_key = address, key
        super().__init__(self, home, uep_id=decode_start(request).uep_id, template=TEMPLATE)  # type: ignore[arg-type]

    def _verified(self, config: object) -> VerifiedStart:
        return VerifiedStart(
            request=self._request, join_token=self._token, local_user=account().pw_name, mapped_identity={}
        )


class Site:
    """A manager in a thread, and the monitor's end of its channel in another."""

    def __init__(self, fake: FakeManager, address: str, home: Path) -> None:
        self.ueps: list[Joining] = []
        self._ended = False
        self._fake, self._address, self._home = fake, address, home
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = Channel(self._socket, blocking=True)
        section = ManagerSection(
            endpoint_id=fake.endpoint_id,
            relay_link_address=address,
            relay_link_key=fake.relay_key.hex(),
            account="mep",
            link_key_path="",
        )
        manager = Manager(section, fake.secret_key, Channel(theirs), Log("manager", "WARNING"))
        self._channel.send(MapperEpoch(epoch=fake.epoch))
        threading.Thread(target=manager.run, daemon=True).start()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self._ended and (received := self._channel.receive()) is not None:
            message, descriptors = received
            if isinstance(message, StartEndpoint):
                self._start(message.ref, descriptors[0])

    def _start(self, ref: int, descriptor: int) -> None:
        request, _signature = msgspec.msgpack.decode(read_sealed(descriptor, 1 << 20))
        os.close(descriptor)
        read = decode_start(request)
        suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
        sealed, context = read.sealed_join_token, SEAL_CONTEXT + read.uep_id.encode()
        token = suite.decrypt(sealed, self._fake.unseal, context)
        self.ueps.append(Joining(self._address, self._fake.relay_key, self._home, request, token))
        named = incarnation_of(token)
        answer = StartAnswered(
            ref=ref,
            uep_id=read.uep_id,
            outcome=StartOutcome.STARTED,
            code="",
            public="",
            correlation_id=str(uuid.uuid4()),
            incarnation=named,
        )
        self._channel.send(answer)

    def joins(self) -> int:
        """How often the user endpoint has been welcomed."""
        return sum(uep.log().count("joined the relay") for uep in self.ueps)

    def close(self) -> None:
        """End the user endpoints, and the manager."""
        for uep in self.ueps:
            uep.__exit__()
        self._ended = True
        self._socket.shutdown(socket.SHUT_RDWR)


def wait(condition: Callable[[], object]) -> float:
    """Return the moment at which `condition` holds. Raises TimeoutError."""
    deadline = time.monotonic() + GIVE_UP_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic()


def restart(relay: RelayProcess, _proxy: LinkProxy | None) -> float:
    """Kill it; start it again after the outage."""
    relay.kill()
    time.sleep(OUTAGE_S)
    relay.start()
    return time.monotonic()


def frozen(relay: RelayProcess, _proxy: LinkProxy) -> float:
    """Stop its process, and let it go on."""
    os.kill(relay.pid, signal.SIGSTOP)
    time.sleep(OUTAGE_S)
    os.kill(relay.pid, signal.SIGCONT)
    return time.monotonic()


def long_frozen(relay: RelayProcess, _proxy: LinkProxy) -> float:
    """Stop its process for longer than a silent link is kept, and let it go on."""
    os.kill(relay.pid, signal.SIGSTOP)
    time.sleep(2 * OUTAGE_S)
    os.kill(relay.pid, signal.SIGCONT)
    return time.monotonic()


def flapping(relay: RelayProcess, _proxy: LinkProxy) -> float:
    """Kill it every two seconds; start it again after three."""
    for _ in range(10):
        relay.kill()
        time.sleep(3)
        relay.start()
        time.sleep(2)
    relay.kill()
    time.sleep(3)
    relay.start()
    return time.monotonic()


def accepting(relay: RelayProcess, proxy: LinkProxy) -> float:
    """Kill it behind a proxy that goes on accepting connections."""
    return restart(relay, proxy)


def many(directory: Path) -> None:
    """Have 1,000 managers lose the relay at the same instant, and print how they come back."""
    with RelayProcess(directory) as relay:
        token = relay.add_user("ada@example.edu")
        keys = [registered(relay, token) for _ in range(MANY)]
        pipes, processes = [], []
        for number in range(HOSTS):
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=host, args=(theirs, relay.link_address, keys[number::HOSTS]))
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            assert pipe.recv() == "all up"
        restart(relay, None)
        back = time.monotonic()
        returned = sorted(when - back for pipe in pipes for when in pipe.recv())
        slots = Counter(int(when / 0.1) for when in returned)
        for process in processes:
            process.terminate()
            process.join()
    print(
        f"{MANY} links    first {returned[0]:.2f} s, half {returned[MANY // 2]:.2f} s, last {returned[-1]:.2f} s, "
        f"at most {max(slots.values())} in 0.1 s",
        flush=True,
    )


def registered(relay: RelayProcess, token: str) -> tuple[str, bytes, bytes]:
    """Register an endpoint; return its id, the relay's key and the manager's secret."""
    fake = FakeManager(relay, token)
    fake.close()
    return fake.endpoint_id, fake.relay_key, fake.secret_key


def host(pipe: Connection, address: str, keys: list[tuple[str, bytes, bytes]]) -> None:
    """Hold a link for each of `keys`; tell when all are up, and when each is up again after a loss."""
    links = [link(address, *each) for each in keys]
    up_at: dict[int, float] = {}
    told = False
    while True:
        poll = select.poll()
        owners = {fd: number for number, each in enumerate(links) for fd in each.descriptors()}
        for fd in owners:
            poll.register(fd, select.POLLIN)
        now = time.monotonic()
        due = min(each.next_deadline() for each in links)
        busy = any(each.pending for each in links)
        poll.poll(0 if busy else min(50.0, max(0.0, due - now) * 1000))
        for number, each in enumerate(links):
            each.receive()
            each.tick()
            if each.welcomed and (not told or each.losses):
                up_at.setdefault(number, time.monotonic())
        if len(up_at) == len(links):
            pipe.send("all up" if not told else list(up_at.values()))
            if told:
                return
            told, up_at = True, {}


def link(address: str, endpoint_id: str, relay_key: bytes, secret: bytes) -> LinkClient[messages.ToManager]:
    """Return a manager's link that has not been begun."""
    made = LinkClient(address, options(relay_key, secret, max_inbound_bytes=1 << 20), codec.decode_to_manager)
    made.hello = lambda: messages.ManagerHello(
        protocol=PROTOCOL_VERSION, endpoint_id=endpoint_id, epoch=b"e" * 16, version="t", hostname="h"
    )
    return made


SCENARIOS = {each.__name__: each for each in (restart, frozen, long_frozen, flapping, accepting)}


@contextlib.contextmanager
def scene(directory: Path, *, proxied: bool) -> Iterator[tuple[RelayProcess, LinkProxy, Site, Executor]]:
    """Yield a relay, a proxy before its link, an endpoint, and a person's executor that has run one task."""
    with RelayProcess(directory) as relay, private_home() as home:
        token = relay.add_user("ada@example.edu")
        fake = FakeManager(relay, token)
        fake.close()
        proxy = LinkProxy(relay.link_address)
        site = Site(fake, proxy.address if proxied else relay.link_address, home)
        try:
            with Executor(endpoint_id=fake.endpoint_id, client=Client(relay.url, token)) as executor:
                assert executor.submit(add, 1, 2).result(120) == 3
                yield relay, proxy, site, executor
        finally:
            site.close()


def measure(name: str, directory: Path) -> None:
    """Run one scenario and print its figures."""
    with scene(directory, proxied=name == "accepting") as (relay, proxy, site, executor):
        ended: dict[str, float] = {}

        def submit(kind: str) -> None:
            assert executor.submit(add, 3, 4).result(GIVE_UP_S) == 7
            ended[kind] = time.monotonic()

        joins = site.joins()
        threads: list[threading.Thread] = [threading.Timer(DURING_S, submit, ("during",))]
        threads[0].start()
        back = SCENARIOS[name](relay, proxy)
        threads.append(threading.Thread(target=submit, args=("after",)))
        threads[1].start()
        joined = wait(lambda: site.joins() > joins or "after" in ended)
        for thread in threads:
            thread.join(GIVE_UP_S)
        print(
            f"{name:12} joined {max(0.0, joined - back):6.2f} s, result of a task submitted in the outage "
            f"{ended['during'] - back:6.2f} s, of one submitted after it {ended['after'] - back:6.2f} s",
            flush=True,
        )


def main() -> None:
    """Measure what the command line names, or everything."""
    for name in sys.argv[1:] or [*SCENARIOS, "many"]:
        with tempfile.TemporaryDirectory() as directory:
            if name == "many":
                many(Path(directory))
            else:
                measure(name, Path(directory))


if __name__ == "__main__":
    main()
