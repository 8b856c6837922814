"""The drains and bans of an endpoint: STATE/restrictions.json, which outlives every restart and every upgrade.

Written by the monitor, or by root's command line while no monitor runs; read by both and by the resolver, which adds
bans to the policy. The file is root's own (single-user: the owner's), is replaced atomically, and is trusted only
after `file_trust` has checked its path. Standard library only.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import ours
from mep.boundary.messages import ACCOUNT
from mep.boundary.resolved_config import read_section

FILE = "restrictions.json"
MAX_RESTRICTIONS = 1000
MAX_OF_MEMBERS = 700
"""Most that members of the administrators' group may put in force together: the rest is the owner's."""
MAX_OF_MEMBER = 100
"""Most that one of them may."""
_MAX_BYTES = 8 * 1024 * 1024
"""More than MAX_RESTRICTIONS with the longest messages need, whatever their characters."""
_ACCOUNT = re.compile(ACCOUNT)


class RestrictionKind(enum.StrEnum):
    """The two restrictions."""

    DRAIN = "drain"
    """Nothing new is started; running user endpoints finish their tasks and end."""
    BAN = "ban"
    """Nothing is started, and running user endpoints are ended."""


@dataclass(frozen=True, slots=True)
class Restriction:
    """One drain or ban."""

    kind: str
    local_user: str
    """Empty: everybody (a drain)."""
    uid: int
    """Uid of a banned account: all names of this uid are banned; -1 if unknown."""
    message: str
    """The administrator's words for the person."""
    refuse: bool
    """Whether starts are refused permanently; otherwise tasks wait."""
    by_uid: int
    """Who did it, as the kernel says."""
    since: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class _Document:
    """The file's content."""

    restrictions: list[Restriction]


class Restrictions:
    """The restrictions in force. Methods write the file first; if that raises OSError, nothing has changed."""

    def __init__(self, state_dir: str) -> None:
        """Read the file. Raises OSError, also for a path that isn't trusted, and ConfigRefused for a damaged file."""
        self._path = os.path.join(state_dir, FILE)
        self._known = _read(self._path)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def all(self) -> tuple[Restriction, ...]:
        """Every restriction, the oldest first."""
        return tuple(self._known)

    def put(self, kind: RestrictionKind, local_user: str, *, uid: int, message: str, refuse: bool, by_uid: int) -> None:
        """Put a restriction in force; it replaces one of the same kind for the same account. Raises ValueError."""
        if local_user and not _ACCOUNT.fullmatch(local_user):
            raise ValueError(f"{local_user!r} is no name of an account")
        if kind is RestrictionKind.BAN and not local_user:
            raise ValueError("a ban names an account")
        kept = self._without(kind, local_user)
        _require_room(kept, by_uid)
        self._replace([*kept, Restriction(kind, local_user, uid, message, refuse, by_uid, time.time())])

    def remove(self, kind: RestrictionKind, local_user: str) -> bool:
        """Take a restriction back; return whether there was one."""
        kept = self._without(kind, local_user)
        if len(kept) == len(self._known):
            return False
        self._replace(kept)
        return True

    def ban_of(self, local_user: str, uid: int = -1) -> Restriction | None:
        """Return the ban of this account, by its name or (if known) its uid."""
        bans = [one for one in self._known if one.kind == RestrictionKind.BAN]
        return next((one for one in bans if one.local_user == local_user or (uid >= 0 and one.uid == uid)), None)

    def drain_of(self, local_user: str) -> Restriction | None:
        """Return the drain that concerns this account: its own, or everybody's."""
        drains = [one for one in self._known if one.kind == RestrictionKind.DRAIN]
        own = [one for one in drains if one.local_user == local_user]
        return next(iter([*own, *(one for one in drains if not one.local_user)]), None)

    def of(self, local_user: str) -> Restriction | None:
        """Return what keeps this account from a start: a ban, or else a drain."""
        return self.ban_of(local_user) or self.drain_of(local_user)

    def _without(self, kind: RestrictionKind, local_user: str) -> list[Restriction]:
        return [one for one in self._known if (one.kind, one.local_user) != (kind, local_user)]

    def _replace(self, restrictions: Sequence[Restriction]) -> None:
        data = json.dumps(asdict(_Document(list(restrictions))), indent=2).encode() + b"\n"
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{FILE} would be larger than {_MAX_BYTES} bytes: take some drains and bans back")
        temporary = f"{self._path}.{os.getpid()}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._known = list(restrictions)


def _require_room(kept: Sequence[Restriction], by_uid: int) -> None:
    """Raise ValueError if `by_uid` may put no more in force. Members leave room for the owner."""
    if len(kept) >= MAX_RESTRICTIONS:
        raise ValueError(f"there are {MAX_RESTRICTIONS} drains and bans already: take some back")
    if _is_owner(by_uid):
        return
    if sum(one.by_uid == by_uid for one in kept) >= MAX_OF_MEMBER:
        raise ValueError(f"{MAX_OF_MEMBER} drains and bans of yours are in force already: take some back, or ask root")
    if sum(not _is_owner(one.by_uid) for one in kept) >= MAX_OF_MEMBERS:
        raise ValueError(f"members of the group have {MAX_OF_MEMBERS} drains and bans in force already: ask root")


def _is_owner(uid: int) -> bool:
    return uid in {0, os.geteuid()}


def banned_accounts(state_dir: str) -> list[str]:
    """Return the names of the banned accounts, for the policy. Raises OSError and ConfigRefused."""
    return [one.local_user for one in _read(os.path.join(state_dir, FILE)) if one.kind == RestrictionKind.BAN]


def _read(path: str) -> list[Restriction]:
    try:
        data = ours().read(path, _MAX_BYTES)
    except FileNotFoundError:
        return []
    try:
        found = read_section(_Document, data).restrictions
    except ConfigRefused as error:
        raise ConfigRefused(path, error.key, error.reason) from None
    for one in found:
        if one.kind not in set(RestrictionKind) or (one.local_user and not _ACCOUNT.fullmatch(one.local_user)):
            raise ConfigRefused(path, "restrictions", "a kind or an account that there is not")
    return found
