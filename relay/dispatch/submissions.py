"""Takes a person's tasks: their limits, the user endpoint that serves them, storing, sending, and the request to start.

The API has checked the submission's form and the person's permissions. Here it either becomes durable as a whole or
is refused as a whole. Called by the dispatcher, in the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mep_wire.errors import RelayUnavailable
from mep_wire.ids import user_endpoint_id
from mep_wire.limits import MAX_PAYLOAD_BYTES, MAX_TASKS_PER_SUBMIT
from relay.dispatch.deadlines import QueueDeadlines
from relay.dispatch.live_state import LiveState, Uep, durable
from relay.dispatch.storage_quota import Quota
from relay.dispatch.task_delivery import TaskDelivery
from relay.store.records import Caller, NewTask, UepRecord

USED_S = 86400.0
"""Precision of the stored time at which a function was last used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonLimits:
    """The most that one person may have here."""

    open_tasks: int = 2_000_000
    """Unfinished tasks."""
    open_tasks_at_endpoint: int = 0
    """The same at one endpoint; 0: as many as in all."""
    stored_bytes: int = 50_000_000_000
    """Waiting arguments and kept results; 0: any amount."""
    requests_per_s: float = 0.0
    """Requests in a second on average; 0: any number. Tasks likewise."""
    tasks_per_s: float = 0.0
    batch: int = MAX_TASKS_PER_SUBMIT
    """Tasks in one submission."""
    payload_bytes: int = MAX_PAYLOAD_BYTES
    """Arguments of one task."""
    result_bytes: int = MAX_PAYLOAD_BYTES
    data_bytes: int = 0
    """Arguments or a result by reference; 0: none are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """Tasks of one person for one endpoint. `config` and `runtime` are plain values (see relay.api.json_values)."""

    caller: Caller
    endpoint_id: str
    config: dict[str, Any]
    runtime: dict[str, Any]
    group_id: str
    tasks: Sequence[NewTask]
    """At least one; all have the same deadline."""


class Submissions:
    """See the module."""

    def __init__(
        self, live: LiveState, delivery: TaskDelivery, deadlines: QueueDeadlines, limits: PersonLimits
    ) -> None:
        self._live, self._delivery, self._deadlines, self._limits = live, delivery, deadlines, limits
        self.quota = Quota(live.store, limits.stored_bytes)

    async def store(self, submission: Submission) -> Uep:
        """Store the tasks and send those that may be sent; return the user endpoint that is to run them.

        Raises TooManyTasks, StorageFull, IdConflict or RelayUnavailable; then nothing was stored.
        """
        if self._live.draining:
            raise RelayUnavailable(reason="it takes no new tasks while its administrator drains it")
        account, tasks = submission.caller.account_id, submission.tasks
        size = sum(task.counted for task in tasks)
        self._check_count(submission)
        self.quota.check(account, size)
        uep = await self._user_endpoint(submission)
        added = await self._delivery.add(uep, account, submission.group_id, tasks)
        uep.used_at = self._live.loop.time()
        self._deadlines.expect(tasks[0].deadline)
        self._live.open_tasks.changed(account, submission.endpoint_id, added.new)
        self.quota.added(account, size)
        self._note_use(tasks)
        return uep

    def _check_count(self, submission: Submission) -> None:
        """Raises TooManyTasks."""
        account, count, limits = submission.caller.account_id, len(submission.tasks), self._limits
        self._live.open_tasks.check(account, "", count, limits.open_tasks)
        if limits.open_tasks_at_endpoint:
            self._live.open_tasks.check(account, submission.endpoint_id, count, limits.open_tasks_at_endpoint)

    async def _user_endpoint(self, submission: Submission) -> Uep:
        """Return the user endpoint that serves this person with this configuration, known from now on."""
        caller, endpoint_id = submission.caller, submission.endpoint_id
        uep_id = user_endpoint_id(endpoint_id, caller.account_id, submission.config, submission.runtime)
        known = self._live.ueps.get(uep_id)
        if known is not None:
            return known
        record = self._live.store.uep(uep_id)
        if record is None:
            wanted = UepRecord(
                row=0,
                uep_id=uep_id,
                endpoint_id=endpoint_id,
                account_id=caller.account_id,
                identity_id=caller.identity_id,
                config=submission.config,
                runtime=submission.runtime,
                seen_at=time.time(),
            )
            record = await durable(self._live.store.submit(lambda tx: tx.put_uep(wanted)))
        return self._live.uep(record)

    def _note_use(self, tasks: Sequence[NewTask]) -> None:
        """Once a day, note of functions that they are used."""
        now = time.time()
        stale = {task.function.row for task in tasks if task.function.used_at < now - USED_S}
        if stale:
            self._live.store.submit(lambda tx: tx.use_functions(list(stale), now))
