"""What a start will meet besides the endpoint's own files: PAM's modules, accounts and their homes, the environment.

`mep check` warns of each, with what it is, where, why it matters and what mends it. It is no error, because the host
may be another one later (a home that pam_mkhomedir makes). Runs as root or as the owner of a single-user endpoint.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mep.boundary.file_trust import UntrustedPath
from mep.boundary.nss_database import passwd_by_name
from mep.boundary.pam_service import missing_modules
from mep.cli.exit_codes import CliFailed
from mep.config import paths as names
from mep.config.template_bundle import environment_notes, find_file, read_environment, read_text_lines
from mep.config.template_files import read_trusted

if TYPE_CHECKING:
    from mep.config.options import EndpointOptions
    from mep.config.paths import EndpointPaths
    from mep.config.resolver import Resolution

MAX_ACCOUNTS = 100
"""Accounts that the mapping spells and that are looked up: a directory may be slow."""
_MAX_MAPPING_BYTES = 8 * 1024 * 1024


def site_notes(where: EndpointPaths, resolution: Resolution, owner: int) -> list[str]:
    """Return the warnings."""
    path = where.config_dir / names.ENVIRONMENT
    notes = environment_notes(path, read_environment(path, owner))
    if resolution.resolved.multi_user:
        notes += [*_pam_notes(resolution.endpoint), *_account_notes(where, resolution.endpoint, owner)]
    return notes


def relay_notes(where: EndpointPaths, resolution: Resolution) -> list[str]:
    """Return what would keep the endpoint from working with its relay. A child without privilege asks it."""
    from mep.cli.registration import register_account
    from mep.cli.relay_probe import Pinned, ask

    known = resolution.registration
    pinned = Pinned(
        known.relay_url, known.link_address, bytes.fromhex(known.link_public_key), resolution.endpoint.clock_skew_s
    )
    try:
        return ask(pinned, register_account(where))
    except CliFailed as error:
        return [f"whether the relay can be reached is not known: {error.text}"]


def _pam_notes(options: EndpointOptions) -> list[str]:
    if not options.pam.enable:
        return []
    try:
        missing = missing_modules(options.pam.service_name)
    except (OSError, UntrustedPath) as error:
        return [f"pam.service_name: {error}"]
    return [
        f"{one}, so every start will fail with START_FAILED; install its package, or remove the line" for one in missing
    ]


def _line_with(path: Path, name: str) -> str:
    """Return `:` and the only line of a JSON file that has this text; empty if there is none, or more."""
    found = [number for number, line in enumerate(read_text_lines(path), 1) if json.dumps(name) in line]
    return f":{found[0]}" if len(found) == 1 else ""


def _account_notes(where: EndpointPaths, options: EndpointOptions, owner: int) -> Iterator[str]:
    """Yield a warning for each account that the mapping spells and that cannot have a user endpoint as it is."""
    path = find_file(where.config_dir, options.identity_mapping_config_path, names.MAPPING)
    for name in list(dict.fromkeys(_spelt_accounts(path, owner)))[:MAX_ACCOUNTS]:
        at = f"{path}{_line_with(path, name)}"
        try:
            entry = passwd_by_name(name)
        except OSError as error:
            yield f"{path}: {error.strerror}"
            continue
        if entry is None:
            remedy = f"correct the output, or run: useradd -m {shlex.quote(name)}"
            yield f"{at}: maps to {name!r}, which is no account of this host; {remedy}"
        elif not Path(entry.home).is_dir() and not options.user_state_dir:
            remedy = "create it, let pam_mkhomedir do so (pam.enable), or set user_state_dir"
            yield f"{at}: maps to {name!r}, whose home {entry.home} does not exist: starts will fail; {remedy}"


def _spelt_accounts(path: Path, owner: int) -> Iterator[str]:
    """Yield the outputs of the mapping's rules that are names, not made of an identity. The mapping was checked."""
    try:
        value = json.loads(read_trusted(path, cap=_MAX_MAPPING_BYTES, owner=owner))
    except ValueError:  # YAML
        return
    for document in value if isinstance(value, list) else [value]:
        for rule in _list(document, "mappings"):
            output = rule.get("output") if isinstance(rule, dict) else None
            if isinstance(output, str) and output and "{" not in output:
                yield output


def _list(document: Any, key: str) -> list[Any]:
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, list) else []
