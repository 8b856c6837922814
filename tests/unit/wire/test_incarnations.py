"""The name of a process, and that peers of the version before can still be spoken to."""

from __future__ import annotations

import msgspec
import pytest

from mep_wire import codec, messages
from mep_wire.start_request import INCARNATION_BYTES, incarnation_of, same_process

NAMED = b"0123456789abcdef"


class Older(msgspec.Struct, frozen=True, array_like=True, tag="UepEnded", kw_only=True):
    """UepEnded as it was before it named a process."""

    uep_id: str
    code: str
    text: str
    correlation_id: str


def test_each_token_has_an_incarnation_of_its_own() -> None:
    assert len({incarnation_of(bytes([n]) * 32) for n in range(50)}) == 50
    assert len(incarnation_of(b"t" * 32)) == INCARNATION_BYTES


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(NAMED, NAMED, True), (NAMED, NAMED[::-1], False), (b"", NAMED, True), (NAMED, b"", True), (b"", b"", True)],
)
def test_an_unknown_one_may_be_any(one: bytes, other: bytes, same: bool) -> None:
    assert same_process(one, other) is same


def test_both_versions_read_each_other() -> None:
    newer = messages.UepEnded(uep_id="u", code="IDLE", text="", correlation_id="c", incarnation=NAMED)
    older = Older(uep_id="u", code="IDLE", text="", correlation_id="c")
    assert msgspec.msgpack.decode(codec.encode(newer), type=Older) == older
    read = codec.decode_to_relay(msgspec.msgpack.encode(older))
    assert isinstance(read, messages.UepEnded) and read.incarnation == b""
