"""The monitor's handlers: one short method for each row of the table in permissions.py, named after its message.

The table has checked the sender and the phase. The channel has checked sizes and types. Handlers check the meaning
of the values. Called by permissions.py alone.
"""

from __future__ import annotations

from collections.abc import Callable

from mep.boundary import messages as m
from mep.boundary.channel import clip
from mep.boundary.errors import BoundaryViolation
from mep.boundary.log import Log
from mep.root.monitor.admin_socket import AdminPeer
from mep.root.monitor.administration import Administration
from mep.root.monitor.child import Child
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.rechecks import Rechecks
from mep.root.monitor.reload import Reload
from mep.root.monitor.start_requests import StartRequests
from mep.root.monitor.status_file import StatusFile


class Handlers:
    """The effects that messages have, on the parts of the monitor given here."""

    def __init__(
        self, log: Log, status: StatusFile, starts: StartRequests, keepers: Keepers, rechecks: Rechecks,
        reload: Reload, administration: Administration, *, manager_ready: Callable[[], None],
        mapper_ready: Callable[[bytes], None], stop: Callable[[], None], link_is: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`mapper_ready` gets the mapper's epoch, `link_is` the state of the relay link; `stop` ends the endpoint."""
        self._log, self._status, self._starts, self._keepers = log, status, starts, keepers
        self._rechecks, self._reload, self._administration = rechecks, reload, administration
        self._manager_ready, self._mapper_ready, self._stop = manager_ready, mapper_ready, stop
        self._link_is = link_is

    def answer_without_descriptors(self, message: m.Message) -> None:
        """Answer a message with descriptors for which this process had no room: the start is tried again later."""
        if isinstance(message, m.StartEndpoint):
            self._starts.request_lost(message.ref)
        elif isinstance(message, m.Mapped):
            self._starts.mapped_lost(message.ref)

    # --- manager --------------------------------------------------------------------------------------------

    def answer_manager_ready(self, child: Child, message: m.ManagerReady, _: list[int]) -> None:
        """The manager is ready: send it the epoch and the running user endpoints."""
        self._log.info("the manager is ready", pid=child.pid, version=message.version)
        self._manager_ready()

    def answer_start_endpoint(self, child: Child, message: m.StartEndpoint, descriptors: list[int]) -> None:
        """The manager asks for a start."""
        self._starts.request(message.ref, descriptors[0])

    def answer_link_status(self, child: Child, message: m.LinkStatus, _: list[int]) -> None:
        """The manager reports the state of its link to the relay, for `mep status`."""
        self._status.link_state, self._status.link_detail = clip(message.state, 32), clip(message.detail, 1024)
        self._status.changed()
        self._link_is(self._status.link_state)

    def answer_stop_all(self, child: Child, message: m.StopAll, _: list[int]) -> None:
        """The relay has deleted this endpoint: end its user endpoints. The relay won't sign further starts."""
        self._log.warning("the endpoint was deleted: stopping its user endpoints", reason=clip(message.reason, 1024))
        self._keepers.stop_all("The endpoint was deleted.")

    def answer_stop_endpoint(self, child: Child, message: m.StopEndpoint, _: list[int]) -> None:
        """An administrator has had the relay stop this endpoint (`mep stop --remote`)."""
        self._log.warning("the relay says that the endpoint is to stop", reason=clip(message.reason, 1024))
        self._stop()

    # --- mapper ---------------------------------------------------------------------------------------------

    def answer_mapper_ready(self, child: Child, message: m.MapperReady, _: list[int]) -> None:
        """The mapper is ready, with a new epoch for the relay to sign with."""
        self._log.info("the mapper is ready", pid=child.pid)
        self._mapper_ready(message.epoch)

    def answer_mapping_status(self, child: Child, message: m.MappingStatus, _: list[int]) -> None:
        """The mapper reports which mapping is in force, for `mep status`."""
        self._status.mapping_is(clip(message.loaded, 1024), clip(message.problem, 4096))
        if not message.problem:
            self._rechecks.all_now()

    def answer_reload_needed(self, child: Child, message: m.ReloadNeeded, _: list[int]) -> None:
        """The mapping needs more or less than the mapper was started with: run root's resolver."""
        self._reload.start_for_mapper()

    def answer_mapped(self, child: Child, message: m.Mapped, descriptors: list[int]) -> None:
        """The mapper has verified a request and names its user. The id becomes a file name, so check it."""
        self._starts.mapped(message, descriptors[0])

    def answer_not_mapped(self, child: Child, message: m.NotMapped, _: list[int]) -> None:
        """The mapper refuses a request."""
        self._starts.not_mapped(message)

    def answer_still_mapped(self, child: Child, message: m.StillMapped, _: list[int]) -> None:
        """The mapper reports the account that the owner of a user endpoint maps to now."""
        self._starts.rechecked(message)

    def answer_no_longer_mapped(self, child: Child, message: m.NoLongerMapped, _: list[int]) -> None:
        """The mapper reports that the owner of a user endpoint no longer maps to an account, or that it can't say."""
        self._starts.rechecked(message)

    # --- keeper ---------------------------------------------------------------------------------------------

    def answer_ask_caps(self, child: Child, message: m.AskCaps, _: list[int]) -> None:
        """A keeper has found and admitted the account, and asks whether this uid may have one more user endpoint."""
        if (ban := self._administration.ban_of_uid(child.uep_id, message.uid)) is not None:
            child.send(m.StopUserEndpoint(grace_ms=0, code=ban[0], public=ban[1]))
        else:
            self._keepers.grant_or_deny(child, message)

    def answer_spawned(self, child: Child, message: m.Spawned, _: list[int]) -> None:
        """A keeper's user endpoint has been exec'd."""
        self._keepers.spawned(child, message.pid)

    def answer_uep_ready(self, child: Child, message: m.UepReady, _: list[int]) -> None:
        """A user endpoint is configured and its engine runs: answer the start."""
        self._keepers.ready(child)

    def answer_keeper_failed(self, child: Child, message: m.KeeperFailed, _: list[int]) -> None:
        """A start failed, at a named stage."""
        self._keepers.failed(child, message)

    def answer_still_admitted(self, child: Child, message: m.StillAdmitted, _: list[int]) -> None:
        """A keeper has checked its account, which may still be used."""
        self._rechecks.account_checked(child.uep_id)

    def answer_no_longer_admitted(self, child: Child, message: m.NoLongerAdmitted, _: list[int]) -> None:
        """A keeper has checked its account, which may no longer be used: it ends its user endpoint."""
        self._rechecks.account_refused(child.uep_id, message.detail)

    def answer_not_checked(self, child: Child, message: m.NotChecked, _: list[int]) -> None:
        """A keeper can't check its account now. Its user endpoint keeps running."""
        self._keepers.account_checked(child.uep_id)

    def answer_uep_exited(self, child: Child, message: m.UepExited, _: list[int]) -> None:
        """A user endpoint and all its descendants are gone."""
        self._keepers.exited(child, message)

    # --- administrator's command ------------------------------------------------------------------------------

    def answer_admin_list(self, child: Child, message: m.AdminList, _: list[int]) -> None:
        """An administrator looks at the user endpoints."""
        self._administration.show(_peer(child), message)

    def answer_admin_stop(self, child: Child, message: m.AdminStop, _: list[int]) -> None:
        """An administrator ends a user endpoint, or those of an account."""
        if self._administration.is_free(_peer(child), message):
            self._administration.stop(_peer(child), message)

    def answer_admin_drain(self, child: Child, message: m.AdminDrain, _: list[int]) -> None:
        """An administrator has the endpoint, or one account, run empty."""
        if self._administration.is_free(_peer(child), message):
            self._administration.drain(_peer(child), message)

    def answer_admin_undrain(self, child: Child, message: m.AdminUndrain, _: list[int]) -> None:
        """An administrator takes a drain back."""
        if self._administration.is_free(_peer(child), message):
            self._administration.undrain(_peer(child), message)

    def answer_admin_ban(self, child: Child, message: m.AdminBan, _: list[int]) -> None:
        """An administrator closes the endpoint to an account."""
        if self._administration.is_free(_peer(child), message):
            self._administration.ban(_peer(child), message)

    def answer_admin_unban(self, child: Child, message: m.AdminUnban, _: list[int]) -> None:
        """An administrator takes a ban back."""
        if self._administration.is_free(_peer(child), message):
            self._administration.unban(_peer(child), message)

    def answer_admin_reload(self, child: Child, message: m.AdminReload, _: list[int]) -> None:
        """An administrator has the configuration read again."""
        if self._administration.is_free(_peer(child), message):
            self._administration.reload(_peer(child))

    def answer_admin_log(self, child: Child, message: m.AdminLog, _: list[int]) -> None:
        """An administrator reads the endpoint's log."""
        if self._administration.is_free(_peer(child), message):
            self._administration.open_log(_peer(child))


def _peer(child: Child) -> AdminPeer:
    """Return the connection that the table's rows for administrators are about."""
    if not isinstance(child, AdminPeer):
        raise BoundaryViolation(f"{child.name} is no administrator")
    return child
