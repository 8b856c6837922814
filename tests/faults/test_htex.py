"""GlobusComputeEngine when something dies: the worker, the pool, the interchange, the user endpoint; and blocks
that never come up. Real Parsl, real processes, LocalProvider."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mep_sdk.data_files import LIMIT_FILE
from mep_sdk.encoding import split_output
from mep_sdk.serialize import load_result, serialize_arguments, serialize_function
from mep_wire.data_frames import read_data
from mep_wire.errors import EndpointMisconfigured
from mep_wire.messages import ResultItem
from tests.support.waiting import until
from user_endpoint.engines.base import TICK_S, EngineOver, EngineTask, TaskReturned, TaskStarted
from user_endpoint.engines.htex.engine import HtexEngine
from user_endpoint.settings import GlobusComputeSettings as Settings
from user_endpoint.settings import JobStatusSettings


def echo(value: object) -> object:
    return value


def zeros(count: int) -> bytes:
    return bytes(count)


def note(path: str, seconds: float) -> int:
    import os
    import time

    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return os.getpid()


def brief(path: str, number: int) -> None:
    import os
    import time

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)
    time.sleep(0.001)


def variables() -> dict[str, str]:
    import os

    return {**os.environ, "processors": str(sorted(os.sched_getaffinity(0))), "cwd": os.getcwd()}


def where() -> str:
    import sys

    return sys.executable


PATIENT_S = 100.0
"""For tries with growing pauses between them, on a busy host."""


class Bench:
    """An engine and its output up to now."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.engine = HtexEngine(Settings(**{"max_workers_per_node": 2, **options}), run_directory=str(directory))
        self.engine.start()
        self.row = 0
        self.ended: dict[int, ResultItem] = {}
        self.started: list[int] = []
        self.returned: list[int] = []
        self.over: EngineOver | None = None
        self.stopped = False

    def stop(self) -> None:
        """Stop the engine, once."""
        if not self.stopped:
            self.stopped = True
            self.engine.stop(2.0)

    def submit(self, function: Callable[..., object], *args: object) -> int:
        self.row += 1
        code, payload = serialize_function(function), serialize_arguments(args, {})
        self.engine.submit([EngineTask(self.row, f"t{self.row}", function.__name__, code, payload, b"", 0.0)])
        return self.row

    def until(self, done: Callable[[], bool], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, (self.ended, self.started, self.returned)
            select.select([self.engine], [], [], TICK_S)
            for event in self.engine.collect():
                if isinstance(event, ResultItem):
                    assert event.row not in self.ended
                    self.ended[event.row] = event
                elif isinstance(event, TaskStarted):
                    self.started.append(event.row)
                elif isinstance(event, TaskReturned):
                    self.returned.append(event.row)
                elif isinstance(event, EngineOver):
                    self.over = event

    def wait(self, *rows: int, timeout_s: float = 60.0) -> list[ResultItem]:
        self.until(lambda: all(row in self.ended for row in rows), timeout_s)
        return [self.ended[row] for row in rows]

    def value(self, row: int, timeout_s: float = 60.0) -> Any:
        (item,) = self.wait(row, timeout_s=timeout_s)
        assert not item.code, item
        return load_result(item.payload)

    def blocks(self) -> list[str]:
        """The blocks that have a pool."""
        return sorted({part for pid in self.processes("pool_main") for part in _arguments(pid) if "--block_id" in part})

    def processes(self, name: str) -> list[int]:
        """Return the pids of this engine's own processes that have `name` in their command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().decode(errors="replace")
                    owner = line + (entry / "environ").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if name in line and (str(self.directory) in owner or self._is_ours(int(entry.name))):
                    found.append(int(entry.name))
        return found

    def _is_ours(self, pid: int) -> bool:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) == os.getpid()
        except OSError:
            return False


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(**options: Any) -> Bench:
        made.append(Bench(tmp_path / str(len(made)), **options))
        return made[-1]

    yield build
    for bench in made:
        bench.stop()
        for name in ("pool_main", "interchange_main"):
            assert bench.processes(name) == []


# --- processes that die -----------------------------------------------------------------------------------


def test_the_pool_is_killed(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(max_workers_per_node=1)
    running = bench.submit(note, str(tmp_path / "ran"), 30.0)
    waiting = [bench.submit(echo, number) for number in range(20)]
    bench.until(lambda: running in bench.started and (tmp_path / "ran").exists())
    for pid in bench.processes("pool_main"):
        with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
            os.kill(pid, signal.SIGKILL)
    (item,) = bench.wait(running)
    assert item.code == "WORKER_LOST"
    assert "gone" in item.text
    assert [bench.value(row) for row in waiting] == list(range(20))
    assert len((tmp_path / "ran").read_text().split()) == 1


def test_a_pool_that_outlives_its_block_ends_and_gets_no_task(make: Callable[..., Bench], tmp_path: Path) -> None:
    """A scheduler, or the host's, may kill the script and not its children: then nothing watches the pool any more."""
    bench = make(max_workers_per_node=1)
    running = bench.submit(note, str(tmp_path / "ran"), 60.0)
    bench.until(lambda: running in bench.started and (tmp_path / "ran").exists())
    pools = bench.processes("pool_main")
    _kill([pid for pid in bench.processes("submit_scripts") if pid not in pools])
    (item,) = bench.wait(running)
    assert item.code == "WORKER_LOST"
    assert bench.value(bench.submit(echo, 1)) == 1
    until("the pool's end", lambda: not [pid for pid in pools if Path(f"/proc/{pid}").exists()])


def test_tasks_on_their_way_to_a_pool_that_its_scheduler_ends_run_elsewhere(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    """The pool stands still until it is told to end, so that it says goodbye before it hears of them. Nearly always:
    where another of its threads takes the signal, it may begin them first, and then they're lost and don't run twice.
    """
    mark = tmp_path / "ran"
    mark.touch()
    bench = make(max_workers_per_node=2, prefetch_capacity=0)
    assert bench.value(bench.submit(echo, 1)) == 1
    (pool,) = (pid for pid in bench.processes("pool_main") if Path(f"/proc/{pid}/comm").read_text() == "mep-pool\n")
    os.kill(pool, signal.SIGSTOP)
    rows = [bench.submit(brief, str(mark), number) for number in range(2)]
    last = bench.submit(echo, 2)
    bench.engine.cancel([last])
    assert bench.wait(last)[0].code == "TASK_CANCELLED"  # the interchange has sent the first two
    os.kill(pool, signal.SIGTERM)
    os.kill(pool, signal.SIGCONT)
    codes = [item.code for item in bench.wait(*rows)]
    ran = mark.read_text().split()
    assert set(codes) <= {"", "WORKER_LOST"}
    assert sorted(ran) == ["0", "1"], "each has run, and once"


@pytest.mark.parametrize("victim", ["pool_main", "interchange_main"])
def test_a_thousand_tasks_each_end_once_and_none_runs_twice(
    make: Callable[..., Bench], tmp_path: Path, victim: str
) -> None:
    bench, mark = make(), tmp_path / "ran"
    rows = [bench.submit(brief, str(mark), number) for number in range(1000)]
    bench.until(lambda: len(bench.ended) > 300)
    for pid in bench.processes(victim):
        with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
            os.kill(pid, signal.SIGKILL)
    items = bench.wait(*rows)
    lost = {number for number, item in enumerate(items) if item.code}
    assert {item.code for item in items} <= {"", "WORKER_LOST"}
    assert len(lost) < 300
    ran = [int(number) for number in mark.read_text().split()]
    assert len(ran) == len(set(ran))
    assert {*ran} | lost == set(range(1000))


def test_the_interchange_is_killed(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(max_workers_per_node=1)
    running = bench.submit(note, str(tmp_path / "ran"), 30.0)
    waiting = [bench.submit(echo, number) for number in range(20)]
    bench.until(lambda: running in bench.started and (tmp_path / "ran").exists())
    for pid in bench.processes("interchange_main"):
        with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
            os.kill(pid, signal.SIGKILL)
    (item,) = bench.wait(running)
    assert item.code == "WORKER_LOST"
    assert "interchange" in item.text
    assert [bench.value(row) for row in waiting] == list(range(20))


def test_an_interchange_that_does_not_answer_is_replaced(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("user_endpoint.engines.htex.blocks.ASK_EVERY_S", 0.2)
    monkeypatch.setattr("user_endpoint.engines.htex.executor._SILENCE_S", 1.0)
    bench = make(max_workers_per_node=1)
    assert bench.value(bench.submit(echo, 1)) == 1
    for pid in bench.processes("interchange_main"):
        os.kill(pid, signal.SIGSTOP)
    rows = [bench.submit(echo, number) for number in range(5)]
    assert [bench.value(row) for row in rows] == list(range(5))


def _kill(pids: list[int]) -> set[int]:
    """Kill these; return the ones that were still there."""
    killed = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    return killed


def test_rare_deaths_of_the_interchange_are_not_added_up(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("user_endpoint.engines.htex.blocks.HEALTHY_S", 0.0)
    monkeypatch.setattr("user_endpoint.engines.htex.failures.MOST_WAIT_S", 0.001)
    bench = make(max_workers_per_node=1)
    for number in range(3):
        assert bench.value(bench.submit(echo, number)) == number
        _kill(bench.processes("interchange_main"))
    assert bench.value(bench.submit(echo, 7)) == 7
    assert bench.over is None


def test_an_interchange_that_dies_for_too_long_ends_the_user_endpoint(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("user_endpoint.engines.htex.failures.MOST_WAIT_S", 3.0)
    bench = make(max_workers_per_node=1)
    assert bench.value(bench.submit(echo, 7)) == 7
    deadline = time.monotonic() + 60
    while bench.over is None and time.monotonic() < deadline:
        _kill(bench.processes("interchange_main"))
        bench.until(lambda: bench.over is not None or bool(bench.processes("interchange_main")))
    assert bench.over is not None
    assert bench.over.code == "ENGINE_FAILED"
    assert "interchange failed" in bench.over.text
    (item,) = bench.wait(bench.submit(echo, 1))
    assert item.code == "ENGINE_FAILED"


@pytest.mark.timeout(240)
def test_an_interchange_that_is_killed_at_its_start_is_started_again(make: Callable[..., Bench]) -> None:
    """Every one of the first four, before it can have said that it is up: the tasks wait, and run."""
    bench = make(max_workers_per_node=1)
    rows = [bench.submit(echo, number) for number in range(20)]
    killed: set[int] = set()

    def four_are_killed() -> bool:
        if len(killed) < 4:
            killed.update(_kill([pid for pid in bench.processes("interchange_main") if pid not in killed]))
        return len(killed) >= 4

    bench.until(four_are_killed, PATIENT_S)
    assert [bench.value(row, timeout_s=PATIENT_S) for row in rows] == list(range(20))


def test_the_engine_does_not_run_a_lost_task_again_by_itself(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(max_workers_per_node=1, max_retries_on_system_failure=1)  # which the user endpoint heeds
    mark = tmp_path / "ran"
    row = bench.submit(note, str(mark), 30.0)
    bench.until(lambda: row in bench.started and mark.exists())
    for pid in bench.processes("pool_main"):
        with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
            os.kill(pid, signal.SIGKILL)
    (item,) = bench.wait(row)
    assert item.code == "WORKER_LOST"
    assert bench.value(bench.submit(echo, 1)) == 1
    assert len(mark.read_text().split()) == 1


def test_nothing_outlives_a_user_endpoint_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import select, sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(pytest.__file__).parents[1])!r}]\n"
        f"sys.path.append({str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\n"
        "from test_htex import Bench, note\n"
        f"bench = Bench(Path({str(tmp_path)!r}))\n"
        "row = bench.submit(note, sys.argv[1], 60.0)\n"
        "bench.until(lambda: row in bench.started and Path(sys.argv[1]).exists())\n"
        "print('running', flush=True)\n"
        "bench.until(lambda: False, 60.0)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "ran")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    worker = int((tmp_path / "ran").read_text())
    process.kill()
    process.wait()
    until("the worker's end", lambda: not Path(f"/proc/{worker}").exists())


# --- blocks that do not come up ---------------------------------------------------------------------------


def test_a_block_that_ends_at_once_fails_what_waits_with_its_own_words(make: Callable[..., Bench]) -> None:
    bench = make(provider={"type": "LocalProvider", "worker_init": "echo no such module: quux >&2; exit 3"})
    rows = [bench.submit(echo, number) for number in range(5)]
    items = bench.wait(*rows)
    assert {item.code for item in items} == {"ENGINE_FAILED"}
    assert "no such module: quux" in items[0].text
    assert "worker_init: exit status 3" in items[0].text
    scripts = list((bench.directory / "htex" / "submit_scripts").glob("*.sh"))
    assert len(scripts) == 3


def test_a_block_whose_workers_never_register(make: Callable[..., Bench]) -> None:
    bench = make(launch_cmd="sleep 77", block_start_timeout_s=0.3)
    began = time.monotonic()
    (item,) = bench.wait(bench.submit(echo, 1))
    assert item.code == "ENGINE_FAILED"
    assert "had not registered" in item.text
    assert time.monotonic() - began < 60.0  # of the 77


@pytest.mark.timeout(240)
def test_blocks_that_are_killed_at_their_start_fail_no_task(make: Callable[..., Bench], tmp_path: Path) -> None:
    """More of them than broken ones are tried, one after the other, and each before its workers register."""
    go = tmp_path / "go"
    slow = f"while [ ! -e {go} ]; do sleep 0.2; done"
    bench = make(max_workers_per_node=1, provider={"type": "LocalProvider", "worker_init": slow})
    rows = [bench.submit(echo, number) for number in range(20)]
    killed: set[str] = set()

    def four_are_killed() -> bool:
        for pid in bench.processes("submit_scripts"):
            scripts = {part for part in _arguments(pid) if "submit_scripts" in part and part.endswith(".sh")}
            if scripts and _kill([pid]):
                killed.update(scripts)
        return len(killed) >= 4

    bench.until(four_are_killed, PATIENT_S)
    go.touch()
    assert [bench.value(row, timeout_s=PATIENT_S) for row in rows] == list(range(20))


@pytest.mark.root
def test_a_disk_that_is_full_for_a_while_fails_no_task(make: Callable[..., Bench], tmp_path: Path) -> None:
    home = tmp_path / "0"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(home)], check=True)
    try:
        bench = make(provider={"type": "LocalProvider", "init_blocks": 0})
        bench.until(lambda: bench.engine._client is not None)
        with pytest.raises(OSError, match="No space"), (home / "full").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        rows = [bench.submit(echo, number) for number in range(20)]
        bench.until(lambda: len(bench.engine._blocks._block_failures) >= 3)
        bench.until(lambda: bool(bench.engine.trouble))
        assert not bench.ended
        assert "will be tried again" in bench.engine.trouble
        (home / "full").unlink()
        assert [bench.value(row) for row in rows] == list(range(20))
        assert not bench.engine.trouble
        bench.stop()
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_cancelled_task_is_not_run_again_where_its_node_dies(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(max_workers_per_node=1, max_retries_on_system_failure=3)
    row = bench.submit(note, str(tmp_path / "ran"), 30.0)
    bench.until(lambda: row in bench.started and (tmp_path / "ran").exists())
    pools = bench.processes("pool_main")
    for pid in pools:
        os.kill(pid, signal.SIGSTOP)  # it must not hear of the cancellation
    bench.engine.cancel([row])
    for pid in pools:
        with contextlib.suppress(ProcessLookupError):  # it went with an earlier process
            os.kill(pid, signal.SIGKILL)
    (item,) = bench.wait(row)
    assert item.code == "TASK_CANCELLED"
    assert bench.value(bench.submit(echo, 1)) == 1


def test_cancel_in_parsls_own_pool_is_at_once(make: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make(launch_cmd=stock_launch_command(), max_workers_per_node=1)
    row = bench.submit(note, str(tmp_path / "ran"), 1.0)
    bench.until((tmp_path / "ran").exists)
    bench.engine.cancel([row])
    (item,) = bench.wait(row)
    assert item.code == "TASK_CANCELLED"
    assert bench.value(bench.submit(echo, 1)) == 1


def test_cancel_before_any_block_is_up(make: Callable[..., Bench]) -> None:
    bench = make(launch_cmd="sleep 77")
    rows = [bench.submit(echo, 1) for _ in range(3)]
    bench.engine.cancel(rows)
    assert {item.code for item in bench.wait(*rows)} == {"TASK_CANCELLED"}


# --- blocks as they should be -----------------------------------------------------------------------------


def test_idle_blocks_end_and_come_back(make: Callable[..., Bench]) -> None:
    bench = make(job_status_kwargs=JobStatusSettings(max_idletime=0.5, strategy_period=0.2))
    assert bench.value(bench.submit(echo, 1)) == 1
    bench.until(lambda: not bench.processes("pool_main"))
    assert bench.value(bench.submit(echo, 2)) == 2


def test_no_block_is_started_before_there_is_a_task_where_none_is_asked_for(make: Callable[..., Bench]) -> None:
    bench = make(provider={"type": "LocalProvider", "init_blocks": 0, "max_blocks": 2})
    bench.until(lambda: bool(bench.processes("interchange_main")))
    time.sleep(0.5)
    assert not bench.processes("pool_main")
    assert bench.value(bench.submit(echo, 1)) == 1


def test_blocks_are_added_while_tasks_wait_and_each_idle_one_is_removed(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make(
        max_workers_per_node=1,
        strategy="htex_auto_scale",
        job_status_kwargs=JobStatusSettings(max_idletime=0.3, strategy_period=0.2),
        provider={"type": "LocalProvider", "max_blocks": 3, "min_blocks": 0},
    )
    marks = [tmp_path / f"mark{number}" for number in range(3)]
    rows = [bench.submit(note, str(mark), 1.0 if number else 4.0) for number, mark in enumerate(marks)]
    bench.until(lambda: all(mark.exists() for mark in marks))
    assert not bench.ended
    bench.wait(*rows[1:])
    bench.until(lambda: len(bench.blocks()) == 1)
    assert rows[0] not in bench.ended
    bench.value(rows[0])
    bench.until(lambda: not bench.blocks())


@pytest.mark.parametrize(
    "options",
    [
        {"encrypted": False},
        {"worker_port_range": (21000, 22000), "interchange_port_range": (22001, 23000)},
        {"strategy": "none"},
        {"strategy": {"type": "SimpleStrategy"}},
        {"address": "127.0.0.1", "heartbeat_period": 1, "heartbeat_threshold": 3, "worker_debug": True},
        {"cores_per_worker": 0.5, "mem_per_worker": 0.01, "prefetch_capacity": 0, "drain_period": 3600},
        {"label": "a b/../c"},
    ],
    ids=str,
)
def test_options_in_use(make: Callable[..., Bench], options: dict[str, Any]) -> None:
    bench = make(**msgspec.structs.asdict(msgspec.convert({"type": "GlobusComputeEngine", **options}, Settings)))
    assert [bench.value(bench.submit(echo, number)) for number in range(3)] == [0, 1, 2]


def test_workers_have_their_place(make: Callable[..., Bench]) -> None:
    processors = sorted(os.sched_getaffinity(0))
    bench = make(
        max_workers_per_node=1,
        available_accelerators=["7"],
        cpu_affinity="list:" + str(processors[0]),
        working_dir="here",
    )
    seen = bench.value(bench.submit(variables))
    assert seen["PARSL_WORKER_RANK"] == "0"
    assert seen["CUDA_VISIBLE_DEVICES"] == "7"
    assert seen["ROCR_VISIBLE_DEVICES"] == "7"
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["processors"] == str(processors[:1])
    assert seen["cwd"] == str(bench.directory / "here")


def test_an_activated_environment_is_the_one_that_runs_tasks(make: Callable[..., Bench], tmp_path: Path) -> None:
    env = tmp_path / "env"
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").write_text(f'#!/bin/sh\nMARK=activated exec {sys.executable} "$@"\n')
    (env / "bin" / "python").chmod(0o755)
    bench = make(provider={"type": "LocalProvider", "worker_init": f"export VIRTUAL_ENV={env}"})
    assert bench.value(bench.submit(variables))["MARK"] == "activated"


def stock_launch_command() -> str:
    from user_endpoint.engines.htex.parsl_import import light_parsl

    with light_parsl():
        from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    return f"PATH={Path(sys.executable).parent}:$PATH {DEFAULT_LAUNCH_CMD}"


def test_parsls_own_worker_pool_can_be_used(make: Callable[..., Bench]) -> None:
    bench = make(launch_cmd=stock_launch_command(), max_workers_per_node=1)
    assert [bench.value(bench.submit(echo, number), timeout_s=30) for number in range(3)] == [0, 1, 2]


def test_large_results_of_parsls_own_pool_go_by_reference(make: Callable[..., Bench]) -> None:
    bench = make(launch_cmd=stock_launch_command(), max_workers_per_node=1)
    data = bench.directory / "data"
    data.mkdir(mode=0o700)
    (data / LIMIT_FILE).write_text("20000000")
    (item,) = bench.wait(bench.submit(zeros, 12_000_000), timeout_s=30)
    assert item.code == ""
    frame = read_data(split_output(item.payload)[2])
    assert frame is not None and frame.size > 12_000_000
    assert all((data / digest.hex()).is_file() for digest in frame.digests)


def test_ports_are_outside_of_the_ephemeral_range_and_keys_are_private(make: Callable[..., Bench]) -> None:
    bench = make()
    assert bench.value(bench.submit(echo, 1)) == 1
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    (command,) = {
        line
        for pid in bench.processes("pool_main")
        for line in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if line.startswith("--port=")
    }
    assert not low <= int(command.removeprefix("--port=")) <= high
    keys = bench.directory / "htex" / "GlobusComputeEngine" / "certificates"
    assert keys.stat().st_mode & 0o777 == 0o700


def test_a_stranger_is_not_let_in(make: Callable[..., Bench]) -> None:
    import zmq

    bench = make()
    assert bench.value(bench.submit(echo, 1)) == 1
    (pid, *_) = bench.processes("pool_main")
    options = dict(
        part.removeprefix("--").split("=", 1)
        for part in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if part.startswith("--")
    )
    server_key = next(
        line.split('"')[1]
        for line in (bench.directory / "htex/GlobusComputeEngine/certificates/server.key").read_text().splitlines()
        if "public-key" in line
    )
    public, secret = zmq.curve_keypair()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = server_key.encode(), public, secret
        socket.connect(f"tcp://127.0.0.1:{options['port']}")
        socket.send(__import__("pickle").dumps({"type": "connection_probe"}))
        assert not socket.poll(500)
    context.term()


@pytest.mark.parametrize(
    ("provider", "says"),
    [
        ({"type": "LocalProvidr"}, "LocalProvider"),
        ({"type": "LocalProvider", "max_block": 1}, "max_blocks"),
        ({"type": "LocalProvider", "max_blocks": "two"}, "engine.provider.max_blocks: expected int"),
        ({"type": "SlurmProvider", "account": 7}, "engine.provider.account"),
        ({"type": "LocalProvider", "launcher": {"type": "SrunLauncher", "overide": "x"}}, "overrides"),
        ({"type": "LocalProvider", "launcher": "SrunLauncher"}, "launcher"),
        ({"type": "__builtins__"}, "Parsl has no"),
    ],
)
def test_a_provider_that_parsl_does_not_have(tmp_path: Path, provider: dict[str, object], says: str) -> None:
    with pytest.raises(EndpointMisconfigured) as caught:
        HtexEngine(Settings(provider=provider), run_directory=str(tmp_path))
    assert says in caught.value.detail
