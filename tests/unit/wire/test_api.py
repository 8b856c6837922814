"""Opaque bytes in JSON bodies: every byte string comes back as it went."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mep_wire.api import SubmitBody, opaque_bytes, opaque_from_text, opaque_to_text


@given(st.binary())
@example(b"b64:")
@example(b"b64:aGk=")
@example(b"\xff")
def test_opaque_round_trip(data: bytes) -> None:
    assert opaque_from_text(opaque_to_text(data)) == data


def test_bad_base64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"(?i)base64|padding|only"):
        opaque_from_text("b64:***")


def test_opaque_fields_decode_from_both_formats() -> None:
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode({"tasks": {"f": [b"\xff"]}}), type=SubmitBody)
    text = msgspec.json.decode(b'{"tasks": {"f": ["b64:/w=="]}}', type=SubmitBody)
    assert opaque_bytes(packed.tasks["f"][0]) == opaque_bytes(text.tasks["f"][0]) == b"\xff"


def test_an_opaque_field_of_another_type_is_refused() -> None:
    with pytest.raises(ValueError, match="expected text or bytes"):
        opaque_bytes(7)
