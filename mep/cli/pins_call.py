"""Asks the relay for the digests of functions, in a child that has dropped root (mep/cli/unprivileged_child.py).

It returns one record for each function that the relay knows: the 16 bytes of its id and the 32 bytes of the SHA-256 of
its code. No other part of the relay's answer leaves this process. Trusts the server only as far as TLS proves it.
"""

from __future__ import annotations

import itertools
import socket
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from mep.cli.relay_answer import MAX_NOTES, AnswerKind, RelayAnswer, encode
from mep.cli.relay_request import RelayCall, Unreachable, ask_patiently
from mep_wire.api import FunctionDigestsAnswer

_decoder = msgspec.json.Decoder(FunctionDigestsAnswer)

PATH = "/v3/functions/digests"
CHUNK = 256
"""Functions per request, the relay's own limit."""
DATAGRAM_BYTES = CHUNK * 48
"""Most bytes of digests that are sent at once."""
Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes one request: `{"url", "method", "path", "token", "body"}` to `{"status", "body"}` or `{"failed": reason}`."""


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
