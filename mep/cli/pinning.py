"""Whether the keys that a relay presents may be pinned, given those that were pinned before.

An endpoint trusts a relay by these keys: the holder of the signing key decides who may start a user endpoint. Run as
root. The part of the relay's answer that it reads has a fixed size (mep/cli/relay_answer.py). Called by
mep/cli/registration.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mep.cli.exit_codes import CliFailed, Exit
from mep_wire.errors import MepError, RelayKeyChanged, RelayKeyUnexpected
from mep_wire.relay_keys import EarlierKeys, RelayKeys, rotation_statement


def check_keys(
    name: str, url: str, pinned: RelayKeys | None, offered: RelayKeys, earlier: Sequence[EarlierKeys], expected: str
) -> str:
    """Return a message about the keys `offered` to endpoint `name`; empty if they are the pinned ones.

    `expected` is the fingerprint that the administrator gave, or empty. Raises CliFailed if the keys are refused.
    """
    if expected and expected != offered.fingerprint:
        raise _refused(RelayKeyUnexpected(url=url, offered=offered.fingerprint, expected=expected))
    if pinned is None or pinned == offered:
        return ""
    change = f"its keys have changed from {pinned.fingerprint} to {offered.fingerprint}"
    if expected:
        return f"{change}, which --new-relay-key names"
    if leads_to(pinned, earlier, offered):
        return f"{change}, and the earlier ones have signed that"
    raise _refused(
        RelayKeyChanged(url=url, what=_what(pinned, offered), pinned=pinned.fingerprint, offered=offered.fingerprint,
                        name=name)
    )  # fmt: skip


def _refused(error: MepError) -> CliFailed:
    return CliFailed(f"{error.text} [{error.code}]", Exit.RELAY)


def _what(pinned: RelayKeys, offered: RelayKeys) -> str:
    changed = [kind for kind in ("signing", "link") if getattr(pinned, kind) != getattr(offered, kind)]
    return f"{' and '.join(changed)} key" + ("s" if len(changed) > 1 else "")


def leads_to(pinned: RelayKeys, earlier: Sequence[EarlierKeys], offered: RelayKeys) -> bool:
    """Tell whether `pinned` is one of the `earlier` pairs, and each from it on has signed the next, up to `offered`."""
    chain = [one.keys for one in earlier] + [offered]
    if pinned not in chain[:-1]:
        return False
    return all(_signed(earlier[index], chain[index + 1]) for index in range(chain.index(pinned), len(earlier)))


def _signed(one: EarlierKeys, new: RelayKeys) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(one.keys.signing).verify(one.signature, rotation_statement(one.keys, new))
    except (InvalidSignature, ValueError):
        return False
    return True
