"""Names that their owner gave up: an endpoint's alias, a person's username. Others do not get them by asking.

Scripts, groups, shares and OWNER/NAME go by such names. A new owner would receive the tasks and the rights that were
meant for the former. So a freed name stays its former owner's, until the relay's administrator gives it
away (`mep-relay name free`). Called by the HTTP API, by relay.auth.people and by the command line.
"""

from __future__ import annotations

import msgspec

from mep_wire.errors import NameReserved
from mep_wire.identity import IdentitySet
from relay.store.base import Tx
from relay.store.records import Document

ALIAS, USERNAME = "freed-alias", "freed-username"
"""The kinds of documents: the owner of an alias is an account, that of a username an identity."""
KINDS = {ALIAS: "alias", USERNAME: "username"}


class Freed(msgspec.Struct, frozen=True, kw_only=True):
    """One freed name."""

    at: float
    of: str
    """The id of the endpoint or identity that had it."""


_decoder = msgspec.msgpack.Decoder(Freed)


def freed_from(document: Document) -> Freed:
    """Return what is known of a freed name."""
    return _decoder.decode(document.body)


def reserve(tx: Tx, kind: str, name: str, owner: str, of: str, at: float) -> None:
    """Keep a name that was given up for its former owner."""
    body = msgspec.msgpack.encode(Freed(at=at, of=of))
    tx.put_document(Document(kind=kind, id=name.lower(), owner=owner, body=body))


def take(tx: Tx, kind: str, name: str, owner: str) -> None:
    """Give a name to somebody. Raises NameReserved where it was another's."""
    known = tx.get_document(kind, name.lower())
    if known is None:
        return
    if known.owner != owner:
        raise NameReserved(name=name, kind=KINDS[kind])
    tx.drop_document(kind, name.lower())


def remove_person(tx: Tx, person: IdentitySet, at: float) -> None:
    """Remove a person with all identities and tokens, and keep their usernames for them."""
    tx.remove_account(person.account_id)
    for one in person.identities:
        reserve(tx, USERNAME, one.username, one.id, one.id, at)
