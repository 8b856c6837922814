"""A user endpoint as its keeper starts it, against a real ROUTER: its own process, real descriptors, real kills."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest

from mep_sdk.serialize import load_result, serialize_arguments, serialize_function
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import TEMPLATE, UepProcess
from tests.support.waiting import until
from user_endpoint.result_spool import read_records

THREADS = "engine:\n  type: ThreadPoolEngine\n  max_workers: 2\n"

BLOCKS = "engine:\n  type: GlobusComputeEngine\n  max_workers_per_node: 2\n"


def echo(value: object) -> object:
    return value


def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def pid_then_nap(path: str, seconds: float) -> None:
    import os
    import pathlib
    import time

    pathlib.Path(path).write_text(str(os.getpid()))
    time.sleep(seconds)


def surroundings() -> dict[str, object]:
    import os

    return {
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "fds": sorted(
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if int(fd) > 2 and os.path.lexists(f"/proc/self/fd/{fd}")
        ),
        "umask": os.umask(0o077),
    }


FUNCTIONS = {f.__name__: serialize_function(f) for f in (echo, nap, pid_then_nap, surroundings)}


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    made = FakeRelay()
    yield made
    if not made.router.closed:
        made.close()


def task(row: int, function: Callable[..., object], *args: object, walltime_s: float = 0.0) -> messages.TaskItem:
    payload = serialize_arguments(args, {})
    return messages.TaskItem(row, f"task-{row}", function.__name__, payload, b"", walltime_s)


def up(relay: FakeRelay, uep: UepProcess) -> messages.ToRelay:
    """Welcome it and wait until it is ready and has given credit."""
    hello = relay.welcome()
    assert uep.next_report() == ["READY"], uep.log()
    relay.expect(messages.Credit)
    return hello


def spooled(uep: UepProcess) -> int:
    return sum(len(read_records(path.read_bytes())[0]) for path in (uep.state / "spool").iterdir())


# --- the ordinary way -------------------------------------------------------------------------------------


def test_joins_runs_and_ends_in_good_order(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, environment={"SITE_MODULES": "gcc"}) as uep:
        join = up(relay, uep)
        assert isinstance(join, messages.Join)
        assert join.uep_id == uep.uep_id
        assert join.token == b"j" * 32
        relay.submit(FUNCTIONS, [task(1, echo, "hello"), task(2, surroundings)])
        results = relay.results(2)
        assert load_result(results[1].payload) == "hello"
        seen = load_result(results[2].payload)
        assert isinstance(seen, dict)
        assert seen["environment"]["SITE_MODULES"] == "gcc"
        assert seen["environment"]["HOME"] == str(home)
        assert seen["umask"] == 0o077
        kinds = [re.sub(r"\d+|\[.*", "", os.path.basename(name)) for name in seen["fds"]]
        # Its socket, where tasks begin, copies of its streams, its limits, its oom score, and its start journal.
        streams = ["null", "pipe:", "pipe:"]
        assert sorted(kinds) == ["", "limits", streams[0], "oom_score_adj", "p.", *streams[1:], "socket:", "status"]
        uep.signal(signal.SIGTERM)
        assert relay.expect(messages.Goodbye).code == "STOPPED"
        assert uep.next_report()[:2] == ["ENDED", "STOPPED"]
        assert uep.wait() == 0
        assert not uep.children()
    assert uep.state.stat().st_mode & 0o777 == 0o700
    assert not list((uep.state / "spool").iterdir())


def test_first_result_is_quick(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, echo, 1)])
        relay.results(1)
        took = time.perf_counter() - uep.started_at
    assert took < 30  # 0.08 s on an idle machine; this bound only catches gross errors


def test_started_comes_before_the_result_of_a_long_task(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, nap, 0.3)])
        assert relay.expect(messages.Started).rows == [1]
        assert relay.results(1)[1].code == ""


def test_thread_engine(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, template=THREADS) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(row, echo, row) for row in range(1, 9)])
        assert len(relay.results(8)) == 8
        path = home / "pid"
        relay.submit(FUNCTIONS, [task(20, pid_then_nap, str(path), 60.0)])
        until("the task's file", path.exists)
        until(
            "the end of the children", lambda: len(uep.children()) == 0
        )  # the fork server has gone: this engine has no use for it
        uep.signal(signal.SIGTERM)
        assert relay.results(1, confirm=True)[20].code == "USER_ENDPOINT_LOST"
        relay.expect(messages.Goodbye)
        assert uep.wait() == 0


def test_block_engine(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, template=BLOCKS) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(row, echo, row) for row in range(1, 9)])
        assert {row: load_result(item.payload) for row, item in relay.results(8).items()} == {n: n for n in range(1, 9)}
        assert uep.children()
        uep.signal(signal.SIGTERM)
        relay.expect(messages.Goodbye)
        assert uep.wait() == 0
        assert not uep.children()


def test_allowed_functions_are_enforced_here_too(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, allowed_functions=[f"sha256:{sha256(FUNCTIONS['echo']).hexdigest()}"]) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, nap, 0.0), task(2, echo, 2)])
        results = relay.results(2)
    assert results[1].code == "FUNCTION_NOT_ALLOWED"
    assert results[2].code == ""


def test_the_relays_limit_on_results_holds(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        relay.welcome(max_result_bytes=1000)
        assert uep.next_report() == ["READY"]
        relay.expect(messages.Credit)
        relay.submit(FUNCTIONS, [task(1, echo, "x" * 2000)])
        assert relay.results(1)[1].code == "RESULT_TOO_LARGE"


# --- tasks that end otherwise -------------------------------------------------------------------------------


def test_a_killed_worker_costs_its_task_alone(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        path = home / "pid"
        relay.submit(FUNCTIONS, [task(1, pid_then_nap, str(path), 60.0), task(2, nap, 0.5), task(3, echo, 3)])
        until("the task's file", lambda: path.exists() and path.read_text() != "")
        os.kill(int(path.read_text()), signal.SIGKILL)
        results = relay.results(3)
    assert results[1].code == "WORKER_LOST"
    assert "SIGKILL" in results[1].text
    assert results[2].code == results[3].code == ""


def test_the_fork_server_may_die_too(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        path = home / "pid"
        relay.submit(FUNCTIONS, [task(1, pid_then_nap, str(path), 60.0)])
        until("the task's file", path.exists)
        os.kill(uep.children()[0], signal.SIGKILL)
        assert relay.results(1)[1].code == "WORKER_LOST"
        relay.submit(FUNCTIONS, [task(2, echo, 2)])
        assert load_result(relay.results(1)[2].payload) == 2


def test_cancel_running_and_queued(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(row, nap, 60.0) for row in (1, 2, 3)])
        relay.expect(messages.Started)
        relay.send(messages.CancelTasks(rows=[1, 2, 3, 404]))
        assert {item.code for item in relay.results(3).values()} == {"TASK_CANCELLED"}
        relay.submit(FUNCTIONS, [task(4, echo, 4)])
        assert relay.results(1)[4].code == ""


def test_walltime(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, nap, 60.0, walltime_s=0.3)])
        assert relay.results(1)[1].code == "WALLTIME_EXCEEDED"


# --- the end ------------------------------------------------------------------------------------------------


def test_sigterm_gives_back_what_waits_and_lets_the_rest_finish(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        paths = [home / "a", home / "b"]
        running = [task(row, pid_then_nap, str(path), 0.8) for row, path in enumerate(paths, start=1)]
        relay.submit(FUNCTIONS, [*running, task(3, echo, 3), task(4, echo, 4)])
        until("the task's file", lambda: all(path.exists() for path in paths))
        uep.signal(signal.SIGTERM)
        assert sorted(relay.expect(messages.Returned).rows) == [3, 4]
        relay.submit(FUNCTIONS, [task(5, echo, 5)])
        assert relay.expect(messages.Returned).rows == [5]
        assert {item.code for item in relay.results(2).values()} == {""}
        relay.expect(messages.Goodbye)
        assert uep.wait() == 0


def test_a_task_that_outlives_the_grace_ends_with_its_endpoint(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        path = home / "pid"
        relay.submit(FUNCTIONS, [task(1, pid_then_nap, str(path), 60.0)])
        until("the task's file", path.exists)
        relay.send(messages.StopUep(code="STOPPED", text="the endpoint is deleted"))
        item = relay.results(1)[1]
        assert item.code == "USER_ENDPOINT_LOST"
        assert "the endpoint is deleted" in item.text
        assert relay.expect(messages.Goodbye).text == "the endpoint is deleted"
        assert uep.wait() == 0
        assert not uep.children()


def test_idle_ends_it(relay: FakeRelay, home: pathlib.Path) -> None:
    template = TEMPLATE + "heartbeat_period: 5\nidle_heartbeats_soft: 1\n"
    with UepProcess(relay, home, template=template) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, nap, 0.5)])
        relay.results(1)
        began = time.monotonic()
        assert relay.expect(messages.Goodbye, timeout_s=60).code == "IDLE"
        assert time.monotonic() - began > 4.5
        assert uep.next_report()[:2] == ["ENDED", "IDLE"], uep.log()


def test_it_does_not_outlive_its_keeper(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        uep.report.close()
        assert "keeper" in relay.expect(messages.Goodbye).text
        assert uep.wait() == 0


def test_workers_do_not_outlive_it(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, nap, 60.0)])
        relay.expect(messages.Started)
        until("its children", lambda: len(uep.children()) >= 2)
        children = uep.children()
        uep.signal(signal.SIGKILL)
        uep.wait()
        until("the end of the processes", lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in children))


# --- the relay goes and comes back --------------------------------------------------------------------------


def test_relay_gone_and_back(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, nap, 0.5), task(2, nap, 3.0)])
        relay.expect(messages.Started)
        relay.close()
        until("spooled results", lambda: spooled(uep) == 1)  # the first result has nowhere to go
        back = relay.restarted()
        hello = back.welcome()
        assert isinstance(hello, messages.UepHello)
        assert sorted(hello.held) == [1, 2]
        again = back.results(1, confirm=False)
        assert again[1].code == ""
        back.submit(FUNCTIONS, [task(1, nap, 0.5)])  # repeated: the same result, no second run
        assert back.results(1)[1] == again[1]
        assert back.results(1)[2].code == ""
        back.expect(messages.Credit)
        back.submit(FUNCTIONS, [task(3, echo, 3)])
        assert back.results(1)[3].code == ""
        assert "relay link is down" in uep.log()
        back.close()


def test_a_relay_that_comes_later(relay: FakeRelay, home: pathlib.Path) -> None:
    relay.close()
    with UepProcess(relay, home) as uep:
        until("the lost link in the log", lambda: "relay link is down" in uep.log())
        back = relay.restarted()
        up(back, uep)
        back.close()


def test_somebody_else_at_the_relays_address_hears_nothing(relay: FakeRelay, home: pathlib.Path) -> None:
    relay.close()
    impostor = FakeRelay(relay.port)
    with UepProcess(relay, home) as uep:
        assert impostor.receive(2.0) is None  # above all, not the join token
        impostor.close()
        back = relay.restarted()
        up(back, uep)
        back.close()


def test_a_silent_relay_is_noticed(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        relay.welcome(heartbeat_s=0.2)
        assert uep.next_report() == ["READY"]
        time.sleep(1.5)  # no answer to pings: 3.5 heartbeats of silence
        messages_seen = [relay.receive(1.0) for _ in range(2)]
        hello = messages_seen[-1]
        while hello is not None and not isinstance(hello, messages.UepHello):
            hello = relay.receive(5.0)
        assert isinstance(hello, messages.UepHello)


def test_results_unconfirmed_at_a_crash_come_from_the_next_process(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as first:
        up(relay, first)
        relay.submit(FUNCTIONS, [task(row, echo, row) for row in (1, 2, 3)])
        relay.results(3, confirm=False)
        until("spooled results", lambda: spooled(first) == 3)
        first.signal(signal.SIGKILL)
        first.wait()
    with UepProcess(relay, home, uep_id=first.uep_id) as second:
        join = relay.welcome()
        assert isinstance(join, messages.Join)
        assert sorted(join.held) == [1, 2, 3]
        results = relay.results(3)
        assert [load_result(results[row].payload) for row in (1, 2, 3)] == [1, 2, 3]
        assert second.next_report() == ["READY"]


def test_a_join_whose_welcome_was_lost(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        assert isinstance(relay.receive(), messages.Join)
        relay.close()
        back = relay.restarted()
        assert isinstance(back.receive(), messages.Join)
        back.send(messages.Refused(code="JOIN_REFUSED", text="used", final=True))
        assert isinstance(back.welcome(), messages.UepHello)
        assert uep.next_report() == ["READY"]
        back.close()


def test_a_refused_join_ends_it(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as uep:
        assert isinstance(relay.receive(), messages.Join)
        relay.send(messages.Refused(code="JOIN_REFUSED", text="the token has expired", final=True))
        assert uep.next_report() == ["FAILED", "JOIN_REFUSED", "the token has expired"]
        uep.wait()


# --- it cannot start ----------------------------------------------------------------------------------------


def test_home_that_is_a_trap(relay: FakeRelay, home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (home / ".mep").symlink_to(tmp_path)
    with UepProcess(relay, home) as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "HOME_UNUSABLE"]
        assert "symbolic link" in report[2]
        uep.wait()
        assert uep.next_report() == []
    assert not list(tmp_path.iterdir())


def test_home_that_does_not_exist(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home / "nowhere") as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "HOME_UNUSABLE"]
        assert "No such file" in report[2]


def test_template_at_fault(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, template="engine: [") as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "ENDPOINT_MISCONFIGURED"]
        assert "t: " in report[3]  # the administrator reads where
        assert "t: " not in report[2]
        uep.wait()
        assert "ENDPOINT_MISCONFIGURED" in uep.log()


def test_setup_and_teardown(relay: FakeRelay, home: pathlib.Path) -> None:
    commands = f"endpoint_setup: touch {home}/up\nendpoint_teardown: echo bye > {home}/down\n"
    with UepProcess(relay, home, template=TEMPLATE + commands) as uep:
        up(relay, uep)
        assert (home / "up").exists()
        assert not (home / "down").exists()
        uep.signal(signal.SIGTERM)
        relay.expect(messages.Goodbye)
        uep.wait()
        assert (home / "down").read_text() == "bye\n"


def test_setup_that_fails(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, template=TEMPLATE + "endpoint_setup: echo no module >&2; exit 3\n") as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "ENDPOINT_MISCONFIGURED"]
        assert "status 3" in report[3]
        uep.wait()
        assert "no module" in uep.log()


def test_config_at_fault(relay: FakeRelay, home: pathlib.Path) -> None:
    schema = {"type": "object", "properties": {"WORKERS": {"type": "integer"}}}
    with UepProcess(relay, home, schema=schema, config={"WORKERS": "many"}) as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "USER_CONFIG_INVALID"]
        assert "WORKERS" in report[2]


def test_an_earlier_process_still_there(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home) as first:
        up(relay, first)
        with UepProcess(relay, home, uep_id=first.uep_id) as second:
            report = second.next_report()
            assert report[:2] == ["FAILED", "SITE_BUSY"]
            assert "still ending" in report[2]


@pytest.mark.root
def test_root_is_refused(relay: FakeRelay, home: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.setresuid", lambda *_ids: None)  # the child of this test stays root
    with UepProcess(relay, home) as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "START_FAILED"]
        assert "never runs as root" in report[3]
