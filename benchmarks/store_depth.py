"""Measures what a lone task costs in the store with a million tasks queued, against a store with an empty queue.

    PREFIX-tests/bin/python benchmarks/store_depth.py [--queued 1000000] [--tasks 1000] [--only sqlite] [--json]

One task at a time goes through both stores in turn, so that they meet the same load of the machine, disk and server.
Prints the medians of submitting a task, of taking it for dispatch and of its end, and tasks per second in batches of
1,000. It does so for SQLite, and for a PostgreSQL server of its own where one is installed. It asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mep_wire.ids import uuid7
from mep_wire.states import TaskState
from relay.store.base import Tx
from relay.store.records import FunctionRecord, FunctionRef, NewTask, TaskEnding, UepRecord
from relay.store.sqlite import SqliteStore

SETTINGS = "max_wal_size = 8GB\n"
"""No checkpoint begins in the middle. The server does not wait for the disk (fsync is off, as in the tests): its time
does not depend on the queue, and varies more than what is measured."""


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

    def other(self) -> int:
        """Return another user endpoint."""
        return self._uep()

    def lone(self, other: int, times: dict[str, list[float]]) -> None:
        """Submit a task to the long queue; submit, take and end one on another user endpoint."""

        def timed(what: str, change: Callable[[Any], Any]) -> Any:
            before = time.perf_counter()
            done = self.do(change)
            times.setdefault(what, []).append(time.perf_counter() - before)
            return done

        for uep in (self.uep, other):
            tasks, now = self.new(1), time.time()
            added = timed("submit", partial(add, group=self.group, uep=uep, tasks=tasks, now=now))
        taken = timed("take", lambda tx: tx.take_queued(other, 1, 1 << 20))
        assert [one.row for one in taken] == added.rows
        ending = TaskEnding(row=added.rows[0], state=TaskState.SUCCESS, payload=b"r" * 100)
        timed("end", partial(record, uep=other, ending=ending))

    def batches(self, count: int) -> float:
        before = time.perf_counter()
        for _ in range(count):
            self.add(1000, self.uep)
        return 1000 * count / (time.perf_counter() - before)


def add(tx: Tx, *, group: str, uep: int, tasks: list[NewTask], now: float) -> Any:
    return tx.add_tasks("a", group, uep, tasks, 0, now)


def record(tx: Tx, *, uep: int, ending: TaskEnding) -> object:
    return tx.record_endings(uep, [ending])


@contextmanager
def sqlite_stores() -> Iterator[list[Bench]]:
    with tempfile.TemporaryDirectory() as directory:
        yield [Bench(SqliteStore(Path(directory, f"{name}.db"), for_server=True)) for name in ("empty", "deep")]


@contextmanager
def postgres_stores() -> Iterator[list[Bench]]:
    from relay.store.postgres import PostgresStore
    from tests.support.postgres import postgres

    with postgres(SETTINGS) as server, server.database() as empty, server.database() as deep:
        yield [Bench(PostgresStore(url, for_server=True)) for url in (empty, deep)]


def measure(benches: list[Bench], queued: int, tasks: int) -> dict[str, list[float]]:
    """Return [with an empty queue, with a long one]: milliseconds by operation, and tasks per second in batches."""
    _, deep = benches
    for _ in range(queued // 10_000):
        deep.add(10_000, deep.uep)
    found: list[dict[str, list[float]]] = [{}, {}]
    others = [bench.other() for bench in benches]
    for number in range(tasks):
        if number == tasks // 10:  # until then, caches fill
            found = [{}, {}]
        for bench, other, times in zip(benches, others, found, strict=True):
            bench.lone(other, times)
    medians = {what: [statistics.median(times[what]) * 1e3 for times in found] for what in found[0]}
    rates = [bench.batches(10) for bench in benches]
    for bench in benches:
        bench.store.close()
    return medians | {"batches": rates}


STORES = {"sqlite": sqlite_stores, "postgresql": postgres_stores}


def available(kind: str) -> bool:
    """Whether a store of this kind can be made here."""
    return kind == "sqlite" or any(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or bool(shutil.which("initdb"))


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--queued", type=int, default=1_000_000)
    options.add_argument("--tasks", type=int, default=1_000)
    options.add_argument("--only", choices=STORES)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    found = {}
    for kind in [asked.only] if asked.only else [kind for kind in STORES if available(kind)]:
        with STORES[kind]() as benches:
            found[kind] = measure(benches, asked.queued, asked.tasks)
        if asked.json:
            continue
        for what, (empty, deep) in found[kind].items():
            unit = "tasks/s" if what == "batches" else "ms"
            print(f"{kind:>10} {what:>8}: {empty:10.2f} {unit} empty, {deep:10.2f} {unit} with {asked.queued:,} queued")
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
