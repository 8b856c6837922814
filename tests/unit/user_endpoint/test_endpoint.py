"""The meaning of each message and event, with a link and an engine that only record calls."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest

from mep_wire import messages
from mep_wire.messages import ResultItem, TaskItem
from user_endpoint.bounded_log import BoundedFile, BoundedLog
from user_endpoint.engines.base import OUTPUT_EVERY_S, EngineTask, Event, TaskOutput, TaskReturned, TaskStarted
from user_endpoint.function_store import Functions
from user_endpoint.keeper_report import Reporter
from user_endpoint.lifecycle.idle import IdleRule
from user_endpoint.lifecycle.shutdown import KILL_S, RUN_GRACE_S
from user_endpoint.result_spool import Spool
from user_endpoint.task_admission import FunctionList
from user_endpoint.user_endpoint import GATHER_S, GATHER_TASKS, OUTPUT_BYTES, RESEND_BATCHES, UserEndpoint


class NotingEngine:
    capacity = 8
    worker_python = "3.99.1"
    blocks = trouble = trouble_code = ""
    fed = False

    def __init__(self) -> None:
        self.given: list[EngineTask] = []
        self.cancelled: list[int] = []
        self.events: list[Event] = []
        self.drained = False
        self.stopped: float | None = None

    def start(self) -> None: ...
    def fileno(self) -> int:
        return -1

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        self.given += tasks

    def cancel(self, rows: Sequence[int]) -> None:
        self.cancelled += rows

    def collect(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def drain(self) -> None:
        self.drained = True

    def stop(self, grace_s: float) -> None:
        self.stopped = grace_s


class NotingLink:
    welcomed = True

    def __init__(self) -> None:
        self.said: list[messages.ToRelay] = []
        self.dropped: list[str] = []

    def send(self, message: messages.ToRelay) -> None:
        self.said.append(message)

    def disconnect(self, reason: str, **_pause: object) -> None:
        self.dropped.append(reason)
        self.welcomed = False

    def take(self, kind: type[Any]) -> list[Any]:
        found = [message for message in self.said if isinstance(message, kind)]
        self.said = [message for message in self.said if not isinstance(message, kind)]
        return found


class Stage:
    """A user endpoint, its clock and everything around it."""

    def __init__(self, directory: pathlib.Path, **settings: Any) -> None:
        self.now = 1000.0
        self.engine, self.link = NotingEngine(), NotingLink()
        (directory / "spool").mkdir(exist_ok=True)
        self.log = directory / "log"
        self.spool = Spool(str(directory / "spool"), clock=self.clock, **settings.pop("spool", {}))
        self.uep = UserEndpoint(
            uep_id="u", join_token=b"t", endpoint_id="e", engine=self.engine, functions=Functions(str(directory)),
            spool=self.spool, idle=IdleRule(60.0, 600.0, self.now), reporter=Reporter(-1),
            log=BoundedLog(BoundedFile(str(self.log))), clock=self.clock,
            **{"allowed_functions": (), **settings},
        )  # fmt: skip
        self.uep.link = self.link  # type: ignore[assignment]  # it takes notes

    def clock(self) -> float:
        return self.now

    def welcome(self, max_result_bytes: int = 1000, *, takes_output: bool = True) -> None:
        self.link.welcomed = True
        welcome = messages.UepWelcome(heartbeat_s=10, max_result_bytes=max_result_bytes, takes_output=takes_output)
        self.uep.take([welcome])

    def tasks(self, *rows: int, function: str = "f", payload: bytes = b"") -> None:
        items = [TaskItem(row, str(row), function, payload) for row in rows]
        self.uep.take([messages.Tasks(functions=[messages.FunctionItem("f", b"code")], tasks=items)])

    def happens(self, *events: Event) -> None:
        self.engine.events += events
        self.uep.collect()
        self.uep.flush()


def result(row: int, payload: bytes = b"v") -> ResultItem:
    return ResultItem(row, str(row), "", "", payload, 1.0, 2.0)


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> Stage:
    made = Stage(tmp_path)
    made.uep.hello()
    made.welcome()
    return made


def test_joins_with_the_token_then_says_what_it_holds(stage: Stage) -> None:
    stage.tasks(1, 2)
    stage.happens(result(2))
    hello = stage.uep.hello()
    assert isinstance(hello, messages.UepHello)
    assert sorted(hello.held) == [1, 2]


def test_starts_and_results_of_one_turn_leave_together(stage: Stage) -> None:
    stage.tasks(1, 2, 3)
    stage.happens(TaskStarted(1), result(1), TaskStarted(2), result(3))
    assert [message.rows for message in stage.link.take(messages.Started)] == [[2]]  # 1 has ended: that says as much
    assert [[item.row for item in message.items] for message in stage.link.take(messages.Results)] == [[1, 3]]


def printed(stage: Stage) -> list[tuple[str, int, bytes]]:
    said = stage.link.take(messages.Printed)
    return [(item.task_id, item.position, item.data) for message in said for item in message.items]


def test_output_leaves_before_the_results_of_its_turn(stage: Stage) -> None:
    stage.tasks(1)
    stage.happens(TaskOutput(1, 0, 0, b"one\n"), TaskOutput(2, 0, 0, b"of no task"), result(1))
    kinds = [type(message) for message in stage.link.said]
    assert kinds.index(messages.Printed) < kinds.index(messages.Results)
    assert printed(stage) == [("1", 0, b"one\n")]


def test_a_relay_of_the_version_before_is_sent_no_output(stage: Stage) -> None:
    stage.welcome(takes_output=False)
    stage.tasks(1)
    stage.happens(TaskOutput(1, 0, 0, b"one\n"))
    assert printed(stage) == []


def test_too_much_output_is_left_out(stage: Stage) -> None:
    stage.tasks(1)
    size = OUTPUT_BYTES // 2
    stage.happens(*(TaskOutput(1, 0, at * size, b"x" * size) for at in range(3)))
    assert [at for _, at, _ in printed(stage)] == [0, size]
    stage.now += OUTPUT_EVERY_S
    stage.happens(TaskOutput(1, 0, 3 * size, b"later"))
    assert printed(stage) == [("1", 3 * size, b"later")]


def test_in_a_crowd_results_gather_for_a_moment_and_the_first_and_last_of_it_do_not(stage: Stage) -> None:
    stage.tasks(*range(GATHER_TASKS + 2))
    stage.happens(result(0))
    assert len(stage.link.take(messages.Results)) == 1
    stage.happens(result(1))
    stage.happens(TaskStarted(5))
    assert not stage.link.said[1:], "what follows within a moment waits"
    assert stage.uep.gathers
    due = stage.uep.next_deadline()
    assert due is not None
    assert due == pytest.approx(stage.now + GATHER_S)
    stage.now = due
    assert not stage.uep.gathers
    stage.happens(result(2))
    assert [[item.row for item in message.items] for message in stage.link.take(messages.Results)] == [[1, 2]]
    assert [message.rows for message in stage.link.take(messages.Started)] == [[5]]
    stage.happens(result(3))
    assert len(stage.link.take(messages.Results)) == 1, "fewer are held than GATHER_TASKS"


def test_each_welcome_tells_again_what_runs(stage: Stage) -> None:
    stage.tasks(1, 2, 3, 4)
    stage.happens(TaskStarted(1), TaskStarted(3))
    stage.link.welcomed = False
    stage.happens(TaskStarted(2), result(1))
    stage.happens(TaskReturned(3))
    assert isinstance(stage.uep.hello(), messages.UepHello)
    stage.link.said.clear()
    stage.welcome()
    stage.uep.flush()
    assert [message.rows for message in stage.link.take(messages.Started)] == [[2]]


def test_a_task_that_comes_twice_runs_once(stage: Stage) -> None:
    stage.tasks(1)
    stage.tasks(1)
    assert [task.row for task in stage.engine.given] == [1]
    stage.happens(result(1))
    stage.link.take(messages.Results)
    stage.tasks(1)
    assert [message.items for message in stage.link.take(messages.Results)] == [[result(1)]]
    assert len(stage.engine.given) == 1


def test_results_stay_until_they_are_confirmed(stage: Stage) -> None:
    stage.tasks(1)
    stage.link.welcomed = False
    stage.happens(result(1))
    assert not stage.link.take(messages.Results)
    stage.welcome()
    assert [message.items for message in stage.link.take(messages.Results)] == [[result(1)]]
    stage.uep.take([messages.ResultsDurable(rows=[1])])
    assert len(stage.spool) == 0


def test_a_long_outage_is_sent_in_pieces(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("user_endpoint.user_endpoint.RESULT_BATCH", 2)
    stage = Stage(tmp_path)
    stage.spool.add([result(row) for row in range(1, 21)])
    stage.uep.hello()
    stage.welcome()
    first = stage.link.take(messages.Results)
    assert len(first) == RESEND_BATCHES
    seen = [item.row for message in first for item in message.items]
    while first:
        stage.uep.take([messages.ResultsDurable(rows=[item.row for item in message.items]) for message in first])
        first = stage.link.take(messages.Results)
        seen += [item.row for message in first for item in message.items]
    assert seen == list(range(1, 21))


def test_credit_follows_capacity_and_what_is_held(stage: Stage) -> None:
    stage.uep.flush()
    assert [message.grant for message in stage.link.take(messages.Credit)] == [8]
    stage.tasks(*range(1, 9))
    stage.uep.flush()
    assert not stage.link.take(messages.Credit)
    stage.happens(result(1))
    assert [message.grant for message in stage.link.take(messages.Credit)] == [1]


def test_a_full_spool_asks_for_no_more_and_says_so_once(tmp_path: pathlib.Path) -> None:
    stage = Stage(tmp_path, spool={"limit_bytes": 10})
    stage.uep.hello()
    stage.welcome()
    stage.tasks(1)
    stage.happens(result(1, b"x" * 100))
    stage.link.take(messages.Credit)
    stage.uep.flush()
    stage.uep.flush()
    assert not stage.link.take(messages.Credit)
    assert stage.log.read_text().count("not requesting tasks") == 1
    stage.uep.take([messages.ResultsDurable(rows=[1])])
    stage.uep.flush()
    assert stage.link.take(messages.Credit)


def test_much_payload_asks_for_no_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("user_endpoint.user_endpoint.MAX_HELD_BYTES", 1000)
    stage.tasks(1, payload=b"x" * 2000)
    stage.uep.flush()
    assert not stage.link.take(messages.Credit)
    stage.happens(result(1))
    assert stage.link.take(messages.Credit)


def test_what_this_endpoint_may_not_run(tmp_path: pathlib.Path) -> None:
    stage = Stage(tmp_path, allowed_functions=(FunctionList(frozenset(), {"f": sha256(b"code").digest()}),))
    stage.uep.hello()
    stage.welcome()
    stage.tasks(1)
    stage.tasks(2, function="g")
    stage.uep.flush()
    assert [task.row for task in stage.engine.given] == [1]
    (message,) = stage.link.take(messages.Results)
    assert [(item.row, item.code) for item in message.items] == [(2, "FUNCTION_NOT_ALLOWED")]


def test_a_task_without_its_function(stage: Stage) -> None:
    stage.tasks(1, function="unknown")
    stage.uep.flush()
    (message,) = stage.link.take(messages.Results)
    assert message.items[0].code == "FUNCTION_UNLOADABLE"


def test_a_result_over_the_relays_limit(stage: Stage) -> None:
    stage.tasks(1)
    stage.happens(result(1, b"x" * 1001))
    (message,) = stage.link.take(messages.Results)
    assert (message.items[0].code, message.items[0].payload) == ("RESULT_TOO_LARGE", b"")


def test_cancel_reaches_the_engine_after_the_task_did(stage: Stage) -> None:
    items = [TaskItem(1, "1", "f", b"")]
    stage.uep.take(
        [messages.Tasks(functions=[messages.FunctionItem("f", b"")], tasks=items), messages.CancelTasks(rows=[1])]
    )
    assert [task.row for task in stage.engine.given] == [1]
    assert stage.engine.cancelled == [1]


def test_idle_ends_it(stage: Stage) -> None:
    stage.now += 59
    assert not stage.uep.tick()
    assert stage.uep.stopping is None
    stage.now += 2
    stage.uep.tick()
    assert stage.uep.stopping is not None
    assert stage.uep.stopping.code == "IDLE"
    assert stage.uep.tick()
    assert stage.engine.stopped is not None
    stage.uep.goodbye()
    assert stage.link.take(messages.Goodbye)[0].code == "IDLE"


def test_an_unconfirmed_result_is_no_idleness(stage: Stage) -> None:
    stage.tasks(1)
    stage.happens(result(1))
    stage.now += 61
    assert not stage.uep.tick()
    assert stage.uep.stopping is None
    stage.uep.take([messages.ResultsDurable(rows=[1])])
    stage.now += 59
    stage.uep.tick()
    assert stage.uep.stopping is None
    stage.now += 2
    stage.uep.tick()
    assert stage.uep.stopping is not None


def test_a_hung_task_ends_with_the_hard_limit(stage: Stage) -> None:
    stage.tasks(1)
    stage.now += 601
    stage.uep.tick()
    assert stage.uep.stopping is not None
    assert stage.engine.drained
    assert stage.engine.stopped is None
    stage.now += RUN_GRACE_S
    stage.uep.tick()
    assert stage.engine.stopped == KILL_S
    (message,) = stage.link.take(messages.Results)
    assert message.items[0].code == "USER_ENDPOINT_LOST"


def test_stopping_gives_back_and_waits_for_confirmation(stage: Stage) -> None:
    stage.tasks(1, 2)
    stage.uep.take([messages.StopUep(code="STOPPED", text="by the relay")])
    stage.happens(TaskReturned(2))
    assert [message.rows for message in stage.link.take(messages.Returned)] == [[2]]
    assert not stage.uep.tick()
    stage.tasks(3)
    stage.happens(TaskReturned(3))
    assert [message.rows for message in stage.link.take(messages.Returned)] == [[3]]
    stage.happens(result(1))
    assert not stage.link.take(messages.Credit)
    assert not stage.uep.tick()
    stage.uep.take([messages.ResultsDurable(rows=[1])])
    assert stage.uep.tick()


def test_an_end_does_not_wait_for_a_relay_that_is_away(stage: Stage) -> None:
    stage.tasks(1)
    stage.link.welcomed = False
    stage.happens(result(1))
    stage.uep.stop("STOPPED", "by SIGTERM")
    assert stage.uep.tick()
    assert len(stage.spool) == 1


def test_refusals(stage: Stage) -> None:
    stage.uep.take([messages.Refused(code="HELLO_NEEDED", text="who?", final=False)])
    assert stage.link.dropped
    assert stage.uep.stopping is None
    stage.uep.take([messages.Refused(code="JOIN_REFUSED", text="unknown", final=True)])
    assert stage.uep.stopping is not None
    stage.tasks(9)
    stage.uep.tick()
    assert stage.engine.stopped is not None


def test_a_task_that_comes_while_it_stops_is_given_back_by_the_engine(stage: Stage) -> None:
    """Only the engine knows which tasks the workers of an earlier process have begun."""
    stage.tasks(1)
    stage.uep.stop("STOPPED", "by SIGTERM")
    stage.tasks(2, 3)
    assert [task.row for task in stage.engine.given] == [1, 2, 3]
    stage.happens(TaskReturned(2), ResultItem(3, "3", "USER_ENDPOINT_LOST", "it was killed", b"", 0.0, 1.0))
    assert stage.link.take(messages.Returned) == [messages.Returned(rows=[2])]
    assert [item.row for said in stage.link.take(messages.Results) for item in said.items] == [3]


def test_an_engine_that_ends_a_task_twice_is_not_believed(stage: Stage) -> None:
    stage.tasks(1)
    stage.happens(result(1))
    stage.link.take(messages.Results)
    stage.happens(result(1))
    assert not stage.link.take(messages.Results)
    assert "twice" in stage.log.read_text()


def test_a_spooled_result_answers_for_its_own_task_alone(stage: Stage) -> None:
    stage.spool.add([ResultItem(7, "an older task", "", "", b"v", 1.0, 2.0)])
    stage.tasks(7)
    stage.uep.flush()
    assert stage.link.take(messages.Results) == []
    assert stage.spool.rows == []
    stage.happens(result(7))
    (sent,) = stage.link.take(messages.Results)
    assert [item.task_id for item in sent.items] == ["7"]


def test_the_relay_is_told_what_the_engine_tries_again_and_when_that_is_over(stage: Stage) -> None:
    stage.uep.flush()
    stage.link.take(messages.Credit)
    stage.engine.trouble = "blocks of workers failed twice"
    for _ in range(3):
        stage.uep.flush()
    assert stage.link.take(messages.Credit) == [
        messages.Credit(grant=0, worker_python="3.99.1", trouble="blocks of workers failed twice")
    ]
    stage.uep.hello()  # a relay that has restarted knows nothing of it
    stage.welcome()
    stage.uep.flush()
    assert {credit.trouble for credit in stage.link.take(messages.Credit)} == {"blocks of workers failed twice"}
    stage.engine.trouble = ""
    stage.uep.flush()
    stage.uep.flush()
    assert [credit.trouble for credit in stage.link.take(messages.Credit)] == [""]
    assert 'tasks wait reason="blocks of workers failed twice"' in stage.log.read_text()


@pytest.mark.parametrize("code", ["WORKER_LOST", "RESULT_UNSERIALIZABLE", "ENGINE_FAILED", "WALLTIME_EXCEEDED", "NEW"])
def test_the_log_has_the_id_that_a_person_quotes(stage: Stage, code: str) -> None:
    stage.tasks(5)
    stage.happens(ResultItem(5, "5", code, "forged\nline task=6", b"", 1.0, 2.0, "block 1", "job 7"))
    level = "ERROR" if code == "ENGINE_FAILED" else "WARNING"
    line = next(line for line in stage.log.read_text().splitlines() if "task failed" in line)
    assert f" {level} mep-uep[" in line
    said = f'code={code} task=5 function=f attempt=1 block="block 1" job="job 7"'
    assert f'task failed {said} reason="forged\\nline task=6' in line


def test_a_result_that_is_too_large_is_logged_as_such(stage: Stage) -> None:
    stage.welcome(max_result_bytes=10)
    stage.tasks(5)
    stage.happens(ResultItem(5, "5", "", "", bytes(11), 1.0, 2.0))
    assert "task failed code=RESULT_TOO_LARGE task=5" in stage.log.read_text()


def test_why_tasks_wait_goes_to_the_relay_with_code_and_beginning(stage: Stage) -> None:
    stage.uep.flush()
    stage.link.take(messages.Credit)

    def told() -> messages.Credit:
        stage.uep.flush()
        (credit,) = stage.link.take(messages.Credit)
        assert isinstance(credit, messages.Credit)
        return credit

    stage.engine.trouble, stage.engine.trouble_code = "Slurm job 7: PENDING (Priority)", "JOB_PENDING"
    first = told()
    assert (first.trouble, first.trouble_code) == ("Slurm job 7: PENDING (Priority)", "JOB_PENDING")
    stage.engine.trouble = "Slurm job 7: PENDING (Resources)"
    assert told().trouble_since == first.trouble_since > 0, "the wait is the same"
    stage.engine.trouble = ""
    over = told()
    assert (over.trouble, over.trouble_code, over.trouble_since) == ("", "", 0.0)
    stage.uep._headroom.low = True
    short = told()
    assert short.trouble_code == "ENGINE_TROUBLE"
    assert "few file descriptors" in short.trouble
