"""Whether a path may be trusted: an account that can write to a file, or replace it, controls its reader.

A path is walked by descriptor, component by component from `/`, and each component is checked on its descriptor.
Callers then read, append to or run the last descriptor, so nothing can be replaced between the check and the use.
Every component must belong to root or to a permitted owner, and neither its mode nor its POSIX ACL may let others
write to it. A sticky directory such as /tmp may be shared, but a symbolic link in it is refused. A link in any other
trusted directory is followed, and its target is checked in the same way.

Like sshd's, a refusal names the file and the command that mends it. Standard library only, and no NSS. Called by the
monitor, keepers, resolver, mapper, command line and relay.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINKS = 40
"""The kernel's own limit: more links give ELOOP."""
SHARED_LOG_DIRECTORY = "/var/log"
"""The log daemon's group may write here on some distributions (Ubuntu: root:syslog 0775). Treated as sticky."""

_ACL = "system.posix_acl_access"
_ACL_HEADER, _ACL_ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_READ, _WRITE = 4, 2
_NO_ACL = frozenset({errno.ENODATA, errno.EOPNOTSUPP})
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class UntrustedPath(PermissionError):
    """A file or directory is not trusted. Each of `problems` names it and the command to run."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(errno.EPERM, "; ".join(problems))

    def __str__(self) -> str:
        return "; ".join(self.problems)


@dataclass(frozen=True, slots=True)
class Trust:
    """Which owners' files are trusted: root's and those of the uids in `owners`.

    `last_owner` may own only the last component: a key may belong to the account that uses it, in root's directory.
    `chown_to` is the account that refusals name.
    """

    owners: frozenset[int] = frozenset()
    last_owner: int = 0
    chown_to: str = "root"

    def open(
        self, path: str | os.PathLike[str], flags: int = os.O_RDONLY, *, mode: int = 0o600, secret: bool = False
    ) -> int:
        """Return a descriptor of the regular file at `path`. A `secret` must be readable by its owner alone.

        With O_CREAT, a missing file is created with `mode`. With O_NOFOLLOW, its name must not be a symbolic link.
        Raises UntrustedPath and OSError.
        """
        walk = self._walk(path, follow=not flags & os.O_NOFOLLOW, secret=secret, may_lack=bool(flags & os.O_CREAT))
        try:
            walk.refuse()
            if walk.found < 0:
                made = flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                return os.open(walk.name, made, mode, dir_fd=walk.directory)
            if not stat.S_ISREG(os.fstat(walk.found).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
            again = flags & ~(os.O_NOFOLLOW | os.O_CREAT | os.O_EXCL)
            return os.open(descriptor_path(walk.found), again | os.O_CLOEXEC)
        except OSError as error:
            if not isinstance(error, UntrustedPath):  # the system call knew the name in its directory alone
                error.filename = os.fspath(path)
            raise
        finally:
            walk.close()

    def read(self, path: str | os.PathLike[str], cap: int, *, secret: bool = False) -> bytes:
        """Return up to `cap` bytes of the regular file at `path`. Raises UntrustedPath and OSError."""
        with open(self.open(path, os.O_RDONLY | os.O_NONBLOCK, secret=secret), "rb") as file:
            return file.read(cap)

    def open_program(self, path: str | os.PathLike[str]) -> int:
        """Return a descriptor of the program at `path`, to be run by its descriptor_path().

        A script's descriptor must stay open across exec, because its interpreter opens it again: see is_script().
        The interpreter is checked too. Raises UntrustedPath and OSError.
        """
        descriptor = self.open(path)
        try:
            if not os.access(descriptor_path(descriptor), os.X_OK):
                raise OSError(errno.EACCES, "not an executable file", os.fspath(path))
            if interpreter := _interpreter(descriptor):
                self.check(interpreter)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def make_directory(self, path: str | os.PathLike[str], mode: int, *, private: bool = True) -> None:
        """Create the directory `path` with `mode` if it is missing, and missing ones above it with 0755.

        `private`: others must not be able to create files in it, even if it is sticky. Raises UntrustedPath, OSError.
        """
        walk = self._walk(path, make=mode, private=private)
        try:
            walk.refuse()
            if not stat.S_ISDIR(os.fstat(walk.found).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
        finally:
            walk.close()

    def check(self, path: str | os.PathLike[str], *, secret: bool = False, private: bool = False) -> None:
        """Raise UntrustedPath if `path` isn't trusted, OSError if it doesn't exist.

        `private`: for a directory in which others must not be able to create files, even if it is sticky.
        """
        walk = self._walk(path, secret=secret, private=private)
        try:
            walk.refuse()
        finally:
            walk.close()

    def problems(self, path: str | os.PathLike[str], *, secret: bool = False, private: bool = False) -> list[str]:
        """Return all problems of `path`, each with the command that mends it; empty if the path is trusted."""
        try:
            self.check(path, secret=secret, private=private)
        except UntrustedPath as error:
            return error.problems
        except (OSError, ValueError) as error:
            named = getattr(error, "filename", None) or os.fspath(path)
            return [f"{named}: {getattr(error, 'strerror', None) or error}"]
        return []

    def problems_below(self, top: str) -> Iterator[str]:
        """Yield the problems of the files and directories in the trusted directory `top`, which holds programs.

        No directory may be open to others, even if it is sticky. The target of a link is checked with every directory
        on the way and everything below it. A dangling link is passed over if no other account could make its target.
        """
        first = os.stat(top)
        waiting, seen = [top], {(first.st_dev, first.st_ino)}
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    found, problems = self._looked_at(entry)
                    yield from problems
                    if problems or found is None or not stat.S_ISDIR(found.st_mode):
                        continue
                    if (found.st_dev, found.st_ino) not in seen:  # links may lead around in a circle
                        seen.add((found.st_dev, found.st_ino))
                        waiting.append(entry.path)

    def _looked_at(self, entry: os.DirEntry[str]) -> tuple[os.stat_result | None, list[str]]:
        """Return what an entry of a trusted directory is, None for a link to nothing, and what is wrong with it."""
        found = entry.stat(follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            return found, self.entry_problems(entry.path, found, entry.path, private=True)
        try:
            self.check(entry.path, private=True)
            return entry.stat(), []
        except UntrustedPath as error:
            return None, error.problems
        except FileNotFoundError as error:
            lacking = os.path.dirname(error.filename or entry.path)
            return None, self.problems(lacking, private=True)

    def entry_problems(
        self, name: str, found: os.stat_result, at: str, *, last: bool = False, secret: bool = False,
        private: bool = False,
    ) -> list[str]:  # fmt: skip
        """Return the problems of one file or directory `name`. Its ACL is read at the path `at`."""
        owners = self.owners_of(last=last)
        if found.st_uid not in owners:
            whom = self.chown_to if last or not self.last_owner else "root"
            return [f"{name}: belongs to uid {found.st_uid}: bad ownership: chown {whom} {name}"]
        if not private and _is_shared(name, found):
            return []
        permission, bits = (_READ | _WRITE, 0o077) if secret else (_WRITE, 0o022)
        acl = read_acl(at)
        if acl is not None:
            if admitted := _others_in_acl(acl, owners, permission):
                return [f"{name}: its ACL admits {admitted}: bad permissions: setfacl -b {name}"]
            bits &= 0o007  # the group's bits are the ACL's mask
        if found.st_mode & bits:
            remedy = ("chmod 700" if stat.S_ISDIR(found.st_mode) else "chmod 600") if secret else "chmod go-w"
            return [f"{name}: has mode {stat.S_IMODE(found.st_mode):04o}: bad permissions: {remedy} {name}"]
        return []

    def owners_of(self, *, last: bool) -> frozenset[int]:
        """Return the uids that may own a component, or the last one."""
        return self.owners | {0, self.last_owner} if last else self.owners | {0}

    def _walk(
        self, path: str | os.PathLike[str], *, follow: bool = True, secret: bool = False, private: bool = False,
        may_lack: bool = False, make: int | None = None,
    ) -> _Walk:  # fmt: skip
        walk = _Walk(self, follow=follow, secret=secret, private=private, may_lack=may_lack, make=make)
        name = os.fspath(path)
        try:
            walk.go(name if name.startswith("/") else f"{os.getcwd()}/{name}")
        except BaseException:
            walk.close()
            raise
        return walk


class _Walk:
    """One walk along a path: the descriptors of the directories on the way, and the problems found so far."""

    def __init__(
        self, trust: Trust, *, follow: bool, secret: bool, private: bool, may_lack: bool, make: int | None
    ) -> None:
        self.problems: list[str] = []
        self.found = -1
        """The last component; -1 if it is missing and may be."""
        self.name = ""
        """The name of a missing last component, in `directory`."""
        self._trust, self._follow, self._secret, self._private = trust, follow, secret, private
        self._may_lack, self._make = may_lack, make
        self._way: list[tuple[int, str]] = []
        self._links = 0

    @property
    def directory(self) -> int:
        """The directory that holds the last component."""
        return self._way[-1][0]

    def refuse(self) -> None:
        """Raise UntrustedPath if there is a problem."""
        if self.problems:
            raise UntrustedPath(self.problems)

    def close(self) -> None:
        """Close every descriptor."""
        for descriptor, _ in self._way:
            os.close(descriptor)
        if self.found >= 0:
            os.close(self.found)
        self.found, self._way = -1, []

    def go(self, path: str) -> None:
        """Walk along the absolute `path`. Raises UntrustedPath if it can't go on safely, and OSError."""
        ahead = _parts(path)
        self._enter(os.open("/", _LOOK | os.O_DIRECTORY), "/", last=not ahead)
        while ahead:
            part = ahead.pop()
            if part == "..":
                self._leave()
                continue
            name = os.path.join(self._way[-1][1], part)
            try:
                self._step(part, name, ahead)
            except OSError as error:
                if error.filename == part:  # the system call knew the name in its directory alone
                    error.filename = name
                raise
        if self.found < 0 and not self.name:
            self.found = os.dup(self.directory)

    def _step(self, part: str, name: str, ahead: list[str]) -> None:
        try:
            one = os.open(part, _LOOK, dir_fd=self.directory)
        except FileNotFoundError:
            if not ahead and self._may_lack:
                self.name = part
                return
            one = self._made(part, name, last=not ahead)
        mode = os.fstat(one).st_mode
        if stat.S_ISDIR(mode):
            self._enter(one, name, last=not ahead)
            return
        try:
            if stat.S_ISLNK(mode):
                if not ahead and not self._follow:
                    raise OSError(errno.ELOOP, "is a symbolic link", name)
                self._follow_link(one, name, ahead)
                return
            if ahead:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
            self._note(one, name, last=True)
            self.found = os.dup(one)
        finally:
            os.close(one)

    def _made(self, part: str, name: str, *, last: bool) -> int:
        if self._make is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        self.refuse()
        try:
            os.mkdir(part, 0o700, dir_fd=self.directory)
        except FileExistsError:  # another process has created it in between; it is checked like any other
            return os.open(part, _LOOK, dir_fd=self.directory)
        one = os.open(part, _LOOK | os.O_DIRECTORY, dir_fd=self.directory)
        os.chmod(descriptor_path(one), self._make if last else 0o755)
        return one

    def _follow_link(self, link: int, name: str, ahead: list[str]) -> None:
        """Go on to the target of a link, unless other accounts could redirect it."""
        self.refuse()
        target = os.readlink("", dir_fd=link)
        if _is_shared(self._way[-1][1], os.fstat(self.directory)):
            raise UntrustedPath([
                f"{name}: a symbolic link in a directory that others may write to: name its target instead: {target}"
            ])  # fmt: skip
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        while target.startswith("/") and len(self._way) > 1:
            self._leave()
        ahead += _parts(target)

    def _enter(self, descriptor: int, name: str, *, last: bool) -> None:
        self._way.append((descriptor, name))
        self._note(descriptor, name, last=last)

    def _leave(self) -> None:
        if len(self._way) > 1:
            os.close(self._way.pop()[0])

    def _note(self, descriptor: int, name: str, *, last: bool) -> None:
        """Check one component. If another account owns it, raise UntrustedPath at once: all below it is theirs too."""
        found = os.fstat(descriptor)
        secret, private = self._secret and last, self._private and last
        at = descriptor_path(descriptor)
        problems = self._trust.entry_problems(name, found, at, last=last, secret=secret, private=private)
        self.problems += [one for one in problems if one not in self.problems]
        if found.st_uid not in self._trust.owners_of(last=last):
            self.refuse()


def ours() -> Trust:
    """Return the trust in root and in the account that this process runs as."""
    uid = os.geteuid()
    return Trust(frozenset({uid}), chown_to=str(uid) if uid else "root")


def descriptor_path(descriptor: int) -> str:
    """Return a path that leads to the open file of `descriptor`, even if its name has changed."""
    return f"/proc/self/fd/{descriptor}"


def is_script(descriptor: int) -> bool:
    """Whether the open program is run by an interpreter, which opens it again."""
    return os.pread(descriptor, 2, 0) == b"#!"


def permitted(at: str, found: os.stat_result, permission: int) -> tuple[set[int], set[int]]:
    """Return the uids and gids that mode and ACL give `permission` (4 read, 2 write), without the bits for others."""
    users = {found.st_uid} if found.st_mode >> 6 & permission else set[int]()
    acl = read_acl(at)
    if acl is None:
        return users, {found.st_gid} if found.st_mode >> 3 & permission else set()
    named, groups, own = _granted_by_acl(acl, permission)
    return users | named, groups | ({found.st_gid} if own else set())


def read_acl(path: str) -> list[tuple[int, int, int]] | None:
    """Return the entries (tag, permissions, id) of the POSIX ACL at `path`; None if there is none.

    Raises OSError if the ACL can't be read, so that the file is refused.
    """
    try:
        data = os.getxattr(path, _ACL)
    except OSError as error:
        if error.errno in _NO_ACL:
            return None
        raise
    return list(_ACL_ENTRY.iter_unpack(data[_ACL_HEADER.size :]))


def _others_in_acl(acl: list[tuple[int, int, int]], owners: frozenset[int], permission: int) -> str:
    """Return as text which entries besides `owners` get `permission` from `acl`."""
    users, groups, own = _granted_by_acl(acl, permission)
    admitted = [f"uid {uid}" for uid in sorted(users - owners)] + [f"gid {gid}" for gid in sorted(groups)]
    return ", ".join([*admitted, *(["its own group"] if own else [])])


def _granted_by_acl(acl: list[tuple[int, int, int]], permission: int) -> tuple[set[int], set[int], bool]:
    """Return the users and groups with any bit of `permission`, and whether the file's group has one."""
    mask = next((bits for tag, bits, _ in acl if tag == _MASK), 7)
    granted = [(tag, who) for tag, bits, who in acl if bits & mask & permission]
    users = {who for tag, who in granted if tag == _USER}
    groups = {who for tag, who in granted if tag == _GROUP}
    return users, groups, any(tag == _GROUP_OBJ for tag, _ in granted)


def _is_shared(name: str, found: os.stat_result) -> bool:
    """Whether others may create files in this directory but can't replace root's."""
    if not stat.S_ISDIR(found.st_mode):
        return False
    if found.st_mode & stat.S_ISVTX:
        return bool(found.st_mode & 0o022)
    return name == SHARED_LOG_DIRECTORY and found.st_mode & 0o022 == 0o020


def _parts(path: str) -> list[str]:
    """Return the components of `path`, the first one last."""
    return [part for part in reversed(path.split("/")) if part not in {"", "."}]


def _interpreter(descriptor: int) -> str:
    """Return the path after `#!`, or an empty text. Raises OSError for a script that the kernel can't start."""
    first = os.pread(descriptor, 256, 0).partition(b"\n")[0]
    if first.startswith(b"\xef\xbb\xbf#!"):
        raise OSError(errno.ENOEXEC, "a script that begins with a byte order mark, which the kernel does not take")
    if first.startswith(b"#!") and first.endswith(b"\r"):
        raise OSError(errno.ENOEXEC, "a script with CRLF at its line ends, which its interpreter does not take")
    words = first[2:].split() if first.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""
