"""People's functions on the nodes of a real Slurm, as their own accounts: SlurmProvider behind the whole path.

The template fixes the partition; nodes and walltime are the person's to choose. Set-uid programs stay denied.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sitekit.endpoint import SCHEMA

from mep_wire.errors import EngineFailed, TaskNotFound, UserConfigInvalid, WorkerLost
from tests.support.campus import make_campus
from tests.support.slurm import Slurm, SlurmFailed
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 60
TEMPLATE = """\
heartbeat_period: 5
engine:
  type: GlobusComputeEngine
  address: 127.0.0.1
  max_workers_per_node: 1
  job_status_kwargs:
    max_idletime: {{ idle | default(120) }}
    strategy_period: 0.5
  provider:
    type: SlurmProvider
    partition: cpu
    exclusive: false
    cores_per_node: 1
    nodes_per_block: {{ nodes | default(1) }}
    walltime: {{ walltime | default("00:05:00") }}
    init_blocks: 0
    max_blocks: 1
    worker_init: {{ setup | default("") }}
    launcher:
      type: SrunLauncher
"""
SCHEMA_VALUE = {
    "type": "object",
    "properties": {
        "nodes": {"type": "integer", "minimum": 1, "maximum": 2},
        "walltime": {"type": "string", "pattern": "^00:[0-5][0-9]:00$"},
        "idle": {"type": "number", "minimum": 0},
        "setup": {"type": "string"},
    },
    "additionalProperties": False,
}


def where() -> dict[str, Any]:
    import os

    with open("/proc/self/status") as file:
        status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    return {
        "uids": os.getresuid(),
        "groups": sorted(os.getgroups()),
        "job": os.environ["SLURM_JOB_ID"],
        "partition": os.environ["SLURM_JOB_PARTITION"],
        "node": os.environ["SLURMD_NODENAME"],
        "site": os.environ.get("SITE_SAYS"),
        "privileges": int(status["CapEff"], 16),
        "pid": os.getpid(),
    }


def meet(directory: str, number: int, others: int) -> str:
    import os
    import time

    open(f"{directory}/here-{number}", "w").close()
    deadline = time.monotonic() + 30
    while len(os.listdir(directory)) < others:
        if time.monotonic() > deadline:  # an assert of pytest's would need pytest where the task runs
            raise TimeoutError("no other task came")
        time.sleep(0.05)
    return os.environ["SLURMD_NODENAME"]


def nap(path: str, seconds: float) -> str:
    import os
    import time

    with open(path, "a") as file:
        file.write(f"{os.environ['SLURM_JOB_ID']}\n")
    time.sleep(seconds)
    return os.environ["SLURM_JOB_ID"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with Slurm() as made:
        yield made


@pytest.fixture(scope="module")
def campus(slurm: Slurm) -> Iterator[Any]:
    with make_campus("multi", "cluster", TEMPLATE) as made:
        made.endpoint.write("user_environment.yaml", f"SLURM_CONF: {slurm.conf}\nSITE_SAYS: hello\n")
        made.endpoint.write(SCHEMA, SCHEMA_VALUE)
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


@pytest.fixture
def shared(campus: Any) -> Path:
    """A directory of alice's own."""
    account = campus.accounts["alice"]
    directory = Path(account.home, f"shared-{time.monotonic_ns()}")
    directory.mkdir(mode=0o700)
    os.chown(directory, account.uid, account.gid)
    return directory


def jobs_of(slurm: Slurm, name: str) -> list[str]:
    return [job for job, (user, _) in slurm.jobs().items() if user == name]


def test_a_task_says_what_slurm_says_of_its_pending_job(slurm: Slurm, campus: Any) -> None:
    slurm.run("scontrol", "update", "partitionname=cpu", "state=down")
    try:
        with campus.executor("alice", walltime="00:09:00") as executor:
            future = executor.submit(pow, 2, 3)
            told: dict[str, Any] = {}

            def pending() -> bool:
                told.update(executor.client.get_task(future.task_id))
                return told.get("code") == "JOB_PENDING"

            until("the task's reason", pending, RESULT_S, unready=(TaskNotFound,), details=lambda: told)
            (job,) = jobs_of(slurm, campus.accounts["alice"].name)
            assert told["reason"].endswith(f"Slurm job {job}: PENDING (PartitionDown)")
            assert told["waiting_since"] <= time.time() + 1
            slurm.run("scontrol", "update", "partitionname=cpu", "state=up")
            assert future.result(timeout=RESULT_S) == 8
    finally:
        slurm.run("scontrol", "update", "partitionname=cpu", "state=up")


def test_two_peoples_functions_run_in_jobs_of_their_own(slurm: Slurm, campus: Any) -> None:
    for who, walltime in (("alice", "00:03:00"), ("bob", "00:04:00")):
        account = campus.accounts[who]
        with campus.executor(who, walltime=walltime) as executor:
            seen = executor.submit(where).result(timeout=RESULT_S)
            again = executor.submit(where).result(timeout=RESULT_S)
        assert seen["uids"] == (account.uid,) * 3
        assert seen["groups"] == account.groups
        assert (seen["partition"], seen["site"], seen["privileges"]) == ("cpu", "hello", 0)
        assert again["job"] == seen["job"]
        job = slurm.show(seen["job"])
        assert job["UserId"] == f"{account.name}({account.uid})"
        assert (job["Partition"], job["TimeLimit"], job["JobState"]) == ("cpu", f"{walltime}", "RUNNING")


def test_a_block_of_two_nodes_runs_two_tasks_at_once(slurm: Slurm, campus: Any, shared: Path) -> None:
    with campus.executor("alice", nodes=2) as executor:
        futures = [executor.submit(meet, str(shared), number, 2) for number in range(2)]
        assert {future.result(timeout=RESULT_S) for future in futures} == {"n1", "n2"}


def test_the_partition_is_not_the_persons_to_choose(campus: Any) -> None:
    with pytest.raises(UserConfigInvalid, match="partition"), campus.executor("alice", partition="short") as executor:
        executor.submit(where).result(timeout=RESULT_S)


def test_a_block_that_is_idle_is_given_back_and_another_comes_when_needed(slurm: Slurm, campus: Any) -> None:
    with campus.executor("bob", idle=1) as executor:
        first = executor.submit(where).result(timeout=RESULT_S)["job"]
        until("end of the idle job", lambda: first not in slurm.jobs(), unready=(SlurmFailed,))
        assert slurm.show(first)["JobState"] == "CANCELLED"
        assert executor.submit(where).result(timeout=RESULT_S)["job"] != first


def _one_running_and_five_waiting(executor: Any, mark: Path) -> tuple[Any, list[Any], str]:
    running = executor.submit(nap, str(mark), 120)
    until("running task", mark.exists)
    waiting = [executor.submit(nap, str(mark), 0) for _ in range(5)]
    time.sleep(0.5)
    return running, waiting, mark.read_text().split()[0]


def _lost_and_run_again(running: Any, waiting: list[Any], job: str, mark: Path) -> None:
    with pytest.raises(WorkerLost):
        running.result(timeout=RESULT_S)
    where_else = {future.result(timeout=RESULT_S) for future in waiting}
    assert len(where_else) == 1
    assert job not in where_else
    assert mark.read_text().split() == [job, *where_else, *list(where_else) * 4]


def test_scancel_fails_what_had_started_and_runs_the_rest_in_a_new_block(
    slurm: Slurm, campus: Any, shared: Path
) -> None:
    with campus.executor("alice", walltime="00:07:00") as executor:
        running, waiting, job = _one_running_and_five_waiting(executor, shared / "mark")
        began = time.monotonic()
        slurm.run("scancel", job)
        _lost_and_run_again(running, waiting, job, shared / "mark")
        print(f"after scancel: {time.monotonic() - began:.1f} s")


@pytest.mark.timeout(150)
def test_the_end_of_its_walltime_does_the_same(slurm: Slurm, campus: Any, shared: Path) -> None:
    with campus.executor("alice", walltime="00:08:00") as executor:
        running, waiting, job = _one_running_and_five_waiting(executor, shared / "mark")
        slurm.run("scontrol", "update", f"JobId={job}", "EndTime=now+5")  # "now" is past when it arrives
        until("end of the walltime", lambda: job not in slurm.jobs(), 90, unready=(SlurmFailed,))
        assert slurm.show(job)["JobState"] == "TIMEOUT"
        _lost_and_run_again(running, waiting, job, shared / "mark")


def test_blocks_that_die_at_once_stop_submission_and_say_why(slurm: Slurm, campus: Any) -> None:
    before = set(slurm.all_jobs())
    with campus.executor("bob", setup="echo module not found: nowhere >&2; exit 7") as executor:
        futures = [executor.submit(where) for _ in range(20)]
        began = time.monotonic()
        for future in futures:
            with pytest.raises(EngineFailed, match="module not found: nowhere"):
                future.result(timeout=RESULT_S)
        print(f"after {time.monotonic() - began:.1f} s")
        assert len(set(slurm.all_jobs()) - before) == 3


def test_jobs_of_a_user_endpoint_that_was_killed_end(slurm: Slurm, campus: Any, shared: Path) -> None:
    with campus.executor("bob", walltime="00:09:00") as executor:
        before = campus.pids()
        first = executor.submit(where).result(timeout=RESULT_S)["job"]
        (pid,) = campus.new_pids(before).values()
        os.kill(pid, signal.SIGKILL)
        second = executor.submit(where).result(timeout=RESULT_S)["job"]
        assert second != first
        until("end of the job of the first", lambda: first not in slurm.jobs(), unready=(SlurmFailed,))


def test_no_job_outlives_the_endpoint(slurm: Slurm, campus: Any) -> None:
    assert slurm.jobs()
    campus.endpoint.stop()
    until("end of all jobs", lambda: not slurm.jobs(), unready=(SlurmFailed,))
    campus.endpoint.start()
