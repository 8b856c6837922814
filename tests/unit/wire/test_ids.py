"""Ids: the layout of version 7, and which inputs change a user endpoint's id."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from mep_wire.ids import _UEP_NAMESPACE, canonical_json, user_endpoint_id, uuid7

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_uuid7_has_the_layout_of_rfc_9562(unix_ms: int, entropy: bytes) -> None:
    made = uuid7(unix_ms, entropy)
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert made.int >> 80 == unix_ms


def test_later_ids_sort_after_earlier_ones() -> None:
    assert uuid7(1000, b"\xff" * 10).bytes < uuid7(1001, b"\x00" * 10).bytes


@given(st.dictionaries(st.text(), _json, max_size=6))
def test_the_id_of_a_user_endpoint_is_a_version_5_uuid(config: dict[str, object]) -> None:
    name = canonical_json(["e", "a", config, {}]).decode()
    assert user_endpoint_id("e", "a", config, {}) == str(uuid.uuid5(_UEP_NAMESPACE, name))


@given(st.dictionaries(st.text(), _json, max_size=6))
def test_the_order_of_keys_does_not_matter(config: dict[str, object]) -> None:
    backwards = dict(reversed(config.items()))
    assert canonical_json(config) == canonical_json(backwards)
    assert user_endpoint_id("e", "a", config, {}) == user_endpoint_id("e", "a", backwards, {})


def test_any_change_is_another_user_endpoint() -> None:
    ids = {
        user_endpoint_id("e", "a", {}, {}),
        user_endpoint_id("f", "a", {}, {}),
        user_endpoint_id("e", "b", {}, {}),
        user_endpoint_id("e", "a", {"N": 1}, {}),
        user_endpoint_id("e", "a", {"N": "1"}, {}),
        user_endpoint_id("e", "a", {}, {"python": "3.11"}),
    }
    assert len(ids) == 6
