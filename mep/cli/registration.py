"""Registers an endpoint with its relay: keys, the request, and the relay's answer, in an order that can resume.

The state directory first gets the keys and the requested id. registration.json, written last, makes the endpoint
registered. If a step in between fails, `mep register NAME` goes on with the same keys and the same id, so the relay
never has a second endpoint of it. Keys and requests are made in children without privilege.
"""

from __future__ import annotations

import os
import pwd
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mep import __version__
from mep.boundary.text import printable
from mep.cli.endpoint_dirs import make_parents, new_directory, replace_file, sync_directory, write_new
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.function_pins import pin_functions
from mep.cli.keygen import KeyKind, key_pair
from mep.cli.output import warn
from mep.cli.pinning import check_keys
from mep.cli.relay_answer import AnswerCode, AnswerKind, RelayAnswer
from mep.cli.relay_request import RelayCall, call_relay
from mep.config import paths as names
from mep.config.options import EndpointOptions, is_loopback
from mep.config.paths import EndpointPaths
from mep.config.registration import Registration, digest, facts, read_registration
from mep.config.system_accounts import helper_accounts, system_account
from mep.config.template_bundle import find_file, read_schema
from mep_wire.identity import Identity
from mep_wire.relay_keys import RelayKeys

_KEYS_FILE = names.KEY_RECORD
_NEW_ID = "mep register {} --new-id"


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint's identity at the relay: the id and the public keys, stored in keys.json."""

    endpoint_id: str
    link_public_key: str
    """Z85, 40 characters."""
    unseal_public_key: str
    """64 hexadecimal digits."""


_keys_decoder = msgspec.json.Decoder(KeyRecord)


@dataclass(frozen=True, slots=True)
class Accounts:
    """The accounts that the children become; None means the present account (a single-user endpoint)."""

    manager: pwd.struct_passwd | None
    mapper: pwd.struct_passwd | None
    register: pwd.struct_passwd | None
    """The account of the child that talks to the relay, used for nothing else."""


def accounts_for(where: EndpointPaths, options: EndpointOptions) -> Accounts:
    """Return the accounts for the children. Raises ConfigRefused if one is missing."""
    if not where.privileged:
        return Accounts(None, None, None)
    found = helper_accounts(where, options)
    return Accounts(found.manager, found.mapper, register_account(where))


def register_account(where: EndpointPaths) -> pwd.struct_passwd | None:
    """Return the account that talks to the relay; None for a person's own endpoint. Raises ConfigRefused."""
    return system_account(names.REGISTER_ACCOUNT) if where.privileged else None


def endpoint_id(where: EndpointPaths) -> str:
    """Return the endpoint's id, or a new one if it has none. Raises CliFailed."""
    known = _known_keys(where)
    return known.endpoint_id if known else str(uuid.uuid4())


def ensure_keys(where: EndpointPaths, accounts: Accounts, new_id: str = "") -> KeyRecord:
    """Return the endpoint's id and public keys. Missing keys are created; a missing id becomes `new_id`.

    Existing keys are given to `accounts`. Raises CliFailed.
    """
    try:
        if where.state_dir.exists():
            return _complete_keys(where, accounts, new_id or str(uuid.uuid4()))
        make_parents(where.state_dir.parent, privileged=where.privileged)
        with new_directory(where.state_dir, mode=0o755 if where.privileged else 0o700) as staging:
            record = _key_record(staging, accounts, new_id or str(uuid.uuid4()))
            write_new(staging / _KEYS_FILE, msgspec.json.encode(record), mode=0o644)
    except OSError as error:
        raise CliFailed(f"{error.filename or where.state_dir}: {error.strerror}") from None
    return record


def _known_keys(where: EndpointPaths) -> KeyRecord | None:
    path = where.state_dir / _KEYS_FILE
    if not path.exists():
        return None
    try:
        return _keys_decoder.decode(path.read_bytes())
    except msgspec.MsgspecError as error:
        raise CliFailed(f"{path}: damaged: {error}") from None


def _complete_keys(where: EndpointPaths, accounts: Accounts, new_id: str) -> KeyRecord:
    path, known = where.state_dir / _KEYS_FILE, _known_keys(where)
    _give_keys(where, accounts)
    if known and all((where.state_dir / name).exists() for name in (names.LINK_KEY, names.UNSEAL_KEY)):
        return known
    record = _key_record(where.state_dir, accounts, known.endpoint_id if known else new_id)
    replace_file(path, msgspec.json.encode(record), mode=0o644)
    return record


def _give_keys(where: EndpointPaths, accounts: Accounts) -> None:
    """Give each existing secret key to the account that uses it."""
    for name, account in ((names.LINK_KEY, accounts.manager), (names.UNSEAL_KEY, accounts.mapper)):
        path = where.state_dir / name
        if account is None or not path.exists():
            continue
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid != account.pw_uid:
                os.fchown(descriptor, account.pw_uid, account.pw_gid)
        finally:
            os.close(descriptor)


def _key_record(directory: Path, accounts: Accounts, endpoint_id: str) -> KeyRecord:
    return KeyRecord(
        endpoint_id=endpoint_id,
        link_public_key=_key(KeyKind.LINK, directory / names.LINK_KEY, accounts.manager),
        unseal_public_key=_key(KeyKind.UNSEAL, directory / names.UNSEAL_KEY, accounts.mapper),
    )


def _key(kind: KeyKind, path: Path, account: pwd.struct_passwd | None) -> str:
    """Return the public key to `path`, from a child of `account`, which makes a pair if there is none."""
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return key_pair(kind, path, descriptor, account, existing=True)
        finally:
            os.close(descriptor)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
    try:
        if account is not None:
            os.fchown(descriptor, account.pw_uid, account.pw_gid)
        os.fchmod(descriptor, 0o400)
        public = key_pair(kind, path, descriptor, account, existing=False)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)
    return public


def forget_keys(where: EndpointPaths) -> None:
    """Remove both secret keys, so that the next registration makes new ones."""
    for name in (names.LINK_KEY, names.UNSEAL_KEY):
        (where.state_dir / name).unlink(missing_ok=True)


def forget_id(where: EndpointPaths) -> None:
    """Remove keys, id and registration, so that the next registration makes another endpoint of these files.

    The relay's keys stay pinned: the registration is put aside until there is a new one.
    """
    if where.registration.exists():
        where.registration.replace(where.former_registration)
    (where.state_dir / _KEYS_FILE).unlink(missing_ok=True)
    forget_keys(where)


def _facts(where: EndpointPaths, options: EndpointOptions) -> dict[str, Any]:
    schema_path = find_file(where.config_dir, options.user_config_schema_path, names.SCHEMA)
    schema = read_schema(schema_path, required=False, owner=os.geteuid())
    return facts(where.name, options, schema, multi_user=options.multi_user and where.privileged)


def register(
    where: EndpointPaths, options: EndpointOptions, relay_url: str, token: str, new_id: str = "", expected: str = ""
) -> Registration:
    """Register the endpoint, or register its changes. An endpoint without an id gets `new_id`.

    Keys of the relay that differ from the pinned ones are refused, unless the pinned ones have signed them, or
    `expected`, the administrator's fingerprint, names them. Raises CliFailed, ConfigRefused.
    """
    accounts = accounts_for(where, options)
    pinned = _pinned(where)
    keys = ensure_keys(where, accounts, new_id)
    told = _facts(where, options)
    body = {
        **told,
        "endpoint_uuid": keys.endpoint_id,
        "metadata": {"endpoint_version": __version__, **({"email": options.email} if options.email else {})},
        "link_public_key": keys.link_public_key,
        "unseal_public_key": keys.unseal_public_key,
    }
    answer, owner = _tell(where, accounts, relay_url, token, body)
    if answer.endpoint_id != keys.endpoint_id:
        raise CliFailed(f"relay {relay_url}: registered {answer.endpoint_id}, not {keys.endpoint_id}", Exit.RELAY)
    if said := check_keys(where.name, relay_url, pinned, answer.keys, answer.earlier, expected):
        warn([f"relay {relay_url}: {said}"])
    pin_functions(where, accounts.register, options.allowed_functions, relay_url, token)  # of a relay that is the one
    _warn_of_loopback(relay_url, answer.link_host)
    registration = Registration(
        endpoint_id=answer.endpoint_id,
        relay_url=relay_url,
        link_address=f"tcp://{answer.link_host}:{answer.link_port}",
        link_public_key=answer.keys.link.hex(),
        signing_public_key=answer.keys.signing.hex(),
        owner=owner,
        registered_at=time.time(),
        told=digest(told),
    )
    replace_file(where.registration, msgspec.json.format(msgspec.json.encode(registration)) + b"\n", mode=0o644)
    where.former_registration.unlink(missing_ok=True)
    return registration


def _pinned(where: EndpointPaths) -> RelayKeys | None:
    """Return the relay's keys pinned at an earlier registration, including one that --new-id has put aside."""
    for path in (where.registration, where.former_registration):
        if path.exists():
            return read_registration(path, where.name).relay_keys
    return None


def _tell(
    where: EndpointPaths, accounts: Accounts, relay_url: str, token: str, body: dict[str, Any]
) -> tuple[RelayAnswer, list[Identity]]:
    """Return the relay's answer to a new registration, or to a change if it already knows the endpoint."""
    if where.registration.exists() and read_registration(where.registration, where.name).relay_url == relay_url:
        path = f"/v3/endpoints/{body['endpoint_uuid']}"
        answer, owner = call_relay(RelayCall(relay_url, "PUT", path, token, body), accounts.register)
        if answer.kind is AnswerKind.REGISTERED:
            return answer, owner
        if answer.code is not AnswerCode.ENDPOINT_NOT_FOUND:
            raise refusal(relay_url, answer)
        # The relay has lost or deleted it, and may have it again under its id.
    answer, owner = call_relay(RelayCall(relay_url, "POST", "/v3/endpoints", token, body), accounts.register)
    if answer.kind is AnswerKind.REGISTERED:
        return answer, owner
    error = refusal(relay_url, answer)
    if answer.code is AnswerCode.ID_CONFLICT:
        error.text += f"\nIts id was deleted there, or is another's. As a new endpoint: {_NEW_ID.format(where.name)}"
    raise error


def refusal(url: str, answer: RelayAnswer) -> CliFailed:
    """Return the error for a relay's answer that refuses."""
    return CliFailed(f"relay {url} refuses: {printable(answer.text)}", Exit.RELAY)


def _warn_of_loopback(relay_url: str, link_host: str) -> None:
    if is_loopback(link_host.strip("[]")) and not is_loopback(urlsplit(relay_url).hostname or ""):
        warn([f"relay {relay_url} says that its link is on {link_host}, which is this machine's own address"])
