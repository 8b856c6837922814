"""Follows a mapping file: the chain in force is always the last one that could be loaded.

The mapper process calls `check` every second or two and before it maps. A change counts whether the file was
written in place or replaced by rename, and so does a change of the LDAP password, CA and key files that it names. A
broken file leaves the chain before it in force; it is tried again when it changes, and every RETRY_S, since what it
lacked may lie outside (a callout's program, say).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from identity import config
from identity.chain import Chain
from identity.errors import MapperUnavailable, MappingFileInvalid
from identity.files import Files

RETRY_S = 10.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    """What the mapping is like now, for the log and `mep status`."""

    loaded: str
    """What is in force and since when; empty where nothing could be loaded yet."""
    problem: str
    """Why the file as it is now is not in force; empty where it is."""


class Reloader:
    """The chain of the mapping file at `path`, loaded at once. Thread-safe.

    `load` makes a Chain of a path, noting files in the `files` it is given, and raises MappingFileInvalid.
    """

    def __init__(
        self,
        path: Path,
        *,
        load: Callable[..., Chain] = config.load,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._load = load
        self._clock, self._wall_clock = clock, wall_clock
        self._lock = threading.Lock()
        self._files = Files()
        self._tried_at = 0.0
        self._chain: Chain | None = None
        self.status = Status("", "")
        self._reload()

    @property
    def chain(self) -> Chain:
        """The chain in force. Raises MapperUnavailable where there has never been a good file."""
        if self._chain is None:
            raise MapperUnavailable(f"there is no usable mapping: {self.status.problem}")
        return self._chain

    def check(self) -> bool:
        """Load what has changed. Return whether something new is in force, or `status` is another than before."""
        with self._lock:
            due = bool(self.status.problem) and self._clock() - self._tried_at >= RETRY_S
            if not due and not self._files.changed():
                return False
            before = (self.status, self._chain)
            self._reload()
            return (self.status, self._chain) != before

    def _reload(self) -> None:
        files = Files()
        self._tried_at = self._clock()
        try:
            chain = self._load(self._path, files=files)
        except MappingFileInvalid as error:
            self._files = files
            if str(error) != self.status.problem:
                _log.error("mapping refused, %s: %s", "the one before stays" if self._chain else "none is there", error)
            self.status = Status(self.status.loaded, str(error))
            return
        self._files = files
        previous, self._chain = self._chain, chain
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall_clock()))
        self.status = Status(f"{self._path}: {len(chain.descriptions)} documents, loaded {now}", "")
        _log.info("mapping loaded: %s", self.status.loaded)
        if previous:
            previous.close()
