"""State changes of tasks inside one transaction, composed of the store's single steps.

A task is queued again only if its cancellation was not requested. A task that had begun and was lost is queued
again only while it has attempts left. Called with the transaction by the other modules of this package.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mep_wire.attempts import allowed_attempts, on_attempt
from mep_wire.errors import MepError, TaskCancelled
from mep_wire.states import TaskState
from relay.store.base import Tx
from relay.store.records import Held, OpenTask, Settled, TaskEnding

NOTHING = Settled(groups=frozenset(), ended=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Requeued:
    """How many tasks wait again, and the endings of those that were not to."""

    count: int
    settled: Settled = NOTHING


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Tasks that had begun were lost with their process: why, and how often they may be begun there."""

    error: MepError
    default_attempts: int
    most_attempts: int

    def ending(self, task: OpenTask, allowed: int) -> TaskEnding:
        """Return the end of a task that may not be begun once more."""
        e, text = self.error, on_attempt(self.error.text, task.attempts + 1, allowed)
        return TaskEnding(
            row=task.row,
            state=TaskState.FAILED,
            code=e.code,
            text=text,
            payload=b"",
            correlation_id=e.correlation_id,
            ended_at=time.time(),
        )


def cancelled(rows: Sequence[int]) -> list[TaskEnding]:
    """Return the endings of cancelled tasks."""
    error, now = TaskCancelled(), time.time()
    return [
        TaskEnding(row=row, state=TaskState.CANCELLED, code=error.code, text=error.text, ended_at=now) for row in rows
    ]


def requeue(tx: Tx, uep_row: int, rows: Sequence[int] | None) -> Requeued:
    """Queue tasks again, as `TaskTx.requeue`; those that are to be cancelled end."""
    count = tx.requeue(uep_row, rows)
    return _without_cancelled(tx, uep_row, count)


def _without_cancelled(tx: Tx, uep_row: int, count: int) -> Requeued:
    asked = [row for row, state in tx.cancelling(uep_row).items() if state is TaskState.QUEUED]
    settled = tx.record_endings(uep_row, cancelled(asked)) if asked else NOTHING
    return Requeued(count=count - settled.ended, settled=settled)


def record_lost_attempts(tx: Tx, uep_row: int, lost: Sequence[tuple[int, int]]) -> Requeued:
    """A user endpoint says that these attempts, by row, are lost, and the tasks may run again. Repeats count once."""
    attempts = dict(lost)
    told = tx.open_tasks_of(uep_row, list(attempts))
    # A task may have been sent again after its attempt was counted, but it does not run yet.
    again = [t.row for t in told if t.attempts < attempts[t.row] or t.state is TaskState.DISPATCHED]
    tx.record_lost_attempts(uep_row, [(row, attempts[row]) for row in again])
    return requeue(tx, uep_row, again)


def fail_or_retry(tx: Tx, uep_row: int, rows: Sequence[int], loss: Loss) -> Requeued:
    """These had begun and their process is gone: queue again those with attempts left, end the others."""
    again: list[tuple[int, int]] = []
    endings: list[TaskEnding] = []
    for task in tx.open_tasks_of(uep_row, rows):
        allowed = allowed_attempts(task.max_attempts, loss.default_attempts, loss.most_attempts)
        if task.cancelling:
            endings += cancelled([task.row])
        elif task.attempts + 1 < allowed:
            again.append((task.row, task.attempts + 1))
        else:
            endings.append(loss.ending(task, allowed))
    tx.record_lost_attempts(uep_row, again)
    settled = tx.record_endings(uep_row, endings) if endings else NOTHING
    return Requeued(count=tx.requeue(uep_row, [row for row, _ in again]) if again else 0, settled=settled)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconciled:
    """The consequences of a user endpoint's list of its rows."""

    held: Held
    requeued: Requeued
    cancelling: list[int]
    """Rows that it holds and that it is to be told, perhaps again, to cancel."""


def reconcile(tx: Tx, uep_row: int, held: Sequence[int]) -> Reconciled:
    """Compare, as `TaskTx.reconcile` does, and handle the tasks that are to be cancelled."""
    found = tx.reconcile(uep_row, held)
    requeued = _without_cancelled(tx, uep_row, found.requeued)
    lost = set(found.lost)
    return Reconciled(
        held=found, requeued=requeued, cancelling=[row for row in tx.cancelling(uep_row) if row not in lost]
    )


def cancel(tx: Tx, uep_row: int, rows: Sequence[int], *, ask: bool) -> tuple[list[int], Settled]:
    """Cancel tasks: at once, or (with `ask`) by the user endpoint those that it has. Returns those to ask for."""
    open_tasks_of = tx.open_tasks_of(uep_row, rows)
    away = [task.row for task in open_tasks_of if ask and task.state is not TaskState.QUEUED]
    tx.ask_cancel(uep_row, away)
    now = [task.row for task in open_tasks_of if task.row not in set(away)]
    return away, tx.record_endings(uep_row, cancelled(now)) if now else NOTHING
