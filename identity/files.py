"""Reads the files that a mapping depends on, and remembers what each was like, so that a change is noticed.

A file's signature is what stat(2) says of what the path leads to: device, inode, size and both times. So a change
in place, a replacement by rename and a symbolic link that now leads elsewhere all count.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from identity.trust import Rules, Trust, ours

MAX_FILE_BYTES = 16 * 1024 * 1024
Signature = tuple[int, int, int, int, int] | None
"""None is for a file that is not there or cannot be looked at."""


class FileRefused(Exception):
    """The file cannot be used; the text says why."""


class Files:
    """The files that were read or looked at for one load, with the signature that each had then.

    With `rules`, every one of them must be such that nobody else could have written it.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.signatures: dict[Path, Signature] = {}
        self.cut_unseen = False
        """Whether one of them may have been read while it was being written, and nothing in it would have told."""
        self._rules = rules
        self.programs: set[Path] = set()
        """Those that are not read but run."""

    def read_mapping(self, path: Path) -> bytes:
        """Return what the mapping file holds. Raises FileRefused."""
        return self._read(path, self._rules.mapping if self._rules else None, secret=False)

    def read(self, path: Path, *, secret: bool = False) -> bytes:
        """Return what the file holds. A `secret` one must be readable by this account alone. Raises FileRefused."""
        self.cut_unseen = True
        return self._read(path, self._rules.named if self._rules else None, secret=secret)

    def program(self, path: str) -> None:
        """Note the program at `path`. Raises FileRefused where it must not be run."""
        self.note(Path(path))
        self.programs.add(Path(path))
        if problem := self.named.program_problem(path):
            raise FileRefused(problem)

    def note(self, path: Path) -> None:
        """Take a change of `path` for a reason to load again."""
        self.signatures[path] = signature_of(path)

    @property
    def named(self) -> Trust:
        """Whom to trust with what the mapping file names: where nobody said, root and the account we are."""
        return self._rules.named if self._rules else ours()

    def changed(self) -> bool:
        """Return whether any of the files is no longer what was read."""
        return any(signature_of(path) != signature for path, signature in self.signatures.items())

    def now(self) -> dict[Path, Signature]:
        """Return what each of the files is like now."""
        return {path: signature_of(path) for path in self.signatures}

    def problem(self, mapping: Path) -> str:
        """Return why one of the files cannot be trusted any more, `mapping` among them, or an empty text."""
        for program in sorted(self.programs):
            if problem := self.named.program_problem(str(program)):
                return problem
        if self._rules is None:
            return ""
        for path in self.signatures:
            trust = self._rules.mapping if path == mapping else self._rules.named
            if problem := trust.problem(path):
                return problem
        return ""

    def _read(self, path: Path, trust: Trust | None, *, secret: bool) -> bytes:
        self.signatures[path] = None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise FileRefused(f"{path} cannot be read: {_reason(error)}") from None
        try:
            status = os.fstat(descriptor)
            self.signatures[path] = _signature(status)
            if not stat.S_ISREG(status.st_mode):
                raise FileRefused(f"{path} is not a regular file")
            problem = trust.problem(path) if trust else ""
            if not problem and secret:
                problem = self.named.private_problem(path, status, descriptor)
            if problem:
                raise FileRefused(problem)
            return _content(path, descriptor)
        finally:
            os.close(descriptor)


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
