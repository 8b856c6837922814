"""The jobs of a provider: asks the scheduler for their states, and makes sure that every job ends.

Parsl's providers take a job to have ended when an answer does not name it, and some when there was no answer. Here
a job has ended when the scheduler says so: by its state, or by saying that it knows no such job. Anything else
leaves it as it was last seen. A job that is to end is recorded on disk until the scheduler has accepted the
cancellation. No job is forgotten because a scheduler was away or the user endpoint was killed.

Called by blocks, on its thread, since all this takes seconds. It trusts the site's commands.
"""

from __future__ import annotations

import logging
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import zmq

from user_endpoint.engines.htex.job_record import JobRecord
from user_endpoint.engines.htex.parsl_import import light_parsl

with light_parsl():
    from parsl.errors import ParslError
    from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError
    from parsl.jobs.states import JobState, JobStatus

_log = logging.getLogger(__name__)

TERMINAL = frozenset({JobState.CANCELLED, JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT, JobState.MISSING})
SILENT = (CommandClientTimeoutError, CommandClientBadError)
"""The errors of a command to an interchange that does not answer."""
PARSL_RAISES = (
    *(ParslError, subprocess.SubprocessError, zmq.ZMQError, OSError),
    *(AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
"""The errors of providers: their own, and those that commands and their output can cause."""
_FIRST_RETRY_S, _MOST_RETRY_S = 5.0, 60.0
_MOST_WORDS = 3
"""Jobs of which the scheduler's words are passed on."""


class _Answer(NamedTuple):
    status: int
    out: str
    err: str


class Scheduler:
    """See the module; this class trusts the provider's answers. `record` is None where jobs end with this process."""

    raises: tuple[type[Exception], ...] = PARSL_RAISES

    def __init__(self, provider: Any, record: JobRecord | None) -> None:
        self._provider, self._record = provider, record
        self._live: dict[Any, dict[str, str]] = {}
        self._doomed: dict[Any, dict[str, str]] = {}  # cancelled, and not yet accepted
        self._retry_s, self._next_retry = _FIRST_RETRY_S, 0.0

    # --- from submission to end -----------------------------------------------------------------------

    def submitted(self, job: Any) -> None:
        """A job has been submitted."""
        self._live[job] = self._details(job)
        self._write()

    def ended(self, job: Any) -> None:
        """A job is known to have ended."""
        self._live.pop(job, None)
        self._provider.resources.pop(job, None)
        self._write()

    def cancel(self, jobs: Sequence[Any], now: float) -> None:
        """End these jobs. `try_again` retries cancellations that the scheduler does not accept now. Never raises."""
        for job in jobs:
            self._doomed[job] = self._live.pop(job, {})
        self._end_doomed(now)

    def cancel_left_over(self, now: float) -> None:
        """End the jobs that an earlier process, or an earlier provider, has recorded and not ended."""
        for job, details in self._record.left_over().items() if self._record is not None else ():
            self._provider.resources[job] = {
                **dict.fromkeys(("job_stdout_path", "job_stderr_path"), ""),
                **details,
                "job_id": job,
                "status": JobStatus(JobState.UNKNOWN),
            }
            self._doomed[job] = details
        self._end_doomed(now)

    def try_again(self, now: float) -> None:
        """Retry, after a while, the cancellations that the scheduler did not accept."""
        if self._doomed and now >= self._next_retry:
            self._end_doomed(now)

    def _end_doomed(self, now: float) -> None:
        if self._doomed and not self._accepted(list(self._doomed)):
            for job in list(self._doomed) if len(self._doomed) > 1 else ():
                self._accepted([job])  # one that is gone already makes some commands fail for all
        self._retry_s = min(_MOST_RETRY_S, 2 * self._retry_s) if self._doomed else _FIRST_RETRY_S
        self._next_retry = now + self._retry_s
        self._write()

    def _accepted(self, jobs: list[Any]) -> bool:
        """Have these jobs ended, and forget them if the scheduler does so or knows none of them any more."""
        try:
            done = self._cancel(jobs)
        except self.raises as error:
            _log.warning("jobs=%s could not be ended error=%s", jobs, error)
            done = False
        for job in jobs if done else ():
            self._doomed.pop(job, None)
            self._provider.resources.pop(job, None)
        return done

    def _cancel(self, jobs: list[Any]) -> bool:
        answers = self._provider.cancel(jobs)
        return answers is None or all(answers)

    # --- states of jobs -------------------------------------------------------------------------------

    def status(self, jobs: Sequence[Any]) -> list[Any]:
        """Return Parsl's JobStatus of each job, None where it can't be determined now. Never raises."""
        try:
            return list(self._provider.status(list(jobs)))
        except self.raises:
            return [None] * len(jobs)

    def words_on_pending(self, jobs: Sequence[Any]) -> str:
        """Return what the scheduler says about these jobs, which have not begun: id and reason. Never raises."""
        return _listed(f"job {job} is pending at {self._name}" for job in jobs)

    @property
    def _name(self) -> str:
        return type(self._provider).__name__.removesuffix("Provider") or "the scheduler"

    # --- the record -----------------------------------------------------------------------------------

    def _details(self, job: Any) -> dict[str, str]:
        """Return the data that the provider needs to end a job."""
        known = self._provider.resources.get(job, {})
        return {str(name): value for name, value in known.items() if isinstance(value, str)}

    def _write(self) -> None:
        if self._record is not None:
            self._record.write({str(job): what for jobs in (self._live, self._doomed) for job, what in jobs.items()})


class CommandScheduler(Scheduler):
    """A scheduler that is asked by commands; their output is parsed here."""

    unknown = r"(?!)"
    """How it says that it knows no such job; its first group is the job."""
    gone = r"(?!)"
    """How it says that a job which is to be ended has ended already."""

    def __init__(self, provider: Any, record: JobRecord | None) -> None:
        super().__init__(provider, record)
        self._answers: list[_Answer] = []
        real = provider.execute_wait

        def execute_wait(command: str, timeout: int | None = None) -> tuple[int, str, str]:
            status, out, err = real(command, timeout)
            self._answers.append(_Answer(status, out, err))
            return status, out, err

        provider.execute_wait = execute_wait

    def status(self, jobs: Sequence[Any]) -> list[Any]:
        """Return the states that the scheduler has stated explicitly. An unknown job makes some commands
        fail for all jobs; the others are then queried once more."""
        known = self._asked(list(jobs))
        gone = self._unknown(jobs)
        others = [job for job in jobs if job not in gone]
        if gone and others:
            aside = {job: self._provider.resources.pop(job) for job in gone}
            known |= self._asked(others)
            self._provider.resources.update(aside)
        known |= {job: self._as(JobState.COMPLETED, job) for job in gone}
        return [known[job] for job in jobs]

    def _asked(self, jobs: list[Any]) -> dict[Any, Any]:
        resources = self._provider.resources
        before = {job: resources[job]["status"] for job in jobs}
        self._answers.clear()
        found = super().status(jobs)
        answer = "\n".join(answer.out for answer in self._answers)
        named = self._named(answer)
        result = {}
        for job, status in zip(jobs, found, strict=True):
            if status is not None and status.state in TERMINAL and not self._has_ended(str(job), named):
                resources[job]["status"], status = before[job], None
            state = self._read_otherwise(job, named.get(str(job), ""))
            if state is not None:
                resources[job]["status"] = status = self._as(state, job)
            result[job] = status
        return result

    def _named(self, answer: str) -> dict[str, str]:
        """Return the rest of the line of each job that an answer names."""
        lines = (line.split(None, 1) for line in answer.splitlines())
        return {words[0]: words[1].strip() if len(words) > 1 else "" for words in lines if words}

    def _has_ended(self, job: str, named: dict[str, str]) -> bool:
        """Tell whether a job has ended that Parsl takes to have: only if the answer was about it."""
        return job in named

    def _read_otherwise(self, job: Any, said: str) -> Any:
        """Return the state that Parsl has misread, None where it has not. `said` is the rest of the job's line."""
        return None

    def _all_answered(self) -> bool:
        """Tell whether the scheduler has answered, so that a job it does not list is none of its own any more."""
        return bool(self._answers) and all(answer.status == 0 for answer in self._answers)

    def _unknown(self, jobs: Iterable[Any]) -> set[Any]:
        said = {name for answer in self._answers for name in re.findall(self.unknown, answer.err)}
        return {job for job in jobs if any(_same(str(job), name) for name in said)}

    def _as(self, state: Any, job: Any) -> Any:
        known = self._provider.resources.get(job, {})
        paths = {name: known.get(f"job_{name}") for name in ("stdout_path", "stderr_path")}
        return JobStatus(state, **paths)

    def _cancel(self, jobs: list[Any]) -> bool:
        self._answers.clear()
        if super()._cancel(jobs):
            return True
        said = "\n".join(answer.out + answer.err for answer in self._answers)
        return len(jobs) == 1 and re.search(self.gone, said) is not None


def _listed(said: Iterable[str]) -> str:
    """Return the first few of these in one line, and how many there are besides."""
    found = list(said)
    more = f"; and {len(found) - _MOST_WORDS} more" if len(found) > _MOST_WORDS else ""
    return "; ".join(" ".join(each.split()) for each in found[:_MOST_WORDS]) + more


def _same(job: str, named: str) -> bool:
    """Tell whether two ids are one job's, where one of them may lack (part of) the server's name."""
    return job == named or (job.partition(".")[0] == named.partition(".")[0] and "." in job + named)


class Slurm(CommandScheduler):
    """squeue knows every job that has not ended; sacct, where there is one, learns of a job only after a while."""

    gone = r"Invalid job id|already completing or completed"

    def _has_ended(self, job: str, named: dict[str, str]) -> bool:
        if job in named or not str(self._provider._cmd).startswith("sacct"):  # noqa: SLF001 - the one that it asks by
            return True
        where = f" --clusters={self._provider.clusters}" if self._provider.clusters else ""
        # For one unknown job squeue fails as it does when the controller is away; for two it doesn't fail.
        status, out, _ = self._provider.execute_wait(f"squeue{where} --noheader --format=%i --job {job},{job}")
        return status == 0 and job not in out.split()

    def words_on_pending(self, jobs: Sequence[Any]) -> str:
        """Return squeue's state and reason of each job, and when the scheduler expects it to begin."""
        where = f" --clusters={self._provider.clusters}" if self._provider.clusters else ""
        wanted = ",".join(map(str, jobs))
        try:
            status, out, _ = self._provider.execute_wait(
                f"squeue{where} --noheader --states=PENDING --format='%i|%T|%r|%S' --job {wanted}"
            )
        except self.raises:
            return super().words_on_pending(jobs)
        rows = [line.strip().split("|") for line in out.splitlines() if line.count("|") == 3] if status == 0 else []
        if not rows:
            return super().words_on_pending(jobs)
        return _listed(
            f"Slurm job {job}: {state} ({reason})" + (f", expected to begin at {begin}" if begin[:1].isdigit() else "")
            for job, state, reason, begin in rows
        )


class Pbs(CommandScheduler):
    """qstat may leave jobs out of an answer of several (openpbs issue 2672), and says which ones it does not know."""

    unknown = r"Unknown Job Id\s+(\S+)"
    gone = r"Unknown Job Id|Job has finished"

    def words_on_pending(self, jobs: Sequence[Any]) -> str:
        """Return the comment that PBS has on each job."""
        try:
            status, out, _ = self._provider.execute_wait(f"qstat -f {' '.join(map(str, jobs))}")
        except self.raises:
            return super().words_on_pending(jobs)
        found = re.findall(r"^Job Id: (\S+)\n((?:\s+.*\n?)*)", out, re.MULTILINE) if status == 0 else []
        said = {job: re.search(r"^\s+comment = (.+(?:\n\t.+)*)", rest, re.MULTILINE) for job, rest in found}
        words = [f"PBS job {job}: {comment.group(1)}" for job, comment in said.items() if comment is not None]
        return _listed(words) if words else super().words_on_pending(jobs)

    def _named(self, answer: str) -> dict[str, str]:
        ids = re.findall(r'^\s*"([^"\s]+)":\s*\{', answer, re.MULTILINE)  # JSON, and lines of a table
        return dict.fromkeys([*ids, *(line.split()[0] for line in answer.splitlines() if line.split())], "")

    def _has_ended(self, job: str, named: dict[str, str]) -> bool:
        return any(_same(job, name.rstrip("*")) for name in named)


class Lsf(CommandScheduler):
    """bjobs says which jobs it does not find. A job that is suspended has not ended, whatever Parsl makes of it."""

    unknown = r"Job <(\d+)> is not found"
    gone = r"is not found|No matching job found|already finished"

    def _read_otherwise(self, job: Any, said: str) -> Any:
        return JobState.HELD if said in ("PSUSP", "USUSP", "SSUSP") else None


_GRID_ENGINE_STATES = (
    ("d", JobState.COMPLETED),  # its end has begun
    ("E", JobState.FAILED),
    ("sSTh", JobState.HELD),
    ("r", JobState.RUNNING),
    ("tqw", JobState.PENDING),
)
"""The letters of a state, the decisive ones first; the manual page of qstat lists them."""


class GridEngine(CommandScheduler):
    """qstat lists every job that has not ended. Parsl takes one on its way to its node (t) to have failed."""

    gone = r"does not exist"

    def __init__(self, provider: Any, record: JobRecord | None) -> None:
        super().__init__(provider, record)
        self._in_error: set[Any] = set()

    def ended(self, job: Any) -> None:
        """A job is known to have ended. One in an error state would stay in the queue, so it's deleted."""
        if job in self._in_error:
            self._in_error.discard(job)
            self.cancel([job], time.monotonic())
        else:
            super().ended(job)

    def _has_ended(self, job: str, named: dict[str, str]) -> bool:
        return job in named or self._all_answered()

    def _read_otherwise(self, job: Any, said: str) -> Any:
        state = (said.split() + [""] * 4)[3]  # after priority, name and owner
        if "E" in state:
            self._in_error.add(job)
        return next((meaning for letters, meaning in _GRID_ENGINE_STATES if set(letters) & set(state)), None)


_CONDOR_STATES = {"5": JobState.HELD, "6": JobState.RUNNING, "7": JobState.HELD}
"""By the number that HTCondor's manual gives as JobStatus: held, transferring output, suspended."""


class Condor(CommandScheduler):
    """condor_q lists every job that has not left the queue. Parsl never takes one to have ended that it doesn't list,
    and takes one that is held, or that returns its output, to have failed."""

    gone = r"Couldn't find"

    def _asked(self, jobs: list[Any]) -> dict[Any, Any]:
        found = super()._asked(jobs)
        named = self._named("\n".join(answer.out for answer in self._answers))
        unlisted = [job for job in jobs if str(job) not in named] if self._all_answered() else []
        return found | {job: self._as(JobState.COMPLETED, job) for job in unlisted}

    def _read_otherwise(self, job: Any, said: str) -> Any:
        return _CONDOR_STATES.get(said)

    def words_on_pending(self, jobs: Sequence[Any]) -> str:
        """Return why HTCondor holds each job that it holds."""
        try:
            status, out, _ = self._provider.execute_wait(
                f"condor_q {' '.join(map(str, jobs))} -af:j JobStatus HoldReason"
            )
        except self.raises:
            return super().words_on_pending(jobs)
        rows = [line.split(None, 2) for line in out.splitlines()] if status == 0 else []
        words = [f"HTCondor job {row[0]} is held: {row[2]}" for row in rows if len(row) == 3 and row[1] == "5"]
        return _listed(words) if words else super().words_on_pending(jobs)


SCHEDULERS: dict[str, type[Scheduler]] = {
    "SlurmProvider": Slurm,
    "PBSProProvider": Pbs,
    "TorqueProvider": Pbs,
    "LSFProvider": Lsf,
    "GridEngineProvider": GridEngine,
    "CondorProvider": Condor,
}
