"""What one task costs each process in CPU time and context switches: figures that other load hardly changes.

    PYTHONPATH=demo:benchmarks PREFIX/bin/python benchmarks/cpu_per_task.py [--engine htex] [--tasks 50000]

Clock times need a quiet machine. These need less: a busy core makes caches cold, so each figure is the least of some
rounds. Takes about 20 s. The figures are sums over the threads that live
through a run, so a thread that ends early is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from memory import descendants
from ours import Bench, nothing
from rich.console import Console
from rich.table import Table
from sitekit import ledger
from sitekit.daemon import stop_on_signals
from sitekit.site import Site

from mep_sdk import Executor

ROUNDS = 5
_WAIT_S = 120
_SWITCHES = re.compile(r"ctxt_switches:\s+(\d+)")


class Used(NamedTuple):
    """What a process has used: CPU time in microseconds, and how often its threads were switched."""

    cpu_us: float
    switches: int

    def since(self, before: Used, count: int) -> Used:
        """Return the difference divided by `count`; switches in hundredths."""
        return Used((self.cpu_us - before.cpu_us) / count, round(100 * (self.switches - before.switches) / count))


def used(pid: int) -> Used:
    """Return what the threads of a process have used until now."""
    cpu_ns = switches = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            cpu_ns += int((thread / "schedstat").read_text().split()[0])
            switches += sum(map(int, _SWITCHES.findall((thread / "status").read_text())))
    return Used(cpu_ns / 1e3, switches)


def per_task(pids: dict[str, list[int]], count: int, work: Callable[[], object]) -> dict[str, Used]:
    """Run `work` some times; return the least that each group of processes used for each of its `count` tasks."""
    least: dict[str, Used] = {}
    for _ in range(ROUNDS):
        before = {pid: used(pid) for group in pids.values() for pid in group}
        work()
        for name, group in pids.items():
            now = Used(*map(sum, zip(*(used(pid).since(before[pid], count) for pid in group), strict=True)))
            least[name] = min(now, least.get(name, now))
    return least


def processes(bench: Bench, site: Site, known: set[int]) -> dict[str, list[int]]:
    """Return the processes on a task's way, by name."""
    (uep,) = set(bench.user_endpoints()) - known
    below = {member for keeper in _parents_of(uep) for member in descendants(keeper)}  # a block is no child of it
    groups = {"SDK": [os.getpid()], "relay": [site.relay.pid], "user endpoint": [uep]}
    return groups | {"workers and helpers": sorted(below - {uep})}


def _parents_of(pid: int) -> list[int]:
    """Return the process that keeps a user endpoint, where that is no process of the system's."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [parent] if parent > 1 else [pid]


def many(executor: Executor, count: int) -> float:
    """Run `count` tasks; return the seconds from the first submit to the last result."""
    began = time.perf_counter()
    for future in [executor.submit(nothing) for _ in range(count)]:
        future.result(timeout=_WAIT_S)
    return time.perf_counter() - began


def singly(executor: Executor, count: int) -> float:
    """Run `count` tasks one after the other; return the median in seconds."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        executor.submit(nothing).result(timeout=_WAIT_S)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(site: Site, engine: str, tasks: int, singles: int) -> dict[str, dict[str, Used]]:
    """Return the figures of many tasks at once and of lone ones, by process."""
    bench = Bench(site)
    known = set(bench.user_endpoints())
    with bench.executor(engine) as executor:
        singly(executor, 20)
        many(executor, 2_000)
        deadline = time.monotonic() + _WAIT_S
        while not set(bench.user_endpoints()) - known and time.monotonic() < deadline:
            time.sleep(0.1)  # the status file is written every few seconds
        pids = processes(bench, site, known)
        found = {}
        times: list[float] = []
        rates: list[float] = []
        lone, of_many = singles // ROUNDS, tasks // ROUNDS
        found["lone"] = per_task(pids, lone, lambda: times.append(singly(executor, lone)))
        found["many"] = per_task(pids, of_many, lambda: rates.append(of_many / many(executor, of_many)))
    Console(stderr=True).print(f"lone: {min(times) * 1e3:.2f} ms, many: {max(rates):,.0f} per s")
    return found


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["processes", "htex"], default="processes")
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--singles", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    stop_on_signals()
    ledger.sweep()
    with Site("mepbench") as site:
        found = measure(site, options.engine, options.tasks, options.singles)
    if options.json:
        print(json.dumps(found))
        return
    table = Table("process", "us a task", "switches in 100", "us a lone task", "switches in 100")
    total = {kind: Used(*map(sum, zip(*each.values(), strict=True))) for kind, each in found.items()}
    for name in found["many"]:
        cells = [found[kind][name] for kind in ("many", "lone")]
        table.add_row(name, *(str(value) for each in cells for value in (f"{each.cpu_us:.1f}", each.switches)))
    cells = [total[kind] for kind in ("many", "lone")]
    table.add_row("together", *(str(value) for each in cells for value in (f"{each.cpu_us:.1f}", each.switches)))
    Console().print(table)


if __name__ == "__main__":
    main()
