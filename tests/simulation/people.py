"""People: they submit tasks, repeat a submission that was not answered, cancel some tasks, and read every end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from mep_sdk.serialize import with_inputs
from mep_wire.errors import RelayUnavailable
from mep_wire.ids import user_endpoint_id
from relay.dispatch.submissions import Submission
from relay.store.records import Caller, NewTask

from .oracle import Oracle, Truth
from .relay_side import RelayHost
from .world import World

READ_S = 5.0
RETRY_S = 1.0


class Person:
    """One person with one user endpoint and one task group."""

    dead = False

    def __init__(self, world: World, host: RelayHost, oracle: Oracle, endpoint_id: str, number: int) -> None:
        self._world, self._host, self._oracle, self._endpoint_id = world, host, oracle, endpoint_id
        self._config = {"number": number}
        self._uep_id = user_endpoint_id(endpoint_id, "a", self._config, {})
        self.group = str(uuid.UUID(bytes=world.token(16)))
        self._seq = 0
        self._sent: list[str] = []
        self._awaited: tuple[Truth, ...] = ()
        self.active = True
        self._busy = world.rng.choice([0.02, 0.3, 3.0])
        function = host.store.function_ref("f")
        assert function is not None
        self._function = function
        world.after(world.between(0.01, 5.0), self._submit)
        world.after(READ_S, self._read_on)

    # --- submitting ------------------------------------------------------------------------------

    def _submit(self) -> None:
        if not self.active:
            return
        w = self._world
        priority, deadline = w.rng.choice([0, 0, 0, 3, -2]), 0.0
        if w.chance(0.05):
            deadline = w.wall() + w.between(0.5, 200.0)
        allowed = w.rng.choice([0, 0, 1, 3])
        tasks = []
        for _ in range(w.rng.choice([1, 1, 1, 2, 5, 20])):
            raw = w.token(16)
            text = str(uuid.UUID(bytes=raw))
            uep_id, waits_for = self._uep_id, self._draw_awaited()
            payload = with_inputs(raw, [each.answer for each in waits_for]) if waits_for else raw
            truth = Truth(text, uep_id, allowed or 1, b"answer to " + payload, deadline=bool(deadline))
            truth.waits_for = waits_for
            self._oracle.submitted(truth)
            tasks.append(
                NewTask(
                    task_id=raw,
                    function=self._function,
                    payload=raw,
                    max_attempts=allowed,
                    deadline=deadline,
                    priority=priority,
                    depends_on=tuple(uuid.UUID(each.task_id).bytes for each in waits_for),
                )
            )
            self._sent.append(text)
        self._try(tasks)
        pause = w.between(self._busy / 5, self._busy * 5) if w.chance(0.97) else w.between(10.0, 200.0)
        w.after(pause, self._submit)

    def _draw_awaited(self) -> tuple[Truth, ...]:
        """Draw the tasks that one waits for: often those of the one before, and none that themselves wait for some that
        do, since each answer holds those before it."""
        draw = self._world.waits
        if draw is None or draw.random() < 0.6:
            return ()
        if not self._awaited or draw.random() < 0.4:
            known = [self._oracle.tasks[text] for text in self._sent[-12:]]
            fit = [each for each in known if not any(one.waits_for for one in each.waits_for)]
            self._awaited = tuple(draw.sample(fit, min(len(fit), draw.choice([1, 1, 2, 3]))))
        return self._awaited

    def _try(self, tasks: Sequence[NewTask]) -> None:
        """Submit until the relay answers."""
        host = self._host
        if host.loop is None:
            self._world.after(RETRY_S, self._try, tasks)
            return
        loop, answered = host.loop, host.loop.create_task(self._request(tasks))

        def look() -> None:
            if loop.dead or (answered.done() and answered.exception() is not None):
                self._world.after(RETRY_S, self._try, tasks)
            elif not answered.done():
                self._world.after(RETRY_S, look)

        self._world.after(RETRY_S, look)

    async def _request(self, tasks: Sequence[NewTask]) -> None:
        """Submit them once."""
        host = self._host
        assert host.dispatcher is not None
        await host.dispatcher.submit(
            Submission(
                caller=Caller(account_id="a", identity_id="i"),
                endpoint_id=self._endpoint_id,
                config=self._config,
                runtime={},
                group_id=self.group,
                tasks=tasks,
            )
        )

    def cancel(self) -> None:
        """Cancel some of the latest tasks."""
        host = self._host
        if host.loop is None or host.dispatcher is None or not self._sent:
            return
        chosen = [text for text in self._sent[-8:] if self._world.chance(0.3)]
        found = host.store.briefs([uuid.UUID(text).bytes for text in chosen])
        open_tasks = [task for task in found if not task.state.is_terminal]
        for task in open_tasks:
            self._oracle.tasks[str(uuid.UUID(bytes=task.task_id))].cancelled = True
        if open_tasks:
            host.loop.create_task(self._cancel(host.dispatcher, open_tasks))

    async def _cancel(self, dispatcher: Any, tasks: Any) -> None:
        try:
            await dispatcher.cancel(tasks)
        except RelayUnavailable:
            await asyncio.sleep(0)

    # --- reading ---------------------------------------------------------------------------------

    def _read_on(self) -> None:
        self.read()
        self._world.after(READ_S, self._read_on)

    def read(self) -> None:
        """Read the ends that are on the relay's disk."""
        if self._host.loop is None:
            return
        found = self._host.store.group(self.group)
        if found is None:
            return
        for one in self._host.store.completions(found.row, self._seq, 1000, 1 << 20):
            self._seq = one.seq
            self._oracle.completed(one, str(uuid.UUID(bytes=one.task_id)))
