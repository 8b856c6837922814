"""Reads the files that a mapping depends on, and remembers their signatures, so that changes are noticed.

A signature comes from stat(2), which follows symbolic links: device, inode, size and both times. A change in
place, a replacement by rename and a symbolic link that now leads elsewhere all change it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mep.boundary import nss_database
from mep.boundary.file_trust import Trust, UntrustedPath, descriptor_path, ours, permitted

MAX_FILE_BYTES = 16 * 1024 * 1024
Signature = tuple[int, int, int, int, int] | None
"""None is for a file that is not there or cannot be looked at."""


_READ = 4
_LOCAL_ACCOUNTS = Path("/etc/passwd")


@dataclass(frozen=True, slots=True)
class Rules:
    """The accounts trusted with the mapping file itself, and with the files and programs that it names."""

    mapping: Trust
    named: Trust


class FileRefused(Exception):
    """The file cannot be used; the text says why."""


class Files:
    """The files that were read or looked at for one load, with the signature that each had then.

    With `rules`, every one of them must be writable only by trusted accounts.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.signatures: dict[Path, Signature] = {}
        self.cut_unseen = False
        """Whether one of them may have been read while it was being written, and nothing in it would have told."""
        self._rules = rules
        self.programs: set[Path] = set()
        """Those that are not read but run."""

    def read_mapping(self, path: Path) -> bytes:
        """Return the contents of the mapping file. Raises FileRefused."""
        return self._read(path, self._rules.mapping if self._rules else None, secret=False)

    def read(self, path: Path, *, secret: bool = False) -> bytes:
        """Return the file's contents. A `secret` one must be readable by this account alone. Raises FileRefused."""
        self.cut_unseen = True
        return self._read(path, self._rules.named if self._rules else None, secret=secret)

    def program(self, path: str) -> None:
        """Note the program at `path`. Raises FileRefused where it must not be run."""
        self.note(Path(path))
        self.programs.add(Path(path))
        if problem := program_problem(self.named, path):
            raise FileRefused(problem)

    def note(self, path: Path) -> None:
        """Take a change of `path` for a reason to load again."""
        self.signatures[path] = signature_of(path)

    @property
    def named(self) -> Trust:
        """The trusted owners of the files that the mapping file names: by default root and this process's account."""
        return self._rules.named if self._rules else ours()

    def changed(self) -> bool:
        """Return whether any of the files has changed since it was read."""
        return any(signature_of(path) != signature for path, signature in self.signatures.items())

    def now(self) -> dict[Path, Signature]:
        """Return the current signature of each file."""
        return {path: signature_of(path) for path in self.signatures}

    def problem(self, mapping: Path) -> str:
        """Return why one of the files cannot be trusted any more, `mapping` among them, or an empty text."""
        for program in sorted(self.programs):
            if problem := program_problem(self.named, str(program)):
                return problem
        if self._rules is None:
            return ""
        for path in self.signatures:
            trust = self._rules.mapping if path == mapping else self._rules.named
            if problems := trust.problems(path):
                return problems[0]
        return ""

    def _read(self, path: Path, trust: Trust | None, *, secret: bool) -> bytes:
        self.signatures[path] = None
        try:
            if trust is None:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            else:
                descriptor = trust.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except UntrustedPath as error:
            self.note(path)
            raise FileRefused(str(error)) from None
        except (OSError, ValueError) as error:
            raise FileRefused(f"{path} cannot be read: {_reason(error)}") from None
        try:
            status = os.fstat(descriptor)
            self.signatures[path] = _signature(status)
            if not stat.S_ISREG(status.st_mode):
                raise FileRefused(f"{path} is not a regular file")
            if secret and (problem := private_problem(self.named, path, status, descriptor)):
                raise FileRefused(problem)
            return _content(path, descriptor)
        finally:
            os.close(descriptor)


def program_problem(trust: Trust, path: str) -> str:
    """Return why the program at `path` must not be run, or an empty text."""
    try:
        os.close(trust.open_program(path))
    except UntrustedPath as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"{path} is not a program that this account may run: {_reason(error)}"
    return ""


def private_problem(trust: Trust, path: Path, status: os.stat_result, descriptor: int) -> str:
    """Return why the open file may be read by accounts that `trust` does not name, or an empty text."""
    mode, uids = stat.S_IMODE(status.st_mode), trust.owners | {0}
    alone = "the mapper's account alone may read it; make it root's with the mapper's group, mode 0640, and no ACL"
    if status.st_uid not in uids:
        return f"{path} belongs to uid {status.st_uid}, neither root nor the mapper's account"
    if mode & 0o037:
        return f"{path} has mode {mode:04o} and group {status.st_gid}: {alone}"
    users, groups = permitted(descriptor_path(descriptor), status, _READ)
    if others := sorted(users - uids):
        return f"{path} may be read by uid {others[0]} (its ACL says so): {alone}"
    if others := sorted(gid for gid in groups - {0} if not _has_only(gid, uids)):
        return f"{path} has mode {mode:04o} and may be read by group {others[0]}, which has other members: {alone}"
    return ""


def _has_only(gid: int, trusted: frozenset[int]) -> bool:
    """Whether group `gid` has only `trusted` members, as far as this host can tell. NSS gives the group's list of
    members; the host's own accounts are searched for those that have it as their primary group."""
    try:
        group = nss_database.group_by_gid(gid)
        accounts = [nss_database.passwd_by_name(name) for name in (group.members if group else ())]
    except OSError:  # the members are not known, and could be others
        return False
    if any(one is not None and one.uid not in trusted for one in accounts):
        return False
    return all(uid in trusted for uid, primary in _local_accounts() if primary == gid)


def _local_accounts() -> Iterator[tuple[int, int]]:
    for line in _LOCAL_ACCOUNTS.read_text(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[2].isdigit() and fields[3].isdigit():
            yield int(fields[2]), int(fields[3])


def _content(path: Path, descriptor: int) -> bytes:
    try:
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileRefused(f"{path} cannot be read: {_reason(error)}") from None
    if len(data) > MAX_FILE_BYTES:
        raise FileRefused(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data


def signature_of(path: Path) -> Signature:
    """Return the signature of the file that `path` leads to now."""
    try:
        return _signature(path.stat())
    except (OSError, ValueError):
        return None


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
