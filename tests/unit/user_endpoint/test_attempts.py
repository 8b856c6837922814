"""Attempts, deadlines and priorities of tasks that a user endpoint holds."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from mep_wire import messages
from mep_wire.limits import MAX_ATTEMPTS
from mep_wire.messages import ResultItem, TaskItem
from tests.unit.user_endpoint.test_endpoint import Stage, result
from user_endpoint.deadlines import RunningDeadlines
from user_endpoint.engines.base import TaskStarted
from user_endpoint.lost_attempts import Attempts


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> Stage:
    return welcomed(Stage(tmp_path))


def welcomed(made: Stage) -> Stage:
    made.uep.hello()
    made.welcome()
    return made


def give(stage: Stage, *items: TaskItem) -> None:
    stage.uep.take([messages.Tasks(functions=[messages.FunctionItem("f", b"code")], tasks=list(items))])


def task(row: int, **options: Any) -> TaskItem:
    return TaskItem(row, f"task-{row}", "f", b"", **options)


def lost(row: int, code: str = "WORKER_LOST") -> ResultItem:
    return ResultItem(row, f"task-{row}", code, "The worker process that ran the task died: by SIGKILL", b"", 0.0, 2.0)


def ends(stage: Stage) -> list[tuple[str, str]]:
    return [(one.code, one.text) for said in stage.link.take(messages.Results) for one in said.items]


def losses(stage: Stage) -> list[tuple[list[int], list[int]]]:
    return [(said.rows, said.attempts) for said in stage.link.take(messages.Lost)]


def test_a_task_that_was_lost_ends_where_no_attempt_is_left_and_says_which_it_was(stage: Stage) -> None:
    give(stage, task(1), task(2, attempt=3, max_attempts=3))
    stage.happens(lost(1), lost(2, "USER_ENDPOINT_LOST"))
    assert ends(stage) == [
        ("WORKER_LOST", "The worker process that ran the task died: by SIGKILL (attempt 1 of 1)"),
        ("USER_ENDPOINT_LOST", "The worker process that ran the task died: by SIGKILL (attempt 3 of 3)"),
    ]
    assert losses(stage) == []


def test_no_attempt_is_told_that_the_relay_would_not_hear_of(tmp_path: pathlib.Path) -> None:
    stage = welcomed(Stage(tmp_path, attempts=Attempts(default=10_000)))
    give(stage, task(1, attempt=MAX_ATTEMPTS), task(2, attempt=MAX_ATTEMPTS - 1))
    stage.happens(lost(1), lost(2))
    assert losses(stage) == [([2], [MAX_ATTEMPTS - 1])]
    ((code, text),) = ends(stage)
    assert (code, text.endswith(f"(attempt {MAX_ATTEMPTS} of {MAX_ATTEMPTS})")) == ("WORKER_LOST", True)


def test_a_task_with_attempts_left_is_told_as_lost_and_held_until_the_relay_knows(stage: Stage) -> None:
    give(stage, task(1, max_attempts=2))
    stage.happens(TaskStarted(1), lost(1))
    assert (losses(stage), ends(stage)) == ([([1], [1])], [])
    assert stage.link.take(messages.Started) == []  # or the relay would take it for begun again
    assert stage.uep.held == 1
    stage.uep.take([messages.LossesDurable(rows=[1], attempts=[1])])
    assert stage.uep.held == 0
    give(stage, task(1, max_attempts=2, attempt=2))
    assert [one.attempt for one in stage.engine.given] == [1, 2]
    stage.happens(result(1))
    assert ends(stage) == [("", "")]


def test_a_loss_is_said_again_after_a_reconnection_and_its_row_is_held(stage: Stage) -> None:
    give(stage, task(1, max_attempts=2))
    stage.link.welcomed = False
    stage.happens(lost(1))
    assert losses(stage) == []
    assert stage.uep.hello().held == [1]
    stage.welcome()
    assert losses(stage) == [([1], [1])]
    stage.uep.flush()
    assert losses(stage) == []


def test_the_next_attempt_that_overtakes_the_confirmation_is_run(stage: Stage) -> None:
    give(stage, task(1, max_attempts=2))
    stage.happens(lost(1))
    give(stage, task(1, max_attempts=2))  # the same attempt repeated is not
    assert len(stage.engine.given) == 1
    give(stage, task(1, max_attempts=2, attempt=2))
    assert [one.attempt for one in stage.engine.given] == [1, 2]
    stage.uep.take([messages.LossesDurable(rows=[1], attempts=[1])])
    assert stage.uep.held == 1
    stage.happens(lost(1))  # of the second attempt, the last
    stage.uep.take([messages.LossesDurable(rows=[1], attempts=[1])])
    assert ends(stage)[0][1].endswith("(attempt 2 of 2)")
    assert stage.spool.rows == [1]  # only its own confirmation takes it out of the spool


def test_the_endpoints_default_and_limit_decide_and_are_told_to_the_relay(tmp_path: pathlib.Path) -> None:
    stage = welcomed(Stage(tmp_path, attempts=Attempts(2, 3)))
    hello = stage.uep.hello()
    assert (hello.default_attempts, hello.most_attempts) == (2, 3)
    give(stage, task(1), task(2, max_attempts=9, attempt=2), task(3, max_attempts=9, attempt=3))
    stage.happens(lost(1), lost(2), lost(3))
    assert losses(stage) == [([1, 2], [1, 2])]
    assert [text[-16:] for _, text in ends(stage)] == ["(attempt 3 of 3)"]


def test_what_runs_longer_than_the_end_of_the_process_may_be_run_again(stage: Stage) -> None:
    give(stage, task(1, max_attempts=2), task(2))
    stage.uep.stop("STOPPED", "stopped by SIGTERM", grace_s=1.0)
    stage.now += 2.0
    assert not stage.uep.tick()  # the relay has not confirmed them
    assert losses(stage) == [([1], [1])]
    ((code, text),) = ends(stage)
    assert (code, text.endswith("stopped by SIGTERM (attempt 1 of 1)")) == ("USER_ENDPOINT_LOST", True)
    stage.uep.take([messages.ResultsDurable(rows=[2]), messages.LossesDurable(rows=[1], attempts=[1])])
    assert stage.uep.tick()


def test_a_task_is_ended_at_its_deadline_and_says_so(stage: Stage) -> None:
    give(stage, task(1, expires_in_s=10.0), task(2, expires_in_s=30.0), task(3))
    assert stage.uep.next_deadline() == 1010.0
    stage.now = 1009.9
    stage.uep.tick()
    assert stage.engine.cancelled == []
    stage.now = 1010.0
    stage.uep.tick()
    assert stage.engine.cancelled == [1]
    stage.happens(ResultItem(1, "task-1", "TASK_CANCELLED", "The task was cancelled.", b"", 0.0, 2.0))
    assert ends(stage) == [("TASK_EXPIRED", "The task did not finish before its deadline.")]


def test_deadlines_of_tasks_that_have_ended_are_not_gathered() -> None:
    deadlines = RunningDeadlines()
    deadlines.add(1, 500.0)
    for row in range(2, 5000):
        deadlines.add(row, 1000.0 + row)
        deadlines.settled(result(row))
    deadlines.add(5000, 400.0)
    assert len(deadlines._heap) < 2000
    assert deadlines.next() == 400.0
    assert [row for row in deadlines.due(600.0) if row in (1, 5000)] == [5000, 1]


def test_a_task_that_has_ended_or_ends_just_before_its_deadline_keeps_its_end(stage: Stage) -> None:
    give(stage, task(1, expires_in_s=10.0), task(2, expires_in_s=10.0))
    stage.happens(result(1))
    stage.now = 1011.0
    stage.uep.tick()
    assert stage.engine.cancelled == [2]
    stage.happens(result(2))
    assert ends(stage) == [("", ""), ("", "")]


def test_tasks_that_come_together_go_to_the_engine_by_priority(stage: Stage) -> None:
    give(stage, task(1), task(2, priority=-1), task(3, priority=5), task(4, priority=5))
    assert [one.row for one in stage.engine.given] == [3, 4, 1, 2]
