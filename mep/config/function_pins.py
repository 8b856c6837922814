"""function_pins.json: the SHA-256 of the code of each function that config.yaml lists by id.

Written by `mep register`, beside registration.json, and read by the resolver. The relay chooses ids and may serve any
code under one, so an id without a pin is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mep.boundary.errors import ConfigRefused
from mep.config.paths import EndpointPaths
from mep.config.template_files import read_trusted
from mep_wire.function_lists import DIGEST_BYTES, ids_in

MAX_PINS = 4096
_MAX_BYTES = 1024 * 1024
_decoder = msgspec.json.Decoder(dict[str, str])


def read_pins(where: EndpointPaths, owner: int) -> dict[str, bytes]:
    """Return the pinned digests by function id, empty if nothing is pinned. Raises ConfigRefused."""
    path = where.function_pins
    if not path.exists():
        return {}
    text = read_trusted(path, cap=_MAX_BYTES, owner=owner)
    try:
        pins = {name: bytes.fromhex(digest) for name, digest in _decoder.decode(text).items()}
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigRefused(str(path), "", f"damaged ({error}): run `mep register {where.name} --again`") from None
    if damaged := [name for name, digest in pins.items() if len(digest) != DIGEST_BYTES]:
        raise ConfigRefused(str(path), damaged[0], f"not a digest of {DIGEST_BYTES} bytes")
    return pins


def pins_text(pins: Mapping[str, bytes]) -> bytes:
    """Return the file's text for these digests."""
    return msgspec.json.format(msgspec.json.encode({one: pins[one].hex() for one in sorted(pins)})) + b"\n"


def pins_for(where: EndpointPaths, entries: list[str] | None, owner: int) -> dict[str, bytes]:
    """Return the pins of the ids among `allowed_functions`. Raises ConfigRefused for an id without one."""
    ids = ids_in(entries)
    pins = read_pins(where, owner) if ids else {}
    if unpinned := [one for one in ids if one not in pins]:
        raise ConfigRefused(
            str(where.config),
            "allowed_functions",
            f"no code is pinned for function {unpinned[0]}: run `mep register {where.name} --again`, or list its code "
            "as sha256:DIGEST",
        )
    return {one: pins[one] for one in ids}
