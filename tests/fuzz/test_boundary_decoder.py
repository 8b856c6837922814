"""The boundary's decoder against arbitrary bytes: one declared message, or BoundaryViolation, and nothing else."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mep.boundary.channel import Channel, clip, decode, encode
from mep.boundary.errors import BoundaryViolation
from mep.boundary.messages import DESCRIPTORS, MAX_FRAME_BYTES, WIRE_TYPES, Message
from mep.root.keeper.supervisor import parse_report

CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
TEXT = st.text(CHARACTERS)


def values(cls: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of `cls` with every field within its caps and of its form."""
    kinds: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        cap, least, form = (field.metadata.get(name, 0) for name in ("cap", "least", "form"))
        if field.type == "int":
            every = st.integers(-(2**63), 2**63 - 1)
            kinds[field.name] = st.integers(0, 1) if form else every
        elif field.type == "bytes":
            kinds[field.name] = st.binary(min_size=least, max_size=cap)
        else:
            texts = st.from_regex(form, fullmatch=True, alphabet=CHARACTERS) if form else TEXT
            kinds[field.name] = texts.filter(lambda text, cap=cap: len(text.encode()) <= cap)
    return st.builds(cls, **kinds)


MESSAGES = st.sampled_from(sorted(WIRE_TYPES)).flatmap(lambda number: values(WIRE_TYPES[number]))


@given(MESSAGES)
def test_what_was_encoded_comes_back(message: Message) -> None:
    frame = encode(message)
    assert len(frame) <= MAX_FRAME_BYTES
    assert decode(frame) == message


@settings(max_examples=2000)
@given(st.binary(max_size=300))
def test_arbitrary_bytes(frame: bytes) -> None:
    try:
        message = decode(frame)
    except BoundaryViolation:
        return
    assert encode(message) == frame


@settings(max_examples=2000)
@given(MESSAGES, st.data())
def test_damaged_frames(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    at = data.draw(st.integers(0, len(frame) - 1))
    damage = data.draw(st.sampled_from(["flip", "cut", "grow"]))
    if damage == "flip":
        frame[at] ^= data.draw(st.integers(1, 255))
    elif damage == "cut":
        del frame[at:]
    else:
        frame[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    try:
        decoded = decode(bytes(frame))
    except BoundaryViolation:
        return
    assert encode(decoded) == bytes(frame)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 6))
def test_a_channel_gives_a_message_or_a_violation(frame: bytes, descriptors: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    with theirs:
        socket.send_fds(theirs, [frame], [theirs.fileno()] * descriptors)
        try:
            received = channel.receive()
        except BoundaryViolation:
            received = None
        if received is not None:
            message, came = received
            assert len(came) == DESCRIPTORS.get(type(message), 0) == descriptors
            channel.dispose(came)
    channel.close()


@given(st.text(), st.integers(0, 100))
def test_clipped_text_is_one_printable_line(text: str, cap: int) -> None:
    clipped = clip(text, cap)
    assert len(clipped.encode()) <= cap
    assert clipped.isprintable()


@settings(max_examples=1000)
@given(st.binary(max_size=5000) | st.builds(lambda rest: b"FAILED\nCODE\n" + rest, st.binary(max_size=5000)))
def test_reports_of_a_user_endpoint(datagram: bytes) -> None:
    report = parse_report(datagram)
    if report is None:
        return
    assert report.kind in {"READY", "FAILED", "ENDED", "NOTICE"}
    assert len(report.public.encode()) <= 1024 and len(report.detail.encode()) <= 2048
    assert report.public.isprintable() and report.detail.isprintable()
