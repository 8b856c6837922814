"""A task that waits says why, once; running() and reason tell what the relay told last."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mep_sdk import status_poller, submitter
from mep_sdk.futures import TaskFuture
from mep_sdk.serialize import serialize_result
from mep_sdk.status_poller import StatusPoller
from mep_sdk.submitter import Submitter
from mep_wire import api
from mep_wire.errors import MepError, RelayUnavailable, RelayUnreachable, TokenUnknown
from mep_wire.states import TaskState
from mep_wire.waits import USUAL, Wait, WaitCode
from tests.unit.sdk.test_submitter_threads import Listener

WAIT_S = 60
DONE = serialize_result(1)


class Relay:
    """Tells states and reasons that the test sets."""

    settings = SimpleNamespace(relay_url="http://relay")

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.codes: dict[str, str] = {}
        self.since: dict[str, float] = {}
        self.asked: list[Any] = []

    def statuses(self, task_ids: Any, **_: Any) -> dict[str, str]:
        self.asked.append(list(task_ids))
        return {each: self.told[each] for each in task_ids if each in self.told}

    def wait_of(self, task_id: str, endpoint_id: str, **_: Any) -> Wait:
        self.asked.append(task_id)
        return Wait(self.codes.get(task_id, ""), self.reasons.get(task_id, ""), self.since.get(task_id, 0.0))


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
def session(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submitter]:
    monkeypatch.setattr(submitter, "ResultListener", Listener)
    monkeypatch.setattr(submitter, "StatusPoller", Listener)
    monkeypatch.setattr(Listener, "look_soon", lambda self: None, raising=False)
    yield Submitter(relay, lost_relay_timeout_s=10.0)  # type: ignore[arg-type]


def adopted(session: Submitter, endpoint_id: str, *task_ids: str) -> list[TaskFuture[Any]]:
    futures = session.adopt("group", task_ids)
    for future in futures:
        future.endpoint_id = endpoint_id
    return futures


def test_where_tasks_are_is_told(session: Submitter, relay: Relay) -> None:
    waits, runs, done = adopted(session, "ep", "a", "b", "c")
    assert not runs.running() and not waits.reason
    relay.told = {"a": "waiting-for-ep", "b": "running", "c": "running"}
    relay.reasons = {"a": "the endpoint is offline since 12:00"}
    session._look()
    session._deliver([api.StreamedResult("c", TaskState.SUCCESS, "", "", DONE)])
    assert [each.running() for each in (waits, runs, done)] == [False, True, False]
    assert [each.reason for each in (waits, runs, done)] == ["the endpoint is offline since 12:00", "", ""]
    assert session.stats() == {"unsent": 0, "waiting": 1, "running": 1, "succeeded": 1, "failed": 0, "cancelled": 0}
    relay.told["a"] = "running"
    session._look()
    assert waits.running() and not waits.reason


def test_a_reason_is_a_warning_once_for_each_endpoint(
    session: Submitter, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    adopted(session, "one", "a", "b")
    adopted(session, "two", "c")
    relay.told = dict.fromkeys("abc", "waiting-for-ep")
    relay.reasons = {"a": "position 12 of 40", "c": "its manager is \x1b[2Jaway"}
    with caplog.at_level(logging.WARNING, "mep_sdk"):
        session._look()
        relay.reasons["a"] = "position 3 of 40"
        session._look()
    assert [record.getMessage() for record in caplog.records] == [
        "tasks wait at endpoint one: position 12 of 40",
        "tasks wait at endpoint two: its manager is \\x1b[2Jaway",
    ]
    assert session._pending["b"].reason == "position 3 of 40"


def test_a_wait_has_a_code_and_a_beginning(session: Submitter, relay: Relay) -> None:
    (waits,) = adopted(session, "ep", "a")
    assert (waits.reason_code, waits.waiting_since) == ("", None)
    relay.told, relay.reasons = {"a": "waiting-for-nodes"}, {"a": "Slurm job 7: PENDING (Resources)"}
    relay.codes, relay.since = {"a": "JOB_PENDING"}, {"a": 12.0}
    session._look()
    assert (waits.reason_code, waits.waiting_since) == ("JOB_PENDING", 12.0)
    session._deliver([api.StreamedResult("a", TaskState.SUCCESS, "", "", DONE)])
    assert (waits.reason, waits.reason_code, waits.waiting_since) == ("", "", None)


@pytest.mark.parametrize("code", sorted(WaitCode))
def test_waits_of_every_day_are_no_warning(
    code: WaitCode, session: Submitter, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    adopted(session, "ep", "a")
    relay.told, relay.reasons, relay.codes = {"a": "waiting-for-ep"}, {"a": "so it is"}, {"a": code}
    with caplog.at_level(logging.DEBUG, "mep_sdk"):
        session._look()
        session._look()
    (said,) = [record for record in caplog.records if "so it is" in record.getMessage()]
    assert said.levelno == (logging.INFO if code in USUAL else logging.WARNING)
    assert [record.getMessage() for record in caplog.records if "is now" in record.getMessage()] == [
        "task a is now waiting-for-ep"
    ]


def test_only_a_page_is_asked_for(session: Submitter, relay: Relay) -> None:
    adopted(session, "ep", *(str(number) for number in range(1000)))
    session._look()
    assert [len(each) for each in relay.asked] == [status_poller.PAGE]


def test_nothing_is_asked_while_nothing_is_pending(session: Submitter, relay: Relay) -> None:
    session._look()
    session._unsent.add("a")
    adopted(session, "ep", "a")
    session._look()
    assert relay.asked == []


def test_the_journey_of_a_task_is_in_the_log(session: Submitter, caplog: pytest.LogCaptureFixture) -> None:
    futures = adopted(session, "ep", "a", "b")
    with caplog.at_level(logging.DEBUG, "mep_sdk"):
        session._deliver([api.StreamedResult("a", TaskState.SUCCESS, "", "", DONE)])
        session._mark_cancelled(futures[1])
    assert "task a has succeeded" in caplog.text
    assert "task b is cancelled" in caplog.text


@pytest.mark.parametrize(
    ("end", "shown"),
    [
        (lambda future: None, "state=pending"),
        (
            lambda future: future.told("waiting-for-ep", Wait("", "it is\noff")),
            r"state=pending (waiting-for-ep: it is\noff)",
        ),
        (lambda future: future.told("running", Wait("", "")), "state=pending (running)"),
        (lambda future: future.resolve(3, None), "state=finished returned int"),
        (lambda future: future.resolve(None, ValueError("x")), "state=finished raised ValueError"),
        (lambda future: future.mark_cancelled(), "state=cancelled"),
    ],
)
def test_a_future_shows_what_is_known_of_it(session: Submitter, end: Any, shown: str) -> None:
    (future,) = adopted(session, "ep", "a")
    future.function_name = "add"
    end(future)
    assert repr(future) == f"<TaskFuture a function=add endpoint=ep {shown}>"


def test_it_looks_after_a_while_ever_more_rarely_and_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_poller, "LOOK_AFTER_S", 0.01)
    monkeypatch.setattr(status_poller, "LONGEST_LOOK_PAUSE_S", 600.0)
    monkeypatch.setattr(status_poller, "LOOK_AGAIN_S", 0.01)
    looks: queue.Queue[int] = queue.Queue()

    def look() -> None:
        looks.put(1)
        raise RelayUnavailable(reason="starting")

    thread = StatusPoller(None, list, lambda *_: None, look)  # type: ignore[arg-type]  # nothing is asked of it
    thread.start()
    for _ in range(3):
        looks.get(timeout=WAIT_S)
    thread._look_pause_s, thread._look_due = 600.0, thread._looked + 600.0
    thread.look_soon()
    looks.get(timeout=WAIT_S)
    thread.stop()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def unsent(session: Submitter) -> TaskFuture[Any]:
    """Return the future of a task that is being sent."""
    (future,) = adopted(session, "ep", "unsent")
    session._sending.add("unsent")
    return future


def test_a_task_that_cannot_be_sent_says_why(session: Submitter) -> None:
    sent, future = *adopted(session, "ep", "sent"), unsent(session)
    session._sending_is_retried(RelayUnavailable(reason="its store cannot write"))
    since = future.waiting_since
    session._sending_is_retried(RelayUnavailable(reason="its store cannot write"))
    assert future.reason_code == "RELAY_UNAVAILABLE"
    assert "its store cannot write" in future.reason and future.reason in repr(future)
    assert future.waiting_since == since
    assert sent.reason == ""
    assert session.stats()["unsent"] == 1 and session.stats()["waiting"] == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RelayUnavailable(reason="its store cannot read"), "its store cannot read"),
        (RelayUnreachable(url="http://relay", reason="Connection refused", waited_s=0), "The SDK keeps trying."),
    ],
)
def test_a_relay_that_does_not_say_where_tasks_are_is_the_reason(
    error: MepError, words: str, session: Submitter, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, future = *adopted(session, "ep", "sent"), unsent(session)
    relay.told, relay.reasons = {"sent": "waiting-for-ep"}, {"sent": "the endpoint is offline"}
    session._look()
    assert sent.reason == "the endpoint is offline"
    with monkeypatch.context() as patched:
        patched.setattr(relay, "statuses", lambda *_, **__: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            session._look()
        assert sent.reason_code == error.code and words in sent.reason
        assert future.reason == ""
    session._look()
    assert sent.reason == "the endpoint is offline"


def test_a_task_that_waits_for_its_arguments_says_so(session: Submitter) -> None:
    (future,) = adopted(session, "ep", "a")
    session._deferred.add("a")
    assert future.reason_code == "ARGUMENTS_PENDING"
    assert "arguments" in future.reason


def test_a_token_that_is_refused_ends_the_wait(
    session: Submitter, relay: Relay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream may stay open, and bring nothing: shutdown() would wait for ever."""
    (future,) = adopted(session, "ep", "sent")
    monkeypatch.setattr(relay, "statuses", lambda *_, **__: (_ for _ in ()).throw(TokenUnknown()))
    with pytest.raises(TokenUnknown):
        session._look()
    assert isinstance(future.exception(0), TokenUnknown)
    assert "refuses this script's token" in caplog.text
    session.stop(cancel_futures=False)
    session.wait()
