"""registration.json: what the relay answered when the endpoint was registered, pinned from then on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from mep.errors import ConfigRefused
from mep_wire.identity import Identity

_MAX_BYTES = 1024 * 1024


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """The relay's answer and where it came from. Keys are 64 hexadecimal digits."""

    endpoint_id: str
    relay_url: str
    link_address: str
    link_public_key: str
    """The relay's CURVE public key."""
    signing_public_key: str
    """The relay's Ed25519 public key."""
    owner: list[Identity]
    registered_at: float
    """Seconds since the epoch."""


def read_registration(path: Path, name: str) -> Registration:
    """Return the registration in `path`. Raises ConfigRefused, saying how to register endpoint `name`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        raise ConfigRefused(str(path), "", f"endpoint {name} is not registered: run `mep register {name}`") from None
    except OSError as error:
        raise ConfigRefused(str(path), "", error.strerror or str(error)) from None
    try:
        registration = msgspec.json.decode(data, type=Registration)
        for key in ("link_public_key", "signing_public_key"):
            if len(bytes.fromhex(getattr(registration, key))) != 32:
                raise ConfigRefused(str(path), key, "not a key of 32 bytes")
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigRefused(str(path), "", f"damaged ({error}): run `mep register {name} --again`") from None
    return registration
