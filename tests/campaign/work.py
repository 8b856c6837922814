"""The tasks of a campaign, each with an effect on the disk, and the oracle that compares effects with ends."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import Counter
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mep_sdk import Executor

LOST = frozenset({"WORKER_LOST", "USER_ENDPOINT_LOST"})


def work(directory: str, number: int, seconds: float) -> int:
    """Have one effect, and return a number that shows which task it was."""
    import os
    import time
    import uuid

    os.close(os.open(f"{directory}/{number}.{uuid.uuid4().hex}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    time.sleep(seconds)
    return number * number + 1


@dataclass(slots=True)
class Submitted:
    """One task."""

    number: int
    attempts: int
    future: Future[Any]


@dataclass(slots=True)
class Verdict:
    """What a round's tasks came to."""

    ends: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)
    """The first text of each code."""
    broken: list[str] = field(default_factory=list)


class Work:
    """Submits tasks, and judges them."""

    def __init__(self, effects: Path, rng: random.Random) -> None:
        self._effects, self._rng = effects, rng
        self._numbers = itertools.count()

    def submit(self, executor: Executor, attempts: int, seconds: float | None = None) -> Submitted:
        """Submit one task."""
        number = next(self._numbers)
        lasting = self._rng.choice([0.01, 0.2, 1.5]) if seconds is None else seconds
        return Submitted(number, attempts, executor.submit(work, str(self._effects), number, lasting))

    def wait_for_effects(self, tasks: list[Submitted], count: int, within_s: float = 10.0) -> None:
        """Return once so many of these tasks have begun, so that a fault meets them while they run."""
        numbers = {str(task.number) for task in tasks}
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if sum(name.partition(".")[0] in numbers for name in os.listdir(self._effects)) >= count:
                return
            time.sleep(0.01)

    def judge(self, tasks: list[Submitted], within_s: float) -> Verdict:
        """Wait for every task, and hold its end against its effects."""
        verdict = Verdict()
        wait_for([task.future for task in tasks], timeout=within_s)
        effects = Counter(int(name.partition(".")[0]) for name in os.listdir(self._effects))
        for task in tasks:
            code = self._end(task)
            verdict.ends[code or "success"] += 1
            if code and task.future.done():
                verdict.texts.setdefault(code, str(task.future.exception()))
            if wrong := _wrong(task, code, effects[task.number]):
                verdict.broken.append(wrong)
        return verdict

    @staticmethod
    def _end(task: Submitted) -> str:
        if not task.future.done():
            return "NO_END"
        error = task.future.exception()
        return "" if error is None else str(getattr(error, "code", type(error).__name__))


def _wrong(task: Submitted, code: str, effects: int) -> str:
    """Return the rule that this task breaks, or an empty text."""
    what = f"task {task.number}"
    if code == "NO_END":
        return f"{what} does not end"
    if effects > task.attempts:
        return f"{what} ran {effects} times, {task.attempts} allowed"
    if not code and task.future.result() != task.number * task.number + 1:
        return f"{what} has another task's result"
    if not code and not effects:
        return f"{what} succeeded and never ran"
    if code and code not in LOST and effects:
        return f"{what} ended as {code} after {effects} effects: {task.future.exception()}"
    return ""
