"""A thousand tasks in flight through the whole installed path, and one process of it is killed.

Whichever process is killed, every task ends once. A task that had not started runs, and none runs twice (max_attempts
is 1). When the endpoint has stopped, it has left no process, spooled result or scheduler job.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sitekit.accounts import processes_of

from mep_wire.errors import MepError
from tests.support.campus import Campus, make_campus
from tests.support.waiting import until

TASKS = 1000
END_S = 150
LOSSES = {"WORKER_LOST", "USER_ENDPOINT_LOST"}
pytestmark = pytest.mark.root


def mark(path: str, number: int) -> bytes:
    import os

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)
    time.sleep(0.002)
    return bytes(8 << 20 if number in (400, 600, 800) else 8)


@pytest.fixture
def campus() -> Iterator[Campus]:
    with make_campus("multi", "faulty") as made:
        made.endpoint.start()
        yield made


def named(word: str, uid: int) -> list[int]:
    """Return the processes of an account that have `word` in their name or command line."""
    found = []
    for pid in processes_of(uid):
        try:
            text = Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if word in text:
            found.append(pid)
    return found


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above = (entry / "stat").read_bytes().rpartition(b")")[2].split()[1]
            except OSError:
                continue
            if int(above) == parent:
                found.append(int(entry.name))
    return found


def kill_worker(campus: Campus, uid: int) -> None:
    workers = named("mep-worker", uid)
    assert workers
    os.kill(workers[-1], signal.SIGKILL)


def kill_fork_server(campus: Campus, uid: int) -> None:
    (pid,) = named("mep-forkserver", uid)
    os.kill(pid, signal.SIGKILL)


def kill_block(campus: Campus, uid: int) -> None:
    for pid in named("pool_main", uid):
        with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
            os.kill(pid, signal.SIGKILL)


def kill_interchange(campus: Campus, uid: int) -> None:
    (pid,) = named("interchange_main", uid)
    os.kill(pid, signal.SIGKILL)


def kill_user_endpoint(campus: Campus, uid: int) -> None:
    (pid,) = campus.pids().values()
    os.kill(pid, signal.SIGKILL)


def exhaust_user_endpoint(campus: Campus, uid: int) -> None:
    """Cap its memory at its present size: it ends with the next large result, if not before."""
    (pid,) = campus.pids().values()
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    size = next(int(line.split()[1]) for line in lines if line.startswith("VmSize:")) << 10
    group = pwd.getpwuid(uid).pw_gid
    subprocess.run(["prlimit", f"--as={size}", "--pid", str(pid)], user=uid, group=group, extra_groups=[], check=True)


def reboot_host(campus: Campus, uid: int) -> None:
    """Everything of the endpoint is gone at once, and /run is empty when it is started again."""
    monitor = int(campus.endpoint.status()["pid"])
    pids = [monitor, *children(monitor), *processes_of(uid)]
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a worker that has ended by itself
                os.kill(pid, signum)
    campus.endpoint.stop()
    for path in sorted(campus.endpoint.runtime_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    campus.endpoint.start()


def kill_manager(campus: Campus, uid: int) -> None:
    monitor = int(campus.endpoint.status()["pid"])
    (pid,) = [pid for pid in children(monitor) if b"mep.manager" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(pid, signal.SIGKILL)


def kill_relay(campus: Campus, uid: int) -> None:
    campus.site.relay.kill()
    campus.site.relay.start()


EITHER: list[Callable[[Campus, int], None]] = [
    kill_worker,
    kill_user_endpoint,
    exhaust_user_endpoint,
    kill_manager,
    kill_relay,
    reboot_host,
]
VICTIMS = {
    "GlobusComputeEngine": [*EITHER, kill_block, kill_interchange],
    "ProcessPoolEngine": [*EITHER, kill_fork_server],
    "ThreadPoolEngine": [kill_user_endpoint],
}
CASES = [pytest.param(engine, kill, id=f"{engine}-{kill.__name__}") for engine in VICTIMS for kill in VICTIMS[engine]]


def outcome(future: Any) -> str:
    error = future.exception(timeout=0)
    if error is None:
        return ""
    assert isinstance(error, MepError), error
    return error.code


def _count(resolved: Counter[int], number: int, _: object) -> None:
    resolved.update([number])


def left_files(home: Path) -> list[str]:
    """Spooled results, job records that name jobs, and sockets in the directories of user endpoints."""
    spooled = [str(path) for path in home.glob(".mep/uep/*/spool/*") if path.is_file() and path.stat().st_size]
    return spooled + [str(path) for path in home.glob(".mep/**/*") if path.is_socket()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("engine", "kill"), CASES)
def test_every_task_ends_once(campus: Campus, engine: str, kill: Callable[[Campus, int], None]) -> None:
    account = campus.accounts["alice"]
    ran = account.home / "ran"
    resolved: Counter[int] = Counter()
    with campus.executor("alice", engine=engine, workers=2) as executor:
        assert executor.submit(pow, 2, 3).result(timeout=30) == 8
        futures = [executor.submit(mark, str(ran), number) for number in range(TASKS)]
        for number, future in enumerate(futures):
            future.add_done_callback(partial(_count, resolved, number))
        until("the first results", lambda: sum(resolved.values()) >= 100, look_s=0.005)
        killed_at = sum(resolved.values())
        assert killed_at < TASKS, "too late"
        kill(campus, account.uid)
        _, undone = wait(futures, timeout=END_S)
        assert not undone, f"{len(undone)} tasks have no end\n{campus.site.logs()}"
        until("every callback", lambda: len(resolved) == TASKS)  # the last ones run after `wait` has returned
        codes = [outcome(future) for future in futures]
        client = campus.client("alice")
        states = {str(client.get_task(future.task_id)["status"]) for future in futures[::97]}
    lost = {number for number, code in enumerate(codes) if code}
    print(f"{engine} {kill.__name__}: {killed_at} done before, {len(lost)} lost {sorted(set(codes) - {''})}")
    assert set(codes) <= {"", *LOSSES}
    assert states <= {"success", "failed"}
    assert len(lost) <= 200
    assert set(resolved.values()) == {1}
    times = Counter(int(line) for line in ran.read_text().split())
    assert not [number for number, count in times.items() if count > 1], "run twice"
    assert set(times) | lost == set(range(TASKS))
    campus.endpoint.stop()
    until("the end of the processes", lambda: not processes_of(account.uid), details=lambda: processes_of(account.uid))
    assert left_files(account.home) == []
    assert list((campus.endpoint.runtime_dir / "keepers").glob("*")) == []
