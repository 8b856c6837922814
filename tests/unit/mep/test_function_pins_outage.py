"""However often the relay is away while thousands of functions are pinned, root is sent no more notes than it takes."""

from __future__ import annotations

import json
import socket
import uuid
from typing import Any

import pytest

from mep.cli import relay_request
from mep.cli.function_pins import CHUNK, DATAGRAM_BYTES, work
from mep.cli.relay_answer import MAX_NOTES, RECORD_BYTES, AnswerKind, decode

CHUNKS = 20


def test_a_relay_that_flaps_ends_no_pinning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"attempts": 0}

    def flaps(call: Any) -> tuple[int, bytes]:
        """Answer each request at its third attempt."""
        asked["attempts"] += 1
        if asked["attempts"] % 3:
            raise ConnectionRefusedError(111, "Connection refused")
        return 200, json.dumps({"digests": dict.fromkeys(call.body["function_ids"], "00" * 32)}).encode()

    monkeypatch.setattr(relay_request, "_ask", flaps)
    monkeypatch.setattr(relay_request.time, "sleep", lambda _: None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    ours.settimeout(30)
    ids = [str(uuid.uuid4()) for _ in range(CHUNKS * CHUNK)]
    work("http://relay", "token", ids, theirs)
    theirs.close()
    kinds = []
    while not kinds or kinds[-1] is AnswerKind.NOTE:
        kinds.append(decode(ours.recv(RECORD_BYTES)).kind)
    assert kinds == [AnswerKind.NOTE] * MAX_NOTES + [AnswerKind.DONE]
    assert asked["attempts"] == 3 * CHUNKS
    size = 0
    while part := ours.recv(DATAGRAM_BYTES):
        size += len(part)
    assert size == len(ids) * 48
    ours.close()
