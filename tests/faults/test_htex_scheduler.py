"""GlobusComputeEngine through a scheduler's commands: SlurmProvider, with commands that run jobs on this host.

The four commands are small shell scripts that answer in Slurm's own formats. They check which requests we make of a
scheduler, and when; they don't test Slurm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_htex import Bench, echo, note

COMMANDS = {
    "sacct": "exit 1",
    "sbatch": (
        'echo "sbatch $1" >> $JOBS/log; [ -e $JOBS/refuse ] && { echo "sbatch: error: invalid account" >&2; exit 1; }\n'
        "setsid bash $1 >$1.stdout 2>$1.stderr </dev/null & echo $! > $JOBS/job-$!; echo Submitted batch job $!"
    ),
    "squeue": (
        "for job in $(ls $JOBS | grep ^job-); do id=${job#job-}; state=R; [ -e $JOBS/pending ] && state=PD\n"
        'kill -0 $id 2>/dev/null && echo "$id $state"; done; true'
    ),
    "scancel": (
        'echo "scancel $*" >> $JOBS/log\nfor id in "$@"; do kill -- -$id; rm -f $JOBS/job-$id; done 2>/dev/null; true'
    ),
}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "jobs").mkdir()
    for name, script in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\nJOBS={tmp_path}/jobs\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path / "jobs"


@pytest.fixture
def make(tmp_path: Path, jobs: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(name: str = "uep", **provider: Any) -> Bench:
        options = {"type": "SlurmProvider", "partition": "cpu", "account": "a", "exclusive": False, **provider}
        made.append(Bench(tmp_path / name, provider=options, address="127.0.0.1", max_workers_per_node=1))
        return made[-1]

    yield build
    for bench in made:
        bench.engine.stop(2.0)
    assert [path.name for path in jobs.glob("job-*")] == []


def log_of(jobs: Path) -> list[str]:
    return (jobs / "log").read_text().splitlines()


def test_tasks_run_in_jobs_that_end_with_the_user_endpoint(make: Callable[..., Bench], jobs: Path) -> None:
    bench = make(walltime="00:05:00", scheduler_options="#SBATCH --comment=x")
    assert [bench.value(bench.submit(echo, number)) for number in range(3)] == [0, 1, 2]
    files = (bench.directory / "htex" / "submit_scripts").iterdir()
    (text,) = [path.read_text() for path in files if path.suffix not in (".stdout", ".stderr")]
    assert text.index("#SBATCH --no-requeue") < text.index("#SBATCH --comment=x")
    for line in ("#SBATCH --partition=cpu", "#SBATCH --account=a", "#SBATCH --comment=x", "#SBATCH --time=5"):
        assert line in text
    bench.engine.stop(20.0)
    bench.engine.stop = lambda grace_s: None  # type: ignore[method-assign]
    assert [line.split()[0] for line in log_of(jobs)] == ["sbatch", "scancel"]


def test_the_jobs_of_a_user_endpoint_that_was_killed_are_ended_by_the_next(
    make: Callable[..., Bench], jobs: Path, tmp_path: Path
) -> None:
    child = os.fork()
    if child == 0:
        try:
            first = Bench(
                tmp_path / "uep",
                provider={"type": "SlurmProvider", "exclusive": False},
                address="127.0.0.1",
                max_workers_per_node=1,
            )
            row = first.submit(note, str(tmp_path / "ran"), 60.0)
            first.until(lambda: row in first.started and (tmp_path / "ran").exists())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (orphan,) = jobs.glob("job-*")
    bench = make()
    bench.row = 1  # a relay gives each row once, and the first engine's task has this one
    assert bench.value(bench.submit(echo, 1)) == 1
    assert f"scancel {orphan.name.removeprefix('job-')}" in log_of(jobs)
    assert not orphan.exists()


def test_a_refused_submission_fails_what_waits_after_a_few(make: Callable[..., Bench], jobs: Path) -> None:
    (jobs / "refuse").touch()
    bench = make()
    (item,) = bench.wait(bench.submit(echo, 1), timeout_s=30)
    assert item.code == "ENGINE_FAILED"
    assert "was not accepted" in item.text
    assert "invalid account" in item.text
    assert len(log_of(jobs)) == 3


def test_a_job_that_waits_in_the_queue_is_waited_for(make: Callable[..., Bench], jobs: Path) -> None:
    (jobs / "pending").touch()
    bench = make(worker_init=f"while [ -e {jobs}/pending ]; do sleep 0.1; done")
    row = bench.submit(echo, 1)
    deadline = time.monotonic() + 3.0
    bench.until(lambda: time.monotonic() > deadline)
    assert row not in bench.ended
    (jobs / "pending").unlink()
    assert bench.value(row) == 1
