"""Free-form values: those that both JSON and MessagePack can express, or a refusal that names the field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mep_wire.errors import BodyInvalid, PayloadTooLarge
from mep_wire.ids import canonical_json
from relay.api.json_values import to_json_value

ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=9,
)


@given(st.dictionaries(st.text(), ANYTHING, max_size=4))
def test_what_comes_out_is_plain_or_nothing_does(value: dict[str, Any]) -> None:
    try:
        made = to_json_value(value, "field", 10_000)
    except BodyInvalid as error:
        assert "field: " in error.text
        return
    assert to_json_value(made, "field", 10_000) == made
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made)) == made
    assert msgspec.json.decode(canonical_json(made)) == made


@pytest.mark.parametrize("value", [{"a": 2**64}, {"a": {1: 2}}, {"a": object()}])
def test_what_has_no_plain_form(value: dict[str, Any]) -> None:
    with pytest.raises(BodyInvalid, match="field: "):
        to_json_value(value, "field", 100)


def test_size_and_nothing() -> None:
    assert to_json_value(None, "field", 0) == {}
    assert to_json_value({"a": b"x", "b": float("nan")}, "field", 100) == {"a": "eA==", "b": None}
    with pytest.raises(PayloadTooLarge, match="field has 9 bytes"):
        to_json_value({"a": "b"}, "field", 8)
