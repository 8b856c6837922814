"""The audit log, word by word: every start request, and every stop with its cause, by a real monitor."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mep.boundary.messages import EndpointEnded, MapRequest, NotMapped, StartAnswered
from mep.boundary.resolved_config import Caps, Policy
from mep.root.monitor.audit_log import open_appending
from tests.support.accounts import LocalAccount
from tests.support.monitor import (
    MonitorRun,
    Puppet,
    ask,
    map_next,
    new_uep_id,
    running_monitor,
    start_as,
)
from tests.support.waiting import until

WHO = json.dumps({"username": "alice@example.edu"})


def records(run: MonitorRun, event: str, count: int = 1) -> list[dict[str, Any]]:
    """Return the records of one kind once there are so many."""

    def found() -> list[dict[str, Any]]:
        kind = [one for one in run.audit_records() if one["event"] == event]
        return kind if len(kind) >= count else []

    return list(until(f"{count} of {event}", found))


def test_a_start_is_recorded_with_everything(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        (record,) = records(run, "start")
        assert record.pop("time").endswith("Z")
        assert record == {
            "event": "start", "outcome": "started", "code": "", "mapping": "mapped", "policy": "admitted",
            "identities": WHO, "uep_id": uep_id, "local_user": alice.name, "correlation_id": "corr-1",
            "uid": alice.uid, "pid": run.record(uep_id)["uep_pid"], "keeper_pid": run.record(uep_id)["keeper_pid"],
        }  # fmt: skip
        request = records(run, "request")[0]
        assert (request["correlation_id"], request["identities"]) == ("corr-1", WHO)


def test_the_identities_of_a_refused_mapping_are_where_identities_are(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        request, descriptors = mapper.take(MapRequest)
        os.close(descriptors[0])
        mapper.send(NotMapped(request.ref, new_uep_id(), "IDENTITY_NOT_MAPPED", "no", "no rule matches", "corr-9", WHO))
        manager.take(StartAnswered)
        record = run.audit_records()[0]
        assert (record["mapping"], record["policy"]) == ("refused", "not asked")
        assert (record["identities"], record["detail"]) == (WHO, "no rule matches")
        assert (record["code"], record["correlation_id"]) == ("IDENTITY_NOT_MAPPED", "corr-9")


@pytest.mark.parametrize(
    ("user", "options", "verdict"),
    [
        ("root", {}, "refused"),
        ("", {"policy": Policy(denied_groups=["PRIMARY"])}, "refused"),
        ("", {"caps": Caps(max_user_endpoints_per_user=0)}, "not asked"),
        ("", {"caps": Caps(max_user_endpoints=0)}, "not asked"),
    ],
    ids=["root", "denied group", "too many of one person", "too many of all"],
)
def test_the_verdict_of_policy_is_recorded(
    alice: LocalAccount, user: str, options: dict[str, Any], verdict: str
) -> None:
    if "policy" in options:
        options = {"policy": Policy(denied_groups=[alice.name])}
    with running_monitor(**options) as (run, manager, mapper):
        start_as(manager, mapper, user or alice.name)
        (record,) = records(run, "start")
        assert (record["mapping"], record["policy"]) == ("mapped", verdict)
        assert (record["identities"], record["correlation_id"]) == (WHO, "corr-1")
        assert record["stage"]
        assert record.get("pid") is None


def test_a_request_for_what_is_being_started_is_recorded_too(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id = new_uep_id()
        for ref in (1, 2):
            ask(manager, ref)
            map_next(mapper, alice.name, uep_id=uep_id, delay_s=1.0)
        for _ in range(2):
            assert manager.take(StartAnswered)[0].outcome == "started"
        joined, started = records(run, "start", 2)
        assert (joined["outcome"], joined["correlation_id"], joined["with"]) == ("joined", "corr-2", "corr-1")
        assert (started["outcome"], started["correlation_id"]) == ("started", "corr-1")


def test_a_request_whose_manager_is_gone_is_recorded(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        mapper.take(MapRequest)
        manager.kill()
        (record,) = records(run, "start")
        assert (record["outcome"], record["mapping"]) == ("dropped", "not asked")
        assert record["detail"] == "the manager is gone"


# --- stops --------------------------------------------------------------------------------------------------


def _exits(run: MonitorRun, uep_id: str) -> None:
    os.kill(run.record(uep_id)["uep_pid"], signal.SIGTERM)


def _killed(run: MonitorRun, uep_id: str) -> None:
    os.kill(run.record(uep_id)["uep_pid"], signal.SIGKILL)


def _keeper_killed(run: MonitorRun, uep_id: str) -> None:
    os.kill(run.record(uep_id)["keeper_pid"], signal.SIGKILL)


@pytest.mark.parametrize(
    ("mode", "end", "code", "detail"),
    [
        ("term-ends", _exits, "IDLE", ""),
        ("ready", _killed, "USER_ENDPOINT_LOST", "killed by signal 9"),
        ("ready", _keeper_killed, "USER_ENDPOINT_LOST", "the keeper ended without a record"),
    ],
    ids=["by itself", "killed", "keeper killed"],
)
def test_the_end_of_a_user_endpoint_has_a_cause(
    alice: LocalAccount, mode: str, end: Callable[[MonitorRun, str], None], code: str, detail: str
) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode=mode)
        pids = {key: run.record(uep_id)[key] for key in ("uep_pid", "keeper_pid")}
        end(run, uep_id)
        manager.take(EndpointEnded)
        (record,) = records(run, "end")
        assert (record["code"], record["uep_id"], record["local_user"]) == (code, uep_id, alice.name)
        assert (record["uid"], record["pid"], record["keeper_pid"]) == (alice.uid, *pids.values())
        assert record["cause"] and detail in record["detail"]
        assert record["correlation_id"] == "corr-1"


def test_a_stop_of_the_endpoint_is_the_cause_of_its_user_endpoints_ends(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        start_as(manager, mapper, alice.name)
        run.stop()
        (record,) = records(run, "end")
        assert (record["code"], record["cause"]) == ("STOPPED", "The endpoint was stopped by its administrator.")


def test_what_ended_while_no_monitor_was_there_is_recorded_by_the_next(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="term-ends")
        keeper = run.record(uep_id)["keeper_pid"]
        run.stop(signal.SIGUSR1)
        _exits(run, uep_id)
        until("the keeper has ended", lambda: not os.path.exists(f"/proc/{keeper}"))
        run.start()
        (record,) = records(run, "end")
        assert (record["code"], record["local_user"], record["correlation_id"]) == ("IDLE", alice.name, "corr-1")


# --- the file -----------------------------------------------------------------------------------------------


def test_half_a_record_at_the_end_of_the_file_does_not_spoil_the_next(alice: LocalAccount) -> None:
    run = MonitorRun()
    run.audit.write_bytes(b'{"time": "2026-01-01T00:00:00.000Z", "event": "sta')
    with run:
        manager, mapper = run.ready()
        start_as(manager, mapper, alice.name)
        torn, *whole = run.audit.read_text().splitlines()
        assert torn.endswith('"sta')
        assert [json.loads(line)["event"] for line in whole] == ["request", "start"]


def test_a_file_that_is_whole_gets_no_empty_line(tmp_path: Any) -> None:
    path = tmp_path / "audit.log"
    for _ in range(3):
        descriptor = open_appending(str(path))
        os.write(descriptor, b"{}\n")
        os.close(descriptor)
    assert path.read_text() == "{}\n" * 3


@pytest.fixture
def puppets(alice: LocalAccount) -> Iterator[tuple[MonitorRun, Puppet, Puppet]]:
    with running_monitor() as found:
        yield found


def test_a_file_that_was_removed_is_made_again_at_a_hang_up(
    alice: LocalAccount, puppets: tuple[MonitorRun, Puppet, Puppet]
) -> None:
    run, manager, mapper = puppets
    run.audit.unlink()
    start_as(manager, mapper, alice.name)
    assert not run.audit.exists()
    os.kill(run.pid, signal.SIGHUP)
    until("opened again", run.audit.exists)
    start_as(manager, mapper, alice.name, ref=2)
    assert [one["event"] for one in run.audit_records()] == ["request", "start"]
