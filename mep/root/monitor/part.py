"""What the monitor's parts share: the configuration, the logs, the loop, and the known user endpoints.

Nothing here acts or holds a channel. A part that acts on another is given that part in its own constructor.
"""

from __future__ import annotations

from dataclasses import dataclass

from mep.boundary.log import Log
from mep.boundary.restrictions import Restrictions
from mep.root.kernel.keeper_record import Records
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.configuration import Configuration
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.status_file import StatusFile
from mep.root.monitor.user_endpoints import Endpoints


@dataclass(frozen=True, slots=True)
class Shared:
    """The monitor's memory and its means to write and wait."""

    configuration: Configuration
    log: Log
    audit: Audit
    loop: PollLoop
    endpoints: Endpoints
    records: Records
    status: StatusFile
    restrictions: Restrictions


class Part:
    """A part of the monitor."""

    def __init__(self, shared: Shared) -> None:
        self._configuration, self._loop = shared.configuration, shared.loop
        self._log, self._audit, self._status = shared.log, shared.audit, shared.status
        self._endpoints, self._records, self._restrictions = shared.endpoints, shared.records, shared.restrictions
