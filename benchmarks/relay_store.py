"""Measures the relay alone: tasks per second through HTTP, SQLite and the link, and its part of a round trip.

    python benchmarks/relay_store.py [--tasks 40000]

Starts a relay with a temporary state and a fake endpoint, and prints medians. It asserts nothing.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mep_wire import messages
from mep_wire.ids import uuid7
from tests.support.fake_peer import FakeManager, FakeUep
from tests.support.relay import RelayProcess


class Submitter:
    """One connection that submits."""

    def __init__(self, relay: RelayProcess, token: str, endpoint_id: str, function_id: str) -> None:
        self._http = http.client.HTTPConnection(urlsplit(relay.url).netloc)
        self._http.connect()
        self._headers = {"authorization": f"Bearer {token}", "content-type": "application/msgpack"}
        self._path, self._function = f"/v3/endpoints/{endpoint_id}/submit", function_id

    def submit(self, count: int, payload: bytes = b"x" * 100) -> Any:
        body = {
            "tasks": {self._function: [payload] * count},
            "task_ids": {self._function: [str(uuid7()) for _ in range(count)]},
        }
        self._http.request("POST", self._path, msgspec.msgpack.encode(body), self._headers)
        answer = self._http.getresponse()
        data = answer.read()
        assert answer.status == 200, data
        return msgspec.msgpack.decode(data)


def finish(uep: FakeUep, total: int, grant: int) -> None:
    """Play an infinitely fast user endpoint until `total` results are durable."""
    durable = 0
    uep.credit(grant)
    while durable < total:
        message = uep.receive(60_000)
        if isinstance(message, messages.ResultsDurable):
            durable += len(message.rows)
        elif isinstance(message, messages.Tasks):
            items = [messages.ResultItem(t.row, t.task_id, "", "", b"r" * 100, 1.0, 2.0) for t in message.tasks]
            uep.send(messages.Results(items=items))
            uep.credit(len(items))


def throughput(submitter: Submitter, uep: FakeUep, tasks: int, batch: int) -> float:
    before = time.perf_counter()
    worker = threading.Thread(target=finish, args=(uep, tasks, 4096))
    worker.start()
    for _ in range(tasks // batch):
        submitter.submit(batch)
    worker.join()
    return tasks / (time.perf_counter() - before)


def round_trips(submitter: Submitter, uep: FakeUep, count: int) -> list[float]:
    times = []
    for _ in range(count):
        before = time.perf_counter()
        submitter.submit(1)
        tasks = uep.take(1)
        uep.finish(tasks)
        times.append(time.perf_counter() - before)
        uep.credit(1)
    return times


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--tasks", type=int, default=40_000)
    tasks = options.parse_args().tasks
    with tempfile.TemporaryDirectory() as directory, RelayProcess(Path(directory)) as relay:
        token = relay.add_user("bench@example.edu")
        manager = FakeManager(relay, token).hello()
        _, function = relay.request("POST", "/v3/functions", token, {"function_name": "f", "function_code": "code"})
        submitter = Submitter(relay, token, manager.endpoint_id, function["function_uuid"])
        submitter.submit(1)
        uep = manager.start()
        uep.credit(1)
        uep.finish(uep.take(1))
        uep.credit(1)
        times = round_trips(submitter, uep, 500)
        print(
            f"submit to durable result, one at a time: median {statistics.median(times) * 1e3:.2f} ms, "
            f"p99 {statistics.quantiles(times, n=100)[98] * 1e3:.2f} ms"
        )
        for batch in (1, 16, 128, 1000):
            count = tasks if batch > 16 else tasks // 10
            rate = throughput(submitter, uep, count // batch * batch, batch)
            print(f"{batch:5} tasks a request: {rate:8.0f} tasks/s")


if __name__ == "__main__":
    main()
