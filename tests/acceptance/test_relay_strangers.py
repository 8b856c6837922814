"""A client without a token can make the relay hold next to nothing, and not for long."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mep_wire import PROTOCOL_VERSION, codec, messages
from relay.api.http_protocol import MAX_HEAD_BYTES
from relay.dispatch.dispatcher import MAX_STRANGER_BYTES
from tests.support.fake_peer import FakeLink, FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until


class HastyRelay(RelayProcess):
    """A relay that waits half a second for the head of a request, and one for its body and for the client to read."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        patch = "import relay.api.http_protocol as c; c.HEAD_S, c.BODY_S, c.UNREAD_S = 0.5, 1.0, 1.0;"
        return [*python, f"{patch} {code}", *words, "--state", str(self.state)]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HastyRelay]:
    with HastyRelay(tmp_path_factory.mktemp("relay")) as running:
        yield running


@pytest.fixture
def stranger(relay: RelayProcess) -> Iterator[socket.socket]:
    parts = urlsplit(relay.url)
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=10) as connection:
        yield connection


def heard(connection: socket.socket) -> bytes:
    """Return everything until the relay closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


def resident_kb(relay: RelayProcess) -> int:
    text = Path(f"/proc/{relay.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize("line", [b"a: " + b"x" * 1000 + b"\r\n", b"x" * 1000])
def test_endless_headers_are_cut_off(relay: RelayProcess, stranger: socket.socket, line: bytes) -> None:
    before = resident_kb(relay)
    stranger.sendall(b"GET /v2/version HTTP/1.1\r\nhost: x\r\nb: ")
    with contextlib.suppress(OSError):
        for _ in range(20_000):
            stranger.sendall(line)
    assert resident_kb(relay) - before < 10 * 1024
    assert heard(stranger)[:12] in (b"HTTP/1.1 400", b"")  # the answer may be lost with the connection


def test_a_head_within_the_limit_is_read(stranger: socket.socket) -> None:
    head = b"GET /v2/version HTTP/1.1\r\nhost: x\r\nconnection: close\r\nb: " + b"x" * (MAX_HEAD_BYTES - 1000)
    stranger.sendall(head + b"\r\n\r\n")
    assert heard(stranger).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("said", [b"", b"GET /v2/version HTTP/1.1\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for(stranger: socket.socket, said: bytes) -> None:
    stranger.sendall(said)
    assert heard(stranger) == b""


def test_nor_is_that_of_a_second_request(stranger: socket.socket) -> None:
    stranger.sendall(b"GET /v2/version HTTP/1.1\r\nhost: x\r\n\r\n")
    assert stranger.recv(65536).startswith(b"HTTP/1.1 200")
    stranger.sendall(b"GET /v2/ver")
    heard(stranger)


def test_a_body_that_nobody_reads_is_not_waited_for(stranger: socket.socket) -> None:
    stranger.sendall(b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\nx")
    assert heard(stranger).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    "rest",
    [
        b"content-length: 5\r\n\r\nhello",
        b"content-length: 100000\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n",
        b"a: " + b"x" * 9000 + b"\r\n\r\n",
        b"".join(b"a%d: x\r\n" % number for number in range(200)) + b"\r\n",
    ],
    ids=["body", "long body", "chunked", "long header", "many headers"],
)
def test_a_websocket_that_cannot_be_is_refused(stranger: socket.socket, rest: bytes) -> None:
    key = b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    upgrade = b"host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    stranger.sendall(b"GET /v3/stream HTTP/1.1\r\n" + upgrade + key + rest)
    assert heard(stranger).startswith(b"HTTP/1.1 400")


def test_a_person_that_sends_pings_and_reads_no_answer_is_cut_off(relay: RelayProcess) -> None:
    parts, token = urlsplit(relay.url), Person(relay, "pia").token
    key = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    upgrade = f"host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nauthorization: Bearer {token}\r\n{key}\r\n"
    pings = 500 * (b"\x89\xe4\0\0\0\0" + b"x" * 100)
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=60) as pia:
        pia.sendall(f"GET /v3/stream HTTP/1.1\r\n{upgrade}".encode())
        assert pia.recv(100).startswith(b"HTTP/1.1 101")
        before = resident_kb(relay)
        with pytest.raises(OSError, match=r"reset|[Bb]roken"):
            for _ in range(1000):  # 50 MB
                pia.sendall(pings)
        assert resident_kb(relay) - before < 20 * 1024


def test_a_client_that_does_not_read_is_not_waited_for(relay: RelayProcess) -> None:
    """A hundred answers are more than the buffers of both sides hold."""

    def is_there(port: int) -> bool:
        rows = Path(f"/proc/{relay.pid}/net/tcp").read_text().splitlines()
        return any(row.split()[2].endswith(f":{port:04X}") and row.split()[9] != "0" for row in rows[1:])

    parts = urlsplit(relay.url)
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=10) as stranger:
        port = stranger.getsockname()[1]
        stranger.sendall(100 * b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n")
        until("its first answer", lambda: stranger.recv(1, socket.MSG_PEEK))
        until("the end of its connection", lambda: not is_there(port))
        assert heard(stranger).count(b"HTTP/1.1 200") < 100


def test_a_result_stream_outlives_these_limits(relay: RelayProcess) -> None:
    alice = Person(relay, "alice")
    endpoint = {"endpoint_name": "e", "link_public_key": "ab" * 32, "unseal_public_key": "cd" * 32}
    endpoint_id = alice.ok("POST", "/v3/endpoints", endpoint)["endpoint_id"]
    answer = alice.submit(endpoint_id, alice.function(), ["x"])
    stream = alice.stream(answer["task_group_id"])
    with contextlib.suppress(TimeoutError):
        stream.results(1, 1.5)
    ids = [task_id for ids in answer["tasks"].values() for task_id in ids]
    alice.ok("POST", "/v3/tasks/cancel", {"task_ids": ids})
    assert len(stream.results(1)) == 1


def test_a_stranger_on_the_endpoint_link_may_not_say_much(relay: RelayProcess) -> None:
    lab = FakeManager(relay, Person(relay, "owner").token)
    stranger = FakeLink(lab._address, lab.relay_key, codec.decode_to_uep)
    stranger.send(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id="x", held=[2**60] * (MAX_STRANGER_BYTES // 10)))
    assert stranger.expect(messages.Refused).code == "JOIN_REFUSED"
    stranger.close()
    stranger.connect()
    stranger.send_raw(b"x" * (MAX_STRANGER_BYTES + 1))
    told = stranger.expect(messages.Refused)
    assert told.code == "LINK_MESSAGE_INVALID"
    assert "not welcome yet" in told.text


def test_the_relay_may_open_as_many_files_as_it_is_allowed(relay: RelayProcess) -> None:
    limits = Path(f"/proc/{relay.pid}/limits").read_text().partition("Max open files")[2].split()
    assert limits[0] == limits[1]


def test_what_libraries_say_of_a_strangers_bytes_is_said_once(relay: RelayProcess) -> None:
    parts = urlsplit(relay.url)
    for _ in range(50):
        with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=10) as connection:
            connection.sendall(b"this is not HTTP\r\n\r\n")
            heard(connection)
    until("the refusal in the log", lambda: "Invalid HTTP request" in relay.log.read_text())
    assert relay.log.read_text().count("Invalid HTTP request") == 1


class PoorRelay(RelayProcess):
    """A relay with few descriptors."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120));"
        return [*python, f"{limit} {code}", *words, "--state", str(self.state)]


def cpu_ticks(relay: RelayProcess) -> int:
    fields = Path(f"/proc/{relay.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_out_of_descriptors_http_connections_wait_and_those_there_are_served(tmp_path: Path) -> None:
    with PoorRelay(tmp_path) as relay, contextlib.ExitStack() as stack:
        address = (str(urlsplit(relay.url).hostname), urlsplit(relay.url).port or 0)
        token = relay.add_user("alice@example.edu")
        lab = FakeManager(relay, token)
        lab.close()
        first = stack.enter_context(socket.create_connection(address, timeout=60))
        idle = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(300)]
        until("the shortage in the log", lambda: "out of descriptors" in relay.log.read_text())
        before = cpu_ticks(relay)
        first.sendall(b"GET /v2/version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert heard(first).startswith(b"HTTP/1.1 200")
        lab.connect()
        lab.hello()  # a new connection of the link
        assert cpu_ticks(relay) - before < 100
        for connection in idle:
            connection.close()
        status, _ = relay.request("GET", "/v2/endpoints", token)
        assert status == 200
        assert relay.log.read_text().count("out of descriptors") <= 3
        assert "accept() out of system resource" not in relay.log.read_text()


def test_out_of_descriptors_new_links_wait_and_links_that_are_up_are_served(tmp_path: Path) -> None:
    with PoorRelay(tmp_path) as relay, contextlib.ExitStack() as stack:
        lab = FakeManager(relay, relay.add_user("alice@example.edu"))
        lab.hello()
        host, _, port = relay.link_address.removeprefix("tcp://").rpartition(":")

        def exhausted() -> bool:
            silent = stack.enter_context(socket.socket())
            silent.settimeout(1.0)
            silent.connect_ex((host, int(port)))
            return "link: out of descriptors" in relay.log.read_text()

        until("no free descriptor", exhausted)
        before = cpu_ticks(relay)
        lab.hello()
        assert relay.request("GET", "/v2/version")[0] == 200
        assert relay.log.read_text().count("link: out of descriptors") <= 3
        stack.close()
        again = FakeLink(lab._address, lab.relay_key, codec.decode_to_uep)
        again.send(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id="x", held=[]))
        assert again.expect(messages.Refused, 60_000).code == "JOIN_REFUSED"
        assert cpu_ticks(relay) - before < 200
