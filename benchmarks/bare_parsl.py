"""Measures Parsl's HighThroughputExecutor alone, in a process of its own, and prints one JSON object.

First result: from `parsl.load` to the first result of an app, as a person uses Parsl. Warm round trips and
throughput: tasks are given to the executor directly, without the DataFlowKernel, which is the fastest way.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
import time

import parsl
from parsl import Config, HighThroughputExecutor, python_app
from parsl.providers import LocalProvider


def nothing() -> None:
    """Do nothing."""


def main(tasks: int, warm: int) -> dict[str, float]:
    """Return first_s, warm_s (median) and tasks_per_s."""
    logging.getLogger("parsl").setLevel(logging.WARNING)
    provider = LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1)  # type: ignore[no-untyped-call]  # Parsl has no types
    executor = HighThroughputExecutor(
        label="bare", provider=provider, max_workers_per_node=2, address="127.0.0.1", encrypted=True
    )
    with tempfile.TemporaryDirectory() as run_dir:
        started = time.perf_counter()
        with parsl.load(Config(executors=[executor], run_dir=run_dir, initialize_logging=False)):
            python_app(nothing)().result()
            first_s = time.perf_counter() - started
            singles = []
            for _ in range(warm):
                started = time.perf_counter()
                executor.submit(nothing, {}).result()
                singles.append(time.perf_counter() - started)
            started = time.perf_counter()
            for future in [executor.submit(nothing, {}) for _ in range(tasks)]:
                future.result()
            rate = tasks / (time.perf_counter() - started)
    return {"first_s": first_s, "warm_s": statistics.median(singles), "tasks_per_s": rate}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
