"""Registering an endpoint with its relay: keys, the request, and what the relay answers, in an order that can resume.

The state directory gets its keys and the id to ask for first; registration.json, last, makes the endpoint
registered. Whatever fails in between, `mep register NAME` goes on with the same keys and the same id, so that the
relay never has a second endpoint of it. Keys and requests are made in children without privilege.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mep import __version__
from mep.boundary.text import printable
from mep.cli.dropped import run_module
from mep.cli.failures import CliFailed, Exit
from mep.cli.files import make_parents, new_directory, replace_file, sync_directory, write_new
from mep.cli.function_pins import pin_functions
from mep.cli.output import warn
from mep.config import paths as names
from mep.config.accounts import helper_accounts
from mep.config.bundle import find_file, read_schema
from mep.config.options import EndpointOptions, is_loopback
from mep.config.paths import EndpointPaths
from mep.config.registration import Registration, digest, facts, read_registration
from mep_wire.api import JSON, RegisterAnswer, decode_error
from mep_wire.errors import EndpointNotFound, IdConflict

_KEYS_FILE = names.KEY_RECORD
_LINK_ADDRESS = re.compile(r"tcp://[^\s/]+:[0-9]{1,5}")
_NEW_ID = "mep register {} --new-id"


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint asks to be known by: the id and the public keys, kept in keys.json."""

    endpoint_id: str
    link_public_key: str
    """Z85, 40 characters."""
    unseal_public_key: str
    """64 hexadecimal digits."""


_keys_decoder = msgspec.json.Decoder(KeyRecord)
_answer_decoder = msgspec.json.Decoder(RegisterAnswer)


class RelayRefuses(CliFailed):
    """The relay answered with an error; `code` is its stable code, empty where it gave none."""

    def __init__(self, url: str, code: str, reason: str) -> None:
        self.code = code
        super().__init__(f"relay {url} refuses: {printable(reason)}", Exit.RELAY)


@dataclass(frozen=True, slots=True)
class Accounts:
    """Whom the children become; None means: as we are (a person's own endpoint)."""

    manager: pwd.struct_passwd | None
    mapper: pwd.struct_passwd | None


def accounts_for(where: EndpointPaths, options: EndpointOptions) -> Accounts:
    """Return the accounts for the children. Raises ConfigRefused where one is missing."""
    if not where.privileged:
        return Accounts(None, None)
    found = helper_accounts(where, options)
    return Accounts(found.manager, found.mapper)


def endpoint_id(where: EndpointPaths) -> str:
    """Return the id that the endpoint asks to be known by, or a new one where it has none. Raises CliFailed."""
    known = _known_keys(where)
    return known.endpoint_id if known else str(uuid.uuid4())


def ensure_keys(where: EndpointPaths, accounts: Accounts, new_id: str = "") -> KeyRecord:
    """Return the endpoint's id and public keys; what is missing of its keys is made, the id as `new_id`.

    Keys that are there are given to `accounts`. Raises CliFailed.
    """
    try:
        if where.state_dir.exists():
            return _complete_keys(where, accounts, new_id or str(uuid.uuid4()))
        make_parents(where.state_dir.parent, privileged=where.privileged)
        with new_directory(where.state_dir, mode=0o755 if where.privileged else 0o700) as staging:
            record = _key_record(staging, accounts, new_id or str(uuid.uuid4()))
            write_new(staging / _KEYS_FILE, msgspec.json.encode(record), mode=0o644)
    except OSError as error:
        raise CliFailed(f"{where.state_dir}: {error.strerror}") from None
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
    """Make each secret key that exists the property of the account that uses it."""
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
        link_public_key=_key("link", directory / names.LINK_KEY, accounts.manager),
        unseal_public_key=_key("unseal", directory / names.UNSEAL_KEY, accounts.mapper),
    )


def _key(kind: str, path: Path, account: pwd.struct_passwd | None) -> str:
    """Return the public key to `path`, from a child of `account`, which makes the pair where there is none."""
    if path.exists():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return _keygen(account, descriptor, kind, "--existing")
        finally:
            os.close(descriptor)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
    try:
        if account is not None:
            os.fchown(descriptor, account.pw_uid, account.pw_gid)
        os.fchmod(descriptor, 0o400)
        public = _keygen(account, descriptor, kind)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)
    return public


def _keygen(account: pwd.struct_passwd | None, descriptor: int, kind: str, *more: str) -> str:
    output = run_module("mep.cli.keygen", [kind, str(descriptor), *more], account=account, descriptor=descriptor)
    return output.decode("ascii")


def forget_keys(where: EndpointPaths) -> None:
    """Remove both secret keys, so that registering makes new ones."""
    for name in (names.LINK_KEY, names.UNSEAL_KEY):
        (where.state_dir / name).unlink(missing_ok=True)


def forget_id(where: EndpointPaths) -> None:
    """Remove keys, id and registration, so that registering makes another endpoint of these files."""
    for path in (where.registration, where.state_dir / _KEYS_FILE):
        path.unlink(missing_ok=True)
    forget_keys(where)


def _facts(where: EndpointPaths, options: EndpointOptions) -> dict[str, Any]:
    schema_path = find_file(where.config_dir, options.user_config_schema_path, names.SCHEMA)
    schema = read_schema(schema_path, required=False, owner=os.geteuid())
    return facts(where.name, options, schema, multi_user=options.multi_user and where.privileged)


def register(
    where: EndpointPaths, options: EndpointOptions, relay_url: str, token: str, new_id: str = ""
) -> Registration:
    """Register the endpoint, or register it again with what changed; an endpoint without an id gets `new_id`.

    Raises CliFailed, ConfigRefused.
    """
    accounts = accounts_for(where, options)
    keys = ensure_keys(where, accounts, new_id)
    pin_functions(where, accounts.manager, options.allowed_functions, relay_url, token)
    told = _facts(where, options)
    body = {
        **told,
        "endpoint_uuid": keys.endpoint_id,
        "metadata": {"endpoint_version": __version__},
        "link_public_key": keys.link_public_key,
        "unseal_public_key": keys.unseal_public_key,
    }
    text = _tell(where, accounts, relay_url, token, body)
    try:
        answer = _answer_decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise CliFailed(f"relay {relay_url}: an answer that is no registration: {error}", Exit.RELAY) from None
    registration = _pinned(answer, relay_url, keys, digest(told))
    replace_file(where.registration, msgspec.json.format(msgspec.json.encode(registration)) + b"\n", mode=0o644)
    return registration


def _tell(where: EndpointPaths, accounts: Accounts, relay_url: str, token: str, body: dict[str, Any]) -> str:
    """Return the relay's answer to a new registration, or to a change where it knows the endpoint already."""
    if where.registration.exists() and read_registration(where.registration, where.name).relay_url == relay_url:
        try:
            return call_relay(accounts, relay_url, "PUT", f"/v3/endpoints/{body['endpoint_uuid']}", token, body)
        except RelayRefuses as error:
            if error.code != EndpointNotFound.code:
                raise  # else the relay has lost or deleted it, and may have it again under its id
    try:
        return call_relay(accounts, relay_url, "POST", "/v3/endpoints", token, body)
    except RelayRefuses as error:
        if error.code == IdConflict.code:
            error.text += (
                f"\nIts id was deleted there, or is another's. As a new endpoint: {_NEW_ID.format(where.name)}"
            )
        raise


def _pinned(answer: RegisterAnswer, relay_url: str, keys: KeyRecord, told: str) -> Registration:
    if answer.endpoint_id != keys.endpoint_id:
        registered = printable(answer.endpoint_id)
        raise CliFailed(f"relay {relay_url}: registered {registered}, not {keys.endpoint_id}", Exit.RELAY)
    for key in (answer.link_public_key, answer.signing_public_key):
        try:
            length = len(bytes.fromhex(key))
        except ValueError:
            length = 0
        if length != 32:
            raise CliFailed(f"relay {relay_url}: answered a key that is not 32 bytes in hexadecimal", Exit.RELAY)
    if not _LINK_ADDRESS.fullmatch(answer.link_address):
        raise CliFailed(f"relay {relay_url}: answered {answer.link_address!r}, which is no tcp:// address", Exit.RELAY)
    warn([f"relay {relay_url}: {warning}" for warning in answer.warnings])
    if is_loopback(_host(answer.link_address)) and not is_loopback(_host(relay_url)):
        warn([f"relay {relay_url} says that its link is {answer.link_address}, which is this machine's own address"])
    return Registration(
        endpoint_id=answer.endpoint_id,
        relay_url=relay_url,
        link_address=answer.link_address,
        link_public_key=answer.link_public_key,
        signing_public_key=answer.signing_public_key,
        owner=answer.owner,
        registered_at=time.time(),
        told=told,
    )


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def call_relay(accounts: Accounts, url: str, method: str, path: str, token: str, body: dict[str, Any] | None) -> str:
    """Ask the relay in a child without privilege and return its answer's body. Raises CliFailed."""
    call = {"url": url, "method": method, "path": path, "token": token, "body": body}
    output = run_module("mep.cli.relay_call", [], account=accounts.manager, stdin=json.dumps(call).encode())
    answer = json.loads(output)
    if reason := answer.get("failed"):
        raise CliFailed(f"relay {url} cannot be reached: {printable(reason)}", Exit.RELAY)
    if not 200 <= answer["status"] < 300:
        raise _refusal(url, answer)
    text: str = answer["body"]
    return text


def _refusal(url: str, answer: dict[str, Any]) -> RelayRefuses:
    try:
        error = decode_error(answer["body"].encode(), JSON)
    except msgspec.MsgspecError:
        return RelayRefuses(url, "", f"HTTP status {answer['status']}")
    return RelayRefuses(url, error.code, f"{error.reason} [{error.code}, correlation id {error.correlation_id}]")
