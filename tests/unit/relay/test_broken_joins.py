"""A link that breaks during the join leaves its process away, not online for ever."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from mep_wire import PROTOCOL_VERSION, codec, messages
from mep_wire.ids import uuid7
from mep_wire.states import TaskState, UepState
from relay.dispatch import uep_handlers
from relay.link.base import Peer
from relay.store.records import NewTask
from tests.unit.relay.test_one_record import Site


async def _breaks(site: Site) -> bytes:
    """A task waits, its process begins to join, and its link breaks before the join is stored. Returns its key."""
    task = NewTask(task_id=uuid7().bytes, function=site.task.function, payload=b"p")
    await site.dispatcher.delivery.add(site.uep, "a", "g", [task])
    site.dispatcher.starts.want(site.uep)
    token = await site.start_request()
    go_on = site.later()
    peer = Peer(os.urandom(32), os.urandom(5), 0.0)
    site.dispatcher.on_frame(peer, codec.encode(messages.Join(protocol=PROTOCOL_VERSION, uep_id="u", token=token)))
    await asyncio.sleep(0)
    site.dispatcher.on_gone(peer, "silent")
    go_on()
    for _ in range(10):
        await asyncio.sleep(0)
    return peer.key


def test_it_is_away_and_comes_back_with_a_hello() -> None:
    async def run() -> None:
        site = Site()
        key = await _breaks(site)
        assert (site.uep.state, site.uep.peer) == (UepState.STARTING, None)
        assert site.uep.record.link_key == key
        peer = Peer(key, os.urandom(5), 0.0)
        site.dispatcher.on_frame(peer, codec.encode(messages.UepHello(protocol=PROTOCOL_VERSION, uep_id="u", held=[])))
        assert site.uep.state is UepState.ONLINE
        assert site.uep.peer is peer

    asyncio.run(run())


def test_if_it_has_ended_its_tasks_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uep_handlers, "LINK_DEAD_S", 0.01)

    async def run() -> None:
        site = Site()
        site.manager.reported = True
        site.manager.running.clear()
        key = await _breaks(site)
        assert site.uep.record.link_key == key
        await site.start_request()
        site.uep.starting = False  # it comes to nothing
        await asyncio.sleep(0.1)
        assert not site.uep.record.link_key, "its end is settled"

    asyncio.run(run())


def test_an_end_told_during_a_start_is_settled_once_the_start_is_refused() -> None:
    """A manager that was restarted says which processes run, and no longer that one has ended."""

    async def run() -> None:
        site = Site()
        key = os.urandom(32)
        site.uep.set_process(key, b"first")
        site.do(lambda tx: tx.add_join(site.uep.row, b"h" * 32, time.time() + 60, time.time()))
        site.do(lambda tx: tx.enrol(site.uep.row, b"h" * 32, key, time.time(), b"first"))
        sent = NewTask(task_id=uuid7().bytes, function=site.task.function, payload=b"p")
        site.do(lambda tx: tx.add_tasks("a", "g", site.uep.row, [sent], 1, time.time()))
        await site.dispatcher.delivery.add(
            site.uep, "a", "g", [NewTask(task_id=uuid7().bytes, function=site.task.function, payload=b"p")]
        )
        site.dispatcher.starts.want(site.uep)
        await site.start_request()
        site.manager.peer.session = site.manager
        for message in (
            messages.RunningUeps(uep_ids=[]),
            messages.StartAnswer(uep_id="u", outcome="refused", code="START_FAILED", text="no", correlation_id=""),
        ):
            site.dispatcher.on_frame(site.manager.peer, codec.encode(message))
        await site.start_request()  # of one that is to read what the last one noted
        refused = messages.StartAnswer(uep_id="u", outcome="refused", code="START_FAILED", text="no", correlation_id="")
        site.dispatcher.on_frame(site.manager.peer, codec.encode(refused))
        for _ in range(20):
            await asyncio.sleep(0)
        (task,) = site.store.tasks([sent.task_id])
        assert task.state is TaskState.FAILED
        assert "not known whether it had begun" in task.text

    asyncio.run(run())
