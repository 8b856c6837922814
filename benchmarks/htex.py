"""GlobusComputeEngine alone beside bare Parsl, in one run: first result, warm round trip, tasks per second, memory.

    python benchmarks/htex.py

Both have two workers on this host and run tasks that do nothing. Takes about 20 s, most of it bare Parsl's.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rows import Row, table

from mep_sdk.serialize import serialize_arguments, serialize_function
from mep_wire.messages import ResultItem
from user_endpoint.engines.base import Engine, EngineTask

TASKS, SINGLES = 10_000, 200


def nothing() -> None:
    """Do nothing."""


FUNCTION, PAYLOAD = serialize_function(nothing), serialize_arguments((), {})


def task(row: int) -> EngineTask:
    """Return a task that does nothing."""
    return EngineTask(row, f"task-{row}", "nothing", FUNCTION, PAYLOAD, b"", 0.0)


def ended(engine: Engine) -> int:
    """Wait for a moment, and return how many tasks have ended."""
    select.select([engine], [], [], 1.0)
    return sum(isinstance(event, ResultItem) for event in engine.collect())


def measure(directory: str) -> dict[str, float]:
    """Return first_s (imports included), warm_s (median), tasks_per_s and, of all processes together, memory_mb."""
    began = time.perf_counter()
    from user_endpoint.engines.htex.engine import HtexEngine
    from user_endpoint.settings import GlobusComputeSettings as Settings

    engine = HtexEngine(Settings(max_workers_per_node=2), run_directory=directory)
    engine.start()
    engine.submit([task(1)])
    while not ended(engine):
        pass
    first_s = time.perf_counter() - began
    singles = []
    for row in range(2, SINGLES + 2):
        began = time.perf_counter()
        engine.submit([task(row)])
        while not ended(engine):
            pass
        singles.append(time.perf_counter() - began)
    row, held, done = SINGLES + 2, 0, 0
    began = time.perf_counter()
    while done < TASKS:
        room = min(engine.capacity - held, TASKS - done - held)
        engine.submit([task(row + index) for index in range(room)])
        row, held = row + room, held + room
        count = ended(engine)
        done, held = done + count, held - count
    rate = TASKS / (time.perf_counter() - began)
    memory = descendants_pss_mb()
    engine.stop(5.0)
    return {"first_s": first_s, "warm_s": statistics.median(singles), "tasks_per_s": rate, "memory_mb": memory}


def descendants_pss_mb() -> float:
    """Return the proportional memory of this process and of every process in its session, in MB."""
    total, session = 0, os.getsid(0)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    lines = (entry / "smaps_rollup").read_text().splitlines()
                    total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            except (OSError, ValueError):
                continue
    return total / 1024


def in_a_process(*command: str) -> dict[str, float]:
    """Return the JSON object that a program prints."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # bare Parsl finds its programs there
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        check=True,
        start_new_session=True,
        env={**os.environ, **path},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure both, print the table."""
    ours = in_a_process(__file__, "ours")
    bare = in_a_process(str(Path(__file__).with_name("bare_parsl.py")), "2000", str(SINGLES))
    rows = [
        Row("first result", "s", ours["first_s"], "Parsl", bare["first_s"], goal=0.8),
        Row("warm round trip", "ms", ours["warm_s"] * 1e3, "bare HTEX", bare["warm_s"] * 1e3, goal=3.0),
        Row(
            *("tasks per second", "per s", ours["tasks_per_s"], "bare HTEX", bare["tasks_per_s"]),
            goal_ratio=1.3,
            more_is_better=True,
        ),
        Row("memory with one block of two workers", "MB", ours["memory_mb"], note="all processes, PSS"),
    ]
    Console(width=160).print(table(rows))


if __name__ == "__main__":
    if sys.argv[1:] == ["ours"]:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(measure(scratch)))
    else:
        main()
