"""Whatever is sent to it, by HTTP or on the link, the relay answers with a named refusal and goes on serving."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.api import MSGPACK
from mep_wire.errors import by_code
from relay.api.routes import ROUTES
from tests.support.fake_peer import FakeLink, FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person

BODIED = [route for route in ROUTES if route.body is not None]
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["01a1f92c-723a-7708-96ae-641fdabcfe4f", "b64:AA==", "b64:!", "\x00", "\ud7ff", "x" * 300])
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path_factory.mktemp("relay")) as running:
        yield running
    assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def alice(relay: RelayProcess) -> Person:
    return Person(relay, "alice")


@pytest.fixture(scope="module")
def lab(relay: RelayProcess, alice: Person) -> FakeManager:
    return FakeManager(relay, alice.token)


@pytest.fixture(scope="module")
def linked_lab(relay: RelayProcess, alice: Person) -> FakeManager:
    """Another endpoint, since any change to the first may be drawn."""
    return FakeManager(relay, alice.token).hello()


@pytest.fixture(scope="module")
def function(alice: Person) -> str:
    return alice.function()


def send(alice: Person, method: str, path: str, body: bytes, content: str, accept: str = "application/json") -> Any:
    connection = http.client.HTTPConnection(urlsplit(alice.relay.url).netloc, timeout=20)
    headers = {"authorization": f"Bearer {alice.token}", "content-type": content, "accept": accept}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    told = msgspec.msgpack.decode(data) if accept == MSGPACK else json.loads(data)
    assert answer.status < 500, told
    if answer.status != 200:
        assert told["code"] in by_code()
        assert told["http_status_code"] == answer.status
    return told


def fields(route: Any) -> list[str]:
    return [field.name for field in msgspec.structs.fields(route.body)]


@SETTINGS
@given(data=st.data())
def test_bodies_of_the_right_shape_and_wrong_values(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str, data: st.DataObject
) -> None:
    route = data.draw(st.sampled_from(BODIED))
    good: dict[str, Any] = {"tasks": {function: ["p"]}, "function_name": "f", "function_code": "c", "task_ids": []}
    good |= {"endpoint_name": "e", "link_public_key": os.urandom(32).hex(), "unseal_public_key": "00" * 32}
    names = fields(route)
    body = {name: good[name] for name in names if name in good and not (name == "task_ids" and "tasks" in names)}
    body |= data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    path = route.path.replace("{endpoint_id}", lab.endpoint_id)
    if data.draw(st.booleans()):
        with contextlib.suppress(OverflowError):
            packed = msgspec.msgpack.encode({**body, "user_endpoint_config": {"nested": {1: body}}})
            send(alice, route.method, path, packed, MSGPACK, MSGPACK)
            send(alice, route.method, path, msgspec.msgpack.encode(body), MSGPACK, MSGPACK)
    else:
        send(alice, route.method, path, json.dumps(body).encode(), "application/json")


@SETTINGS
@given(data=st.data())
def test_bodies_of_any_shape(relay: RelayProcess, alice: Person, lab: FakeManager, data: st.DataObject) -> None:
    route = data.draw(st.sampled_from(BODIED))
    path = route.path.replace("{endpoint_id}", lab.endpoint_id)
    raw = data.draw(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
    content = data.draw(st.sampled_from(["application/json", MSGPACK, "", "text/plain; charset=x"]))
    send(alice, route.method, path, raw, content)


@SETTINGS
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]),
    parts=st.lists(st.sampled_from(["v2", "v3", "endpoints", "tasks", "status"]) | st.text(max_size=10), max_size=5),
)
def test_any_path(relay: RelayProcess, alice: Person, method: str, parts: list[str]) -> None:
    send(alice, method, "/" + "/".join(quote(part, safe="") for part in parts), b"", "application/json")


def test_surrogates_and_deep_nesting(relay: RelayProcess, alice: Person, lab: FakeManager, function: str) -> None:
    path = f"/v3/endpoints/{lab.endpoint_id}/submit"
    for config in (
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
    ):
        body = b'{"tasks": {"%s": ["p"]}, "user_endpoint_config": %s}' % (function.encode(), config)
        send(alice, "POST", path, body, "application/json")
    deep = b"\x91" * 5000 + b"\xc0"
    send(alice, "POST", path, b"\x82\xa5tasks\x80\xaauser_confi" + deep, MSGPACK)


# --- the link ---------------------------------------------------------------------------------------

ROWS = st.lists(st.integers(-2, 2**64 - 1), max_size=5)
TEXT = st.text(max_size=20)
ITEMS = st.builds(
    messages.ResultItem, st.integers(-2, 2**64 - 1), TEXT, TEXT, TEXT, st.binary(max_size=9), st.floats(), st.floats()
)
MESSAGES: st.SearchStrategy[Any] = st.one_of(
    st.builds(messages.Ping, sent_at=st.floats()),
    st.builds(messages.Credit, grant=st.integers(-(2**63), 2**63 - 1)),
    st.builds(messages.Started, rows=ROWS),
    st.builds(messages.Returned, rows=ROWS),
    st.builds(messages.Results, items=st.lists(ITEMS, max_size=3)),
    st.builds(messages.Goodbye, code=TEXT, text=TEXT),
    st.builds(messages.UepHello, protocol=st.just(PROTOCOL_VERSION), uep_id=TEXT, held=ROWS),
    st.builds(messages.Join, protocol=st.just(PROTOCOL_VERSION), uep_id=TEXT, token=st.binary(max_size=40), held=ROWS),
    st.builds(messages.StartAnswer, uep_id=TEXT, outcome=TEXT, code=TEXT, text=TEXT, correlation_id=TEXT),
    st.builds(messages.UepEnded, uep_id=TEXT, code=TEXT, text=TEXT, correlation_id=TEXT),
    st.builds(messages.RunningUeps, uep_ids=st.lists(TEXT, max_size=3)),
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    frames=st.lists(MESSAGES.map(codec.encode) | st.binary(max_size=60), min_size=1, max_size=6), as_uep=st.booleans()
)
def test_any_messages_from_a_stranger_or_a_user_endpoint(
    relay: RelayProcess, alice: Person, linked_lab: FakeManager, function: str, frames: list[bytes], as_uep: bool
) -> None:
    if as_uep:
        alice.submit(linked_lab.endpoint_id, function, ["p"], user_endpoint_config={"n": os.urandom(8).hex()})
        peer: FakeLink = linked_lab.start()
    else:
        peer = FakeLink(linked_lab._address, linked_lab.relay_key, codec.decode_to_uep)
    for frame in frames:
        peer.send_raw(frame)
    peer.send(messages.Ping(sent_at=1.0))
    peer.socket.poll(200)
    peer.close()
    assert alice.ok("GET", f"/v2/endpoints/{linked_lab.endpoint_id}/status")["status"] == "online"


def test_bytes_that_are_not_zeromq(relay: RelayProcess, alice: Person, linked_lab: FakeManager, function: str) -> None:
    import socket

    host, _, port = relay.link_address.removeprefix("tcp://").rpartition(":")
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(1000), b"\xff" + b"\0" * 8 + b"\x7f" + os.urandom(100)):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(data)
    plain = zmq.Context.instance().socket(zmq.REQ)
    plain.linger = 0
    plain.connect(relay.link_address)
    plain.send(b"x", zmq.NOBLOCK) if plain.poll(100, zmq.POLLOUT) else None
    plain.close()
    alice.submit(linked_lab.endpoint_id, function, ["p"], user_endpoint_config={"last": 1})
    uep = linked_lab.start()
    uep.credit(1)
    uep.finish(uep.take(1))
