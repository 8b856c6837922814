"""One request to the relay's HTTP API, in a child that has dropped root: mep-register, an account for this alone.

The child reads the relay's answer and returns one record of mep/cli/relay_answer.py, after up to MAX_NOTES notes.
The administrator's token comes with the fork. No other process of the account can look into the child, or answer for
it (mep/boundary/untraceable.py). It trusts the server only as far as TLS proves it. Root takes nothing else of the
answer. A single-user endpoint runs the same code as its owner, and also gets the owner's identities.
"""

from __future__ import annotations

import contextlib
import json
import pwd
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mep.boundary.text import printable
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.output import warn
from mep.cli.relay_answer import (
    MAX_NOTES,
    RECORD_BYTES,
    AnswerCode,
    AnswerKind,
    RecordInvalid,
    RelayAnswer,
    decode,
    encode,
)
from mep.cli.unprivileged_child import UnprivilegedChild
from mep_wire.api import JSON, RegisterAnswer, decode_error
from mep_wire.errors import EndpointNotFound, IdConflict
from mep_wire.identity import Identity
from mep_wire.relay_keys import EarlierKeys, RelayKeys

TIMEOUT_S = 15.0
ATTEMPTS = 4
_FIRST_WAIT_S = 1.0
_MAX_ANSWER_BYTES = 4 * 1024 * 1024
_MAX_OWNER_BYTES = 64 * 1024
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
"""OpenSSL's words for a peer that answers a TLS handshake with something else."""
_AGAIN = frozenset({429, 502, 503, 504})
_LINK_ADDRESS = re.compile(r"tcp://([^\s/]+):([0-9]{1,5})")
_registered_decoder, _owner_decoder = msgspec.json.Decoder(RegisterAnswer), msgspec.json.Decoder(list[Identity])
_CODES = {EndpointNotFound.code: AnswerCode.ENDPOINT_NOT_FOUND, IdConflict.code: AnswerCode.ID_CONFLICT}


@dataclass(frozen=True, slots=True)
class RelayCall:
    """The request. The token is not in its repr."""

    url: str
    method: str
    path: str
    token: str
    body: dict[str, Any] | None = None
    """A registration, answered by RegisterAnswer; without one, the answer's body is ignored."""

    def __repr__(self) -> str:
        return f"{self.method} {self.url}{self.path}"


# --- the parent --------------------------------------------------------------------------------------


def call_relay(call: RelayCall, account: pwd.struct_passwd | None) -> tuple[RelayAnswer, list[Identity]]:
    """Call the relay in a child and return the last record. Without an `account`, also return the owner's identities.

    Notes are shown as warnings. Raises CliFailed if there is no answer or the answer is invalid.
    """
    try:
        with UnprivilegedChild(partial(_work, call, account is None), account) as child:
            answer = last_record(child, call.url)
            if answer.kind is not AnswerKind.REFUSED and (answer.kind is AnswerKind.REGISTERED) != (
                call.body is not None
            ):
                raise RecordInvalid("an answer to something else")
            return answer, _owner(child) if account is None and answer.kind is AnswerKind.REGISTERED else []
    except RecordInvalid as error:
        raise CliFailed(f"relay {call.url}: the process that asked it failed: {error}", Exit.RELAY) from None


def last_record(child: UnprivilegedChild, url: str) -> RelayAnswer:
    """Return the record that ends an exchange. Notes before it are shown as warnings.

    Raises CliFailed if the record says that there is no answer, or if it is invalid.
    """
    try:
        for _ in range(MAX_NOTES + 1):
            answer = decode(child.receive(RECORD_BYTES))
            if answer.kind is AnswerKind.UNREACHABLE:
                raise CliFailed(f"relay {url} cannot be reached: {printable(answer.text)}", Exit.RELAY)
            if answer.kind is AnswerKind.MALFORMED:
                raise CliFailed(f"relay {url}: {printable(answer.text)}", Exit.RELAY)
            if answer.kind is not AnswerKind.NOTE:
                return answer
            warn([f"relay {url}: {answer.text}"])
    except RecordInvalid as error:
        raise CliFailed(f"relay {url}: the process that asked it failed: {error}", Exit.RELAY) from None
    raise CliFailed(f"relay {url}: more than {MAX_NOTES} notes", Exit.RELAY)


def _owner(child: UnprivilegedChild) -> list[Identity]:
    data = child.receive(_MAX_OWNER_BYTES)
    try:
        return _owner_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise RecordInvalid(f"the owner's identities: {error}") from None


# --- the child ---------------------------------------------------------------------------------------


def _work(call: RelayCall, owner: bool, answers: socket.socket) -> None:
    """Call the relay, and send the result."""
    answer, identities = _outcome(call, answers)
    answers.send(encode(answer))
    if owner and answer.kind is AnswerKind.REGISTERED:
        answers.send(msgspec.json.encode(identities))


def _outcome(call: RelayCall, answers: socket.socket) -> tuple[RelayAnswer, list[Identity]]:
    try:
        status, body = ask_patiently(call, partial(_note, answers))
    except Unreachable as error:
        return RelayAnswer(AnswerKind.UNREACHABLE, str(error)), []
    if not 200 <= status < 300:
        return _refusal(status, body), []
    if call.body is None:
        return RelayAnswer(AnswerKind.DONE), []
    try:
        registered = _registered_decoder.decode(body)
        answer = _registered(registered)
        encode(answer)
    except (msgspec.MsgspecError, ValueError) as error:
        text = f"the answer is no registration ({error}): is this address a MEP relay's? Check relay_url"
        return RelayAnswer(AnswerKind.MALFORMED, text), []
    for warning in registered.warnings[: MAX_NOTES - ATTEMPTS]:
        _note(answers, warning)
    return answer, registered.owner


def _note(answers: socket.socket, text: str) -> None:
    answers.send(encode(RelayAnswer(AnswerKind.NOTE, text)))


def _registered(said: RegisterAnswer) -> RelayAnswer:
    """Return the record for a registration. Raises ValueError if it is invalid."""
    address = _LINK_ADDRESS.fullmatch(said.link_address)
    if address is None or not 0 < int(address[2]) < 65536:
        raise ValueError(f"its link address {said.link_address!r} is no tcp:// address")
    return RelayAnswer(
        AnswerKind.REGISTERED,
        endpoint_id=said.endpoint_id,
        keys=_keys(said.signing_public_key, said.link_public_key),
        link_host=address[1],
        link_port=int(address[2]),
        earlier=tuple(
            EarlierKeys(_keys(one.signing_public_key, one.link_public_key), bytes.fromhex(one.signature))
            for one in said.earlier_keys
        ),
    )


def _keys(signing: str, link: str) -> RelayKeys:
    try:
        return RelayKeys(bytes.fromhex(signing), bytes.fromhex(link))
    except ValueError:
        raise ValueError("a key that is not 32 bytes in hexadecimal") from None


def _refusal(status: int, body: bytes) -> RelayAnswer:
    try:
        error = decode_error(body, JSON)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if status in _AGAIN:
            return RelayAnswer(
                AnswerKind.REFUSED, f"HTTP status {status} from a server in front of it: does the relay run?"
            )
        text = f"HTTP status {status}, and the answer is no relay's: is this address a MEP relay's? Check relay_url"
        return RelayAnswer(AnswerKind.MALFORMED, text)
    text = f"{error.reason} [{error.code}, correlation id {error.correlation_id}]"
    return RelayAnswer(AnswerKind.REFUSED, text, _CODES.get(error.code, AnswerCode.OTHER))


class Unreachable(Exception):
    """There was no answer. The text gives the reason."""


def connection(url: str, timeout_s: float = TIMEOUT_S) -> HTTPConnection:
    """Return a connection to the relay at `url`, which is made by its first request."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        return HTTPSConnection(host, parts.port, timeout=timeout_s, context=ssl.create_default_context())
    return HTTPConnection(host, parts.port, timeout=timeout_s)


def _ask(call: RelayCall) -> tuple[int, bytes]:
    headers = {
        "Authorization": f"Bearer {call.token}",
        "Content-Type": "application/json",
        "Accept": "application/json",
    }
    body = None if call.body is None else json.dumps(call.body)
    with contextlib.closing(connection(call.url)) as asked:
        asked.request(call.method, urlsplit(call.url).path.rstrip("/") + call.path, body, headers)
        answer = asked.getresponse()
        data = answer.read(_MAX_ANSWER_BYTES + 1)
    if len(data) > _MAX_ANSWER_BYTES:
        raise Unreachable(f"its answer is larger than {_MAX_ANSWER_BYTES} bytes")
    return answer.status, data


def _is_plain(error: OSError | HTTPException) -> bool:
    return isinstance(error, ssl.SSLError) and error.reason in _NO_TLS


def reason_of(error: OSError | HTTPException, url: str) -> str:
    """Return, for the administrator, why there is no answer, and what mends it where that is known."""
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = "put its authority's certificate into a file, and name that in SSL_CERT_FILE"
        return f"its certificate is not accepted: {error.verify_message}; {remedy}"
    if _is_plain(error):
        remedy = "give the port that speaks https, or http:// on this machine alone"
        return f"it speaks plain http on this port, not https; {remedy}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, BadStatusLine | ConnectionResetError) and url.startswith("http:"):
        return "it gives no answer in plain http; does this port speak https?"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def ask_patiently(call: RelayCall, note: Callable[[str], None]) -> tuple[int, bytes]:
    """Return status and body of the answer. `note` is told of each attempt that failed. Raises Unreachable."""
    wait_s = _FIRST_WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            status, body = _ask(call)
            if status not in _AGAIN or attempt == ATTEMPTS:
                return status, body
            reason = f"status {status}"
        except (OSError, HTTPException) as error:
            reason = reason_of(error, call.url)
            if isinstance(error, ssl.SSLCertVerificationError) or _is_plain(error):
                raise Unreachable(reason) from None
        if attempt < ATTEMPTS:
            note(f"{reason}; trying again in {wait_s:g} s")
            time.sleep(wait_s)
            wait_s *= 2
    raise Unreachable(reason)
