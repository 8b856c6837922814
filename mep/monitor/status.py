"""The status file: what `mep status` and `mep list` show, and everybody on the host may read.

So no identity, no configuration and no reason of a refusal is in it. Written at once, but the less often the more
there is to write.
"""

from __future__ import annotations

import os

from mep.boundary.log import Log
from mep.boundary.runtime import MonitorStatus, write_status
from mep.monitor.endpoints import Endpoints
from mep.monitor.loop import Loop, Timer

INTERVAL_S, INTERVAL_FOR_EACH_S = 0.05, 0.0005


class Status:
    """The monitor's state as others see it. Set the fields, then call `changed`."""

    def __init__(self, directory: str, endpoint_id: str, started_at: float, endpoints: Endpoints) -> None:
        self.state = "starting"
        self.problem = ""
        self.link_state, self.link_detail = "", ""
        self.mapping_loaded, self.mapping_problem = "", ""
        self._directory, self._endpoint_id, self._started_at = directory, endpoint_id, started_at
        self._endpoints = endpoints
        self._loop: Loop | None = None
        self._log: Log | None = None
        self._due: Timer | None = None
        self._written_at = float("-inf")

    def attach(self, loop: Loop, log: Log) -> None:
        """Write on changes from now on."""
        self._loop, self._log = loop, log
        self.changed()

    def changed(self) -> None:
        """Have the file written: now, or a while after the last time."""
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
        """Write the file now. Raises OSError."""
        write_status(
            self._directory,
            MonitorStatus(
                state=self.state,
                pid=os.getpid(),
                started_at=self._started_at,
                problem=self.problem,
                endpoint_id=self._endpoint_id,
                link_state=self.link_state,
                link_detail=self.link_detail,
                mapping_loaded=self.mapping_loaded,
                # What is wrong with it may quote an identity: that is for the log, which not everybody can read.
                mapping_problem="the mapping file cannot be used: the log says why" if self.mapping_problem else "",
                user_endpoints=[one.public() for one in self._endpoints.values()],
            ),
        )
