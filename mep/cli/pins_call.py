"""`python -I -m mep.cli.pins_call`: ask the relay for the digests of functions, as an account without privilege.

Says `ready`, reads a JSON document from standard input (url, token, ids), and prints one record for each function
that the relay knows: the 16 bytes of its id and the 32 bytes of the SHA-256 of its code. Nothing else of the relay's
answer leaves this process. Trusts the server only as far as TLS proves it.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from mep.boundary.child import forbid_core_and_ptrace
from mep.cli.relay_call import _ask_patiently as ask_relay
from mep_wire.api import FunctionDigestsAnswer

_decoder = msgspec.json.Decoder(FunctionDigestsAnswer)

PATH = "/v3/functions/digests"
CHUNK = 256
"""Functions of one request; the relay takes no more."""
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
    """The relay did not answer with digests; the text says why."""


def _records(body: str, asked: list[str]) -> list[bytes]:
    try:
        digests = _decoder.decode(body).digests
        found = [(one, bytes.fromhex(digests[one])) for one in asked if one in digests]
    except (msgspec.MsgspecError, ValueError) as error:
        raise PinsUnavailable(f"answered with something other than digests: {type(error).__name__}") from None
    return [uuid.UUID(one).bytes + digest for one, digest in found]


def main() -> None:
    """Ask, and print the records."""
    if 0 in os.getresuid() or 0 in os.getresgid():
        sys.exit("pins_call: refuses to run as root")
    forbid_core_and_ptrace()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    call = json.load(sys.stdin)
    try:
        records = pin_records(call["url"], call["token"], call["ids"], ask_relay)
    except PinsUnavailable as error:
        sys.exit(f"relay {call['url']} {error}")
    sys.stdout.buffer.write(records)


if __name__ == "__main__":
    main()
