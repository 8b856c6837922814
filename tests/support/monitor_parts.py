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
from mep.root.monitor.part import Shared
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
        configuration = Configuration(_resolved(directory), sealed_memfd("bundle", b""), (1024, 1024))
        log, endpoints = Log("monitor"), Endpoints()
        self.shared = Shared(
            configuration, log, Audit(str(self._audit_path), log), PollLoop(lambda: self.now), endpoints,
            Records(str(directory)), StatusFile(str(directory), "endpoint", 0.0, endpoints),
            Restrictions(str(directory)),
        )  # fmt: skip
        self.configuration, self.loop, self.endpoints = configuration, self.shared.loop, endpoints
        self.closer = Closer()
        self.budget = DayBudget("of a test", 1 << 20, self.loop, log, self.shared.audit)
        self.manager, self.mapper = self._helper(ChildKind.MANAGER), self._helper(ChildKind.MAPPER)
        self.to_manager = ToManager(self.shared, self.manager)
        self.revoked: list[tuple[RunningEndpoint, str]] = []
        self._peers: list[Channel] = []

    def _helper(self, kind: ChildKind) -> Helper:
        return Helper(kind, self.shared, self.closer, self.budget, launched=lambda _: None)

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
        self.shared.records.make(uep_id)
        return made

    def rechecks(self, keepers: Keepers | None = None) -> Rechecks:
        """Return the re-checks. Paper keepers end user endpoints by adding them to `revoked`."""
        return Rechecks(self.shared, self.to_manager, keepers or PaperKeepers(self), self.budget)

    def starts(self, keepers: Keepers) -> StartRequests:
        """Return the start requests. Answers to re-checks are dropped."""
        return StartRequests(
            self.shared, self.closer, self.mapper, self.to_manager, keepers, Reserve(self.shared.log), self.budget,
            rechecked=lambda _: None,
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
            parts.shared, parts.to_manager, parts.budget,
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
