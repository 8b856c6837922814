"""A person's side of a relay, for tests: HTTP by hand and the result stream, with nothing of the SDK in it."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import msgspec
from websockets.sync.client import ClientConnection, connect

from mep_wire import api
from tests.support.relay import RelayProcess

_names = itertools.count(1)


class Person:
    """One user of a relay."""

    def __init__(self, relay: RelayProcess, name: str = "person") -> None:
        self.relay = relay
        self.username = f"{name}{next(_names)}@example.edu"
        self.token = relay.add_user(self.username)

    def call(self, method: str, path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, Any]:
        """Make a request; return status and decoded answer."""
        return self.relay.request(method, path, self.token, body, raw)

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        """Make a request that must succeed; return its answer."""
        status, answer = self.call(method, path, body)
        assert status == 200, answer
        return answer

    def refused(self, status: int, code: str, method: str, path: str, body: Any = None) -> str:
        """Make a request that must be refused just so; return the reason."""
        got, answer = self.call(method, path, body)
        assert (got, answer["code"], answer["http_status_code"]) == (status, code, status), answer
        assert answer["status"] == "Failed"
        assert uuid.UUID(answer["correlation_id"])
        reason: str = answer["reason"]
        assert reason
        return reason

    def function(self, code: str = "code", **fields: Any) -> str:
        """Register a function; return its id."""
        answer = self.ok("POST", "/v3/functions", {"function_name": "f", "function_code": code, **fields})
        function_id: str = answer["function_uuid"]
        return function_id

    def submit(self, endpoint_id: str, function_id: str, payloads: list[str], **fields: Any) -> Any:
        """Submit tasks; return the answer."""
        body = {"tasks": {function_id: payloads}, **fields}
        return self.ok("POST", f"/v3/endpoints/{endpoint_id}/submit", body)

    def task(self, task_id: str) -> Any:
        """Return a task's status."""
        return self.ok("GET", f"/v2/tasks/{task_id}")

    def stream(self, group_id: str, cursor: int = 0, **options: Any) -> Stream:
        """Open the result stream of a group."""
        return Stream(self, group_id, cursor, **options)


class Stream:
    """One result stream."""

    def __init__(self, person: Person, group_id: str, cursor: int, *, output: bool = False, **options: Any) -> None:
        url = person.relay.url.replace("http", "ws", 1) + "/v3/stream"
        headers = {"Authorization": f"Bearer {person.token}"}
        self.socket: ClientConnection = connect(
            url, additional_headers=headers, compression=None, max_size=None, legacy=True, **options
        )
        self.cursor = cursor
        wanted = api.Subscribe(task_group_id=group_id, cursor=cursor, output=output)
        self.socket.send(msgspec.msgpack.encode(wanted))

    def next(self, timeout: float = 10.0) -> api.StreamBatch:
        """Return the next batch."""
        frame = msgspec.msgpack.decode(self.socket.recv(timeout), type=api.StreamFrame)  # type: ignore[arg-type]
        assert isinstance(frame, api.StreamBatch), frame
        assert frame.cursor > self.cursor
        self.cursor = frame.cursor
        return frame

    def output(self, timeout: float = 10.0) -> list[tuple[str, int, bytes]]:
        """Return the next output of tasks: task, position and data."""
        frame = msgspec.msgpack.decode(self.socket.recv(timeout), type=api.StreamFrame)  # type: ignore[arg-type]
        assert isinstance(frame, api.StreamOutput), frame
        return [(one.task_id, one.position, one.data) for one in frame.output]

    def results(self, count: int, timeout: float = 10.0) -> list[api.StreamedResult]:
        """Return the next `count` results."""
        found: list[api.StreamedResult] = []
        while len(found) < count:
            found += self.next(timeout).results
        return found

    def close(self) -> None:
        """Close it."""
        self.socket.close()
