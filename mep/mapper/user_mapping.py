"""Maps an identity set to one local user: by the administrator's mapping file, or by the owner's identities.

Trusts the mapping file (root's) and an identity set with a verified signature. Called by mep/mapper/mapper.py.
Raises mep_wire's named errors. Their `detail` lists the attempts, for the log alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

import identity.errors
import identity.loader
from identity.allowed_domains import AllowedDomains
from identity.chain import ANY_DOMAIN, Chain
from identity.concurrency_limits import PersonLimit
from identity.reloader import Reloader
from identity.tracked_files import Rules
from mep.boundary import nss_database
from mep.boundary.file_trust import Trust, ours
from mep_wire.errors import IdentityAmbiguous, IdentityNotMapped, MapperUnavailable
from mep_wire.identity import Identity, IdentitySet

MAPPED_STATUSES = frozenset({"used", "private"})
"""An identity that its provider reports as unused or closed proves nothing about the requester."""
MAX_USER_NAME_BYTES = 32
_NOT_STARTED_FOR = (
    "it names a directory or a program for the first time: the mapper restarts with the access that these need after "
    "the configuration has been reloaded"
)
_NO_FIELDS = dict.fromkeys(Identity.__struct_fields__, "")
"""A template may name any field, whether or not the identity has it."""


@dataclass(frozen=True, slots=True)
class MappedUser:
    """The one local user, the fields of the deciding identity, and the mapping that decided."""

    name: str
    identity: dict[str, str]
    mapper: str
    literal: bool = False
    """Whether the mapping file spells the name, which makes the account one that several people share."""


class Mapping(Protocol):
    """Maps identity sets to local users."""

    def map(self, who: IdentitySet, correlation_id: str, *, certain: bool = False, end_user: str = "") -> MappedUser:
        """Return the one local user. Raises IdentityNotMapped, IdentityAmbiguous or MapperUnavailable.

        `certain`: bypass all caches, and raise MapperUnavailable for any mapper that fails on the way, whatever its
        `on_error` is. An outage must not end a running user endpoint. `end_user`: the person that a gateway names.
        """

    def refresh(self) -> None:
        """Notice changes to the files."""

    def readable(self) -> list[str]:
        """Return the files that it rereads when they change."""


def fields_of(one: Identity) -> dict[str, str]:
    """Return an identity's fields by name, as templates see them."""
    return {name: str(value) for name, value in msgspec.structs.asdict(one).items()}


def present_fields(one: Identity) -> dict[str, str]:
    """Return the fields that the identity has. On the wire, a missing field is empty, which a rule must not match."""
    return {name: value for name, value in fields_of(one).items() if value}


def usable(who: IdentitySet) -> list[dict[str, str]]:
    """Return the identities that may be mapped, in the relay's order."""
    return [fields_of(one) for one in who.identities if one.status in MAPPED_STATUSES]


class OwnerMapping:
    """Single-user mode: the owner's identities map to the account that all processes run as."""

    def __init__(self, owner_identities: Sequence[str], own_user: str) -> None:
        self._owner = frozenset(owner_identities)
        self._own_user = own_user

    def refresh(self) -> None:
        """Do nothing: the owner changes only with the registration, at a restart."""

    def readable(self) -> list[str]:
        """Return nothing: it reads no file."""
        return []

    def map(self, who: IdentitySet, correlation_id: str, *, certain: bool = False, end_user: str = "") -> MappedUser:
        """Return the own user for the owner. Raises IdentityNotMapped for all others."""
        for fields in usable(who):
            if fields["id"] in self._owner:
                return MappedUser(self._own_user, fields, "owner")
        raise IdentityNotMapped(detail="not the owner of this single-user endpoint", correlation_id=correlation_id)


def _rules(account: str) -> Rules:
    """Return the trusted owners: the mapping must be root's; files that it names may also belong to this account.

    If this process isn't `account`, it hasn't dropped root, and files of its own account are accepted too.
    """
    try:
        entry = nss_database.passwd_by_name(account)
        dropped = entry is not None and entry.uid == os.geteuid()
    except OSError:  # not known now: trust root's files alone
        dropped = True
    return Rules(mapping=Trust() if dropped else ours(), named=ours())


class FileMapping:
    """Multi-user mode: the administrator's mapping file, reread whenever it, or a file it names, changes.

    If a changed file is broken, or others could have written it, the previous mapping stays in force, and
    `report(loaded, problem)` is called. `account` is the mapper's account: a file that this account could have written
    is not accepted as a mapping file.
    """

    def __init__(
        self, path: Path, endpoint_id: str, account: str, report: Callable[[str, str], None], *,
        network: bool, programs: bool, need_reload: Callable[[], None], domains: AllowedDomains = ANY_DOMAIN,
    ) -> None:  # fmt: skip
        self._report, self._need_reload = report, need_reload
        self._path, self._network, self._programs = path, network, programs
        load = functools.partial(self._load, gateway=endpoint_id, person_limit=PersonLimit(), domains=domains)
        self._reloader = Reloader(path, load=load, rules=_rules(account))
        self._tell()

    def _load(self, path: Path, **options: Any) -> Chain:
        """Load the file. Refuse a mapping that this process lacks the access for, because it has given that up.

        If the mapping needs more access than that, or less, `need_reload` has the process replaced by one with the
        right access.
        """
        network, programs = identity.loader.needs(path, options["files"])
        if (network, programs) != (self._network, self._programs):
            self._need_reload()
        if programs > self._programs or network > self._network:
            raise identity.errors.MappingFileInvalid(path, None, _NOT_STARTED_FOR)
        return identity.loader.load(path, **options)

    def readable(self) -> list[str]:
        """Return the files that it rereads when they change."""
        try:
            named = self._reloader.chain.files
        except identity.errors.SourceUnavailable:
            named = ()
        return [str(path) for path in (self._path, *named)]

    def refresh(self) -> None:
        """Reread changed files, and report any change of the mapping. Called periodically and before each mapping."""
        if self._reloader.check():
            self._tell()

    def _tell(self) -> None:
        self._report(self._reloader.status.loaded, self._reloader.status.problem)

    def map(self, who: IdentitySet, correlation_id: str, *, certain: bool = False, end_user: str = "") -> MappedUser:
        """Return the one local user. Raises IdentityNotMapped, IdentityAmbiguous or MapperUnavailable."""
        self.refresh()
        try:
            identities = [present_fields(one) for one in who.identities]
            user = self._reloader.chain.map(identities, certain=certain, end_user=end_user)
        except identity.errors.NoMapping as error:
            raise IdentityNotMapped(detail=str(error), correlation_id=correlation_id) from None
        except identity.errors.AmbiguousMapping as error:
            raise IdentityAmbiguous(detail=str(error), correlation_id=correlation_id) from None
        except identity.errors.SourceUnavailable as error:
            raise MapperUnavailable(detail=str(error), correlation_id=correlation_id) from None
        if not 1 <= len(user.name.encode("utf-8", "replace")) <= MAX_USER_NAME_BYTES or not user.name.isprintable():
            raise IdentityNotMapped(
                detail=f"{user.mapper} gave {user.name!r}, no user name of at most {MAX_USER_NAME_BYTES} bytes",
                correlation_id=correlation_id,
            )
        return MappedUser(user.name, {**_NO_FIELDS, **user.identity}, str(user.mapper), user.literal)
