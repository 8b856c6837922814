"""Pins the code of the functions that config.yaml lists by id: part of `mep register`.

A child that has dropped root (unprivileged_child.py) asks the relay for the SHA-256 of each function's code. It returns
one record for each function that the relay knows: the 16 bytes of its id and the 32 bytes of the digest. No other part
of the relay's answer leaves the child. It trusts the server only as far as TLS proves it.

The digests are stored in function_pins.json, which only the endpoint's owner writes. User endpoints run no other code
under these ids. A pin is never replaced: code doesn't change under an id, so a relay that reports a change is refused.
"""

from __future__ import annotations

import itertools
import os
import pwd
import socket
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from mep.cli.endpoint_dirs import replace_file
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.relay_answer import MAX_NOTES, AnswerKind, RelayAnswer, encode
from mep.cli.relay_request import RelayCall, Unreachable, ask_patiently, last_record
from mep.cli.unprivileged_child import UnprivilegedChild
from mep.config.function_pins import MAX_PINS, pins_text, read_pins
from mep.config.paths import EndpointPaths
from mep_wire.api import FunctionDigestsAnswer
from mep_wire.function_lists import DIGEST_BYTES, DIGEST_PREFIX, ids_in

RECORD_BYTES = 16 + DIGEST_BYTES
"""One record of the child's output: a function's id and the SHA-256 of its code."""
_decoder = msgspec.json.Decoder(FunctionDigestsAnswer)
PATH = "/v3/functions/digests"
CHUNK = 256
"""Functions per request, the relay's own limit."""
DATAGRAM_BYTES = CHUNK * 48
"""Most bytes of digests that are sent at once."""
Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes one request: `{"url", "method", "path", "token", "body"}` to `{"status", "body"}` or `{"failed": reason}`."""


def pin_functions(
    where: EndpointPaths, account: pwd.struct_passwd | None, entries: list[str] | None, relay_url: str, token: str
) -> None:
    """Pin the code of every id in `entries` (`allowed_functions`), and forget other pins.

    The child becomes `account`, or keeps ours if it is None. Raises CliFailed if the relay doesn't know a function or
    its digest differs from the pinned one. Raises ConfigRefused for a damaged file.
    """
    ids = ids_in(entries)
    if not ids and not where.function_pins.exists():
        return
    if len(ids) > MAX_PINS:
        raise CliFailed(f"{where.config}: allowed_functions: more than {MAX_PINS} ids", Exit.CONFIG)
    pinned = read_pins(where, os.geteuid())
    found = fetch_function_pins(account, relay_url, token, ids) if ids else {}
    for one in ids:
        _check_pin(where, relay_url, one, found.get(one), pinned.get(one))
    replace_file(where.function_pins, pins_text(found), mode=0o644)


def _check_pin(
    where: EndpointPaths, relay_url: str, function_id: str, found: bytes | None, pinned: bytes | None
) -> None:
    if found is None:
        raise CliFailed(
            f"relay {relay_url} knows no function {function_id}: take it out of allowed_functions in {where.config}, "
            f"or list its code as {DIGEST_PREFIX}DIGEST",
            Exit.CONFIG,
        )
    if pinned not in {None, found}:
        assert pinned is not None
        raise CliFailed(
            f"relay {relay_url} has other code for function {function_id} than is pinned here, and code never changes "
            "under an id: the relay may have been tampered with.\n"
            f"  pinned: {DIGEST_PREFIX}{pinned.hex()}\n"
            f"  now:    {DIGEST_PREFIX}{found.hex()}\n"
            f"To allow the new code, list its digest in {where.config} in place of the id.",
            Exit.RELAY,
        )


def fetch_function_pins(
    account: pwd.struct_passwd | None, relay_url: str, token: str, ids: list[str]
) -> dict[str, bytes]:
    """Return the SHA-256 of each function's code, by id, as the relay tells it now. Raises CliFailed."""
    output = b""
    with UnprivilegedChild(partial(work, relay_url, token, ids), account) as child:
        last_record(child, relay_url)
        while len(output) <= len(ids) * RECORD_BYTES and (piece := child.receive(DATAGRAM_BYTES)):
            output += piece
    return read_records(output, ids)


def read_records(output: bytes, ids: list[str]) -> dict[str, bytes]:
    """Parse the child's records. Raises CliFailed unless each record is of a requested function, at most one for
    each."""
    records = [output[start : start + RECORD_BYTES] for start in range(0, len(output), RECORD_BYTES)]
    found = {str(uuid.UUID(bytes=one[:16])): one[16:] for one in records if len(one) == RECORD_BYTES}
    if len(found) != len(records) or not found.keys() <= set(ids):
        raise CliFailed(
            "the child answered with something other than the digests it was asked for",
            Exit.RELAY,
        )
    return found


def pin_records(url: str, token: str, ids: list[str], ask: Ask) -> bytes:
    """Return the records of the functions that the relay knows. Raises PinsUnavailable."""
    records = []
    for start in range(0, len(ids), CHUNK):
        asked = ids[start : start + CHUNK]
        call = {"url": url, "method": "POST", "path": PATH, "token": token, "body": {"function_ids": asked}}
        answer = ask(call)
        if "failed" in answer:
            raise PinsUnavailable(f"cannot be reached: {answer['failed']}")
        if answer["status"] != 200:
            raise PinsUnavailable(f"does not tell the digests of functions: HTTP status {answer['status']}")
        records += _records(answer["body"], asked)
    return b"".join(records)


class PinsUnavailable(Exception):
    """The relay did not answer with digests; the text gives the reason."""


def _records(body: str | bytes, asked: list[str]) -> list[bytes]:
    try:
        digests = _decoder.decode(body).digests
        found = [(one, bytes.fromhex(digests[one])) for one in asked if one in digests]
    except (msgspec.MsgspecError, ValueError) as error:
        raise PinsUnavailable(f"answered with something other than digests: {type(error).__name__}") from None
    return [uuid.UUID(one).bytes + digest for one, digest in found]


def work(url: str, token: str, ids: list[str], answers: socket.socket) -> None:
    """Ask, and send one record of mep/cli/relay_answer.py: DONE, then the digests, or the reason of a failure."""

    notes = itertools.count()

    def note(text: str) -> None:
        if next(notes) < MAX_NOTES:  # each request may fail some times, and there may be many
            answers.send(encode(RelayAnswer(AnswerKind.NOTE, text)))

    def ask(call: dict[str, Any]) -> dict[str, Any]:
        try:
            status, body = ask_patiently(RelayCall(**call), note)
        except Unreachable as error:
            return {"failed": str(error)}
        return {"status": status, "body": body}

    try:
        records = pin_records(url, token, ids, ask)
    except PinsUnavailable as error:
        answers.send(encode(RelayAnswer(AnswerKind.MALFORMED, str(error))))
        return
    answers.send(encode(RelayAnswer(AnswerKind.DONE)))
    for start in range(0, len(records), DATAGRAM_BYTES):
        answers.send(records[start : start + DATAGRAM_BYTES])
