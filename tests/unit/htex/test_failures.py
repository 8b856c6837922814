"""When blocks fail: which failures say something against the next try, how long the pauses are, when tasks fail."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus

from user_endpoint.engines.htex import failures
from user_endpoint.engines.htex.failures import (
    HOLD_OFF_S,
    MAX_BROKEN,
    MOST_PAUSE_S,
    MOST_WAIT_S,
    BlockFailure,
    Cause,
    Failures,
    of_block,
    of_error,
)
from user_endpoint.engines.htex.provider import Plan
from user_endpoint.settings import GlobusComputeSettings

SHORT, BROKEN = BlockFailure(Cause.SHORT, "no space left"), BlockFailure(Cause.BROKEN, "no module quux")
KILLED = BlockFailure(Cause.KILLED, "it was killed")


def status(tmp_path: pathlib.Path, *, message: str = "", stderr: str = "", exit_code: int | None = 1) -> JobStatus:
    (tmp_path / "err").write_text(stderr)
    return JobStatus(JobState.FAILED, message or None, exit_code=exit_code, stderr_path=str(tmp_path / "err"))


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        (Cause.BROKEN, {"stderr": "ModuleNotFoundError: No module named 'quux'"}),
        (Cause.BROKEN, {"stderr": "bash: module: command not found", "exit_code": 127}),
        (Cause.BROKEN, {"message": "Failed to start block 1: sbatch: error: invalid partition specified"}),
        (Cause.SHORT, {"stderr": "OSError: [Errno 28] No space left on device: '/home/alice/x'"}),
        (Cause.SHORT, {"stderr": "mkdir: cannot create directory: Disk quota exceeded"}),
        (Cause.SHORT, {"message": "Failed to start block 1: [Errno 24] Too many open files"}),
        (Cause.SHORT, {"stderr": "bash: fork: retry: Resource temporarily unavailable"}),
        (Cause.SHORT, {"stderr": "fork: Cannot allocate memory"}),
        (Cause.SHORT, {"message": "Cannot parse exit code: "}),
        (Cause.KILLED, {"exit_code": 137}),
        (Cause.KILLED, {"exit_code": 139, "stderr": "Segmentation fault"}),
        (Cause.KILLED, {"message": "Killed", "exit_code": None}),
    ],
)
def test_what_is_short_or_killed_is_told_from_what_is_broken(
    cause: Cause, options: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    found = of_block("it ended", status(tmp_path, **options), str(tmp_path))
    assert found.cause is cause
    assert found.text.startswith("it ended")


def test_a_disk_that_is_full_is_found_though_no_program_could_say_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(failures.os, "write", full)
    found = of_block("it ended", status(tmp_path), str(tmp_path))
    assert (found.cause, found.text) == (Cause.SHORT, "it ended (no space left on the disk)")
    assert not list(tmp_path.glob("room-*"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN])
def test_errors_of_the_start_of_the_interchange(number: int) -> None:
    assert of_error(OSError(number, "x")).cause is Cause.SHORT
    assert of_error(OSError(errno.EACCES, "x")).cause is Cause.BROKEN


def test_pauses_grow_with_jitter_up_to_a_limit() -> None:
    noted, pauses = Failures("x"), []
    for number in range(10):
        noted.note(float(number), float(number), SHORT)
        pauses.append(noted.next_at - number)
    ideal = [min(MOST_PAUSE_S, 2.0**number) for number in range(10)]
    assert all(0.8 * want <= pause <= 1.2 * want for pause, want in zip(pauses, ideal, strict=True))
    assert len({pause / want for pause, want in zip(pauses, ideal, strict=True)}) > 5


def test_blocks_that_were_tried_together_count_once() -> None:
    noted = Failures("blocks")
    assert not any(noted.note(1.5 + number / 500, 1.0, BROKEN) for number in range(20))
    assert len(noted) == 1


def test_what_is_broken_is_tried_three_times() -> None:
    noted = Failures("blocks of workers")
    said = [noted.note(at + 0.5, at, BROKEN) for at in (1.0, 3.0, 6.0)]
    assert said == ["", "", f"blocks of workers failed {MAX_BROKEN} times in a row; the last: no module quux"]
    assert noted.next_at == 6.5 + HOLD_OFF_S


@pytest.mark.parametrize("failure", [SHORT, KILLED])
def test_what_is_short_or_killed_is_tried_for_as_long_as_tasks_are_to_wait(failure: BlockFailure) -> None:
    noted, at, tries = Failures("blocks"), 0.0, 0
    while not (said := noted.note(at, at, failure)):
        at, tries = max(at + 0.5, noted.next_at), tries + 1
    assert MOST_WAIT_S <= at <= MOST_WAIT_S + 2 * MOST_PAUSE_S
    assert tries > 15
    assert failure.text in said


def test_a_full_disk_between_broken_blocks_does_not_count_as_broken() -> None:
    noted = Failures("blocks")
    said = [noted.note(float(at), float(at), each) for at, each in enumerate([BROKEN, SHORT, KILLED, SHORT, BROKEN])]
    assert not any(said)
    noted.over()
    assert not noted and noted.next_at == 0.0


def test_a_scheduler_that_does_not_answer_is_named_with_its_command(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sacct").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    plan = Plan(GlobusComputeSettings(provider={"type": "SlurmProvider", "cmd_timeout": 1}))
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        plan.make()
    found = of_error(caught.value)
    assert found.cause is Cause.SHORT
    assert found.text.startswith("the scheduler did not answer `sacct -X` within 1 s (cmd_timeout of the provider)")
