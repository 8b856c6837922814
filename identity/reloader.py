"""Follows a mapping file: the chain in force is always the last one that could be loaded.

The mapper process calls `check` every second and before it maps. A change counts whether the file was written in place
or replaced by rename. Changes of the LDAP password, CA and key files and of the callouts' programs it names count
too. A change takes effect once nothing has changed for SETTLE_S, so that no file is read half-written. The beginning
of a YAML file is usually valid YAML, with fewer rules in it. A broken file leaves the previous chain in force. It is
tried again when it changes, and every RETRY_S, since the cause may lie outside (a callout's program, say). Every
RETRY_S the files are also checked for writability by untrusted accounts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from identity import loader
from identity.chain import Chain
from identity.errors import MappingFileInvalid, SourceUnavailable
from identity.tracked_files import Files, Rules, Signature

RETRY_S = 10.0
SETTLE_S = 1.0
MAX_STARTING_WAITS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReloaderStatus:
    """The state of the mapping now, for the log and `mep status`."""

    loaded: str
    """The mapping in force and the time of its load; empty if none could be loaded yet."""
    problem: str
    """Why the file as it is now is not in force; empty where it is."""


class Reloader:
    """The chain of the mapping file at `path`, loaded at once. Thread-safe.

    `load` makes a Chain of a path, noting files in the `files` it is given, and raises MappingFileInvalid. `rules` say
    which owners' files are trusted; without them all are.
    """

    def __init__(
        self,
        path: Path,
        *,
        load: Callable[..., Chain] = loader.load,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._load = load
        self._rules = rules
        self._clock, self._wall_clock = clock, wall_clock
        self._lock = threading.Lock()
        self._files = Files(rules)
        self._tried_at = 0.0
        self._chain: Chain | None = None
        self._seen: tuple[dict[Path, Signature], float] | None = None
        """The files' signatures when a change was noticed, and the time since which they have been unchanged."""
        self.status = ReloaderStatus("", "")
        self._reload()
        self._settle_at_start(sleep)

    @property
    def chain(self) -> Chain:
        """The chain in force. Raises MapperUnavailable where there has never been a good file."""
        if self._chain is None:
            raise SourceUnavailable(f"there is no usable mapping: {self.status.problem}")
        return self._chain

    def check(self) -> bool:
        """Load changed files. Return whether something new is in force, or `status` is another than before."""
        with self._lock:
            before = (self.status, self._chain)
            if self._settled():
                self._reload()
            elif self._seen is None and self._clock() - self._tried_at >= RETRY_S:
                self._look_again()
            return (self.status, self._chain) != before

    def _settled(self) -> bool:
        """Whether there is a change that has come to rest."""
        if not self._files.changed():
            self._seen = None
            return False
        now = self._files.now()
        if self._seen is None or self._seen[0] != now:
            self._seen = (now, self._clock())
            return False
        return self._clock() - self._seen[1] >= SETTLE_S

    def _settle_at_start(self, sleep: Callable[[float], None]) -> None:
        """Read again a file that was written just before the start, and of which a part could pass for the whole."""
        for _ in range(MAX_STARTING_WAITS):
            written = max((one[3] / 1e9 for one in self._files.signatures.values() if one), default=0.0)
            age = self._wall_clock() - written
            if not self._files.cut_unseen or not 0 <= age < SETTLE_S:
                return
            sleep(SETTLE_S - age)
            if not self._files.changed():
                return
            self._reload()

    def _look_again(self) -> None:
        """Try a broken file again; otherwise check that only trusted accounts can write the files."""
        if self.status.problem:
            self._reload()
            return
        self._tried_at = self._clock()
        if problem := self._files.problem(self._path):
            self._refuse(f"{self._path}: {problem}")

    def _refuse(self, problem: str) -> None:
        if problem != self.status.problem:
            _log.error("mapping refused, %s: %s", "the one before stays" if self._chain else "none is there", problem)
        self.status = ReloaderStatus(self.status.loaded, problem)

    def _reload(self) -> None:
        files = Files(self._rules)
        self._tried_at, self._seen = self._clock(), None
        try:
            chain = self._load(self._path, files=files)
        except MappingFileInvalid as error:
            self._files = files
            self._refuse(str(error))
            return
        if self._chain is not None and files.changed():  # it goes on being written
            chain.close()
            return
        self._files = files
        previous, self._chain = self._chain, chain
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall_clock()))
        count = len(chain.descriptions)
        documents = "1 document" if count == 1 else f"{count} documents"
        self.status = ReloaderStatus(f"{self._path}: {documents}, loaded {now}", "")
        _log.info("mapping loaded: %s", self.status.loaded)
        if previous:
            previous.close()
