"""The functions that the relay has sent on this link. It sends each once, so none may be forgotten.

The latest stay in memory up to a limit; older ones go to a file of their own, and come back when a task names
them. Called by the user endpoint.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

MEMORY_BYTES: Final = 32 * 1024 * 1024
_PREFIX: Final = "function-"


class Functions:
    """Code by function id. `directory` is the user endpoint's own and empty of other people's files."""

    def __init__(self, directory: str, memory_bytes: int = MEMORY_BYTES) -> None:
        self._directory, self._limit = directory, memory_bytes
        self._memory: dict[str, bytes] = {}
        self._size = 0
        self._files: dict[str, str] = {}
        self._digests: dict[str, bytes] = {}  # of the functions in memory
        self._remove_old()

    def _remove_old(self) -> None:
        """Remove the files that a killed process left."""
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.startswith(_PREFIX):
                    os.unlink(entry.path)  # noqa: PTH108  # pathlib costs 9 ms at start

    def add(self, function_id: str, code: bytes) -> None:
        """Keep `code`."""
        self._size += len(code) - len(self._memory.pop(function_id, b""))
        self._digests.pop(function_id, None)
        self._memory[function_id] = code
        if self._size > self._limit:
            self._spill()

    def get(self, function_id: str) -> bytes | None:
        """Return the code, or None where the relay never sent it (or its file is gone)."""
        code = self._memory.get(function_id)
        if code is None and function_id in self._files:
            try:
                with open(self._files[function_id], "rb") as file:
                    code = file.read()
            except OSError:
                return None
            self.add(function_id, code)
        return code

    def digest(self, function_id: str, code: bytes) -> bytes:
        """Return the SHA-256 of `code`, which `get` has just returned for this id."""
        digest = self._digests.get(function_id)
        if digest is None:
            from hashlib import sha256  # only sites with a list pay for it

            digest = self._digests[function_id] = sha256(code).digest()
        return digest

    def _spill(self) -> None:
        """Write the oldest to files until the rest fits. Where the disk refuses, all stays in memory."""
        for function_id in list(self._memory)[:-1]:
            if self._size <= self._limit:
                return
            path = self._files.get(function_id) or f"{self._directory}/{_PREFIX}{len(self._files)}"
            try:
                self._write(path, self._memory[function_id])
            except OSError:
                return
            self._files[function_id] = path
            self._size -= len(self._memory.pop(function_id))
            self._digests.pop(function_id, None)

    def _write(self, path: str, code: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(code)

    def close(self) -> None:
        """Remove the files."""
        for path in self._files.values():
            try:
                os.unlink(path)  # noqa: PTH108  # as above
            except OSError:
                continue
        self._files.clear()
