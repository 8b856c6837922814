"""The administrator's files on their way to a user endpoint: one sealed document.

Written by the resolver (as root, from /etc/mep/NAME), carried by descriptor through monitor and keeper
without being read there, and decoded by the user endpoint, as the user. The user can read the memory of
their own process, so nothing in here is secret from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from mep_wire.struct_info import build_struct_info


class UepBundle(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a user endpoint needs besides its verified start request."""

    endpoint_id: str
    endpoint_name: str
    relay_link_address: str
    """ZeroMQ address of the relay's link, e.g. tcp://127.0.0.1:8651."""
    relay_link_key: bytes
    """The relay's CURVE public key, 32 bytes, pinned at registration."""
    template_name: str
    """Which of `templates` is rendered."""
    templates: dict[str, str]
    """Every file of the template directory by its relative path, so that include and extends work."""
    schema: dict[str, Any] | None
    """The administrator's JSON schema (draft 2020-12 unless it says otherwise) for user_endpoint_config."""
    user_environment: dict[str, str]
    """Variables from user_environment.yaml, added to the user endpoint's environment."""
    parent_config: dict[str, Any]
    """The endpoint's own config.yaml as templates see it (`parent_config`), secrets left out."""
    allowed_functions: list[str] | None = None
    """Entries as in config.yaml: ids at the relay, and digests as `sha256:` with hexadecimal digits."""
    function_pins: dict[str, bytes] = {}
    """The SHA-256 of the code of each listed id, pinned at registration."""
    multi_user: bool = True
    debug: bool = False
    log_format: str = "text"
    """`text` or `json`."""
    audit_tasks: bool = False
    """Whether the site keeps task records, with block and job of each task."""
    user_state_dir: str | None = None
    """Where user endpoints keep log, spool and run directory instead of ~/.mep/uep; {user} is replaced."""
    quoting: str = "typed"
    """`json`: texts reach templates as JSON, with quotes, as in Globus Compute."""
    own_environment: dict[str, str] = {}
    """Of a person's own endpoint: the environment of its start, for variables that are not set otherwise."""


EXPANDED = re.compile(r"\$\{(HOME|USER)\}")
"""What is replaced in a value of user_environment.yaml, by the account's own."""


def expanded(environment: Mapping[str, str], account: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with ${HOME} and ${USER} replaced by those of `account`."""
    return {name: EXPANDED.sub(lambda found: account.get(found[1], ""), value) for name, value in environment.items()}


build_struct_info(__name__)

decode_bundle = msgspec.msgpack.Decoder(UepBundle).decode
