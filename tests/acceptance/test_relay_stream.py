"""The result stream: replay after a cursor, push at once, and a slow client costs the relay nothing."""

from __future__ import annotations

import socket
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from mep_wire import api, messages
from tests.support.fake_peer import FakeManager, FakeUep
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person, Stream


class Group:
    """A task group of one person on one endpoint, with a user endpoint that ends its tasks on order."""

    def __init__(self, relay: RelayProcess, alice: Person) -> None:
        self.alice, self.lab = alice, FakeManager(relay, alice.token).hello()
        self.function, self.group_id = alice.function(), str(uuid.uuid4())
        self.uep: FakeUep | None = None

    def end(self, count: int, value: bytes = b"value") -> list[str]:
        """Submit and end tasks; return their ids."""
        answer = self.alice.submit(self.lab.endpoint_id, self.function, ["p"] * count, task_group_id=self.group_id)
        if self.uep is None:
            self.uep = self.lab.start()
        self.uep.credit(count)
        tasks = self.uep.take(count)
        for start in range(0, count, 50):
            self.uep.finish(tasks[start : start + 50], value)
        ids: list[str] = answer["tasks"][self.function]
        return ids


@pytest.fixture
def group(relay: RelayProcess, alice: Person) -> Group:
    return Group(relay, alice)


def test_what_ended_before_is_replayed_and_what_ends_later_is_pushed(group: Group, alice: Person) -> None:
    before = group.end(3)
    stream = alice.stream(group.group_id)
    assert [one.task_id for one in stream.results(3)] == before
    later = group.end(1)
    assert [one.task_id for one in stream.results(1)] == later
    stream.close()


def test_a_cursor_gives_only_what_came_later(group: Group, alice: Person) -> None:
    group.end(2)
    first = alice.stream(group.group_id)
    first.results(2)
    first.close()
    later = group.end(2)
    second = alice.stream(group.group_id, cursor=first.cursor)
    assert [one.task_id for one in second.results(2)] == later
    second.close()


def test_several_streams_of_one_group_all_get_everything(group: Group, alice: Person) -> None:
    ids = group.end(1)
    streams = [alice.stream(group.group_id) for _ in range(3)]
    assert all([one.task_id for one in stream.results(1)] == ids for stream in streams)
    later = group.end(2)
    assert all([one.task_id for one in stream.results(2)] == later for stream in streams)
    for stream in streams:
        stream.close()


def test_a_push_comes_at_once(group: Group, alice: Person) -> None:
    group.end(1)
    stream = alice.stream(group.group_id)
    stream.results(1)
    times = []
    for _ in range(30):
        group.end(1)
        before = time.monotonic()
        stream.results(1)
        times.append(time.monotonic() - before)
    assert sorted(times)[15] < 1.0  # no poll of a second or more stands between
    stream.close()


def test_pages_are_bounded(group: Group, alice: Person) -> None:
    group.end(40, value=b"x" * 500_000)  # 20 MB
    stream = alice.stream(group.group_id)
    seen = 0
    while seen < 40:
        batch = stream.next()
        assert sum(len(one.payload) for one in batch.results) <= 1024 * 1024
        seen += len(batch.results)
    stream.close()


def resident_kb(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def deaf_stream(relay: RelayProcess, alice: Person, group_id: str) -> socket.socket:
    """Open a stream by hand and never read from it."""
    host, _, port = relay.url.removeprefix("http://").rpartition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(
        (
            "GET /v3/stream HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {alice.token}\r\n\r\n"
        ).encode()
    )
    assert b"101" in sock.recv(100)
    payload = msgspec.msgpack.encode(api.Subscribe(task_group_id=group_id))
    assert len(payload) < 126
    sock.sendall(bytes([0x82, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
    return sock


def test_slow_clients_cost_no_memory_and_disturb_no_other(relay: RelayProcess, group: Group, alice: Person) -> None:
    group.end(100, value=b"x" * 200_000)  # 20 MB waits for each
    before = resident_kb(relay.pid)
    deaf = [deaf_stream(relay, alice, group.group_id) for _ in range(20)]
    group.end(200, value=b"x" * 200_000)
    live = alice.stream(group.group_id)
    assert len(live.results(300, timeout=30)) == 300
    live.close()
    assert resident_kb(relay.pid) - before < 100_000  # of 1,200 MB that were not taken
    for sock in deaf:
        sock.close()


# --- refusals ---------------------------------------------------------------------------------------


def refusal(alice: Person, first: bytes | str) -> tuple[Any, int]:
    url = alice.relay.url.replace("http", "ws", 1) + "/v3/stream"
    headers = {"Authorization": f"Bearer {alice.token}"}
    with connect(url, additional_headers=headers) as stream:
        stream.send(first)
        frame = msgspec.msgpack.decode(stream.recv(10), type=api.StreamFrame)
        with pytest.raises(ConnectionClosed) as closed:
            stream.recv(10)
    return frame, closed.value.rcvd.code if closed.value.rcvd else 0


def test_an_unknown_token_gets_no_stream(relay: RelayProcess) -> None:
    url = relay.url.replace("http", "ws", 1)
    for path, headers, status in [
        ("/v3/stream", {}, 401),
        ("/v3/stream", {"Authorization": "Bearer nonsense"}, 401),
        ("/v3/nonsense", {}, 404),
    ]:
        with pytest.raises(InvalidStatus) as refused, connect(url + path, additional_headers=headers):
            pass
        assert refused.value.response.status_code == status
        assert msgspec.json.decode(refused.value.response.body)["http_status_code"] == status


def test_another_persons_group_is_not_found(relay: RelayProcess, group: Group) -> None:
    group.end(1)
    bob = Person(relay, "bob")
    for wanted in (group.group_id, str(uuid.uuid4()), "nonsense"):
        frame, close = refusal(bob, msgspec.msgpack.encode(api.Subscribe(task_group_id=wanted)))
        assert (frame.code, close) == ("TASK_GROUP_NOT_FOUND", 4404)


@pytest.mark.parametrize("first", [b"", b"nonsense", "text", b"\x80", msgspec.msgpack.encode({"type": "Subscribe"})])
def test_a_bad_first_frame_is_refused(alice: Person, first: bytes | str) -> None:
    frame, close = refusal(alice, first)
    assert (frame.code, close) == ("BODY_INVALID", 4422)


@pytest.mark.parametrize("cursor", [-1, 2**63])
def test_a_cursor_that_no_batch_had(group: Group, alice: Person, cursor: int) -> None:
    group.end(1)
    frame, _ = refusal(alice, msgspec.msgpack.encode(api.Subscribe(task_group_id=group.group_id, cursor=cursor)))
    assert frame.code == "BODY_INVALID"


def test_a_chatty_client_is_ignored_and_a_vanished_one_forgotten(group: Group, alice: Person) -> None:
    group.end(1)
    stream: Stream = alice.stream(group.group_id)
    for _ in range(100):
        stream.socket.send(b"chatter")
    stream.results(1)
    later = group.end(1)
    assert [one.task_id for one in stream.results(1)] == later
    stream.socket.socket.close()
    group.end(1)
    again = alice.stream(group.group_id, cursor=stream.cursor)
    again.results(1)
    again.close()


def test_a_stream_ends_with_its_token(relay: RelayProcess) -> None:
    carol = Person(relay, "carol")
    group = Group(relay, carol)
    group.end(1)
    stream = carol.stream(group.group_id)
    assert len(stream.results(1)) == 1
    carol.submit(group.lab.endpoint_id, group.function, ["p"], task_group_id=group.group_id)
    relay.cli("user", "token", carol.username)
    time.sleep(1.1)  # the relay keeps who a token belongs to for a second
    assert group.uep is not None
    group.uep.credit(1)
    group.uep.finish(group.uep.take(1))
    frame = stream.socket.recv(10)
    assert isinstance(frame, bytes)
    told: api.StreamFrame = msgspec.msgpack.decode(frame, type=api.StreamFrame)
    assert isinstance(told, api.StreamRefused)
    assert told.code == "TOKEN_UNKNOWN"


# --- live output ----------------------------------------------------------------------------------------


def prints(uep: FakeUep, task: messages.TaskItem, data: bytes, position: int = 0, task_id: str = "") -> None:
    item = messages.PrintedItem(task.row, task_id or task.task_id, 1, 0, position, data)
    uep.send(messages.Printed(items=[item]))


def test_output_goes_to_those_who_want_it(group: Group, alice: Person) -> None:
    group.end(1)
    assert group.uep is not None
    without, wanting = alice.stream(group.group_id), alice.stream(group.group_id, output=True)
    for stream in (without, wanting):
        stream.results(1)
    alice.submit(group.lab.endpoint_id, group.function, ["p"], task_group_id=group.group_id)
    group.uep.credit(1)
    (task,) = group.uep.take(1)
    prints(group.uep, task, b"one\n")
    assert wanting.output() == [(task.task_id, 0, b"one\n")]
    prints(group.uep, task, b"two\n", 4)
    group.uep.finish([task])
    assert wanting.output() == [(task.task_id, 4, b"two\n")]
    assert [one.task_id for one in wanting.results(1)] == [one.task_id for one in without.results(1)]
    for stream in (without, wanting):
        stream.close()


def test_a_user_endpoint_speaks_for_its_own_tasks_alone(group: Group, relay: RelayProcess, alice: Person) -> None:
    group.end(1)
    assert group.uep is not None
    wanting = alice.stream(group.group_id, output=True)
    wanting.results(1)
    other = Group(relay, Person(relay, "mallory"))
    other.end(1)
    alice.submit(group.lab.endpoint_id, group.function, ["p"] * 2, task_group_id=group.group_id)
    group.uep.credit(2)
    mine, second = group.uep.take(2)
    assert other.uep is not None
    for task_id in (mine.task_id, "no task", "x" * 100_000, str(uuid.uuid4())):
        prints(other.uep, mine, b"forged\n", task_id=task_id)
    prints(group.uep, mine, b"negative\n", -1)
    other.end(1)  # its messages have come
    prints(group.uep, second, b"true\n")
    assert wanting.output() == [(second.task_id, 0, b"true\n")]
    wanting.close()


def test_a_client_that_does_not_read_costs_a_bounded_part_of_it(group: Group, alice: Person) -> None:
    group.end(1)
    assert group.uep is not None
    wanting = alice.stream(group.group_id, output=True)
    wanting.results(1)
    alice.submit(group.lab.endpoint_id, group.function, ["p"], task_group_id=group.group_id)
    group.uep.credit(1)
    (task,) = group.uep.take(1)
    size = 64 * 1024
    for at in range(600):
        prints(group.uep, task, b"x" * size, at * size)
    group.uep.finish([task])
    positions: list[int] = []
    while True:
        frame = msgspec.msgpack.decode(wanting.socket.recv(30), type=api.StreamFrame)  # type: ignore[arg-type]
        if isinstance(frame, api.StreamBatch):
            break
        positions += [one.position for one in frame.output]
    assert positions == sorted(positions)
    assert len(positions) <= 600
    wanting.close()
