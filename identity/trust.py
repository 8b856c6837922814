"""Who could have written a file, and who may read it: owner, mode and POSIX ACL, along the whole path to it.

Whoever may write a mapping file, or a callout's program, or any directory on the way to it, decides who is mapped to
whom. A directory with the sticky bit (as /tmp) lets nobody replace what is another's, and so may be written by all; a
link in it counts as a file does, since its owner may have it lead elsewhere at any time.
Used at every load and reload by identity.files and identity.callout. The mapper calls it with its own account's
permissions, which suffice to look at everything that it may read.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ACL = "system.posix_acl_access"
_ACL_HEADER, _ACL_ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_READ, _WRITE = 4, 2
_LOCAL_ACCOUNTS = Path("/etc/passwd")


@dataclass(frozen=True, slots=True)
class Trust:
    """`owners` are the uids, besides root, that files may belong to and be written by."""

    owners: frozenset[int] = frozenset()

    @property
    def uids(self) -> frozenset[int]:
        """Everybody who is trusted."""
        return self.owners | {0}

    def problem(self, path: Path | str) -> str:
        """Return why the file at `path` cannot be trusted and what to do, or an empty text."""
        try:
            for one in way_to(path):
                if reason := self._problem_of(one):
                    return f"{one} {reason}"
        except (OSError, ValueError) as error:
            return f"{getattr(error, 'filename', None) or path}: {getattr(error, 'strerror', None) or error}"
        return ""

    def program_problem(self, path: str) -> str:
        """Return why the program at `path` must not be run, or an empty text."""
        if problem := self.problem(path):
            return problem
        if not Path(path).is_file() or not os.access(path, os.X_OK):
            return f"{path} is not a program that this account may run"
        return ""

    def private_problem(self, path: Path, status: os.stat_result, descriptor: int) -> str:
        """Return why the open file may be read by others than those who are trusted, or an empty text."""
        mode = stat.S_IMODE(status.st_mode)
        alone = "the mapper's account alone may read it; make it root's with the mapper's group, mode 0640, and no ACL"
        if status.st_uid not in self.uids:
            return f"{path} belongs to uid {status.st_uid}, neither root nor the mapper's account"
        if mode & 0o037:
            return f"{path} has mode {mode:04o} and group {status.st_gid}: {alone}"
        users, groups = granted(descriptor, status, _READ)
        if others := sorted(users - self.uids):
            return f"{path} may be read by uid {others[0]} (its ACL says so): {alone}"
        if others := sorted(gid for gid in groups - {0} if not _has_only(gid, self.uids)):
            return f"{path} has mode {mode:04o} and may be read by group {others[0]}, which has other members: {alone}"
        return ""

    def _problem_of(self, one: Path) -> str:
        status = one.lstat()
        is_link = stat.S_ISLNK(status.st_mode)
        if is_link and not one.parent.stat().st_mode & stat.S_ISVTX:
            return ""  # whoever may make another of it may write its directory
        if status.st_uid not in self.uids:
            wanted = " or ".join("root" if uid == 0 else f"uid {uid}" for uid in sorted(self.uids))
            return f"belongs to uid {status.st_uid} and must belong to {wanted}; run: chown -h root {one}"
        if is_link:
            return ""
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
            return ""
        if status.st_mode & stat.S_IWOTH:
            return f"may be written by everybody; run: chmod o-w {one}"
        users, groups = granted(one, status, _WRITE)
        if others := sorted(users - self.uids):
            return f"may be written by uid {others[0]} (its ACL says so); run: setfacl -b {one}"
        if others := sorted(gid for gid in groups - {0} if not _has_only(gid, self.uids)):
            return f"may be written by group {others[0]}; run: chmod g-w {one}"
        return ""


@dataclass(frozen=True, slots=True)
class Rules:
    """Whom to trust with the mapping file itself, and with the files and programs that it names."""

    mapping: Trust
    named: Trust


def ours() -> Trust:
    """Return the trust in root and the account that this process runs as."""
    return Trust(frozenset({os.geteuid()}))


def way_to(path: Path | str) -> list[Path]:
    """Return what `path` leads through: every directory, every link and where it leads, the file itself as the last.

    Raises OSError where it leads nowhere.
    """
    Path(path).stat()  # so that what follows comes to an end: there is no circle of links
    way: dict[Path, None] = {Path("/"): None}
    at, ahead = Path("/"), list(reversed(Path(path).absolute().parts[1:]))
    while ahead:
        part = ahead.pop()
        if part == "..":
            at = at.parent
            continue
        if (at / part).is_symlink():
            way[at / part] = None
            leads_to = (at / part).readlink()
            at = Path("/") if leads_to.is_absolute() else at
            ahead += [one for one in reversed(leads_to.parts) if one != "/"]
            continue
        at /= part
        way[at] = None
    return list(way)


def granted(file: Path | int, status: os.stat_result, permission: int) -> tuple[set[int], set[int]]:
    """Return the uids and gids that mode and ACL give `permission` (4 read, 2 write). "Everybody" is not among them."""
    mode_gives = {status.st_uid} if status.st_mode >> 6 & permission else set()
    acl = _acl(file)
    if acl is None:
        return mode_gives, {status.st_gid} if status.st_mode >> 3 & permission else set()
    mask = next((perm for tag, perm, _ in acl if tag == _MASK), 7)
    users = {who for tag, perm, who in acl if tag == _USER and perm & mask & permission}
    groups = {who for tag, perm, who in acl if tag == _GROUP and perm & mask & permission}
    own = {status.st_gid for tag, perm, _ in acl if tag == _GROUP_OBJ and perm & mask & permission}
    return mode_gives | users, groups | own


def _acl(file: Path | int) -> list[tuple[int, int, int]] | None:
    """Return the entries (tag, permissions, id) of the POSIX ACL of `file`, None where it has none."""
    try:
        data = os.getxattr(file, _ACL)
    except OSError:  # none, or a file system that has no such thing
        return None
    return list(_ACL_ENTRY.iter_unpack(data[_ACL_HEADER.size :]))


def _has_only(gid: int, trusted: frozenset[int]) -> bool:
    """Whether group `gid` has no member but `trusted` ones, as far as this host says: NSS for the group's list of
    members, and its own accounts for whose primary group it is."""
    try:
        names = grp.getgrgid(gid).gr_mem
    except KeyError:
        names = []
    for name in names:
        try:
            if pwd.getpwnam(name).pw_uid not in trusted:
                return False
        except KeyError:
            continue
    return all(uid in trusted for uid, primary in _local_accounts() if primary == gid)


def _local_accounts() -> Iterator[tuple[int, int]]:
    for line in _LOCAL_ACCOUNTS.read_text(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[2].isdigit() and fields[3].isdigit():
            yield int(fields[2]), int(fields[3])
