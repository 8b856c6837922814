"""Chunks: large payloads that are kept outside of the database, by name. One backend is one file beside this one.

A chunk's bytes never change, and its name ends with their SHA-256 and a number: a name that was given up is never used
again. The calls wait for a disk or a network, so they are made in threads of their own (`relay.dispatch.payloads`).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}/[0-9a-f]{64}\.[0-9a-f]{16}")


class ChunkMissing(Exception):
    """There is no chunk of this name."""


class ChunksUnavailable(Exception):
    """The storage of chunks can't be reached, or refuses. The text is for the administrator."""


class Chunks(Protocol):
    """A storage of chunks."""

    def put(self, name: str, data: bytes) -> None:
        """Store a chunk durably; one that is there already is replaced by itself. Raises ChunksUnavailable."""

    def get(self, name: str) -> bytes:
        """Return a chunk. Raises ChunkMissing, ChunksUnavailable."""

    def delete(self, name: str) -> None:
        """Remove a chunk, if it is there. Raises ChunksUnavailable."""

    def names(self) -> Iterator[tuple[str, float]]:
        """Return every chunk with the time at which it was stored. Raises ChunksUnavailable."""


def new_name(owner: str, digest: bytes) -> str:
    """Return a name for a chunk of this account with this SHA-256."""
    return f"{owner}/{digest.hex()}.{secrets.token_hex(8)}"


def digest_in(name: str) -> bytes:
    """Return the SHA-256 that a chunk's name gives for its bytes; empty for a name of another form."""
    return bytes.fromhex(name.partition("/")[2].partition(".")[0]) if NAME.fullmatch(name) else b""


class ChunkDirectory:
    """Chunks as files below one directory, a directory for each account."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, data: bytes) -> None:
        """See Chunks."""
        path = self._path(name)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise
            for directory in (path.parent, self._directory):
                _sync(directory)
        except OSError as error:
            raise ChunksUnavailable(str(error)) from error

    def get(self, name: str) -> bytes:
        """See Chunks."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError as error:
            raise ChunkMissing(name) from error
        except OSError as error:
            raise ChunksUnavailable(str(error)) from error

    def delete(self, name: str) -> None:
        """See Chunks."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise ChunksUnavailable(str(error)) from error

    def names(self) -> Iterator[tuple[str, float]]:
        """See Chunks. Files that a killed relay left half written are removed by their age as well."""
        try:
            for path in self._directory.glob("*/*"):
                yield f"{path.parent.name}/{path.name}", path.stat().st_mtime
        except OSError as error:
            raise ChunksUnavailable(str(error)) from error

    def _path(self, name: str) -> Path:
        return self._directory / name


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
