"""From an identity set to one local user: by the administrator's mapping file, or by the owner's identities.

Trusts the mapping file (root's) and an identity set whose signature was verified. Called by
mep/mapper/mapper.py. Raises mep_wire's named errors, with what was tried in `detail`, for the log alone.
"""

from __future__ import annotations

import functools
import os
import pwd
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

import identity.errors
import identity.loader
from identity.chain import Chain
from identity.concurrency_limits import Crowd
from identity.reloader import Reloader
from identity.tracked_files import Rules
from mep.boundary.file_trust import Trust, ours
from mep_wire.errors import IdentityAmbiguous, IdentityNotMapped, MapperUnavailable
from mep_wire.identity import Identity, IdentitySet

MAPPED_STATUSES = frozenset({"used", "private"})
"""An identity that its provider reports as unused or closed proves nothing about who is asking."""
MAX_USER_NAME_BYTES = 32
_NOT_STARTED_FOR = (
    "it names a directory or a program for the first time: the mapper is started again with what these need, once the "
    "configuration has been read again"
)
_NO_FIELDS = dict.fromkeys(Identity.__struct_fields__, "")
"""A template may name any field, whether or not the identity has it."""


@dataclass(frozen=True, slots=True)
class MappedUser:
    """The one local user, the identity that decided it (its fields), and which mapping did."""

    name: str
    identity: dict[str, str]
    mapper: str
    literal: bool = False
    """Whether the mapping file spells the name: the administrator has made it an account of several people."""


class Mapping(Protocol):
    """How identity sets become local users."""

    def map(self, who: IdentitySet, correlation_id: str, *, certain: bool = False) -> MappedUser:
        """Return the one local user. Raises IdentityNotMapped, IdentityAmbiguous or MapperUnavailable.

        `certain`: from no cache, and with MapperUnavailable for any mapper that fails on the way, whatever `on_error`
        says of it: an outage must not end what runs.
        """

    def refresh(self) -> None:
        """Notice what has changed since."""

    def readable(self) -> list[str]:
        """Return the files that it reads again when they change."""


def fields_of(one: Identity) -> dict[str, str]:
    """Return an identity's fields by name, as templates see them."""
    return {name: str(value) for name, value in msgspec.structs.asdict(one).items()}


def present_fields(one: Identity) -> dict[str, str]:
    """Return the fields that the identity has: on the wire one that it lacks is empty, which a rule must not match."""
    return {name: value for name, value in fields_of(one).items() if value}


def usable(who: IdentitySet) -> list[dict[str, str]]:
    """Return the identities that may be mapped, in the relay's order."""
    return [fields_of(one) for one in who.identities if one.status in MAPPED_STATUSES]


class OwnerMapping:
    """Single-user mode: the owner's identities mean the account that everything runs as."""

    def __init__(self, owner_identities: Sequence[str], own_user: str) -> None:
        self._owner = frozenset(owner_identities)
        self._own_user = own_user

    def refresh(self) -> None:
        """Do nothing: who owns the endpoint changes with its registration, at a new start."""

    def readable(self) -> list[str]:
        """Return nothing: it reads no file."""
        return []

    def map(self, who: IdentitySet, correlation_id: str, *, certain: bool = False) -> MappedUser:
        """Return the own user for the owner. Raises IdentityNotMapped for everybody else."""
        for fields in usable(who):
            if fields["id"] in self._owner:
                return MappedUser(self._own_user, fields, "owner")
        raise IdentityNotMapped(detail="not the owner of this single-user endpoint", correlation_id=correlation_id)


def _rules(account: str) -> Rules:
    """Return whose files are trusted: the mapping must be root's, what it names may be ours too.

    Where this process is not `account`, nothing was dropped from root, and files of whoever we are will do.
    """
    try:
        dropped = pwd.getpwnam(account).pw_uid == os.geteuid()
    except KeyError:
        dropped = False
    return Rules(mapping=Trust() if dropped else ours(), named=ours())


class FileMapping:
    """Multi-user mode: the administrator's mapping file, read again whenever it, or a file it names, changes.

    A file that is broken when it changes, or that others could have written, leaves the mapping before it in force;
    `report(loaded, problem)` says so. `account` is the one that the mapper was made for: what it could have written
    itself is no mapping file.
    """

    def __init__(
        self, path: Path, endpoint_id: str, account: str, report: Callable[[str, str], None], *,
        network: bool, programs: bool, need_reload: Callable[[], None],
    ) -> None:  # fmt: skip
        self._report, self._need_reload = report, need_reload
        self._path, self._network, self._programs = path, network, programs
        load = functools.partial(self._load, gateway=endpoint_id, crowd=Crowd())
        self._reloader = Reloader(path, load=load, rules=_rules(account))
        self._tell()

    def _load(self, path: Path, **options: Any) -> Chain:
        """Load the file. Refuse what this process was not started for: it has given up what that would need.

        Where it needs more than that, or less, `need_reload` has this process replaced by one with as much.
        """
        network, programs = identity.loader.needs(path, options["files"])
        if (network, programs) != (self._network, self._programs):
            self._need_reload()
        if programs > self._programs or network > self._network:
            raise identity.errors.MappingFileInvalid(path, None, _NOT_STARTED_FOR)
        return identity.loader.load(path, **options)

    def readable(self) -> list[str]:
        """Return the files that it reads again when they change."""
        try:
            named = self._reloader.chain.files
        except identity.errors.MapperUnavailable:
            named = ()
        return [str(path) for path in (self._path, *named)]

    def refresh(self) -> None:
        """Read what changed; report when that changed anything. Called now and then, and before each mapping."""
        if self._reloader.check():
            self._tell()

    def _tell(self) -> None:
        self._report(self._reloader.status.loaded, self._reloader.status.problem)

    def map(self, who: IdentitySet, correlation_id: str, *, certain: bool = False) -> MappedUser:
        """Return the one local user. Raises IdentityNotMapped, IdentityAmbiguous or MapperUnavailable."""
        self.refresh()
        try:
            user = self._reloader.chain.map([present_fields(one) for one in who.identities], certain=certain)
        except identity.errors.NoMapping as error:
            raise IdentityNotMapped(detail=str(error), correlation_id=correlation_id) from None
        except identity.errors.AmbiguousMapping as error:
            raise IdentityAmbiguous(detail=str(error), correlation_id=correlation_id) from None
        except identity.errors.MapperUnavailable as error:
            raise MapperUnavailable(detail=str(error), correlation_id=correlation_id) from None
        if not 1 <= len(user.name.encode("utf-8", "replace")) <= MAX_USER_NAME_BYTES or not user.name.isprintable():
            raise IdentityNotMapped(
                detail=f"{user.mapper} gave {user.name!r}, no user name of at most {MAX_USER_NAME_BYTES} bytes",
                correlation_id=correlation_id,
            )
        return MappedUser(user.name, {**_NO_FIELDS, **user.identity}, str(user.mapper), user.literal)
