"""Measures a submission's cost in the store, with an empty queue and with a million tasks queued.

    python benchmarks/store_depth.py [--queued 1000000] [--database postgresql://...] [--legs 3]

Prints, for each depth, the median and 99th percentile of one task's commit, of taking it for dispatch and of its end,
and tasks per second in batches of 1,000. It asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mep_wire.ids import uuid7
from mep_wire.states import TaskState
from relay.store.base import Tx
from relay.store.records import FunctionRecord, FunctionRef, NewTask, TaskEnding, UepRecord
from relay.store.sqlite import SqliteStore


class Bench:
    """A store with one function, and a user endpoint for the queue and one for the measured tasks."""

    def __init__(self, store: Any) -> None:
        self.store = store
        record = FunctionRecord(
            function_id=str(uuid.uuid4()), owner="a", name="f", code=b"code", public=False, description="",
            metadata={}, created_at=1.0,
        )  # fmt: skip
        self.do(lambda tx: tx.put_function(record))
        function = store.function_ref(record.function_id)
        assert function is not None
        self.function: FunctionRef = function
        self.group = str(uuid.uuid4())
        self.uep = self._uep()

    def _uep(self) -> int:
        wanted = UepRecord(
            row=0, uep_id=str(uuid.uuid4()), endpoint_id="e", account_id="a", identity_id="i", config={}, runtime={}
        )
        return int(self.do(lambda tx: tx.put_uep(wanted)).row)

    def do(self, change: Callable[[Any], Any]) -> Any:
        return self.store.submit(change).result(600)

    def new(self, count: int) -> list[NewTask]:
        return [NewTask(task_id=uuid7().bytes, function=self.function, payload=b"x" * 100) for _ in range(count)]

    def add(self, count: int, uep: int) -> list[int]:
        tasks, now = self.new(count), time.time()
        rows: list[int] = self.do(lambda tx: tx.add_tasks("a", self.group, uep, tasks, 0, now)).rows
        return rows

    def lone(self, count: int) -> dict[str, list[float]]:
        """Submit, take and end one task at a time, on the queue's own user endpoint and on an empty one."""
        other = self._uep()
        times: dict[str, list[float]] = {"submit": [], "take": [], "end": []}
        for _ in range(count):
            before = time.perf_counter()
            self.add(1, self.uep)
            times["submit"].append(time.perf_counter() - before)
            (row,) = self.add(1, other)
            before = time.perf_counter()
            taken = self.do(lambda tx: tx.take_queued(other, 1, 1 << 20))
            times["take"].append(time.perf_counter() - before)
            assert [one.row for one in taken] == [row]
            ending = TaskEnding(row=row, state=TaskState.SUCCESS, payload=b"r" * 100)
            before = time.perf_counter()
            self.do(partial(record, uep=other, ending=ending))
            times["end"].append(time.perf_counter() - before)
        return times

    def batches(self, count: int) -> float:
        before = time.perf_counter()
        for _ in range(count):
            self.add(1000, self.uep)
        return 1000 * count / (time.perf_counter() - before)


def record(tx: Tx, *, uep: int, ending: TaskEnding) -> object:
    return tx.record_endings(uep, [ending])


def leg(bench: Bench, name: str) -> None:
    times = bench.lone(300)
    parts = [
        f"{what} {statistics.median(found) * 1e3:.2f}/{statistics.quantiles(found, n=100)[98] * 1e3:.2f} ms"
        for what, found in times.items()
    ]
    print(f"{name:>20}: {', '.join(parts)}, {bench.batches(10):8.0f} tasks/s in batches", flush=True)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--queued", type=int, default=1_000_000)
    options.add_argument("--legs", type=int, default=3)
    options.add_argument("--database", default="")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if asked.database:
            from relay.store.postgres import PostgresStore

            bench = Bench(PostgresStore(asked.database, for_server=True))
        else:
            bench = Bench(SqliteStore(Path(directory, "relay.db"), for_server=True))
        for _ in range(asked.legs):
            leg(bench, "nearly empty")
        for _ in range(asked.queued // 10_000):
            bench.add(10_000, bench.uep)
        for _ in range(asked.legs):
            leg(bench, f"{asked.queued:,} queued")
        bench.store.close()


if __name__ == "__main__":
    main()
