"""The meaning of a scheduler's answers: a job has ended if it says so, or doesn't know it; no answer means nothing.

The answers are those of the real commands, in their own formats; PBS, LSF and slurmdbd are not installed here.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from parsl.jobs.states import JobState

from user_endpoint.engines.htex.blocks import scheduler_of
from user_endpoint.engines.htex.job_record import JobRecord
from user_endpoint.engines.htex.provider import Plan
from user_endpoint.engines.htex.scheduler import TERMINAL, Condor, Pbs, Scheduler, Slurm
from user_endpoint.settings import GlobusComputeSettings as Settings


class Site:
    """A provider with answers to its commands from a list: part of the command, status, output, errors."""

    def __init__(self, directory: Path, kind: str, **options: Any) -> None:
        self.asked: list[str] = []
        self.answers: list[tuple[str, int, str, str]] = []
        self.provider = Plan(Settings(provider={"type": kind, **options})).make()
        self.provider.script_dir = str(directory)
        self.provider.execute_wait = self.answer
        self.record = JobRecord(directory / "jobs.json", kind)
        self.directory, self.kind = directory, kind
        self.scheduler = scheduler_of(kind, self.provider, self.record)

    def answer(self, command: str, timeout: int | None = None) -> tuple[int, str, str]:
        self.asked.append(command)
        for part, status, out, err in self.answers:
            if part in command:
                return status, out, err
        return 1, "", "no such command"

    def submitted(self, *jobs: str) -> None:
        from parsl.jobs.states import JobStatus

        for job in jobs:
            self.provider.resources[job] = {
                "job_id": job,
                "status": JobStatus(JobState.PENDING),
                "job_stdout_path": "/out",
                "job_stderr_path": "/err",
            }
            self.scheduler.submitted(job)

    def states(self, *jobs: str) -> list[Any]:
        return [None if status is None else status.state for status in self.scheduler.status(jobs)]

    def recorded(self) -> list[str]:
        return sorted(json.loads((self.directory / "jobs.json").read_text())["jobs"])

    def next_process(self) -> Scheduler:
        """The scheduler of the user endpoint that comes after this one was killed."""
        self.provider.resources.clear()
        return scheduler_of(self.kind, self.provider, self.record)


def pbs_json(**jobs: str) -> str:
    """An answer of `qstat -F json`, in the form of PBS 2022."""
    listed = {f"{job.removeprefix('j')}.srv": {"Job_Name": "parsl", "job_state": state} for job, state in jobs.items()}
    return json.dumps(
        {"timestamp": 1745411711, "pbs_version": "2022.1.1", "pbs_server": "srv", "Jobs": listed}, indent=4
    )


@pytest.fixture
def pbs(tmp_path: Path) -> Site:
    site = Site(tmp_path, "PBSProProvider", queue="q")
    site.submitted("10.srv", "11.srv")
    return site


@pytest.fixture
def lsf(tmp_path: Path) -> Site:
    site = Site(tmp_path, "LSFProvider", queue="q")
    site.submitted("77", "78")
    return site


def test_pbs_a_job_left_out_of_the_answer_has_not_ended(pbs: Site) -> None:
    pbs.answers = [("qstat", 0, pbs_json(j10="R"), "")]  # openpbs issue 2672: the first of several alone
    assert pbs.states("10.srv", "11.srv") == [JobState.RUNNING, None]
    pbs.answers = [("qstat", 0, pbs_json(j10="R", j11="Q"), "")]
    assert pbs.states("10.srv", "11.srv") == [JobState.RUNNING, JobState.PENDING]


def test_pbs_a_job_that_it_does_not_know_has_ended_and_does_not_hide_the_others(pbs: Site) -> None:
    unknown = "qstat: Unknown Job Id 11.srv\n"
    pbs.answers = [("11.srv", 153, pbs_json(j10="R"), unknown), ("10.srv", 0, pbs_json(j10="R"), "")]
    assert pbs.states("10.srv", "11.srv") == [JobState.RUNNING, JobState.COMPLETED]


@pytest.mark.parametrize("kind", ["PBSProProvider", "TorqueProvider", "LSFProvider", "SlurmProvider"])
@pytest.mark.parametrize(
    ("status", "out", "err"),
    [
        (1, "", "pbs_iff: cannot connect to host\nNo Permission."),
        (255, "", "qstat: cannot connect to server srv (errno=15007)"),
        (255, "", "LSF is down. Please wait ..."),
        (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        (0, "", ""),
        (0, "not what was expected\n", ""),
    ],
)
def test_no_answer_means_nothing(tmp_path: Path, kind: str, status: int, out: str, err: str) -> None:
    site = Site(tmp_path, kind)
    site.submitted("10.srv", "11.srv")
    site.answers = [("", status, out, err)]
    if kind == "SlurmProvider" and not status:
        site.answers = [("", 0, "10.srv PD\n11.srv CG\n", "")]  # squeue's silence would be an answer
    assert not TERMINAL & set(site.states("10.srv", "11.srv"))


def test_torque_reads_its_table(tmp_path: Path) -> None:
    site = Site(tmp_path, "TorqueProvider")
    site.submitted("10.a-long-server.example.edu", "11.a-long-server.example.edu")
    head = "Job ID        Name             User            Time Use S Queue\n------ ---- ---- -------- - -----\n"
    row = "{}.a-long-server  parsl  alice  00:00:01 {} batch\n"
    site.answers = [("qstat", 0, head + row.format(10, "R") + row.format(11, "C"), "")]
    assert site.states("10.a-long-server.example.edu", "11.a-long-server.example.edu") == [
        JobState.RUNNING,
        JobState.COMPLETED,
    ]


def test_lsf_a_suspended_job_has_not_ended(lsf: Site) -> None:
    for word in ("PSUSP", "USUSP", "SSUSP"):
        lsf.answers = [("bjobs", 0, f"77 {word}\n78 RUN\n", "")]
        assert lsf.states("77", "78") == [JobState.HELD, JobState.RUNNING]
    lsf.answers = [("bjobs", 0, "77 RUN\n78 UNKWN\n", "")]
    assert lsf.states("77", "78") == [JobState.RUNNING, JobState.UNKNOWN]
    lsf.answers = [("bjobs", 0, "77 DONE\n78 EXIT\n", "")]
    assert lsf.states("77", "78") == [JobState.COMPLETED, JobState.FAILED]


def test_lsf_a_job_that_is_not_found_has_ended(lsf: Site) -> None:
    lsf.answers = [("78", 255, "77 RUN\n", "Job <78> is not found\n"), ("77", 0, "77 RUN\n", "")]
    assert lsf.states("77", "78") == [JobState.RUNNING, JobState.COMPLETED]
    lsf.scheduler.ended("78")
    assert lsf.states("77") == [JobState.RUNNING]
    assert "78" not in lsf.asked[-1]


QSTAT = """\
job-ID  prior   name       user         state submit/start at     queue                          slots ja-task-ID
-----------------------------------------------------------------------------------------------------------------
     77 0.55500 parsl.sge. alice        {:<5} 11/30/2026 01:45:27 all.q@node                         1
     78 0.00000 parsl.sge. alice        qw    11/30/2026 01:45:28                                    1
"""


@pytest.fixture
def grid_engine(tmp_path: Path) -> Site:
    site = Site(tmp_path, "GridEngineProvider")
    site.submitted("77", "78")
    return site


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *[(word, JobState.PENDING) for word in ("qw", "t", "Rq", "Rt")],
        *[(word, JobState.RUNNING) for word in ("r", "Rr")],
        *[(word, JobState.HELD) for word in ("hqw", "s", "S", "T", "ts", "tS", "hRwq")],
        *[(word, JobState.FAILED) for word in ("Eqw", "EhRqw")],
        *[(word, JobState.COMPLETED) for word in ("dr", "dRr", "dt", "dT", "ds")],
    ],
)
def test_grid_engine_a_job_on_its_way_or_suspended_has_not_ended(grid_engine: Site, word: str, state: Any) -> None:
    grid_engine.answers = [("qstat", 0, QSTAT.format(word), "")]
    assert grid_engine.states("77", "78") == [state, JobState.PENDING]


def test_grid_engine_a_job_that_it_does_not_list_has_ended(grid_engine: Site) -> None:
    grid_engine.answers = [("qstat", 1, "", "error: unable to contact qmaster using port 6444 on host a")]
    assert grid_engine.states("77", "78") == [JobState.PENDING] * 2
    grid_engine.answers = [("qstat", 0, "", "")]
    assert grid_engine.states("77", "78") == [JobState.COMPLETED] * 2


def test_grid_engine_a_job_in_an_error_state_does_not_stay_in_the_queue(grid_engine: Site) -> None:
    grid_engine.answers = [("qstat", 0, QSTAT.format("Eqw"), ""), ("qdel", 0, "", "")]
    grid_engine.states("77", "78")
    grid_engine.scheduler.ended("77")
    assert grid_engine.asked[-1] == "qdel 77"
    assert grid_engine.recorded() == ["78"]
    grid_engine.scheduler.ended("78")
    assert grid_engine.asked[-1] == "qdel 77"


@pytest.fixture
def condor(tmp_path: Path) -> Site:
    site = Site(tmp_path, "CondorProvider")
    site.submitted("77.0", "78.0")
    return site


def test_condor_a_held_job_has_not_ended(condor: Site) -> None:
    for number, state in (("5", JobState.HELD), ("6", JobState.RUNNING), ("7", JobState.HELD)):
        condor.answers = [("condor_q", 0, f"77.0 {number}\n78.0 1\n", "")]
        assert condor.states("77.0", "78.0") == [state, JobState.PENDING]


def test_condor_a_job_that_has_left_the_queue_has_ended(condor: Site) -> None:
    condor.answers = [("condor_q", 0, "78.0 2\n", "")]
    assert condor.states("77.0", "78.0") == [JobState.COMPLETED, JobState.RUNNING]
    condor.answers = [("condor_q", 1, "", "-- Failed to fetch ads from: <10.0.0.1:9618>")]
    assert condor.states("78.0") == [JobState.RUNNING]


@pytest.fixture
def accounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A Slurm with an accounting database."""
    from parsl.providers.slurm.slurm import SlurmProvider

    monkeypatch.setattr(SlurmProvider, "execute_wait", lambda *_, **__: (0, "", ""))
    site = Site(tmp_path, "SlurmProvider")
    site.submitted("5", "6")
    return site


def test_slurm_a_job_that_the_accounting_has_not_yet_has_not_ended(accounted: Site) -> None:
    accounted.answers = [("sacct", 0, "5              RUNNING \n", ""), ("squeue", 0, "6\n", "")]
    assert accounted.states("5", "6") == [JobState.RUNNING, None]
    accounted.answers[1] = ("squeue", 1, "", "Unable to contact slurm controller")
    assert accounted.states("5", "6") == [JobState.RUNNING, None]
    accounted.answers[1] = ("squeue", 0, "", "")
    assert accounted.states("5", "6") == [JobState.RUNNING, JobState.COMPLETED]


def test_slurm_says_how_a_job_ended(accounted: Site) -> None:
    accounted.answers = [("sacct", 0, "5   CANCELLED by 1000\n6    TIMEOUT\n", "")]
    assert accounted.states("5", "6") == [JobState.CANCELLED, JobState.TIMEOUT]


# --- jobs that are to end ---------------------------------------------------------------------------------


def test_a_job_whose_end_was_not_accepted_is_recorded_and_ended_again(lsf: Site) -> None:
    assert lsf.recorded() == ["77", "78"]
    lsf.answers = [("bkill", 255, "", "LSF is down. Please wait ...")]
    lsf.scheduler.cancel(["77"], 0.0)
    assert lsf.recorded() == ["77", "78"]
    asked = len(lsf.asked)
    lsf.scheduler.try_again(1.0)
    assert len(lsf.asked) == asked, "too soon"
    lsf.answers = [("bkill", 0, "Job <77> is being terminated\n", "")]
    lsf.scheduler.try_again(30.0)
    assert lsf.recorded() == ["78"]


def test_one_that_has_ended_already_does_not_keep_the_others(lsf: Site) -> None:
    lsf.answers = [
        ("bkill 77 78", 255, "Job <77> is being terminated\n", "Job <78>: Job has already finished\n"),
        ("bkill 77", 255, "", "Job <77>: Job has already finished\n"),
        ("bkill 78", 255, "", "Job <78>: Job has already finished\n"),
    ]
    lsf.scheduler.cancel(["77", "78"], 0.0)
    assert lsf.recorded() == []


@pytest.mark.parametrize(
    ("kind", "command", "gone"),
    [
        ("PBSProProvider", "qdel", "qdel: Unknown Job Id 10.srv"),
        ("PBSProProvider", "qdel", "qdel: Job has finished 10.srv"),
        ("TorqueProvider", "qdel", "qdel: Unknown Job Id 10.srv"),
        ("GridEngineProvider", "qdel", 'denied: job "10" does not exist'),
        ("CondorProvider", "condor_rm", "Couldn't find/remove all jobs in cluster 10"),
        ("SlurmProvider", "scancel", "scancel: error: Kill job error on job id 10: Invalid job id specified"),
    ],
)
def test_the_next_process_ends_what_is_recorded(tmp_path: Path, kind: str, command: str, gone: str) -> None:
    site = Site(tmp_path, kind)
    site.submitted("10.srv", "11.srv")
    site.answers = [(f"{command} 10.srv 11.srv", 1, "", gone), (f"{command} 10.srv", 1, "", gone), (command, 0, "", "")]
    site.next_process().cancel_left_over(0.0)
    assert any(asked.startswith(f"{command} 11.srv") for asked in site.asked)
    assert site.recorded() == []


def test_the_next_process_goes_on_trying(pbs: Site) -> None:
    pbs.answers = [("qdel", 1, "", "qdel: cannot connect to server srv")]
    after = pbs.next_process()
    after.cancel_left_over(0.0)
    assert pbs.recorded() == ["10.srv", "11.srv"]
    pbs.answers = [("qdel", 0, "", "")]
    after.try_again(100.0)
    assert pbs.recorded() == []


def test_a_record_of_another_kind_of_scheduler_or_none_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    record = JobRecord(path, "SlurmProvider")
    for text in ("", "[]", "null", '{"provider": "LSFProvider", "jobs": {"1": {}}}', '{"provider": "SlurmProvider"}'):
        path.write_text(text)
        assert record.left_over() == {}


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "jobs.json"
    path.write_text('{"provider": "SlurmProvider", "jobs": ["10", "11"]}')
    assert JobRecord(path, "SlurmProvider").left_over() == {"10": {}, "11": {}}


def no_room(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_unfinished_record_of_jobs_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, unfinished = tmp_path / "htex-jobs.json", tmp_path / "htex-jobs.new"
    record = JobRecord(path, "SlurmProvider")
    record.write({"10": {}})
    with monkeypatch.context() as full:
        full.setattr("os.fsync", no_room)
        record.write({"10": {}, "11": {}})
    assert not unfinished.exists()
    unfinished.write_text('{"provider": "Slur')  # of a process that was killed while it wrote
    assert JobRecord(path, "SlurmProvider").left_over() == {"10": {}}
    assert not unfinished.exists()


class Commands:
    """A provider whose scheduler's commands answer as the test says."""

    clusters = None
    resources: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def __init__(self, status: int, out: str) -> None:
        self.answer, self.asked = (status, out, ""), [""]

    def execute_wait(self, command: str, timeout: int | None = None) -> tuple[int, str, str]:
        self.asked.append(command)
        return self.answer


@pytest.mark.parametrize(
    ("status", "out", "said"),
    [
        (0, "7|PENDING|Resources|N/A\n", "Slurm job 7: PENDING (Resources)"),
        (0, "7|PENDING|Priority|2026-01-02T03:04:05\n",
         "Slurm job 7: PENDING (Priority), expected to begin at 2026-01-02T03:04:05"),
        (0, "".join(f"{n}|PENDING|Priority|N/A\n" for n in range(5)),
         "; ".join(f"Slurm job {n}: PENDING (Priority)" for n in range(3)) + "; and 2 more"),
        (0, "", "job 7 is pending at Commands"),
        (1, "slurm_load_jobs error", "job 7 is pending at Commands"),
    ],
)  # fmt: skip
def test_slurms_words_on_a_pending_job(status: int, out: str, said: str) -> None:
    provider = Commands(status, out)
    assert Slurm(provider, None).words_on_pending([7]) == said
    assert provider.asked[-1].startswith("squeue --noheader --states=PENDING")


@pytest.mark.parametrize(
    ("status", "out", "said"),
    [
        (0, "7.0 5 Error from slot1@node: full\n", "HTCondor job 7.0 is held: Error from slot1@node: full"),
        (0, "7.0 1 undefined\n", "job 7.0 is pending at Commands"),
        (1, "", "job 7.0 is pending at Commands"),
    ],
)
def test_condors_words_on_a_pending_job(status: int, out: str, said: str) -> None:
    assert Condor(Commands(status, out), None).words_on_pending(["7.0"]) == said


def test_pbs_words_on_a_pending_job() -> None:
    out = "Job Id: 7.host\n    Job_Name = x\n    comment = Not Running: not enough\n\tfree nodes\n    etime = now\n"
    assert (
        Pbs(Commands(0, out), None).words_on_pending(["7.host"]) == "PBS job 7.host: Not Running: not enough free nodes"
    )
    assert (
        Pbs(Commands(0, "Job Id: 7.host\n    etime = now\n"), None).words_on_pending(["7"])
        == "job 7 is pending at Commands"
    )
