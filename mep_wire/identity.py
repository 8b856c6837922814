"""A person as the relay knows them: a set of linked identities."""

from __future__ import annotations

import msgspec

from mep_wire.struct_info import build_struct_info


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """One federated identity, with the fields of a Globus Auth identity resource.

    `status` is one of used, unused, private, closed: only used and private identities are mapped.
    """

    id: str
    username: str
    name: str = ""
    email: str = ""
    organization: str = ""
    identity_provider: str = ""
    identity_type: str = "login"
    status: str = "used"


class IdentitySet(msgspec.Struct, frozen=True):
    """All linked identities of one person; the first is the one they logged in with.

    `account_id` is the relay's stable id of the person, independent of which identity was used.
    """

    account_id: str
    identities: tuple[Identity, ...]


build_struct_info(__name__)
