"""What the manager is told: at once if it serves, otherwise when it next does.

Nothing is read here. A manager that is gone asks nothing, so answers to it are dropped. Ends are kept for the next one,
and those of a manager's last minute are told again: it may have died before the relay had them.
Called by the monitor's modules above this one.
"""

from __future__ import annotations

from collections import deque

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.root.monitor.audit_log import open_appending
from mep.root.monitor.helper_process import Helper
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.user_endpoints import RunningEndpoint

_MAX_UNTOLD = 4096
_TOLD_AGAIN_S = 60.0
"""Within this time a manager with a link to the relay has proof that the relay has read an end."""


class ToManager(Part):
    """The messages to the manager. `epoch` is the mapper's; empty if no mapper serves."""

    def __init__(self, shared: Shared, manager: Helper) -> None:
        super().__init__(shared)
        self._manager = manager
        self.epoch = b""
        self._untold: deque[m.EndpointEnded] = deque(maxlen=_MAX_UNTOLD)
        self._told: deque[tuple[float, m.EndpointEnded]] = deque(maxlen=_MAX_UNTOLD)
        """Ends sent to this manager, with the times of the loop's clock."""

    def introduce(self) -> bool:
        """Send it the epoch and the running user endpoints. Return False if manager or mapper isn't ready yet."""
        if not self._manager.serving or not self.epoch:
            return False
        self.task_log()
        self._send(m.MapperEpoch(epoch=self.epoch))
        for endpoint in self._endpoints.values():
            if endpoint.is_known_to_run:
                self.account(endpoint)
                self.running(endpoint)
        while self._untold:
            self._tell_end(self._untold.popleft())
        return True

    def manager_lost(self) -> None:
        """Keep the last ends that this manager was told for the next one. The relay drops what it has read before."""
        since = self._loop.clock() - _TOLD_AGAIN_S
        self._untold.extendleft(message for at, message in reversed(self._told) if at >= since)
        self._told.clear()

    def _tell_end(self, message: m.EndpointEnded) -> bool:
        if sent := self._send(message):
            self._told.append((self._loop.clock(), message))
        return sent

    def _send(self, message: m.Message, *descriptors: int) -> bool:
        """Send `message`, unless no manager serves; return whether one does. The descriptors are no longer ours."""
        child = self._manager.child
        if child is None or not self._manager.serving:
            return False
        child.send(message, descriptors)
        return True

    def task_log(self) -> None:
        """Send a fresh descriptor of the task log if task records are kept; the manager can only append to it."""
        path = self._configuration.resolved.task_log_path
        if not path or not self._manager.serving:
            return
        try:
            self._send(m.TaskLogFile(), open_appending(path))
        except OSError as error:
            self._log.error("task records cannot be written", path=path, error=error.strerror)

    def answered(self, answer: m.StartAnswered | m.StartBegun) -> None:
        """Answer a request of this manager."""
        self._send(answer)

    def account(self, endpoint: RunningEndpoint) -> None:
        """Name the account of a user endpoint, if task records are kept."""
        if self._configuration.resolved.task_log_path:
            name = endpoint.incarnation
            self._send(m.EndpointAccount(endpoint.uid, endpoint.uep_id, endpoint.local_user, incarnation=name))

    def running(self, endpoint: RunningEndpoint) -> None:
        """Say that a user endpoint runs. A later manager is told when it is ready."""
        self._send(m.EndpointRunning(endpoint.uep_id, incarnation=endpoint.incarnation))

    def revoked(self, endpoint: RunningEndpoint, code: str, public: str) -> None:
        """Say that a user endpoint is being ended. `ended` always reports the end."""
        self._send(m.EndpointRevoked(*_about(endpoint, code, public), incarnation=endpoint.incarnation))

    def ended(self, endpoint: RunningEndpoint, code: str, public: str) -> None:
        """Say, now or to the next manager, that a user endpoint has ended."""
        message = m.EndpointEnded(*_about(endpoint, code, public), incarnation=endpoint.incarnation)
        if not self._tell_end(message):
            self._untold.append(message)

    def starts_allowed(self) -> None:
        """Say that starts refused because of a drain may be asked for again."""
        self._send(m.StartsAllowed())

    def recheck_all(self) -> None:
        """Ask it to have every user endpoint re-checked soon."""
        self._send(m.RecheckNow())


def _about(endpoint: RunningEndpoint, code: str, public: str) -> tuple[str, str, str, str]:
    return endpoint.uep_id, clip(code, 64), clip(public, 1024), clip(endpoint.correlation_id, 64)
