"""The entries of `allowed_functions`: a function's id at the relay, or `sha256:` and the digest of its code.

An id is the relay's, and the relay decides which code it serves under it. A digest is of the code's exact bytes, as
`Client.get_function` shows it. Used by the configuration, the user endpoint and the relay, so that all three read an
entry alike.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

DIGEST_PREFIX: Final = "sha256:"
DIGEST_BYTES: Final = 32
_DIGITS: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


def entry_problem(entry: str) -> str:
    """Return why `entry` is neither an id nor a digest, or empty text."""
    if _ID.fullmatch(entry) or (entry.startswith(DIGEST_PREFIX) and _DIGITS.fullmatch(entry[len(DIGEST_PREFIX) :])):
        return ""
    if entry.startswith(DIGEST_PREFIX):
        return f"{entry!r}: `sha256:` must be followed by 64 hexadecimal digits"
    if _DIGITS.fullmatch(entry):
        return f"{entry!r} is not a UUID; for the digest of a function's code write {DIGEST_PREFIX}{entry}"
    if entry.lower().startswith(DIGEST_PREFIX):
        return f"{entry!r}: write `sha256:` in lower case, and 64 hexadecimal digits"
    return f"{entry!r} is not a UUID, and not `sha256:` with 64 hexadecimal digits"


def digest_in(entry: str) -> bytes | None:
    """Return the digest that a valid `entry` is, or None where it is an id."""
    return bytes.fromhex(entry[len(DIGEST_PREFIX) :]) if entry.startswith(DIGEST_PREFIX) else None


def ids_in(entries: list[str] | None) -> list[str]:
    """Return the ids among valid entries, in lower case, each once."""
    return list(dict.fromkeys(str(uuid.UUID(one)) for one in entries or [] if not one.startswith(DIGEST_PREFIX)))
