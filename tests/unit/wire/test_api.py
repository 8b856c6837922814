"""Opaque bytes in JSON bodies: every byte string comes back as it went."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mep_wire.api import opaque_from_text, opaque_to_text


@given(st.binary())
@example(b"b64:")
@example(b"b64:aGk=")
@example(b"\xff")
def test_opaque_round_trip(data: bytes) -> None:
    assert opaque_from_text(opaque_to_text(data)) == data


def test_bad_base64_is_refused() -> None:
    with pytest.raises(ValueError, match=r"(?i)base64|padding|only"):
        opaque_from_text("b64:***")
