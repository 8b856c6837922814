"""registration.json: the relay's answer to the endpoint's registration, pinned from then on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import UntrustedPath
from mep.config.options import EndpointOptions
from mep.config.template_files import refusal, trust_in
from mep_wire.identity import Identity
from mep_wire.ids import canonical_json
from mep_wire.relay_keys import RelayKeys

_MAX_BYTES = 1024 * 1024


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """The relay's answer and its source. Keys are 64 hexadecimal digits."""

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
    told: str = ""
    """Digest of the configuration as the relay knows it, to notice a later change."""

    @property
    def relay_keys(self) -> RelayKeys:
        """The relay's pinned keys."""
        return RelayKeys(bytes.fromhex(self.signing_public_key), bytes.fromhex(self.link_public_key))


_decoder = msgspec.json.Decoder(Registration)


def facts(name: str, options: EndpointOptions, schema: dict[str, Any] | None, *, multi_user: bool) -> dict[str, Any]:
    """Return the part of the configuration that is sent to the relay, with the names of its API."""
    return {
        "endpoint_name": name,
        "display_name": options.display_name or name,
        "multi_user": multi_user,
        "public": options.public,
        "allowed_functions": options.allowed_functions,
        "admins": options.admins or None,
        "user_config_schema": schema,
        **({"authentication_policy": options.authentication_policy} if options.authentication_policy else {}),
        **({"high_assurance": True} if options.high_assurance else {}),
    }


def digest(told: dict[str, Any]) -> str:
    """Return the digest of `facts`."""
    return hashlib.sha256(canonical_json(told)).hexdigest()


def read_registration(path: Path, name: str) -> Registration:
    """Return the registration in `path`. Raises ConfigRefused with the command that registers endpoint `name`."""
    try:
        data = trust_in(os.geteuid()).read(path, _MAX_BYTES)
    except UntrustedPath as error:
        raise refusal(error.problems, str(path)) from None
    except FileNotFoundError:
        raise ConfigRefused(str(path), "", f"endpoint {name} is not registered: run `mep register {name}`") from None
    except OSError as error:
        raise ConfigRefused(str(path), "", error.strerror or str(error)) from None
    try:
        registration = _decoder.decode(data)
        _ = registration.relay_keys
    except (msgspec.MsgspecError, ValueError) as error:
        remedy = f"restore it from a backup, or remove it, run `mep register {name}` and compare the fingerprint"
        raise ConfigRefused(str(path), "", f"damaged ({error}): {remedy}") from None
    return registration
