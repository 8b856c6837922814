"""The three scripts of the remote-execution tutorial and the estimate of pi, in this SDK's terms."""

from __future__ import annotations

import statistics
from concurrent.futures import Future, as_completed

from report import Report
from scripts import add_func, hello_affinity, pi
from visitor import Visitor

ESTIMATES, POINTS = 1000, 10**5


def run_tutorial(report: Report, visitor: Visitor) -> None:
    """The adder; a function that runs an executable, registered; four calls of it by its id."""
    report.step(f"The tutorial's three scripts, run by {visitor.name}")
    future = visitor.executor.submit(add_func, 5, 10)
    report.note(f"add_func(5, 10) = {future.result(timeout=60)}")

    client = visitor.client()
    function_id = client.register_function(hello_affinity)
    report.note(f"registered hello_affinity: {function_id}")

    submit = visitor.executor.submit_to_registered_function
    tasks = [submit(function_id, args=(f"{visitor.workplace}/run/{number}",)) for number in range(4)]
    for task in tasks:
        status, output, _ = task.result(timeout=60)
        report.note(f"exit {status}: {output.strip()}")
    for task in tasks:
        report.note(f"task {task.task_id}: {client.get_task(task.task_id)['status']}")


def estimate_pi(report: Report, visitor: Visitor) -> None:
    """A thousand estimates of pi, each a task, with a progress bar."""
    report.step(f"{visitor.name} estimates pi with {ESTIMATES:,} tasks of {POINTS:,} points")
    with report.progress() as progress:
        bar = progress.add_task("pi", total=ESTIMATES)
        futures: list[Future[float]] = [visitor.executor.submit(pi, POINTS) for _ in range(ESTIMATES)]
        for _ in as_completed(futures, timeout=120):
            progress.advance(bar)
    estimates = [future.result() for future in futures]
    error = statistics.stdev(estimates) / len(estimates) ** 0.5
    report.note(f"pi is {statistics.fmean(estimates):.5f}, give or take {error:.5f}")
