"""What a manager that was taken over may ask for: answers in bounds, one at a time, and none that it does not read."""

from __future__ import annotations

import asyncio

import pytest

from mep_wire import codec, messages
from mep_wire.ids import uuid_text
from mep_wire.limits import MAX_PUBLIC_TEXT
from mep_wire.states import TaskState
from relay.dispatch import manager_handlers
from relay.dispatch.manager_handlers import MAX_QUESTIONS
from relay.dispatch.stories import MAX_LINES
from relay.store.records import TaskEnding
from relay.store.sqlite import SqlReads
from tests.unit.relay.test_dispatch_failures import Scene


def ask(scene: Scene, ref: int, about: str) -> None:
    scene.manager.peer.session = scene.manager
    scene.dispatcher.on_frame(scene.manager.peer, codec.encode(messages.Explain(ref=ref, about=about)))


def answers(scene: Scene) -> list[messages.Explained]:
    found = [codec.decode_to_manager(frame) for frame in scene.link_.sent]
    return [one for one in found if isinstance(one, messages.Explained)]


async def answered(scene: Scene) -> None:
    async with asyncio.timeout(30):
        while scene.manager.questions:  # noqa: ASYNC110 - it is for the test alone
            await asyncio.sleep(0)


def test_questions_are_answered_in_turn_and_too_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_handlers, "QUESTION_PAUSE_S", 0)

    async def run() -> None:
        scene = Scene()
        for number in range(10 * MAX_QUESTIONS):
            ask(scene, number, "x" * 100_000)
        assert sum(len(each.about) for each in scene.manager.questions) < 64 * 1024
        await answered(scene)
        assert [one.ref for one in answers(scene)] == list(range(MAX_QUESTIONS))
        ask(scene, 7, "y")
        await answered(scene)
        assert len(answers(scene)) == MAX_QUESTIONS + 1

    asyncio.run(run())


def test_a_manager_that_does_not_read_is_sent_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_handlers, "QUESTION_PAUSE_S", 0)

    async def run() -> None:
        scene = Scene()
        monkeypatch.setattr(scene.link_, "writable", lambda _peer: False)
        ask(scene, 1, "x")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not answers(scene)
        monkeypatch.undo()
        await answered(scene)
        assert len(answers(scene)) == 1

    asyncio.run(run())


def test_an_answer_has_a_largest_size_and_reads_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_handlers, "QUESTION_PAUSE_S", 0)

    async def run() -> None:
        scene = Scene()
        hidden = "\N{TAG SPACE}" * 100_000  # each becomes ten characters
        for _ in range(2 * MAX_LINES):
            scene.dispatcher.live.tell(scene.uep, "INFO", hidden)
        (row,) = scene.do(lambda tx: tx.queued_before(scene.uep.row, 1e12, 1))
        ending = TaskEnding(row=row, state=TaskState.FAILED, code="TASK_FAILED", text=hidden, payload=b"r" * 1000)
        scene.do(lambda tx: tx.record_endings(scene.uep.row, [ending]))
        monkeypatch.delattr(SqlReads, "tasks")  # which reads results
        ask(scene, 1, uuid_text(scene.task.task_id))
        await answered(scene)
        (answer,) = answers(scene)
        assert (answer.status, answer.code) == ("failed", "TASK_FAILED")
        assert MAX_LINES < len(answer.lines) <= MAX_LINES + 3
        assert max(len(line.text) for line in answer.lines) < MAX_PUBLIC_TEXT + 200

    asyncio.run(run())
