"""A person at their own limit of user endpoints: the least recently used idle one ends for the new one."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from mep_wire import codec, messages
from mep_wire.errors import PersonLimit
from mep_wire.states import UepState
from relay.dispatch.live_state import Uep
from relay.link.base import Peer
from relay.store.records import UepRecord
from tests.unit.relay.test_dispatch_failures import Scene

LIMIT = PersonLimit(limit=2)


class Home(Scene):
    """A person with idle user endpoints beside the one that waits."""

    def idle(self, name: str, used_at: float, account_id: str = "a") -> Uep:
        if account_id != "a":
            self.do(lambda tx: tx.add_account(account_id, _identity(account_id)))
        record = UepRecord(
            row=0, uep_id=name, endpoint_id=self.uep.record.endpoint_id, account_id=account_id, identity_id="i",
            config={"name": name}, runtime={},
        )  # fmt: skip
        made = self.dispatcher.live.uep(self.do(lambda tx: tx.put_uep(record)))
        made.set_process(name.encode().ljust(32), b"i" * 16)
        made.peer, made.state, made.used_at = Peer(name.encode(), name.encode(), 0.0), UepState.ONLINE, used_at
        return made

    def refused(self, uep: Uep | None = None) -> None:
        uep = uep or self.uep
        uep.set_timer(None)
        uep.go(UepState.STARTING)
        uep.starting = True
        answer = messages.StartAnswer(
            uep_id=uep.record.uep_id, outcome="unavailable", code=LIMIT.code, text=LIMIT.text, correlation_id="c"
        )
        self.dispatcher.starts.answered(self.manager, answer)
        uep.set_timer(None)

    def stopped(self) -> int:
        found = [codec.decode_to_uep(frame) for frame in self.link_.sent if b"StopUep" in frame]
        self.link_.sent.clear()
        return sum(isinstance(one, messages.StopUep) and one.code == "IDLE" for one in found)


def _identity(name: str) -> object:
    from mep_wire.identity import Identity

    return Identity(id=name, username=name)


def test_the_least_recently_used_idle_one_ends() -> None:
    async def run() -> None:
        home = Home()
        late, early = home.idle("late", 9.0), home.idle("early", 3.0)
        other = home.idle("other", 1.0, "b")
        home.refused()
        assert home.stopped() == 1
        assert [one.state for one in (early, late, other)] == [UepState.DRAINING, UepState.ONLINE, UepState.ONLINE]
        assert home.why.code == "PERSON_LIMIT"
        home.refused()
        assert home.stopped() == 0, "one is ending for it"
        early.set_process(b"", b"")
        early.peer, early.state = None, UepState.ABSENT
        home.refused()
        assert home.stopped() == 1
        assert late.state is UepState.DRAINING

    asyncio.run(run())


@pytest.mark.parametrize("busy", ["queued", "away", "ending"])
def test_one_in_use_is_left_alone_and_the_tasks_wait(busy: str) -> None:
    async def run() -> None:
        home = Home()
        one = home.idle("one", 1.0)
        if busy == "queued":
            one.has_queued = True
        elif busy == "away":
            one.peer, one.state = None, UepState.DISCONNECTED
        else:
            one.state = UepState.DRAINING
        state = one.state
        home.refused()
        assert home.stopped() == 0
        assert one.state is state
        assert "as many user endpoints as this site allows" in home.why.text

    asyncio.run(run())


def test_one_with_a_running_task_is_in_use() -> None:
    async def run() -> None:
        home = Home()
        one = home.idle("one", 1.0)
        task = msgspec.structs.replace(home.task, task_id=b"t" * 16)
        home.do(lambda tx: tx.add_tasks("a", "g", one.row, [task], 1, 1.0))
        home.do(lambda tx: tx.take_queued(one.row, 1, 1000))
        home.refused()
        assert home.stopped() == 0

    asyncio.run(run())
