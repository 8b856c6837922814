"""Decides the fate of a user endpoint's tasks after its process is gone, in steps.

The workers of a process record on the site's disk which tasks they begin. The last reports of a killed process never
leave it, so the relay can't tell whether a task that was sent had begun. The next process can: it reads these records
before it begins a task. The steps are therefore:

1. ENDED: the manager reports that the process is gone. Nothing is decided.
2. TOLD: the next process has joined and has listed the tasks that it holds. Tasks that were sent are sent again, and
   that process ends them as lost if the records say that they had begun. Tasks that were known to run are lost.
3. GIVEN_UP, instead of TOLD or after it: no process follows that could read the records. Only tasks that were never
   sent end with the reason for that. The others end as lost, since they may have had effects.

After TOLD, a task waits like one that was never sent until it is sent again. The process that joined may be gone
before then. Such tasks are doubtful, and the store records that.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping, Sequence

from mep_wire.errors import MepError, UserEndpointLost, UserEndpointUnstable
from mep_wire.limits import MAX_PUBLIC_TEXT
from mep_wire.states import TaskState
from relay.dispatch.task_transitions import NOTHING, Reconciled, reconcile
from relay.store.base import Tx
from relay.store.records import Settled, TaskEnding


class LossStep(enum.Enum):
    """The reports that the relay has received since it lost a process."""

    ENDED = enum.auto()
    TOLD = enum.auto()
    GIVEN_UP = enum.auto()


class Fate(enum.Enum):
    """The effect of a step on a task."""

    STAYS = enum.auto()
    """As it is: the next step decides."""
    SENT_AGAIN = enum.auto()
    ATTEMPT_LOST = enum.auto()
    """Begun again where its attempts allow it, else failed as lost."""
    NOT_BEGUN = enum.auto()
    """Failed with the reason why no process comes."""
    MAYBE_BEGUN = enum.auto()
    """Failed as lost, and the text says that it may have begun."""
    BEGUN = enum.auto()
    """Failed as lost."""


_S, _T, _F = LossStep, TaskState, Fate

FATES: Mapping[LossStep, Mapping[TaskState, Fate]] = {
    _S.ENDED: {_T.QUEUED: _F.STAYS, _T.DISPATCHED: _F.STAYS, _T.RUNNING: _F.STAYS},
    _S.TOLD: {_T.QUEUED: _F.STAYS, _T.DISPATCHED: _F.SENT_AGAIN, _T.RUNNING: _F.ATTEMPT_LOST},
    _S.GIVEN_UP: {_T.QUEUED: _F.NOT_BEGUN, _T.DISPATCHED: _F.MAYBE_BEGUN, _T.RUNNING: _F.BEGUN},
}
"""By step and by the state in which the store has the task. TOLD is the store's `reconcile`."""

_MAYBE = "its process ended, and it is not known whether it had begun there."


def tell(tx: Tx, uep_row: int, held: Sequence[int], *, new_process: bool) -> Reconciled:
    """Take a process's list of tasks. Only what was sent to a process before it is doubtful, not what crossed a cut."""
    sent = [row for row, state in tx.active_rows(uep_row).items() if state is TaskState.DISPATCHED]
    if new_process:
        tx.doubt(uep_row, sorted(set(sent).difference(held)), doubtful=True)
    return reconcile(tx, uep_row, held)


def why_failed(state: TaskState, error: MepError, *, doubtful: bool = False) -> MepError:
    """Return the error with which a task ends once its user endpoint is given up because of `error`.

    It has the correlation id of `error`, which the log holds.
    """
    lost = isinstance(error, UserEndpointLost)
    reason = str(error.fields.get("reason", error.text)) if lost else error.text
    match Fate.MAYBE_BEGUN if doubtful else FATES[LossStep.GIVEN_UP][state]:
        case Fate.MAYBE_BEGUN:
            return UserEndpointLost(reason=f"{_MAYBE} {reason}"[:MAX_PUBLIC_TEXT], correlation_id=error.correlation_id)
        case Fate.BEGUN:
            return error if lost else UserEndpointLost(reason=reason, correlation_id=error.correlation_id)
        case _:
            return UserEndpointUnstable(reason=reason, correlation_id=error.correlation_id) if lost else error


def end_what_was_sent(tx: Tx, uep_row: int, error: MepError) -> Settled:
    """The user endpoint is given up: end the tasks sent to its last process. Tasks never sent end after them."""
    errors = {state: why_failed(state, error) for state in FATES[LossStep.GIVEN_UP]}
    return tx.record_endings(uep_row, [_ending(row, errors[state]) for row, state in tx.active_rows(uep_row).items()])


def end_doubtful(tx: Tx, uep_row: int, error: MepError) -> Settled:
    """The user endpoint is given up: end the waiting tasks that had begun once, and the doubtful ones, before those
    that were never sent."""
    again = set(tx.queued_again(uep_row))
    lost, maybe = why_failed(TaskState.RUNNING, error), why_failed(TaskState.QUEUED, error, doubtful=True)
    endings = [_ending(row, lost) for row in sorted(again)]
    endings += [_ending(row, maybe) for row in tx.queued_doubtful(uep_row) if row not in again]
    return tx.record_endings(uep_row, endings) if endings else NOTHING


def _ending(row: int, e: MepError) -> TaskEnding:
    return TaskEnding(
        row=row,
        state=TaskState.FAILED,
        code=e.code,
        text=e.text,
        payload=b"",
        correlation_id=e.correlation_id,
        ended_at=time.time(),
    )
