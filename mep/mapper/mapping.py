"""From an identity set to one local user: by the administrator's mapping file, or by the owner's identities.

Trusts the mapping file (root's) and an identity set whose signature was verified. Called by
mep/mapper/service.py. Raises mep_wire's named errors, with what was tried in `detail`, for the log alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

import identity.config
import identity.errors
from identity.chain import Chain
from mep_wire.errors import IdentityAmbiguous, IdentityNotMapped, MapperUnavailable
from mep_wire.identity import Identity, IdentitySet

MAPPED_STATUSES = frozenset({"used", "private"})
"""An identity that its provider reports as unused or closed proves nothing about who is asking."""
MAX_USER_NAME_BYTES = 32


@dataclass(frozen=True, slots=True)
class MappedUser:
    """The one local user, the identity that decided it (its fields), and which mapping did."""

    name: str
    identity: dict[str, str]
    mapper: str


class Mapping(Protocol):
    """How identity sets become local users."""

    def map(self, who: IdentitySet, correlation_id: str) -> MappedUser:
        """Return the one local user. Raises IdentityNotMapped, IdentityAmbiguous or MapperUnavailable."""


def fields_of(one: Identity) -> dict[str, str]:
    """Return an identity's fields by name, as mapping rules and templates see them."""
    return {name: str(value) for name, value in msgspec.structs.asdict(one).items()}


def usable(who: IdentitySet) -> list[dict[str, str]]:
    """Return the identities that may be mapped, in the relay's order."""
    return [fields_of(one) for one in who.identities if one.status in MAPPED_STATUSES]


def describe(who: IdentitySet) -> str:
    """Return the identity set for the administrator's log."""
    return ", ".join(f"{one.username} ({one.id}, {one.status})" for one in who.identities)


class OwnerMapping:
    """Single-user mode: the owner's identities mean the account that everything runs as."""

    def __init__(self, owner_identities: Sequence[str], own_user: str) -> None:
        self._owner = frozenset(owner_identities)
        self._own_user = own_user

    def map(self, who: IdentitySet, correlation_id: str) -> MappedUser:
        """Return the own user for the owner. Raises IdentityNotMapped for everybody else."""
        for fields in usable(who):
            if fields["id"] in self._owner:
                return MappedUser(self._own_user, fields, "owner")
        raise IdentityNotMapped(
            detail=f"not the owner of this single-user endpoint: {describe(who)}", correlation_id=correlation_id
        )


class FileMapping:
    """Multi-user mode: the administrator's mapping file, read again whenever it changes on disk.

    A file that is broken when it changes leaves the mapping before it in force; `report(loaded, problem)` says so.
    """

    def __init__(self, path: Path, report: Callable[[str, str], None]) -> None:
        self._path = path
        self._report = report
        self._chain: Chain | None = None
        self._seen: tuple[int, int, int] | None = None
        self._loaded = ""
        self._problem = ""
        self.refresh()

    def refresh(self) -> None:
        """Read the file if it is not the one that was read last; report when that changed anything."""
        try:
            stat = self._path.stat()
        except OSError as error:
            self._seen = None
            self._tell(f"{self._path}: {error.strerror}")
            return
        version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if version == self._seen:
            return
        self._seen = version
        try:
            self._chain = identity.config.load(self._path)
        except (identity.errors.MappingFileInvalid, OSError) as error:
            self._tell(str(error))
            return
        self._loaded = f"{self._path} of {_utc(stat.st_mtime)}"
        self._problem = ""
        self._report(self._loaded, "")

    def _tell(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._report(self._loaded, problem)

    def map(self, who: IdentitySet, correlation_id: str) -> MappedUser:
        """Return the one local user. Raises IdentityNotMapped, IdentityAmbiguous or MapperUnavailable."""
        self.refresh()
        if self._chain is None:
            raise MapperUnavailable(detail=self._problem, correlation_id=correlation_id)
        try:
            user = self._chain.map(usable(who))
        except identity.errors.NoMapping as error:
            raise IdentityNotMapped(detail=f"{error}; tried {describe(who)}", correlation_id=correlation_id) from None
        except identity.errors.AmbiguousMapping as error:
            raise IdentityAmbiguous(detail=f"{error}; tried {describe(who)}", correlation_id=correlation_id) from None
        except identity.errors.MapperUnavailable as error:
            raise MapperUnavailable(detail=str(error), correlation_id=correlation_id) from None
        if not 1 <= len(user.name.encode()) <= MAX_USER_NAME_BYTES:
            raise IdentityNotMapped(
                detail=f"{user.mapper} gave the user name {user.name!r}, which is empty or longer than "
                f"{MAX_USER_NAME_BYTES} bytes; tried {describe(who)}",
                correlation_id=correlation_id,
            )
        return MappedUser(user.name, dict(user.identity), str(user.mapper))


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
