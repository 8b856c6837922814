"""The delivery rules of the architecture (section 3), checked at each event against what truly happened.

The relay and the user endpoints are never asked what happened: workers' effects, deaths and the people's own notes of
what they submitted are the evidence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mep_wire.errors import DependencyFailed, TaskCancelled, TaskExpired, UserEndpointLost, WorkerLost
from mep_wire.states import TaskState
from relay.store.records import Completion

from .world import World

LOST = frozenset({WorkerLost.code, UserEndpointLost.code})
NOT_KNOWN = ("it is not known whether it had begun", "processes ended in a row before any task did")
"""Words of an end as lost of a task that was perhaps, or certainly, never sent."""
NOT_BEGUN = ("had not begun", "was still waiting", "was not started")
"""Words of an expiry that says that the task did not begin."""


class Broken(AssertionError):
    """A delivery rule does not hold."""


@dataclass(eq=False, slots=True)
class Truth:
    """What truly happened to one task."""

    task_id: str
    uep_id: str
    allowed: int
    answer: bytes
    effects: Counter[int] = field(default_factory=Counter)
    """By attempt."""
    deaths: int = 0
    """Processes and workers that died or were ended while they had it."""
    cancelled: bool = False
    deadline: bool = False
    waits_for: tuple[Truth, ...] = ()
    """Those with results that it is sent with."""
    end: Completion | None = None
    says_not_begun: bool = False


class Oracle:
    """Keeps the truth about every task."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.tasks: dict[str, Truth] = {}
        self.open = 0
        self.first = ""
        """The rule that was broken first."""
        self.ended: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()
        """Processes that have ended, by user endpoint."""

    def broken(self, rule: str) -> None:
        """A rule does not hold: the run ends here, also where the relay catches what is raised."""
        self.first = self.first or f"at {self._world.now:.3f} s: {rule}"
        raise Broken(self.first)

    def submitted(self, truth: Truth) -> None:
        """A person submits a task."""
        self.tasks[truth.task_id] = truth
        self.open += 1

    def effect(self, task_id: str, attempt: int) -> None:
        """A worker runs a task."""
        self._world.say("attempt %s of task %s runs", attempt, task_id)
        truth = self.tasks[task_id]
        truth.effects[attempt] += 1
        if early := [each.task_id for each in truth.waits_for if not each.effects]:
            self.broken(f"task {task_id} runs, and {early[0]}, for which it waits, has not run")
        if truth.effects[attempt] > 1:
            self.broken(f"attempt {attempt} of task {task_id} ran twice")
        if truth.effects.total() > truth.allowed:
            self.broken(f"task {task_id} ran {truth.effects.total()} times, {truth.allowed} allowed")
        if truth.says_not_begun:
            self.broken(f"task {task_id} runs, and ended before as not begun: {truth.end}")

    def died(self, task_id: str) -> None:
        """The process or worker that had a task is no more."""
        self.tasks[task_id].deaths += 1

    def completed(self, completion: Completion, task_id: str) -> None:
        """A person reads the end of a task."""
        truth = self.tasks.get(task_id)
        if truth is None:
            self.broken(f"an end of a task that nobody submitted: {completion}")
            return
        if truth.end is not None:
            self.broken(f"task {task_id} ended twice: {truth.end} and {completion}")
        truth.end = completion
        self.open -= 1
        self.ended[completion.code or "success"] += 1
        self._check_end(truth, completion)

    def _check_end(self, truth: Truth, end: Completion) -> None:
        what = f"task {truth.task_id} ended as {end.state.name} {end.code} ({end.text})"
        effects = truth.effects.total()
        ends = [each.end for each in truth.waits_for]
        if end.state is TaskState.SUCCESS:
            if not all(each is not None and each.state is TaskState.SUCCESS for each in ends):
                self.broken(f"{what}, before or without the success of those that it waits for")
            if not effects:
                self.broken(f"{what} and never ran")
            if end.payload != truth.answer:
                self.broken(f"{what} with another task's result")
            return
        failed = any(each is not None and each.state is not TaskState.SUCCESS for each in ends)
        if end.code == DependencyFailed.code and not failed:
            self.broken(f"{what}, and none that it waits for had failed")
        if end.code in LOST:
            if not truth.deaths and not any(words in end.text for words in NOT_KNOWN):
                self.broken(f"{what}, and no process that had it died")
            if not self.gone[truth.uep_id] and not truth.deaths:
                self.broken(f"{what}, and no process ended")
            return
        if end.code == TaskCancelled.code:
            if not truth.cancelled:
                self.broken(f"{what}, and nobody cancelled it")
            return
        if end.code == TaskExpired.code:
            if not truth.deadline:
                self.broken(f"{what}, and it had no deadline")
            if not any(words in end.text for words in NOT_BEGUN):
                return
        # Every other end is of a task that did not begin.
        truth.says_not_begun = True
        if effects:
            self.broken(f"{what} after {effects} effects")
