"""Pins the code of the functions that config.yaml lists by id: part of `mep register`.

A child without privilege asks the relay once for the SHA-256 of each function's code. The digests are stored in
function_pins.json, which only the endpoint's owner writes. User endpoints run no other code under these ids. A pin is
never replaced: code doesn't change under an id, so a relay that reports a change is refused.
"""

from __future__ import annotations

import os
import pwd
import uuid
from functools import partial

from mep.cli.endpoint_dirs import replace_file
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.pins_call import DATAGRAM_BYTES, work
from mep.cli.relay_request import last_record
from mep.cli.unprivileged_child import UnprivilegedChild
from mep.config.function_pins import MAX_PINS, pins_text, read_pins
from mep.config.paths import EndpointPaths
from mep_wire.function_lists import DIGEST_BYTES, DIGEST_PREFIX, ids_in

RECORD_BYTES = 16 + DIGEST_BYTES
"""One record of the child's output: a function's id and the SHA-256 of its code."""


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
