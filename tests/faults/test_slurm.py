"""GlobusComputeEngine and a real Slurm that forgets, does not answer, or still has jobs of a killed predecessor."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.slurm import Slurm

from .test_htex import Bench, echo, note

pytestmark = pytest.mark.root


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    with Slurm(min_job_age_s=2) as made:
        monkeypatch.setenv("SLURM_CONF", str(made.conf))
        yield made
        made.wait_for("end of every job", lambda: not made.jobs(), 60)


def bench_on(directory: Path, **provider: Any) -> Bench:
    options = {"type": "SlurmProvider", "partition": "cpu", "exclusive": False, "init_blocks": 0, **provider}
    return Bench(directory, provider=options, address="127.0.0.1", max_workers_per_node=1)


def test_a_job_that_the_controller_has_forgotten_is_known_to_have_ended(slurm: Slurm, tmp_path: Path) -> None:
    bench = bench_on(tmp_path / "uep")
    try:
        running = bench.submit(note, str(tmp_path / "ran"), 60.0)
        bench.until(lambda: running in bench.started)
        slurm.daemons["slurmctld"].send_signal(signal.SIGSTOP)  # no answer from slurmctld, which proves nothing
        for pid in bench.processes("pool_main"):
            with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
                os.kill(pid, signal.SIGTERM)
        (item,) = bench.wait(running)
        assert item.code == "WORKER_LOST"
        waiting = bench.submit(echo, 1)
        slurm.daemons["slurmctld"].send_signal(signal.SIGCONT)
        assert bench.value(waiting, timeout_s=40) == 1
    finally:
        slurm.daemons["slurmctld"].send_signal(signal.SIGCONT)
        bench.engine.stop(2.0)


def test_jobs_that_wait_in_the_queue_for_a_killed_user_endpoint_are_ended_by_the_next(
    slurm: Slurm, tmp_path: Path
) -> None:
    for node in ("n1", "n2"):
        slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    child = os.fork()
    if child == 0:
        try:
            first = bench_on(tmp_path / "uep")
            first.submit(echo, 1)
            first.until(lambda: (tmp_path / "uep" / "htex-jobs.json").exists() and bool(slurm.jobs()))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (orphan,) = slurm.jobs()
    for node in ("n1", "n2"):
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    bench = bench_on(tmp_path / "uep")
    assert bench.value(bench.submit(echo, 1), timeout_s=30) == 1
    assert orphan not in slurm.jobs()
    bench.engine.stop(2.0)


@pytest.mark.parametrize("pending", [False, True], ids=["running", "pending"])
def test_jobs_end_by_themselves_where_no_user_endpoint_comes_after_the_killed_one(
    slurm: Slurm, tmp_path: Path, pending: bool
) -> None:
    """A running block misses its user endpoint; a block that begins later finds none. Neither runs to its walltime."""
    for node in ("n1", "n2") if pending else ():
        slurm.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    child = os.fork()
    if child == 0:
        try:
            options = {"type": "SlurmProvider", "partition": "cpu", "exclusive": False, "init_blocks": 0}
            first = Bench(tmp_path / "uep", provider=options, address="127.0.0.1", address_probe_timeout=5)
            row = first.submit(note, str(tmp_path / "ran"), 300.0)
            first.until(lambda: bool(slurm.jobs()) if pending else row in first.started, 60)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(slurm.jobs()) == 1
    for node in ("n1", "n2") if pending else ():
        slurm.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    slurm.wait_for("end of the job", lambda: not slurm.jobs(), 90)
    slurm.wait_for("end of its steps", lambda: not slurm.steps(), 30)
    assert not Bench.processes(Orphans(tmp_path), "pool_main")  # type: ignore[arg-type] # only what `processes` looks at


class Orphans:
    """The orphans of a user endpoint that has gone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _is_ours(self, _pid: int) -> bool:
        return False


@pytest.mark.parametrize("launcher", ["SimpleLauncher", "SrunLauncher"])
def test_a_run_directory_whose_name_means_something_to_a_shell(slurm: Slurm, tmp_path: Path, launcher: str) -> None:
    directory = tmp_path / "R&D (x[1]) it's c$HOME`d`"
    (directory / "uep").mkdir(parents=True)
    bench = bench_on(directory / "uep", launcher={"type": launcher})
    try:
        assert bench.value(bench.submit(echo, 1), timeout_s=60) == 1
        assert list(directory.rglob("*.stderr")), "where the site looks for a job's output"
    finally:
        bench.engine.stop(2.0)
