"""The result stream and the session above it, against a WebSocket server with scripted messages."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from mep_sdk.client import Client
from mep_sdk.errors import DataCorrupt, LoginOver
from mep_sdk.result_stream import ResultListener
from mep_sdk.serialize import serialize_result
from mep_sdk.settings import ClientSettings
from mep_sdk.submitter import Function, Submitter, Target
from mep_sdk.task_options import TaskOptions
from mep_wire import api
from mep_wire.errors import (
    MepError,
    RelayUnavailable,
    TaskCancelled,
    TaskFailed,
    TaskGroupNotFound,
    TokenUnknown,
    WorkerLost,
)
from mep_wire.states import TaskState

GROUP = "01900000-0000-7000-8000-000000000000"
WAIT_S = 10


def success(task_id: str, value: object = None) -> api.StreamedResult:
    return api.StreamedResult(task_id, TaskState.SUCCESS, "", "", serialize_result(value))


def batch(cursor: int, *results: api.StreamedResult) -> bytes:
    return msgspec.msgpack.encode(api.StreamBatch(cursor=cursor, results=list(results)))


class Relay:
    """Gives each connection to the next of `scripts`; the subscriptions are in `asked`."""

    def __init__(self) -> None:
        self.scripts: queue.Queue[Callable[[ServerConnection], None]] = queue.Queue()
        self.asked: queue.Queue[tuple[str, api.Subscribe]] = queue.Queue()
        self.refusals: list[MepError] = []
        self.server: Server = serve(self._serve, "127.0.0.1", 0, process_request=self._process, compression=None)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        port = self.server.socket.getsockname()[1]
        self.settings = ClientSettings(f"http://127.0.0.1:{port}", "secret")

    def _process(self, connection: ServerConnection, request: Request) -> Response | None:
        assert request.path == "/v3/stream"
        if not self.refusals:
            return None
        error = self.refusals.pop(0)
        told = api.ErrorAnswer(
            reason=error.text, code=error.code, http_status_code=error.http_status, correlation_id="c"
        )
        response = connection.respond(error.http_status, msgspec.json.encode(told).decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = api.JSON
        return response

    def _serve(self, connection: ServerConnection) -> None:
        token = connection.request.headers["Authorization"] if connection.request else ""
        try:
            first = connection.recv()
            assert isinstance(first, bytes)
            self.asked.put((token, msgspec.msgpack.decode(first, type=api.Subscribe)))
            self.scripts.get(timeout=WAIT_S)(connection)
        except ConnectionClosed:
            pass


@pytest.fixture
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    made.server.shutdown()


class Followed:
    """A listener with the results that it delivered and how it was refused."""

    def __init__(self, relay: Relay) -> None:
        self.results: queue.Queue[api.StreamedResult] = queue.Queue()
        self.refused: queue.Queue[MepError] = queue.Queue()
        self.listener = ResultListener(
            relay.settings, GROUP, lambda found: [self.results.put(each) for each in found] and None, self._refuse
        )
        self.listener.group_known()
        self.listener.start()

    def _refuse(self, group: str, error: MepError) -> None:
        assert group == GROUP
        self.refused.put(error)

    def next(self) -> str:
        return self.results.get(timeout=WAIT_S).task_id


@pytest.fixture
def followed(relay: Relay) -> Iterator[Followed]:
    made = Followed(relay)
    yield made
    made.listener.stop()
    made.listener.join(WAIT_S)
    assert not made.listener.is_alive()


def until_closed(connection: ServerConnection) -> None:
    for _ in connection:
        pass


def test_asks_with_the_token_for_the_group(relay, followed):
    relay.scripts.put(until_closed)
    assert relay.asked.get(timeout=WAIT_S) == ("Bearer secret", api.Subscribe(task_group_id=GROUP, cursor=0))


def test_goes_on_from_the_cursor_after_a_break(relay, followed):
    relay.scripts.put(lambda connection: connection.send(batch(7, success("a"), success("b"))))
    relay.scripts.put(lambda connection: connection.socket.close())
    relay.scripts.put(lambda connection: (connection.send(batch(9, success("c"))), until_closed(connection)))
    assert [followed.next() for _ in range(3)] == ["a", "b", "c"]
    assert [relay.asked.get(timeout=WAIT_S)[1].cursor for _ in range(3)] == [0, 7, 7]
    assert followed.listener.down_for_s() == 0


def test_replay_starts_from_the_beginning(relay, followed):
    relay.scripts.put(lambda connection: (connection.send(batch(7, success("a"))), until_closed(connection)))
    relay.scripts.put(lambda connection: (connection.send(batch(7, success("a"))), until_closed(connection)))
    assert followed.next() == "a"
    followed.listener.replay()
    assert followed.next() == "a"
    assert [relay.asked.get(timeout=WAIT_S)[1].cursor for _ in range(2)] == [0, 0]


def test_fragments_and_pings_are_understood(relay, followed):
    def script(connection: ServerConnection) -> None:
        whole = batch(1, success("big", "x" * 3_000_000))
        pong = connection.ping()
        connection.send([whole[:10], whole[10:100_000], whole[100_000:]])
        threading.Thread(target=until_closed, args=(connection,), daemon=True).start()
        assert pong.wait(WAIT_S)
        connection.send(batch(2, success("after the pong")))
        connection.close()

    relay.scripts.put(script)
    assert [followed.next() for _ in range(2)] == ["big", "after the pong"]


def test_a_refusal_ends_it(relay):
    relay.refusals.append(TokenUnknown())
    assert type(Followed(relay).refused.get(timeout=WAIT_S)) is TokenUnknown


class Renewing:
    """A source of tokens: the next one where the last was refused, until the login is over."""

    def __init__(self, count: int) -> None:
        self.left = [f"token {number}" for number in range(count)]

    def token(self) -> str:
        return self.left[0]

    def renewed(self, refused: str) -> str:
        if self.left[0] == refused:
            del self.left[0]
        if not self.left:
            raise LoginOver(url="http://relay", reason="it was ended.", profile="p")
        return self.left[0]

    def end(self) -> None:
        pass


def test_a_token_that_ends_in_mid_stream_is_renewed_and_a_login_that_is_over_is_said(relay: Relay) -> None:
    frame = msgspec.msgpack.encode(api.StreamRefused(code=TokenUnknown.code, text="no longer"))
    relay.settings = replace(relay.settings, source=Renewing(2))
    relay.scripts.put(lambda connection: connection.send(frame))
    followed = Followed(relay)
    assert relay.asked.get(timeout=WAIT_S)[0] == "Bearer token 0"

    def once_more(connection: ServerConnection) -> None:
        connection.send(batch(1, success("a")))
        connection.send(frame)

    relay.scripts.put(once_more)
    assert relay.asked.get(timeout=WAIT_S)[0] == "Bearer token 1"
    assert followed.next() == "a"
    assert type(followed.refused.get(timeout=WAIT_S)) is LoginOver


def test_a_refusal_frame_ends_it(relay, followed):
    refusal = api.StreamRefused(code=TaskGroupNotFound.code, text="no such group")
    relay.scripts.put(lambda connection: connection.send(msgspec.msgpack.encode(refusal)))
    error = followed.refused.get(timeout=WAIT_S)
    assert (type(error), error.text) == (TaskGroupNotFound, "no such group")


def test_what_is_no_frame_is_named(relay, followed):
    relay.scripts.put(lambda connection: connection.send(b"\x00junk"))
    assert followed.refused.get(timeout=WAIT_S).code == "RELAY_ANSWER_INVALID"


def test_a_relay_that_is_busy_is_asked_again(relay, caplog):
    relay.refusals += [RelayUnavailable(reason="starting"), RelayUnavailable(reason="starting")]
    relay.scripts.put(lambda connection: connection.send(batch(1, success("a"))))
    with caplog.at_level(logging.WARNING, "mep_sdk"):
        followed = Followed(relay)
        assert followed.next() == "a"
    followed.listener.stop()
    assert [record.message.split("(")[0].strip() for record in caplog.records] == [
        f"result stream of relay {relay.settings.relay_url} is down",
        f"result stream of relay {relay.settings.relay_url} is back",
    ]


def test_the_token_is_in_no_log(relay, caplog):
    relay.scripts.put(lambda connection: connection.send(batch(1, success("a"))))
    with caplog.at_level(logging.DEBUG):
        followed = Followed(relay)
        assert followed.next() == "a"
        followed.listener.stop()
        followed.listener.join(WAIT_S)
    ours = [record for record in caplog.records if not record.name.startswith("websockets.server")]
    assert "secret" not in "".join(record.getMessage() for record in ours)


# --- the session above it -------------------------------------------------------------------------------


class ScriptedClient(Client):
    """A client that lets the test decide the outcome of each submission."""

    def __init__(self, relay: Relay, submit: Callable[[api.SubmitBody], Any]) -> None:
        super().__init__(relay.settings.relay_url, "secret")
        self.script = submit

    def submit(self, endpoint_id: Any, body: api.SubmitBody, **_: Any) -> Any:
        answer = api.SubmitAnswer(request_id="", task_group_id=GROUP, endpoint_id=str(endpoint_id), tasks={})
        return self.script(body) or answer


def target() -> Target:
    return Target("e", GROUP, b"", b"", TaskOptions())


def quiet(relay: Relay) -> None:
    for _ in range(5):
        relay.scripts.put(until_closed)


def end(session: Submitter) -> None:
    session.stop(cancel_futures=False)
    session.wait()


def test_a_result_may_overtake_the_answer_to_its_submission(relay):
    quiet(relay)

    def submit(body: api.SubmitBody) -> None:
        [task_id] = body.task_ids["f"]
        session._deliver([success(task_id, 42)])
        session._deliver([success(task_id, 43)])  # at least once: the second time it is known already

    session = Submitter(ScriptedClient(relay, submit), lost_relay_timeout_s=5)
    assert session.submit(target(), Function(id="f"), b"").result(WAIT_S) == 42
    end(session)


def test_a_refusal_after_the_result_changes_nothing(relay):
    quiet(relay)

    def submit(body: api.SubmitBody) -> None:
        session._deliver([success(body.task_ids["f"][0], 42)])
        raise RelayUnavailable(reason="too late")

    session = Submitter(ScriptedClient(relay, submit), lost_relay_timeout_s=5)
    assert session.submit(target(), Function(id="f"), b"").result(WAIT_S) == 42
    end(session)


def test_what_waits_goes_out_together_within_the_limits(relay):
    quiet(relay)
    going, sizes = threading.Event(), []

    def submit(body: api.SubmitBody) -> None:
        going.wait(WAIT_S)
        ids = [task_id for each in body.task_ids.values() for task_id in each]
        sizes.append(len(ids))
        session._deliver([success(task_id) for task_id in ids])

    session = Submitter(ScriptedClient(relay, submit), lost_relay_timeout_s=5)
    session.batch_size = 100
    first = session.submit(target(), Function(id="f"), b"")
    while not session._sending:
        pass
    futures = [session.submit(target(), Function(id="f"), b"") for _ in range(250)]
    large = [session.submit(target(), Function(id="f"), bytes(9 << 20)) for _ in range(9)]
    going.set()
    for future in [first, *futures, *large]:
        future.result(WAIT_S)
    assert sizes[:3] == [1, 100, 100]
    assert sum(sizes[3:]) == 59
    assert len(sizes) == 5  # 50 small ones with 7 large ones, since 64 MiB are the limit; then 2
    end(session)


def test_ends_become_what_a_person_expects(relay):
    quiet(relay)
    ends = [
        api.StreamedResult("", TaskState.FAILED, "WORKER_LOST", "the worker died", b"", "corr"),
        api.StreamedResult("", TaskState.CANCELLED, "", "", b""),
        api.StreamedResult("", TaskState.SUCCESS, "", "", b"junk"),
        api.StreamedResult("", TaskState.FAILED, "TASK_FAILED", "ValueError: x", b"junk"),
        api.StreamedResult("", 99, "", "", b""),
    ]

    def submit(body: api.SubmitBody) -> None:
        [task_id] = body.task_ids["f"]
        session._deliver([msgspec.structs.replace(ends.pop(0), task_id=task_id)])

    session = Submitter(ScriptedClient(relay, submit), lost_relay_timeout_s=5)
    found = [session.submit(target(), Function(id="f"), b"").exception(WAIT_S) for _ in range(5)]
    assert [type(each) for each in found] == [WorkerLost, TaskCancelled, DataCorrupt, TaskFailed, MepError]
    assert (found[0].text, found[0].correlation_id) == ("the worker died", "corr")
    assert "damaged" in found[3].text
    end(session)


def test_a_cancellation_may_overtake_the_answer_to_its_request(relay):
    quiet(relay)

    class Cancelling(ScriptedClient):
        def cancel_many(self, task_ids: Any, **_: Any) -> set[str]:
            ids = set(task_ids)
            session._deliver([api.StreamedResult(each, TaskState.CANCELLED, "", "", b"") for each in ids])
            return ids

    session = Submitter(Cancelling(relay, lambda body: None), lost_relay_timeout_s=5)
    future = session.submit(target(), Function(id="f"), b"")
    assert session.flush(WAIT_S)
    assert future.cancel()
    assert future.cancelled()
    end(session)


def test_a_defect_while_sending_reaches_the_futures(relay, caplog):
    quiet(relay)

    def submit(body: api.SubmitBody) -> None:
        raise ZeroDivisionError("a defect")

    session = Submitter(ScriptedClient(relay, submit), lost_relay_timeout_s=5)
    with caplog.at_level(logging.CRITICAL, "mep_sdk"), pytest.raises(MepError, match="a defect"):
        session.submit(target(), Function(id="f"), b"").result(WAIT_S)
    end(session)
