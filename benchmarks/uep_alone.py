"""Measures the user endpoint and its engine alone, against a stand-in for the relay in this process: no store, no HTTP.

Prints time to the first result, warm round trip, tasks per second, CPU per task, and memory, for each engine.
Run: `python benchmarks/uep_alone.py [process|thread|htex ...]`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last, so that the installed code is measured

from mep_sdk.serialize import serialize_arguments, serialize_function
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import UepProcess, private_home

ENGINES = {"process": "ProcessPoolEngine", "thread": "ThreadPoolEngine", "htex": "GlobusComputeEngine"}
STARTS, SINGLES, TASKS = 7, 500, 20_000


def noop() -> None:
    """The function of every task."""


FUNCTIONS = {"noop": serialize_function(noop)}
PAYLOAD = serialize_arguments((), {})


def task(row: int) -> messages.TaskItem:
    return messages.TaskItem(row, f"00000000-0000-7000-8000-{row:012d}", "noop", PAYLOAD)


@contextlib.contextmanager
def running(engine: str) -> Iterator[tuple[FakeRelay, UepProcess]]:
    """Yield a relay and a user endpoint that has joined it."""
    template = f"engine:\n  type: {ENGINES[engine]}\n"
    with (
        contextlib.closing(FakeRelay()) as relay,
        private_home() as home,
        UepProcess(relay, home, template=template, multi_user=False) as uep,
    ):
        relay.welcome()
        relay.expect(messages.Credit)
        yield relay, uep


def first_result_s(engine: str) -> float:
    """Return the seconds from fork to the first result."""
    with running(engine) as (relay, uep):
        relay.submit(FUNCTIONS, [task(1)])
        relay.results(1)
        return time.perf_counter() - uep.started_at


def round_trip_s(relay: FakeRelay) -> float:
    """Return the median round trip of one task at a time."""
    times = []
    for row in range(1, SINGLES):
        began = time.perf_counter()
        relay.submit(FUNCTIONS, [task(row)])
        relay.results(1)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def rate(relay: FakeRelay, tasks: int) -> float:
    """Return tasks per second, as many in flight as credit allows."""
    began, sent, done, first = time.perf_counter(), 0, 0, 1_000_000
    while done < tasks:
        while relay.credit > 0 and sent < tasks:
            count = min(relay.credit, tasks - sent, 512)
            relay.submit(FUNCTIONS, [task(first + sent + at) for at in range(count)])
            sent += count
        message = relay.receive(30)
        assert message is not None, f"{done} of {tasks} came"
        if isinstance(message, messages.Results):
            done += len(message.items)
            relay.send(messages.ResultsDurable(rows=[item.row for item in message.items]))
    return tasks / (time.perf_counter() - began)


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(pids: list[int]) -> float:
    """Return the proportional set size of these processes together."""
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(rollup.split("\nPss:", 1)[1].split()[0])
    return total / 1024


def measure(engine: str) -> None:
    """Print one engine's figures."""
    starts = [first_result_s(engine) for _ in range(STARTS)]
    print(f"{engine}: first result {statistics.median(starts) * 1e3:.0f} ms (best {min(starts) * 1e3:.0f})")
    with running(engine) as (relay, uep):
        processes = [uep.pid, *uep.children()]
        print(f"{engine}: before the first task {memory_mb(processes):.1f} MB in {len(processes)} processes")
        print(f"{engine}: warm round trip {round_trip_s(relay) * 1e6:.0f} us")
        rate(relay, 1000)
        processes = [uep.pid, *uep.children()]
        before, tasks = cpu_s(processes), TASKS // (10 if engine == "htex" else 1)
        speed = rate(relay, tasks)
        used = (cpu_s(processes) - before) / tasks
        print(f"{engine}: {speed:.0f} tasks/s, {used * 1e6:.0f} us of CPU each in all its processes")
        print(f"{engine}: after {tasks} tasks {memory_mb(processes):.1f} MB in {len(processes)} processes")


if __name__ == "__main__":
    for name in sys.argv[1:] or ENGINES:
        measure(name)
