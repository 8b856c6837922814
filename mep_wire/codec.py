"""Bytes to messages and back. Holds no socket."""

from __future__ import annotations

from typing import Any

import msgspec

from mep_wire import messages
from mep_wire.errors import LinkMessageInvalid

_encoder = msgspec.msgpack.Encoder()
_to_relay: msgspec.msgpack.Decoder[messages.ToRelay] = msgspec.msgpack.Decoder(messages.ToRelay)
_to_manager: msgspec.msgpack.Decoder[messages.ToManager] = msgspec.msgpack.Decoder(messages.ToManager)
_to_uep: msgspec.msgpack.Decoder[messages.ToUep] = msgspec.msgpack.Decoder(messages.ToUep)


def encode(message: messages.ToRelay | messages.ToManager | messages.ToUep) -> bytes:
    """Return the frame for `message`."""
    return _encoder.encode(message)


def _decode(decoder: msgspec.msgpack.Decoder[Any], frame: bytes) -> Any:
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LinkMessageInvalid(reason=str(error)) from error


def decode_to_relay(frame: bytes) -> messages.ToRelay:
    """Return the message a peer sent the relay. Raises LinkMessageInvalid."""
    message: messages.ToRelay = _decode(_to_relay, frame)
    return message


def decode_to_manager(frame: bytes) -> messages.ToManager:
    """Return the message the relay sent a manager. Raises LinkMessageInvalid."""
    message: messages.ToManager = _decode(_to_manager, frame)
    return message


def decode_to_uep(frame: bytes) -> messages.ToUep:
    """Return the message the relay sent a user endpoint. Raises LinkMessageInvalid."""
    message: messages.ToUep = _decode(_to_uep, frame)
    return message
