"""One real keeper, forked by the test, which plays its monitor: its behaviour when the monitor goes or misbehaves."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import tempfile
from dataclasses import replace
from typing import Self

from mep.boundary.channel import Channel
from mep.boundary.errors import StartStage
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import (
    AskCaps,
    CapsGranted,
    MapRequest,
    Message,
    Spawned,
    StartDenied,
    StopUserEndpoint,
    UepEnded,
    UepReady,
)
from mep.boundary.resolved_config import Policy
from mep.root.account.account_check import AccountChecks
from mep.root.account.lookup import AccountRules
from mep.root.keeper.keeper import KeeperOrder, keeper_main
from mep.root.kernel.signals import wait_readable
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, new_uep_id, processes_of
from tests.support.waiting import until

TIMEOUT_S = 2.0


class KeeperRun:
    """A keeper and the monitor's end of its channel."""

    def __init__(self, user: str, **behaviour: object) -> None:
        self.files = MonitorRun()
        self.run = pathlib.Path(tempfile.mkdtemp(prefix="meptest-keeper-"))
        self.uep_id = new_uep_id()
        (self.run / "keepers" / self.uep_id).mkdir(mode=0o700, parents=True)
        document = sealed_memfd("verified", json.dumps({"mode": "ready", **behaviour}).encode())
        bundle = sealed_memfd("bundle", b"")
        self.channel, theirs = Channel.pair()
        order = self._order(user, document, bundle)
        self.pid = os.fork()
        if self.pid == 0:
            keeper_main(order, theirs)
        theirs.close()
        os.close(document)
        os.close(bundle)

    def _order(self, user: str, document: int, bundle: int) -> KeeperOrder:
        rules = AccountRules(Policy(), ("mep",), (), None)
        caps = replace(self.files.resolved.caps, start_timeout_s=TIMEOUT_S, stop_grace_s=0.5)
        site = replace(
            self.files.resolved, runtime_dir=str(self.run), caps=caps, user_environment_path="/bin", multi_user=True
        )
        return KeeperOrder(
            uep_id=self.uep_id, local_user=user, correlation_id="c", incarnation=b"i" * 16, start_descriptor=document,
            bundle_descriptor=bundle, site=site, checks=AccountChecks(rules, 0.0), open_files=(1024, 1024),
        )  # fmt: skip

    def hear(self) -> Message | None:
        assert wait_readable([self.channel.fileno()], 10)
        received = self.channel.receive()
        return received[0] if received is not None else None

    def record(self) -> dict[str, object]:
        path = self.run / "keepers" / self.uep_id / "record.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.files.close()
        for path in sorted(self.run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.run.rmdir()


def test_whole_life(alice: LocalAccount) -> None:
    with KeeperRun(alice.name) as keeper:
        assert keeper.hear() == AskCaps(uid=alice.uid)
        keeper.channel.send(CapsGranted())
        spawned = keeper.hear()
        assert isinstance(spawned, Spawned) and os.stat(f"/proc/{spawned.pid}").st_uid == alice.uid
        assert keeper.hear() == UepReady()
        assert keeper.record()["state"] == "running"
        keeper.channel.send(StopUserEndpoint(grace_ms=1000, code="STOPPED", public="because"))
        exited = keeper.hear()
        assert isinstance(exited, UepEnded) and (exited.code, exited.public) == ("STOPPED", "because")
        assert keeper.end() == 0
        assert (keeper.record()["state"], keeper.record()["status"]) == ("ended", signal.SIGTERM)


def test_monitor_that_goes_before_it_allowed_the_start(alice: LocalAccount) -> None:
    with KeeperRun(alice.name) as keeper:
        keeper.hear()
        keeper.channel.close()
        assert keeper.end() == 0
        assert not keeper.record() and not processes_of(alice.uid)


def test_monitor_that_does_not_answer(alice: LocalAccount) -> None:
    with KeeperRun(alice.name) as keeper:
        keeper.hear()
        failed = keeper.hear()
        assert isinstance(failed, UepEnded)
        assert (failed.stage, failed.code) == (StartStage.CAPS, "START_TIMEOUT")
        keeper.end()


def test_monitor_that_denies(alice: LocalAccount) -> None:
    with KeeperRun(alice.name) as keeper:
        keeper.hear()
        keeper.channel.send(StartDenied("PERSON_LIMIT", "Three (3) are enough.", "three"))
        failed = keeper.hear()
        assert isinstance(failed, UepEnded)
        assert (failed.stage, failed.code) == (StartStage.CAPS, "PERSON_LIMIT") and "(3)" in failed.public
        keeper.end()


def test_message_that_no_monitor_sends(alice: LocalAccount) -> None:
    """Before the start: nothing is started. The keeper's own word for it is its exit."""
    with KeeperRun(alice.name) as keeper:
        keeper.hear()
        document = sealed_memfd("x", b"")
        keeper.channel.send(MapRequest(ref=1), [document])
        os.close(document)
        assert keeper.hear() is None
        assert keeper.end() == 1
        assert not processes_of(alice.uid)


def test_monitor_that_goes_later(alice: LocalAccount) -> None:
    with KeeperRun(alice.name) as keeper:
        keeper.hear()
        keeper.channel.send(CapsGranted())
        keeper.hear()
        keeper.channel.close()
        until("it is ready", lambda: keeper.record()["state"] == "running")
        os.kill(keeper.pid, signal.SIGTERM)
        assert keeper.end() == 0
        assert (keeper.record()["state"], keeper.record()["code"]) == ("ended", "STOPPED")
        assert not processes_of(alice.uid)


def test_user_endpoint_that_ignores_sigterm(alice: LocalAccount) -> None:
    with KeeperRun(alice.name, mode="ignore-term") as keeper:
        keeper.hear()
        keeper.channel.send(CapsGranted())
        keeper.hear()
        keeper.hear()
        keeper.channel.send(StopUserEndpoint(grace_ms=200, code="STOPPED", public=""))
        exited = keeper.hear()
        assert isinstance(exited, UepEnded) and exited.stage == 0
        keeper.end()
        assert keeper.record()["status"] == signal.SIGKILL


def test_user_endpoint_that_is_ready_after_it_has_failed(alice: LocalAccount) -> None:
    """Its first word counts: the start has failed."""
    with KeeperRun(alice.name, mode="contrary", life_s=0) as keeper:
        keeper.hear()
        keeper.channel.send(CapsGranted())
        keeper.hear()
        failed = keeper.hear()
        assert isinstance(failed, UepEnded) and (failed.stage, failed.code) == (StartStage.READY, "ENGINE_FAILED")
        keeper.end()
