"""max_attempts, deadlines, priority and cancellation from a script to the workers and back, with nothing mocked."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mep_wire.errors import BodyInvalid, TaskExpired, TaskNotFound, UserEndpointLost, WorkerLost
from tests.support.campus import TEMPLATE_TEXT, Campus, make_campus
from tests.support.waiting import until

RESULT_S = 90
LIMIT = "max_attempts_limit: 3\n"


@pytest.fixture(scope="module")
def site() -> Iterator[Campus]:
    with make_campus("single", "tries", LIMIT + TEMPLATE_TEXT) as made:
        made.endpoint.start()
        yield made


@pytest.fixture
def notes(site: Campus) -> Path:
    """A world-writable file to which a task appends a line under any account."""
    path = Path(f"/tmp/meptest-notes-{time.time_ns()}")
    path.touch(mode=0o666)
    path.chmod(0o666)
    return path


def die(path: str, times: int) -> int:
    """Note that it runs, and kill its own worker so many times."""
    import os
    import signal

    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    with open(path) as file:
        runs = len(file.read().split())
    if runs <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return runs


def sleep_noted(path: str, seconds: float) -> str:
    """Note that it runs, and sleep the first time."""
    import time

    with open(path, "a") as file:
        file.write("ran\n")
    with open(path) as file:
        if len(file.read().split()) == 1:
            time.sleep(seconds)
    return "done"


def note(path: str, name: str) -> None:
    with open(path, "a") as file:
        file.write(f"{name}\n")


def status(site: Campus, future: Any) -> str:
    """Return where a task is; empty while the relay does not know it yet."""
    try:
        return str(site.client(site.anybody).get_task(future.task_id)["status"])
    except TaskNotFound:
        return ""


@pytest.mark.parametrize("engine", ["ProcessPoolEngine", "GlobusComputeEngine"])
def test_a_task_whose_worker_dies_runs_again_as_often_as_was_asked_for(site: Campus, notes: Path, engine: str) -> None:
    with site.executor(site.anybody, engine=engine) as executor:
        executor.max_attempts = 3
        assert executor.submit(die, str(notes), 2).result(timeout=RESULT_S) == 3
        executor.max_attempts = None
        lost = executor.submit(die, str(notes), 9)
        with pytest.raises(WorkerLost, match=r"SIGKILL.*\(attempt 1 of 1\)"):
            lost.result(timeout=RESULT_S)
        assert len(notes.read_text().split()) == 4
    notes.unlink()


def test_the_administrators_limit_holds(site: Campus, notes: Path) -> None:
    with site.executor(site.anybody) as executor:
        executor.max_attempts = 50
        with pytest.raises(WorkerLost, match=r"\(attempt 3 of 3\)"):
            executor.submit(die, str(notes), 99).result(timeout=RESULT_S)
    assert len(notes.read_text().split()) == 3
    notes.unlink()


def killed_uep(site: Campus, before: dict[str, int]) -> None:
    for pid in site.new_pids(before).values():
        os.kill(pid, signal.SIGKILL)


def test_a_task_whose_user_endpoint_is_killed_runs_again_where_it_may(site: Campus, notes: Path) -> None:
    before = site.pids()
    with site.executor(site.anybody, project="killed") as executor:
        executor.max_attempts = 2
        again = executor.submit(sleep_noted, str(notes), 60.0)
        executor.max_attempts = None
        once = executor.submit(time.sleep, 60.0)
        until("the task's note", lambda: notes.read_text() == "ran\n")
        until("a task that is running", lambda: status(site, once) == "running")
        killed_uep(site, before)
        assert again.result(timeout=RESULT_S) == "done"
        with pytest.raises(UserEndpointLost, match=r"\(attempt 1 of 1\)"):
            once.result(timeout=RESULT_S)
    notes.unlink()


def processes_of(uep_id: str, pid: int, module: str) -> list[int]:
    """Return the processes of a user endpoint that run `module`: its children, and those that name its directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if module.encode() in line and (parent == pid or uep_id.encode() in line):
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("module", ["interchange_main", "pool_main"])
def test_what_dies_between_the_user_endpoint_and_the_worker_is_named_or_the_task_runs_again(
    site: Campus, notes: Path, module: str
) -> None:
    before = site.pids()
    with site.executor(site.anybody, engine="GlobusComputeEngine", project=module) as executor:
        executor.max_attempts = 2
        again = executor.submit(sleep_noted, str(notes), 60.0)
        executor.max_attempts = 1
        once = executor.submit(time.sleep, 60.0)
        until("the task's note", lambda: notes.read_text() == "ran\n")
        until("a task that is running", lambda: status(site, once) == "running")
        ((uep_id, pid),) = site.new_pids(before).items()
        victims = processes_of(uep_id, pid, module)
        assert victims
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        assert again.result(timeout=RESULT_S) == "done"
        with pytest.raises(WorkerLost, match=r"(interchange|node|block).*\(attempt 1 of 1\)"):
            once.result(timeout=RESULT_S)
    notes.unlink()


@pytest.mark.parametrize("engine", ["ProcessPoolEngine", "ThreadPoolEngine", "GlobusComputeEngine"])
def test_a_running_task_expires(site: Campus, engine: str) -> None:
    with site.executor(site.anybody, engine=engine) as executor:  # a person has so many user endpoints here
        assert executor.submit(pow, 2, 2).result(timeout=RESULT_S) == 4
        executor.deadline_s = 1.0
        with pytest.raises(TaskExpired, match="deadline"):
            executor.submit(time.sleep, 30.0).result(timeout=25)
        executor.deadline_s = None
        executor.deadline = datetime.now(UTC) + timedelta(hours=1)
        assert executor.submit(pow, 2, 3).result(timeout=RESULT_S) == 8


def test_a_running_task_expires_while_the_relay_is_away(site: Campus, notes: Path) -> None:
    with site.executor(site.anybody, project="away") as executor:
        assert executor.submit(pow, 2, 2).result(timeout=RESULT_S) == 4
        executor.deadline_s = 3.0
        future = executor.submit(die, str(notes), 0)
        assert future.result(timeout=RESULT_S) == 1
        slow = executor.submit(_pid_and_sleep, str(notes), 60.0)
        until("the task's note", lambda: len(notes.read_text().split()) == 2)
        site.site.relay.kill()
        pid = int(notes.read_text().split()[1])
        try:
            until("the end of the processes", lambda: not Path(f"/proc/{pid}").exists())
        finally:
            site.site.relay.start()
        with pytest.raises(TaskExpired):
            slow.result(timeout=RESULT_S)
    notes.unlink()


def _pid_and_sleep(path: str, seconds: float) -> None:
    import os
    import time

    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)


def test_waiting_tasks_run_by_priority(site: Campus, notes: Path) -> None:
    with site.executor(site.anybody, project="order", workers=1) as executor:
        held = executor.submit(sleep_noted, str(notes), 3.0)
        until("the task's note", lambda: notes.read_text() == "ran\n")
        # The site's outstanding requests, two a worker, are not overtaken.
        futures = [executor.submit(note, str(notes), f"first{number}") for number in range(2)]
        until(
            "tasks that wait for nodes", lambda: all(status(site, future) == "waiting-for-nodes" for future in futures)
        )
        for name, priority in (("low", -5), ("plain", 0), ("high", 5)):
            executor.priority = priority
            futures += [executor.submit(note, str(notes), f"{name}{number}") for number in range(3)]
        assert held.result(timeout=RESULT_S) == "done"
        for future in futures:
            future.result(timeout=RESULT_S)
    later = [f"{name}{number}" for name in ("high", "plain", "low") for number in range(3)]
    assert notes.read_text().split() == ["ran", "first0", "first1", *later]
    notes.unlink()


def test_a_batch_takes_the_same_options_and_mistakes_are_told_where_they_are_made(site: Campus, notes: Path) -> None:
    client = site.client(site.anybody)
    function = client.register_function(die)
    batch = client.create_batch(max_attempts=2, deadline_s=60.0, priority=1)
    task = batch.add(function, [str(notes), 1])
    client.batch_run(site.endpoint.id, batch)
    until("the task's end", lambda: not client.get_task(task)["pending"])
    assert client.get_result(task) == 2
    for wrong in ({"max_attempts": 0}, {"priority": 9}, {"deadline_s": -1.0}, {"deadline": time.time() - 9}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            client.create_batch(**wrong)
    with pytest.raises(ValueError, match="time zone"):
        client.create_batch(deadline=datetime(2999, 1, 1))
    with pytest.raises(TypeError, match="whole number"):
        client.create_batch(max_attempts=1.5)  # type: ignore[arg-type]  # as above
    notes.unlink()


def test_a_cancelled_task_stays_cancelled_though_it_may_run_again(site: Campus, notes: Path) -> None:
    with site.executor(site.anybody) as executor:
        executor.max_attempts = 3
        future = executor.submit(sleep_noted, str(notes), 60.0)
        until("the task's note", lambda: notes.read_text() == "ran\n")
        assert future.cancel()
        with contextlib.suppress(CancelledError):
            future.result(timeout=RESULT_S)
        until("a task that is cancelled", lambda: status(site, future) == "cancelled")
    assert notes.read_text() == "ran\n"
    notes.unlink()


def test_the_relay_names_an_option_that_cannot_be(site: Campus) -> None:
    client = site.client(site.anybody)
    batch = client.create_batch()
    batch.add(client.register_function(pow), [2, 2])
    body = batch.prepare()
    body.max_attempts = 1000
    with pytest.raises(BodyInvalid, match="max_attempts"):
        client.submit(site.endpoint.id, body)
