"""Task records as a site has them: relay, endpoint, mapped users' functions, and the file that the manager writes."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.campus import Campus, make_campus
from tests.support.waiting import until

WAIT_S = 60.0
WHOLE_LIFE = ["RECEIVED", "EXEC_START", "RUNNING", "EXEC_END"]


@pytest.fixture(scope="module")
def campus() -> Iterator[Campus]:
    with make_campus("multi", "recorded") as made:
        made.endpoint.add_config("audit_tasks: true\n")
        made.endpoint.start()
        yield made


def file_of(campus: Campus) -> Path:
    return campus.endpoint.runtime_dir.parents[1] / "var" / campus.endpoint.name / "tasks.log"


def records(campus: Campus, task_id: str, path: Path | None = None) -> list[dict[str, Any]]:
    lines = (path or file_of(campus)).read_text().splitlines()
    return [record for record in map(json.loads, lines) if record.get("task_id") == task_id]


def whole(campus: Campus, task_id: str) -> list[dict[str, Any]]:
    """Return a task's records once its end is among them."""

    def ended() -> list[dict[str, Any]]:
        found = records(campus, task_id)
        return found if found and found[-1]["event"] in {"EXEC_END", "FAILED"} else []

    return list(until("the task's records", ended))


def add(a: int, b: int) -> int:
    return a + b


def fail() -> None:
    raise ValueError('no\n{"event": "EXEC_END", "forged": true}')


def sleep_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_a_task_is_recorded_from_end_to_end(campus: Campus) -> None:
    with campus.executor("alice") as executor:
        future = executor.submit(add, 1, 2)
        assert future.result(timeout=WAIT_S) == 3
    found = whole(campus, str(future.task_id))
    assert [record["event"] for record in found] == WHOLE_LIFE
    assert [record["source"] for record in found] == ["relay", "relay", "user_endpoint", "user_endpoint"]
    assert [record["seq"] for record in found] == sorted(record["seq"] for record in found)
    assert {record["identity"] for record in found} == {"alice@example.edu"}
    assert len({(record["function_id"], record["uep_id"], record["identity_id"]) for record in found}) == 1
    alice = campus.accounts["alice"]
    assert {(record["local_user"], record["uid"]) for record in found[2:]} == {(alice.name, alice.uid)}


def test_the_file_is_roots_and_the_manager_holds_it_for_appending(campus: Campus) -> None:
    info = file_of(campus).stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)
    held = [fd for fd in manager_descriptors(campus) if fd[0] == str(file_of(campus))]
    assert [flags & (os.O_ACCMODE | os.O_APPEND) for _, flags in held] == [os.O_WRONLY | os.O_APPEND]


def manager_descriptors(campus: Campus) -> list[tuple[str, int]]:
    directory = Path(f"/proc/{manager_pid(campus)}")
    found = []
    for descriptor in (directory / "fd").iterdir():
        flags = (directory / "fdinfo" / descriptor.name).read_text().split("flags:")[1].split()[0]
        found.append((os.readlink(descriptor), int(flags, 8)))
    return found


def manager_pid(campus: Campus) -> int:
    monitor = int(campus.endpoint.status()["pid"])
    children = Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split()
    return next(int(pid) for pid in children if b"mep.manager" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_a_failure_is_recorded_and_its_text_is_not(campus: Campus) -> None:
    with campus.executor("alice") as executor:
        future = executor.submit(fail)
        assert isinstance(future.exception(timeout=WAIT_S), Exception)
    found = whole(campus, str(future.task_id))
    assert [record["event"] for record in found] == [*WHOLE_LIFE[:3], "FAILED"]
    assert found[-1]["code"]
    assert "forged" not in file_of(campus).read_text()


def test_events_of_a_time_without_a_manager_are_recorded(campus: Campus) -> None:
    """A manager that is killed before it has told the relay what it wrote has its successor write it again."""
    with campus.executor("alice") as executor:
        executor.submit(add, 1, 1).result(timeout=WAIT_S)
        slow = executor.submit(sleep_for, 3.0)
        until("the task's records", lambda: any(r["event"] == "RUNNING" for r in records(campus, str(slow.task_id))))
        killed = manager_pid(campus)
        os.kill(killed, signal.SIGKILL)
        futures = [executor.submit(add, number, number) for number in range(20)]
        assert [future.result(timeout=WAIT_S) for future in futures] == [2 * number for number in range(20)]
        slow.result(timeout=WAIT_S)
    for future in [slow, *futures]:
        found = whole(campus, str(future.task_id))
        assert list({record["seq"]: record["event"] for record in found}.values()) == WHOLE_LIFE
        assert found[-1]["local_user"] == campus.accounts["alice"].name
    assert manager_pid(campus) != killed


def test_a_relay_that_was_killed_loses_no_event(campus: Campus) -> None:
    with campus.executor("alice") as executor:
        before = [executor.submit(add, number, 1) for number in range(10)]
        assert [future.result(timeout=WAIT_S) for future in before] == list(range(1, 11))
        campus.site.relay.kill()
        campus.site.relay.start()
        after = [executor.submit(add, number, 2) for number in range(10)]
        assert [future.result(timeout=WAIT_S) for future in after] == list(range(2, 12))
    for future in [*before, *after]:
        assert sorted({record["event"] for record in whole(campus, str(future.task_id))}) == sorted(WHOLE_LIFE)


def test_a_rotated_file_is_left_and_a_new_one_begun(campus: Campus) -> None:
    old = file_of(campus).with_name("tasks.log.1")
    file_of(campus).rename(old)
    before = old.read_text().count("\n")
    os.kill(int(campus.endpoint.status()["pid"]), signal.SIGHUP)
    until("the file of task records", file_of(campus).exists)
    with campus.executor("bob") as executor:
        future = executor.submit(add, 2, 2)
        future.result(timeout=WAIT_S)
    found = until(
        "the task's records",
        lambda: [r for path in (old, file_of(campus)) for r in records(campus, str(future.task_id), path)][3:],
    )
    assert found[-1]["event"] == "EXEC_END"
    until("the task's records", lambda: str(future.task_id) in file_of(campus).read_text())
    assert old.read_text().count("\n") <= before + 4


def test_block_and_job_of_a_task_are_recorded(campus: Campus) -> None:
    with campus.executor("bob", engine="GlobusComputeEngine", workers=1) as executor:
        quick = executor.submit(add, 3, 4)
        assert quick.result(timeout=WAIT_S) == 7
        slow = executor.submit(sleep_for, 1.0)
        slow.result(timeout=WAIT_S)
    for future in (quick, slow):
        found = whole(campus, str(future.task_id))
        assert [record["event"] for record in found] == WHOLE_LIFE
        assert {(record["block_id"], record["job_id"].isdecimal()) for record in found[2:]} == {("0", True)}


def test_a_record_is_of_the_person_whose_task_it_is(campus: Campus) -> None:
    with campus.executor("alice") as one, campus.executor("bob") as other:
        futures = {"alice": one.submit(add, 1, 1), "bob": other.submit(add, 1, 1)}
        for future in futures.values():
            future.result(timeout=WAIT_S)
    for who, future in futures.items():
        assert {r["identity"] for r in whole(campus, str(future.task_id))} == {f"{who}@example.edu"}
