"""Parts of a monitor, real ones, made as monitor.py makes them: with a clock of the test's, and no child process."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, Self

from mep.boundary.channel import Channel
from mep.boundary.log import Log
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import Message
from mep.boundary.resolved_config import Caps, ManagerSection, MapperSection, Policy, Resolved
from mep.boundary.restrictions import Restrictions
from mep.boundary.runtime_files import KEEPERS_DIR
from mep.root.kernel.keeper_record import Records
from mep.root.monitor.audit_log import Audit
from mep.root.monitor.child import Child, ChildKind, Phase
from mep.root.monitor.configuration import Configuration
from mep.root.monitor.event_loop import PollLoop
from mep.root.monitor.fd_closer import Closer
from mep.root.monitor.fd_limit import Reserve
from mep.root.monitor.helper_process import Helper
from mep.root.monitor.keepers import Keepers
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.mapping_confirmations import MappingConfirmations, Revoke
from mep.root.monitor.rechecks import Rechecks
from mep.root.monitor.start import Start, StartVerdict
from mep.root.monitor.start_requests import StartRequests
from mep.root.monitor.status_file import StatusFile
from mep.root.monitor.to_manager import ToManager
from mep.root.monitor.user_endpoints import Endpoints, RunningEndpoint, UepPhase


class Parts:
    """The layers below the one that a test is about. `now` is the clock."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.now = 1_000_000.0
        self._audit_path = directory / "audit.jsonl"
        (directory / KEEPERS_DIR).mkdir()
        self.configuration = Configuration(_resolved(directory), sealed_memfd("bundle", b""), (1024, 1024))
        self.loop = PollLoop(lambda: self.now)
        self.endpoints = Endpoints()
        self.records = Records(str(directory))
        self.restrictions = Restrictions(str(directory))
        self.log = Log("monitor")
        self.audit = Audit(str(self._audit_path), self.log)
        self.status = StatusFile(str(directory), "endpoint", 0.0, self.endpoints)
        self.closer = Closer()
        self.budget = DayBudget("of a test", 1 << 20, self.loop, self.log, self.audit)
        self.manager, self.mapper = self._helper(ChildKind.MANAGER), self._helper(ChildKind.MAPPER)
        self.to_manager = ToManager(self.configuration, self.log, self.endpoints, self.manager)
        self.revoked: list[tuple[RunningEndpoint, str]] = []
        self._peers: list[Channel] = []

    def _helper(self, kind: ChildKind) -> Helper:
        return Helper(
            kind, self.configuration, self.loop, self.log, self.closer, self.budget,
            launched=lambda _: None, failed=lambda _: None,
        )  # fmt: skip

    def serve(self, helper: Helper) -> Channel:
        """Give a helper a child that serves, played by the test; return the child's end of the channel."""
        ours, theirs = Channel.pair()
        helper.child = Child(helper.kind, 1, ours, Phase.SERVING, self.loop)
        self.loop.watch(ours.fileno(), lambda: None)
        self._peers.append(theirs)
        return theirs

    def running(self, uep_id: str, *, mapped_at: float = 0.0) -> RunningEndpoint:
        """Add a running user endpoint of alice's."""
        made = RunningEndpoint(uep_id, "alice", "c-1", 7, None, uid=1000, phase=UepPhase.RUNNING, mapped_at=mapped_at)
        self.endpoints[uep_id] = made
        self.records.make(uep_id)
        return made

    def confirmations(self, revoke: Revoke) -> MappingConfirmations:
        """Return the watch over the age of mappings."""
        return MappingConfirmations(
            self.configuration, self.loop, self.endpoints, self.records, self.log, self.audit, self.status,
            revoke=revoke,
        )  # fmt: skip

    def rechecks(self) -> Rechecks:
        """Return the re-checks, which end user endpoints by adding them to `revoked`."""
        keepers = PaperKeepers(self)
        return Rechecks(
            self.configuration, self.loop, self.endpoints, self.log, self.status, self.to_manager,
            self.confirmations(keepers.revoke), keepers, self.budget,
        )  # fmt: skip

    def starts(self, keepers: Keepers) -> StartRequests:
        """Return the start requests. Answers to re-checks are dropped."""
        return StartRequests(
            self.configuration, self.restrictions, self.loop, self.endpoints, self.log, self.audit, self.closer,
            self.mapper, self.to_manager, keepers, Reserve(self.log), self.budget, rechecked=lambda _: None,
        )  # fmt: skip

    def audit_records(self, event: str) -> list[dict[str, Any]]:
        """Return the audit records of `event`."""
        records = [json.loads(line) for line in self._audit_path.read_text().splitlines()]
        return [record for record in records if record["event"] == event]

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and have the loop run all due calls."""
        self.now += seconds
        self.loop.after(0.0, lambda: None)
        self.loop.turn()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for helper in (self.manager, self.mapper):
            if helper.child is not None:
                helper.child.close()
        for peer in self._peers:
            peer.close()
        os.close(self.configuration.bundle)


class PaperKeepers(Keepers):
    """Keepers without processes. The test takes the part of each."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.forked: list[str] = []
        self.refusal: StartVerdict | None = None
        """The next starts are refused with it, as by a full site."""
        self.answer: list[tuple[str, StartVerdict]] = []
        super().__init__(
            parts.configuration, parts.restrictions, parts.loop, parts.endpoints, parts.records, parts.log,
            parts.audit, parts.status,
            parts.to_manager, parts.confirmations(lambda *_: None), parts.budget,
            forked=lambda _: None, answered=lambda *args: self.answer.append(args), gone=lambda _: None,
        )  # fmt: skip

    def end(self, endpoint: RunningEndpoint, code: str, public: str) -> None:
        """Note the end in place of a message to a keeper."""
        self._parts.revoked.append((endpoint, code))

    def fork(self, start: Start, descriptor: int) -> StartVerdict | None:
        """Note the start in place of a fork."""
        os.close(descriptor)
        if self.refusal is None:
            self.forked.append(start.uep_id)
            made = RunningEndpoint(start.uep_id, start.local_user, start.correlation_id, 7, None)
            self._endpoints[start.uep_id] = made
        return self.refusal


def received(channel: Channel) -> list[tuple[Message, list[int]]]:
    """Return the messages that have arrived at a non-blocking end."""
    found: list[tuple[Message, list[int]]] = []
    try:
        while (one := channel.receive()) is not None:
            found.append(one)
    except BlockingIOError:
        return found
    return found


def _resolved(directory: pathlib.Path) -> Resolved:
    manager = ManagerSection(
        endpoint_id="endpoint", relay_link_address="tcp://127.0.0.1:1", relay_link_key="00" * 32, account="",
        link_key_path="",
    )  # fmt: skip
    mapper = MapperSection(
        endpoint_id="endpoint", relay_signing_key="00" * 32, account="", unseal_key_path="", mapping_path="",
        owner_identities=[], own_user="alice",
    )  # fmt: skip
    return Resolved(
        name="test", multi_user=False, python="", user_endpoint_main="", state_dir=str(directory),
        runtime_dir=str(directory), log_path="", audit_path="", user_environment_path="", own_accounts=[],
        policy=Policy(), caps=Caps(), manager=manager, mapper=mapper, resolver_argv=[],
    )  # fmt: skip
