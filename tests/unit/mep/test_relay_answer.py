"""The records by which the child that talks to the relay reaches root: whatever comes, a typed record or a refusal."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mep.cli.relay_answer import RECORD_BYTES, AnswerCode, AnswerKind, RecordInvalid, RelayAnswer, decode, encode
from mep.cli.relay_request import _refusal
from mep_wire.relay_keys import MAX_EARLIER, EarlierKeys, RelayKeys


def keys() -> RelayKeys:
    return RelayKeys(os.urandom(32), os.urandom(32))


def full() -> RelayAnswer:
    earlier = tuple(EarlierKeys(keys(), os.urandom(64)) for _ in range(MAX_EARLIER))
    return RelayAnswer(
        AnswerKind.REGISTERED,
        "some text",
        AnswerCode.OTHER,
        str(uuid.uuid4()),
        keys(),
        "relay.example.org",
        8651,
        earlier,
    )


def test_a_record_comes_back_as_it_was() -> None:
    answer = full()
    assert decode(encode(answer)) == answer
    assert len(encode(answer)) == len(encode(RelayAnswer(AnswerKind.DONE))) == RECORD_BYTES


@given(st.text())
def test_text_is_escaped_and_cut(text: str) -> None:
    said = decode(encode(RelayAnswer(AnswerKind.NOTE, text))).text
    assert said.isascii()
    assert said == "" or said.isprintable()


@given(st.binary(max_size=4 * RECORD_BYTES))
def test_arbitrary_bytes(data: bytes) -> None:
    with pytest.raises(RecordInvalid):
        decode(data if len(data) != RECORD_BYTES else data[1:])


@given(st.integers(0, RECORD_BYTES - 1), st.integers(0, 255))
def test_a_damaged_record_is_refused_or_typed(index: int, byte: int) -> None:
    record = bytearray(encode(full()))
    record[index] = byte
    try:
        answer = decode(bytes(record))
    except RecordInvalid:
        return
    assert len(answer.earlier) <= MAX_EARLIER
    assert answer.text.isprintable()
    assert answer.link_host.isprintable()


def test_only_the_newest_of_many_earlier_keys() -> None:
    many = tuple(EarlierKeys(keys(), bytes(64)) for _ in range(MAX_EARLIER + 3))
    assert decode(encode(RelayAnswer(AnswerKind.REGISTERED, earlier=many))).earlier == many[3:]


@pytest.mark.parametrize("host", ["a b", "a/b", "a\nb", "\x1b[2J", "x" * 254, "h\xf6st"])
def test_a_host_that_is_none(host: str) -> None:
    with pytest.raises(ValueError):
        encode(RelayAnswer(AnswerKind.REGISTERED, link_host=host))


@pytest.mark.parametrize("body", [b"\xff", b'"\xff"', b'{"code": "\xff"}', b"<html>", b"", b"[]"])
def test_an_error_that_is_no_json_is_named_by_its_status(body: bytes) -> None:
    assert _refusal(502, body) == RelayAnswer(
        AnswerKind.REFUSED, "HTTP status 502 from a server in front of it: does the relay run?"
    )
