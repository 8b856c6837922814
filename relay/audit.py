"""The relay's audit log: each person's changes, one JSON object a line, in a file that only grows.

A line is written at once and is whole. A file that was moved away (by logrotate, say) is begun anew. A line that can't
be written is an error in the relay's own log and stops nothing. Called by the HTTP API for every change.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from relay.log import logger
from relay.store.records import Caller

MAX_VALUE = 512
_encoder = msgspec.json.Encoder()
LOOK_S = 1.0
"""How often the file is compared with its name."""


class AuditLog:
    """See the module. Without a path nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._descriptor = -1
        self._looked_at = float("-inf")

    def note(self, action: str, caller: Caller | None = None, **fields: object) -> None:
        """Write one line: an action (`endpoint.delete`, say), the person, and the things concerned."""
        if self._path is None:
            return
        line: dict[str, object] = {"at": round(time.time(), 3), "action": action}
        if caller is not None:
            line |= {"account": caller.account_id, "identity": caller.identity_id}
            for key in ("token_id", "client_id", "end_user"):
                if value := getattr(caller, key):
                    line[key] = value
        line |= {key: _short(value) for key, value in fields.items()}
        data = _encoder.encode(line) + b"\n"
        try:
            os.write(self._open(), data)
        except OSError as error:
            logger.error("audit log: a record was lost", path=self._path, error=error.strerror, record=line)

    def _open(self) -> int:
        """Return the descriptor of the file that has the name now. Raises OSError."""
        assert self._path is not None
        now = time.monotonic()
        if self._descriptor >= 0 and now - self._looked_at < LOOK_S:
            return self._descriptor
        self._looked_at = now
        if self._descriptor >= 0:
            try:
                if os.stat(self._path).st_ino == os.fstat(self._descriptor).st_ino:  # noqa: PTH116
                    return self._descriptor
            except FileNotFoundError:
                pass
            os.close(self._descriptor)
            self._descriptor = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, 0o600)
        return self._descriptor

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _short(value: object) -> object:
    if isinstance(value, str):
        return value[:MAX_VALUE]
    return [_short(one) for one in value[:100]] if isinstance(value, list | tuple) else value
