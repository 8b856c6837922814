"""The records that the child of `mep register` prints, and output that isn't a valid record."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from mep.cli.exit_codes import CliFailed
from mep.cli.function_pins import CHUNK, PinsUnavailable, pin_records, read_records

FIRST, SECOND = "6d0ba55f-de15-4af2-827d-05c50c338aa7", "0e5a7f0c-5a0b-4c5e-9a39-6f1f0a6f2a11"
DIGEST = bytes(range(32))


def record(function_id: str, digest: bytes = DIGEST) -> bytes:
    return uuid.UUID(function_id).bytes + digest


def test_records_are_read_as_they_are_written() -> None:
    def relay(call: dict[str, Any]) -> dict[str, Any]:
        assert (call["method"], call["path"], call["token"]) == ("POST", "/v3/functions/digests", "t")
        digests = {one: DIGEST.hex() for one in call["body"]["function_ids"] if one != SECOND}
        return {"status": 200, "body": json.dumps({"digests": digests})}

    ids = [FIRST, SECOND, *(str(uuid.uuid4()) for _ in range(CHUNK))]
    output = pin_records("https://r", "t", ids, relay)
    assert read_records(output, ids) == {one: DIGEST for one in ids if one != SECOND}


@pytest.mark.parametrize(
    "output",
    [
        b"x",
        record(FIRST)[:-1],
        record(FIRST) + b"\0",
        record(FIRST) * 2,
        record(FIRST) + record(FIRST, bytes(32)),
        record("00000000-0000-4000-8000-000000000000"),
        b"ready\n" + record(FIRST),
    ],
)
def test_anything_else_is_refused(output: bytes) -> None:
    with pytest.raises(CliFailed, match="other than the digests"):
        read_records(output, [FIRST, SECOND])


@pytest.mark.parametrize(
    "answer",
    [
        {"failed": "no route"},
        {"status": 403, "body": "{}"},
        {"status": 200, "body": "nonsense"},
        {"status": 200, "body": json.dumps({"digests": {FIRST: "xyz"}})},
        {"status": 200, "body": json.dumps({"digests": [FIRST]})},
    ],
)
def test_a_relay_that_tells_no_digests(answer: dict[str, Any]) -> None:
    with pytest.raises(PinsUnavailable):
        pin_records("https://r", "t", [FIRST], lambda _call: answer)


def test_a_digest_of_another_length_reaches_root_as_no_record() -> None:
    body = json.dumps({"digests": {FIRST: "00" * 16}})
    output = pin_records("https://r", "t", [FIRST], lambda _call: {"status": 200, "body": body})
    with pytest.raises(CliFailed):
        read_records(output, [FIRST])
