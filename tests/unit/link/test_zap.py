"""ZeroMQ's authentication requests: which are admitted, and what the peer is called from then on."""

from __future__ import annotations

import pytest
import zmq
from zmq.utils import z85

from mep_link.zap import ZapHandler, answer
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("request_parts", "status"),
    [
        ([b"1.0", b"7", b"mep", b"1.2.3.4", b"", b"CURVE", bytes(32)], b"200"),
        ([b"1.0", b"7", b"mep", b"1.2.3.4", b"", b"NULL"], b"400"),
        ([b"1.0", b"7", b"mep", b"1.2.3.4", b"", b"PLAIN", b"user", b"pass"], b"400"),
        ([b"1.0", b"7", b"other", b"1.2.3.4", b"", b"CURVE", bytes(32)], b"400"),
        ([b"2.0", b"7", b"mep", b"1.2.3.4", b"", b"CURVE", bytes(32)], b"400"),
        ([b"1.0", b"7", b"mep", b"1.2.3.4", b"", b"CURVE", bytes(31)], b"400"),
    ],
)
def test_only_a_curve_key_is_let_in(request_parts: list[bytes], status: bytes) -> None:
    reply = answer([b"envelope", b"", *request_parts], lambda key: key.hex().encode(), b"mep")
    assert reply[:2] == [b"envelope", b""]
    assert (reply[2], reply[3], reply[4]) == (b"1.0", b"7", status)
    assert reply[6] == (bytes(32).hex().encode() if status == b"200" else b"")


def test_a_key_that_is_not_admitted_is_refused_and_any_domain_is_taken_where_none_is_named() -> None:
    parts = [b"peer", b"", b"1.0", b"7", b"whatever", b"1.2.3.4", b"", b"CURVE", b"k" * 32]
    assert answer(parts, lambda key: b"worker" if key == b"k" * 32 else None)[4:7] == [b"200", b"OK", b"worker"]
    assert answer(parts, lambda _key: None)[4:7] == [b"400", b"unknown key", b""]


def test_libzmq_lets_in_the_admitted_key_alone() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    public, secret = zmq.curve_keypair()
    known = zmq.curve_keypair()
    handler = ZapHandler(context, lambda key: b"friend" if key == z85.decode(known[0]) else None)
    server = context.socket(zmq.PULL)
    server.curve_server, server.curve_secretkey, server.linger = True, secret, 0
    port = server.bind_to_random_port("tcp://127.0.0.1")
    came: list[tuple[bytes, object]] = []

    def take() -> bool:
        handler.answer_waiting()
        if server.poll(0):
            frame = server.recv(copy=False)
            came.append((frame.bytes, frame.get("User-Id")))
        return len(came) > 0

    for keys, text in ((zmq.curve_keypair(), b"from a stranger"), (known, b"from a friend")):
        client = context.socket(zmq.PUSH)
        client.linger, client.curve_serverkey = 0, public
        client.curve_publickey, client.curve_secretkey = keys
        client.connect(f"tcp://127.0.0.1:{port}")
        client.send(text)
    until("a message from the known key", take)
    assert came == [(b"from a friend", "friend")]
    handler.close()
    context.destroy(linger=0)
