"""The status file: the endpoint's part of `mep status` and `mep list`, for root and the administrators' group.

It holds no identity, no configuration and no reason of a refusal. Reasons are in a separate file. It is
written at once, but less often the more there is to write.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mep.boundary.log import Log
from mep.boundary.runtime_files import MonitorStatus, write_reasons, write_status
from mep.root.monitor.event_loop import PollLoop, Timer
from mep.root.monitor.user_endpoints import Endpoints

_REFUSED = "refused when last read, the previous one stays in force: the log says why"
_UNUSABLE = "the mapping file cannot be used: the log says why"
INCIDENT_S = 300.0
INTERVAL_S, INTERVAL_FOR_EACH_S = 0.05, 0.0005


class StatusFile:
    """The monitor's published state."""

    def __init__(self, directory: str, endpoint_id: str, started_at: float, endpoints: Endpoints) -> None:
        self._shown = MonitorStatus(
            "starting", os.getpid(), started_at, endpoint_id=endpoint_id, configured_at=started_at
        )
        self._reasons = {"configuration": "", "mapping": ""}
        self._written_reasons: dict[str, str] = {}
        self._incident = ""
        self._directory, self._endpoints = directory, endpoints
        self._loop: PollLoop | None = None
        self._log: Log | None = None
        self._due: Timer | None = None
        self._written_at = float("-inf")
        self._gid: Callable[[], int] = lambda: -1

    def attach(self, loop: PollLoop, log: Log, gid: Callable[[], int] = lambda: -1) -> None:
        """Write the file at changes from now on. `gid` returns the group that may read it, -1 for none."""
        self._loop, self._log, self._gid = loop, log, gid
        self.changed()

    @property
    def link_state(self) -> str:
        """The state of the link to the relay, as the manager says."""
        return self._shown.link_state

    def show(self, **changes: Any) -> None:
        """Change fields of MonitorStatus."""
        self._shown = replace(self._shown, **changes)
        self.changed()

    def report(self, incident: str) -> None:
        """Show an incident for INCIDENT_S, though all may be well again."""
        self._incident = incident
        self.changed()
        if self._loop is not None:
            self._loop.after(INCIDENT_S, lambda: self._forget(incident))

    def _forget(self, incident: str) -> None:
        if self._incident == incident:
            self._incident = ""
            self.changed()

    def configured(self, problem: str) -> None:
        """Record that the configuration was read again, and taken over or refused for `problem`."""
        self._reasons["configuration"] = problem
        now = time.time()
        if problem:
            self.show(configuration_problem=_REFUSED, configuration_refused_at=now)
        else:
            self.show(configuration_problem="", configuration_refused_at=0.0, configured_at=now)

    def mapping_is(self, loaded: str, problem: str) -> None:
        """Record which mapping is in force, and why the present file is refused."""
        if problem != self._reasons["mapping"]:
            self._reasons["mapping"] = problem
            self.show(mapping_refused_at=time.time() if problem else 0.0)
        self.show(mapping_loaded=loaded, mapping_problem=_UNUSABLE if problem else "")

    def changed(self) -> None:
        """Have the file written: now, or a while after the last write."""
        if self._loop is None or self._due is not None:
            return
        interval = INTERVAL_S + INTERVAL_FOR_EACH_S * len(self._endpoints)
        wait = max(0.0, self._written_at + interval - self._loop.clock())
        self._due = self._loop.after(wait, self._write_due)

    def _write_due(self) -> None:
        self._due = None
        if self._loop is not None:
            self._written_at = self._loop.clock()
        try:
            self.write()
        except OSError as error:
            if self._log is not None:
                self._log.error("cannot write the status file", error=error.strerror)

    def write(self) -> None:
        """Write the files now. Raises OSError."""
        if self._reasons != self._written_reasons:
            write_reasons(self._directory, self._reasons, self._gid())
            self._written_reasons = dict(self._reasons)
        running = [one.public() for one in self._endpoints.values()]
        shown = replace(self._shown, problem=self._shown.problem or self._incident, user_endpoints=running)
        write_status(self._directory, shown, self._gid())
