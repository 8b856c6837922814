"""The link's codec: round trips, and that no bytes raise anything but the named error."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mep_wire import messages
from mep_wire.codec import decode_to_manager, decode_to_relay, decode_to_uep, encode
from mep_wire.errors import LinkMessageInvalid

_DECODERS = [decode_to_relay, decode_to_manager, decode_to_uep]


def test_round_trip() -> None:
    result = messages.ResultItem(7, "id", "", "", b"\x00payload", 1.5, 2.5)
    message = messages.Results(items=[result])
    assert decode_to_relay(encode(message)) == message


def test_a_message_for_another_role_is_refused() -> None:
    with pytest.raises(LinkMessageInvalid):
        decode_to_manager(encode(messages.StopUep(code="X", text="")))
    with pytest.raises(LinkMessageInvalid):
        decode_to_relay(encode(messages.UepWelcome(heartbeat_s=1.0, max_result_bytes=1)))


@pytest.mark.parametrize("decode", _DECODERS)
@given(frame=st.binary(max_size=200))
def test_random_bytes(decode: object, frame: bytes) -> None:
    with contextlib.suppress(LinkMessageInvalid):
        decode(frame)  # type: ignore[operator]


@pytest.mark.parametrize("decode", _DECODERS)
@given(
    value=st.lists(
        st.none() | st.integers() | st.text() | st.binary() | st.sampled_from(["Ping", "Tasks", "Join"]), max_size=6
    )
)
def test_arrays_of_the_wrong_shape(decode: object, value: list[object]) -> None:
    with contextlib.suppress(msgspec.EncodeError, OverflowError):
        frame = msgspec.msgpack.encode(value)
        with contextlib.suppress(LinkMessageInvalid):
            decode(frame)  # type: ignore[operator]


@pytest.mark.parametrize("decode", _DECODERS)
def test_deep_nesting_is_refused(decode: object) -> None:
    with pytest.raises(LinkMessageInvalid):
        decode(b"\x91" * 100_000 + b"\xc0")  # type: ignore[operator]


@given(st.data())
def test_truncation_is_refused(data: st.DataObject) -> None:
    whole = encode(messages.Join(protocol=1, uep_id="u", token=b"t" * 32))
    with pytest.raises(LinkMessageInvalid):
        decode_to_relay(whole[: data.draw(st.integers(0, len(whole) - 1))])
