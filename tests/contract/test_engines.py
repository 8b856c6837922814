"""One suite over every engine: the contract of user_endpoint/engines/base.py, with real workers."""

from __future__ import annotations

import errno
import itertools
import os
import pathlib
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mep_sdk.encoding import split_output
from mep_sdk.serialize import load_exception, load_result, serialize_arguments, serialize_function
from mep_wire.messages import ResultItem
from user_endpoint.engines import EngineContext, make_engine
from user_endpoint.engines.base import (
    OUTPUT_BYTES,
    TICK_S,
    Engine,
    EngineTask,
    Event,
    TaskOutput,
    TaskReturned,
    TaskStarted,
)
from user_endpoint.settings import EngineSettings, GlobusComputeSettings, ProcessPoolSettings, ThreadPoolSettings
from user_endpoint.workers.fork_server import ServerHandle, exec_server

SETTINGS: dict[str, Callable[[], EngineSettings]] = {
    "htex": lambda: GlobusComputeSettings(max_workers_per_node=2),
    "process": lambda: ProcessPoolSettings(max_workers=2),
    "thread": lambda: ThreadPoolSettings(max_workers=2),
}
KILLS = ["htex", "process"]
"""Engines that let a test kill running tasks and workers."""


# --- running tasks -------------------------------------------------------------------------------------


def echo(value: object) -> object:
    return value


def nap(seconds: float) -> float:
    import time

    time.sleep(seconds)
    return seconds


def fail(text: str) -> None:
    raise KeyError(text)


def unpicklable() -> object:
    import threading

    return threading.Lock()


def big(size: int) -> bytes:
    return b"x" * size


def leave(status: int) -> None:
    import os

    os._exit(status)


def quit_politely() -> None:
    raise SystemExit(3)


def die_by(number: int) -> None:
    import os

    os.kill(os.getpid(), number)


def note_and_nap(path: str, seconds: float) -> None:
    import pathlib
    import time

    with pathlib.Path(path).open("a") as file:
        file.write("ran\n")
    time.sleep(seconds)


def sign_and_nap(path: str, seconds: float) -> None:
    import os
    import pathlib
    import time

    with pathlib.Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)


def shout(size: int) -> str:
    import sys

    line = "x" * 1023 + "\n"
    for _ in range(size // 1024):
        sys.stdout.write(line)
    sys.stdout.flush()
    return "done"


def say_and_wait(text: str, path: str) -> None:
    import pathlib
    import sys
    import time

    print(text)
    print("beware", text, file=sys.stderr)
    while not pathlib.Path(path).exists():
        time.sleep(0.02)
    print("end of", text)


def close_and_say(path: str) -> None:
    import os

    os.closerange(3, 1000)
    with open(path, "wb") as file:
        for _ in range(20):
            print("said")
        file.write(b"kept")


def fork_and_linger() -> int:
    import os
    import time

    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    return pid


def scribble() -> int:
    import contextlib
    import os

    for descriptor in range(3, 40):
        with contextlib.suppress(OSError):
            os.write(descriptor, b"Test output of some library")
            os.write(descriptor, b"M")
    return 1


def found_commands(names: list[str]) -> list[str | None]:
    import shutil

    return [shutil.which(name) for name in names]


def parent_of_worker() -> int:
    import os

    return os.getppid()


def stop_the_parent() -> int:
    import os
    import signal

    os.kill(os.getppid(), signal.SIGSTOP)
    return 1


def fork_and_return() -> int:
    import os

    os.fork()
    return 7


def close_everything() -> None:
    import os

    os.closerange(3, 256)


class Bench:
    """An engine and its output up to now."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.row = 0
        self.ended: dict[int, ResultItem] = {}
        self.returned: list[int] = []
        self.started: set[int] = set()
        self.printed: dict[int, list[TaskOutput]] = {}
        self.functions: dict[Callable[..., object], bytes] = {}

    def task(
        self, function: Callable[..., object], *args: object, walltime_s: float = 0.0, live: bool = False
    ) -> EngineTask:
        self.row += 1
        code = self.functions.setdefault(function, serialize_function(function))
        payload = serialize_arguments(args, {}, live_output=live)
        return EngineTask(self.row, f"task-{self.row}", function.__name__, code, payload, b"", walltime_s)

    def submit(
        self, function: Callable[..., object], *args: object, walltime_s: float = 0.0, live: bool = False
    ) -> int:
        task = self.task(function, *args, walltime_s=walltime_s, live=live)
        self.engine.submit([task])
        return task.row

    def turn(self, timeout_s: float = TICK_S) -> list[Event]:
        select.select([self.engine], [], [], timeout_s)
        events = self.engine.collect()
        for event in events:
            match event:
                case ResultItem():
                    assert event.row not in self.ended
                    assert event.row not in self.returned
                    self.ended[event.row] = event
                case TaskReturned():
                    assert event.row not in self.ended
                    self.returned.append(event.row)
                case TaskStarted():
                    assert event.row not in self.ended
                    self.started.add(event.row)
                case TaskOutput():
                    assert event.row not in self.ended
                    self.printed.setdefault(event.row, []).append(event)
        return events

    def output(self, row: int, stream: int = 0) -> bytes:
        """Return what has come of a task's output so far."""
        return b"".join(each.data for each in self.printed.get(row, []) if each.stream == stream)

    def until(self, done: Callable[[], bool], timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, (self.ended, self.started)
            self.turn()

    def wait(self, *rows: int, timeout_s: float = 60.0) -> list[ResultItem]:
        self.until(lambda: all(row in self.ended for row in rows), timeout_s)
        return [self.ended[row] for row in rows]

    def value(self, row: int) -> object:
        (item,) = self.wait(row)
        assert not item.code, item
        return load_result(item.payload)


def place(tmp_path: pathlib.Path) -> EngineContext:
    return EngineContext(str(tmp_path), str(tmp_path / "worker.log"), exec_server)


@pytest.fixture(params=sorted(SETTINGS))
def bench(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Bench]:
    engine = make_engine(SETTINGS[request.param](), place(tmp_path))
    engine.start()
    yield Bench(engine)
    engine.stop(2.0)


@pytest.fixture(params=KILLS)
def killing(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Bench]:
    engine = make_engine(SETTINGS[request.param](), place(tmp_path))
    engine.start()
    yield Bench(engine)
    engine.stop(2.0)


# --- every engine -----------------------------------------------------------------------------------------


def test_returns_values_with_times(bench: Bench) -> None:
    before = time.time()
    row = bench.submit(echo, {"a": [1, 2.5, None]})
    assert bench.value(row) == {"a": [1, 2.5, None]}
    item = bench.ended[row]
    assert item.task_id == f"task-{row}"
    assert before - 1 < item.started_at <= item.ended_at < time.time() + 1


def test_an_exception_comes_back_as_one(bench: Bench) -> None:
    (item,) = bench.wait(bench.submit(fail, "no such thing"))
    assert item.code == "TASK_FAILED"
    assert "no such thing" in item.text
    error = load_exception(item.payload)
    assert isinstance(error, KeyError)


def test_a_function_that_is_none(bench: Bench) -> None:
    task = EngineTask(1, "t", "broken", b"not a function", serialize_arguments((), {}), b"", 0.0)
    bench.engine.submit([task])
    (item,) = bench.wait(1)
    assert item.code == "FUNCTION_UNLOADABLE"


def test_a_result_that_cannot_be_serialized(bench: Bench) -> None:
    (item,) = bench.wait(bench.submit(unpicklable))
    assert item.code == "RESULT_UNSERIALIZABLE"
    assert "lock" in item.text


def test_a_result_over_the_limit(bench: Bench) -> None:
    (item,) = bench.wait(bench.submit(big, 11 << 20))
    assert item.code == "RESULT_TOO_LARGE"
    assert item.payload == b""


def test_large_arguments_and_results_come_through(bench: Bench) -> None:
    data = os.urandom(3 << 20)
    rows = [bench.submit(echo, data) for _ in range(4)]
    for row in rows:
        assert bench.value(row) == data


def test_tasks_find_the_commands_of_their_python(bench: Bench) -> None:
    """A Parsl workflow within a task starts these two by name."""
    names = ["interchange.py", "process_worker_pool.py"]
    row = bench.submit(found_commands, names)
    bench.wait(row)
    assert bench.value(row) == [f"{sys.prefix}/bin/{name}" for name in names]


def test_system_exit_is_the_tasks_own_failure(bench: Bench) -> None:
    (item,) = bench.wait(bench.submit(quit_politely))
    assert item.code == "TASK_FAILED"


def test_many_tasks_each_end_once(bench: Bench) -> None:
    tasks = [bench.task(echo, number) for number in range(1000)]
    for at in range(0, 1000, 100):
        bench.engine.submit(tasks[at : at + 100])
        bench.turn(0)
    bench.wait(*(task.row for task in tasks))
    assert [load_result(bench.ended[task.row].payload) for task in tasks] == list(range(1000))
    assert bench.turn(0.05) == []


def test_workers_run_side_by_side(bench: Bench) -> None:
    bench.wait(bench.submit(echo, 1))
    rows = [bench.submit(nap, 60.0) for _ in range(2)]
    bench.until(lambda: bench.started.issuperset(rows))
    assert not bench.ended.keys() & set(rows)
    bench.engine.cancel(rows)
    bench.wait(*rows)


def test_nothing_waits_behind_a_long_task_while_a_worker_is_idle(bench: Bench) -> None:
    bench.wait(*[bench.submit(echo, 1) for _ in range(50)])  # measured as short
    bench.wait(*[bench.submit(nap, 0.0) for _ in range(50)])
    tasks = [bench.task(nap, 0.0) for _ in range(20)]
    tasks += [bench.task(nap, 60.0)]  # unlike the measured durations
    tasks += [bench.task(nap, 0.0) for _ in range(100)]
    long = tasks[20].row
    bench.engine.submit(tasks)
    bench.wait(*[task.row for task in tasks if task.row != long])
    assert long not in bench.ended
    bench.engine.cancel([long])


def test_nothing_waits_behind_a_long_task_while_others_keep_coming(tmp_path: pathlib.Path) -> None:
    bench = begun(ProcessPoolSettings(max_workers=2), place(tmp_path))
    bench.wait(*[bench.submit(nap, 0.0) for _ in range(100)])  # measured as short
    tasks = [bench.task(nap, 60.0 if at == 20 else 0.0) for at in range(121)]
    long, others = tasks[20].row, {task.row for task in tasks} - {tasks[20].row}
    bench.engine.submit(tasks)

    def ended() -> bool:
        if bench.row - len(bench.ended) < 500:
            bench.engine.submit([bench.task(nap, 0.0) for _ in range(200)])
        return others <= bench.ended.keys()

    try:
        bench.until(ended, timeout_s=30.0)
    finally:
        bench.engine.stop(2.0)
    assert long not in bench.ended


def test_cancel_of_a_waiting_task(bench: Bench, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    busy = [bench.submit(nap, 60.0) for _ in range(2)]
    waiting = bench.submit(note_and_nap, str(mark), 0.0)
    bench.until(lambda: bench.started.issuperset(busy))
    bench.engine.cancel([waiting, 99999])
    (item,) = bench.wait(waiting)
    assert item.code == "TASK_CANCELLED"
    assert not bench.ended.keys() & set(busy), "at once, not when a worker is free"
    bench.engine.cancel(busy)
    bench.wait(*busy)
    bench.turn(0.1)
    assert not mark.exists()


def test_cancel_of_a_running_task_ends_it_for_the_person_at_once(bench: Bench) -> None:
    row = bench.submit(nap, 60.0)
    bench.until(lambda: row in bench.started)
    bench.turn(0.1)
    bench.engine.cancel([row])
    began = time.monotonic()
    (item,) = bench.wait(row)
    assert item.code == "TASK_CANCELLED"
    assert time.monotonic() - began < 30.0
    assert bench.value(bench.submit(echo, 5)) == 5


def test_walltime(bench: Bench) -> None:
    began = time.monotonic()
    (item,) = bench.wait(bench.submit(nap, 60.0, walltime_s=0.4))
    assert item.code == "WALLTIME_EXCEEDED"
    assert "0.4 s" in item.text
    assert 0.35 < time.monotonic() - began < 30.0


def test_drain_gives_back_what_has_not_started(bench: Bench, tmp_path: pathlib.Path) -> None:
    marks = [tmp_path / "a", tmp_path / "b"]
    running = [bench.submit(note_and_nap, str(mark), 0.5) for mark in marks]
    bench.until(lambda: all(mark.exists() for mark in marks))
    waiting = [bench.submit(nap, 0.5) for _ in range(4)]
    bench.engine.drain()
    bench.until(lambda: sorted(bench.returned) == waiting)
    late = bench.submit(echo, 1)
    bench.until(lambda: late in bench.returned)
    bench.wait(*running)
    assert not any(bench.ended[row].code for row in running)


def test_capacity_is_enough_to_keep_workers_busy(bench: Bench) -> None:
    assert bench.engine.capacity >= 2
    for _ in range(3):
        bench.wait(*[bench.submit(echo, 1) for _ in range(bench.engine.capacity)])
    assert bench.engine.capacity >= 2


def test_stop_leaves_no_process(bench: Bench) -> None:
    row = bench.submit(nap, 60.0)
    bench.until(lambda: row in bench.started)
    began = time.monotonic()
    bench.engine.stop(0.5)
    bench.engine.stop = lambda grace_s: None  # type: ignore[method-assign]
    assert time.monotonic() - began < 30.0
    children = pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert not children


def test_nothing_waits_behind_tasks_that_were_ended(bench: Bench) -> None:
    rows = [bench.submit(nap, 60.0, walltime_s=0.3) for _ in range(2)]
    waiting = bench.submit(echo, 5)
    assert [item.code for item in bench.wait(*rows)] == ["WALLTIME_EXCEEDED"] * 2
    assert bench.value(waiting) == 5
    more = [bench.submit(nap, 60.0) for _ in range(2)]
    bench.until(lambda: bench.started.issuperset(more))
    bench.engine.cancel(more)
    assert bench.value(bench.submit(echo, 6)) == 6


def test_threads_that_cannot_be_killed_are_bounded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("user_endpoint.engines.thread_pool.MAX_ABANDONED", 2)
    bench = begun(ThreadPoolSettings(max_workers=2), place(tmp_path))
    rows = [bench.submit(nap, 20.0) for _ in range(2)]
    bench.until(lambda: bench.started.issuperset(rows))
    bench.engine.cancel(rows)
    (item,) = bench.wait(bench.submit(echo, 1))
    assert (item.code, "cannot be killed" in item.text) == ("ENGINE_FAILED", True)
    bench.engine.stop(0.0)


# --- engines with processes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "argument", "says"),
    [(leave, 3, "status 3"), (die_by, signal.SIGSEGV, "SIGSEGV"), (die_by, signal.SIGKILL, "SIGKILL")],
)
def test_a_worker_that_dies_fails_its_task_and_no_other(
    killing: Bench, function: Callable[..., object], argument: int, says: str
) -> None:
    killing.wait(*[killing.submit(echo, 1) for _ in range(20)])
    tasks = [killing.task(echo, number) for number in range(40)]
    lethal = killing.task(function, int(argument))
    killing.engine.submit([*tasks[:20], lethal, *tasks[20:]])
    rows = [task.row for task in tasks]
    items = killing.wait(*rows, lethal.row)
    assert items[-1].code == "WORKER_LOST"
    assert says in items[-1].text
    assert [load_result(item.payload) for item in items[:-1]] == list(range(40))


def test_a_lost_task_is_not_run_again(killing: Bench, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    row = killing.submit(sign_and_nap, str(mark), 30.0)
    killing.until(lambda: mark.exists() and mark.read_text().endswith("\n"))
    worker = int(mark.read_text())
    os.kill(worker, signal.SIGKILL)
    (item,) = killing.wait(row)
    assert item.code == "WORKER_LOST"
    killing.wait(killing.submit(echo, 1))
    assert mark.read_text() == f"{worker}\n"


def test_a_gigabyte_of_output_harms_nobody(killing: Bench, tmp_path: pathlib.Path) -> None:
    loud = killing.submit(shout, 256 << 20)
    assert killing.value(killing.submit(echo, 1)) == 1
    killing.wait(loud, timeout_s=110)
    assert sum(path.stat().st_size for path in tmp_path.glob("worker.log*")) <= 2 << 20


def test_output_comes_while_a_task_runs(killing: Bench, tmp_path: pathlib.Path) -> None:
    """Twice, since the second task finds what the first has made."""
    for number in range(2):
        go = tmp_path / f"go{number}"
        rows = [killing.submit(say_and_wait, f"task {each}", str(go), live=True) for each in range(2)]
        silent = killing.submit(echo, 1)
        for at, row in enumerate(rows):
            killing.until(lambda: killing.output(row) and killing.output(row, 1))  # noqa: B023 - called at once
            assert killing.output(row) == b"task %d\n" % at
            assert killing.output(row, 1) == b"beware task %d\n" % at
        go.touch()
        for at, item in enumerate(killing.wait(*rows)):
            assert split_output(item.payload)[0] == b"task %d\nend of task %d\n" % (at, at)
        killing.wait(silent)
        assert silent not in killing.printed


def test_a_killed_task_leaves_its_last_words(killing: Bench, tmp_path: pathlib.Path) -> None:
    row = killing.submit(say_and_wait, "hello", str(tmp_path / "never"), live=True)
    killing.until(lambda: killing.output(row))
    killing.engine.cancel([row])
    (item,) = killing.wait(row)
    assert (item.code, killing.output(row)) == ("TASK_CANCELLED", b"hello\n")


def test_a_gigabyte_of_live_output_harms_nobody(killing: Bench) -> None:
    loud = killing.submit(shout, 256 << 20, live=True)
    assert killing.value(killing.submit(echo, 1)) == 1
    (item,) = killing.wait(loud, timeout_s=110)
    kept = split_output(item.payload)[0]
    assert len(kept) < 65 * 1024
    pieces = killing.printed[loud]
    assert all(len(each.data) <= OUTPUT_BYTES // 2 for each in pieces)
    assert all(a.position + len(a.data) <= b.position for a, b in itertools.pairwise(pieces))


def test_live_output_never_goes_into_a_file_of_the_tasks_own(killing: Bench, tmp_path: pathlib.Path) -> None:
    """The task closes whatever is open, and the next file gets a number that was in use."""
    killing.wait(killing.submit(echo, 1, live=True))
    killing.wait(killing.submit(close_and_say, str(tmp_path / "own"), live=True))
    assert (tmp_path / "own").read_bytes() == b"kept"


def test_a_child_that_lingers_holds_nothing_up(killing: Bench) -> None:
    """The children take ten minutes, and this waits for one."""
    killing.wait(*[killing.submit(fork_and_linger) for _ in range(4)])
    assert killing.value(killing.submit(echo, 1)) == 1


def test_a_child_that_returns_is_no_second_worker(killing: Bench) -> None:
    rows = [killing.submit(fork_and_return) for _ in range(10)]
    assert [killing.value(row) for row in rows] == [7] * 10
    assert killing.value(killing.submit(echo, 1)) == 1


def test_a_task_that_closes_the_workers_socket(killing: Bench) -> None:
    (item,) = killing.wait(killing.submit(close_everything))
    assert item.code == "WORKER_LOST"
    assert killing.value(killing.submit(echo, 1)) == 1


def test_a_task_that_writes_to_what_is_not_its_own(killing: Bench) -> None:
    killing.wait(*[killing.submit(echo, 1) for _ in range(4)])
    near = [killing.submit(nap, 0.5)]
    (item,) = killing.wait(killing.submit(scribble))
    assert item.code in ("", "WORKER_LOST")  # it may be answered before its worker is killed
    assert [killing.value(row) for row in near] == [0.5]
    assert killing.value(killing.submit(echo, 1)) == 1


def test_cancel_and_walltime_kill_the_process(killing: Bench, tmp_path: pathlib.Path) -> None:
    marks = [tmp_path / "a", tmp_path / "b"]
    rows = [killing.submit(note_and_nap, str(marks[0]), 30.0),
            killing.submit(note_and_nap, str(marks[1]), 30.0, walltime_s=0.3)]  # fmt: skip
    killing.until(lambda: all(mark.exists() for mark in marks))
    killing.engine.cancel(rows[:1])
    assert [item.code for item in killing.wait(*rows)] == ["TASK_CANCELLED", "WALLTIME_EXCEEDED"]
    rows = [killing.submit(nap, 60.0) for _ in range(2)]
    killing.until(lambda: killing.started.issuperset(rows))  # both workers are free again
    killing.engine.cancel(rows)
    killing.wait(*rows)


# --- the process engine's fork server -----------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[Bench]:
    made = begun(ProcessPoolSettings(max_workers=2), place(tmp_path))
    yield made
    made.engine.stop(0.5)


def begun(settings: EngineSettings, where: EngineContext) -> Bench:
    engine = make_engine(settings, where)
    engine.start()
    return Bench(engine)


def server_of(bench: Bench) -> int:
    """Return the pid of the fork server, which forks this bench's workers."""
    value = bench.value(bench.submit(parent_of_worker))
    assert isinstance(value, int)
    return value


def test_a_fork_server_that_cannot_be_started_again_at_first(tmp_path: pathlib.Path) -> None:
    refused = iter([False, True, True, False, False])

    def server() -> ServerHandle:
        if next(refused):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        return exec_server()

    bench = begun(ProcessPoolSettings(max_workers=2), EngineContext(str(tmp_path), "", server))
    try:
        os.kill(server_of(bench), signal.SIGKILL)
        rows = [bench.submit(echo, number) for number in range(3)]
        assert all(not item.code or item.code == "WORKER_LOST" for item in bench.wait(*rows))
        assert bench.value(bench.submit(echo, 7)) == 7
    finally:
        bench.engine.stop(0.5)


def test_a_fork_server_that_never_comes_back_fails_what_waits(tmp_path: pathlib.Path) -> None:
    servers = iter([exec_server])

    def server() -> ServerHandle:
        for start in servers:
            return start()
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    bench = begun(ProcessPoolSettings(max_workers=2), EngineContext(str(tmp_path), "", server))
    try:
        os.kill(server_of(bench), signal.SIGKILL)
        (item,) = bench.wait(bench.submit(echo, 1))
        while item.code in ("", "WORKER_LOST"):  # it was sent before the loss was seen
            (item,) = bench.wait(bench.submit(echo, 1))
        assert (item.code, "temporarily" in item.text) == ("ENGINE_FAILED", True)
    finally:
        bench.engine.stop(0.5)


def test_the_loss_of_a_fork_server_with_many_fresh_workers_is_one_loss(tmp_path: pathlib.Path) -> None:
    bench = begun(ProcessPoolSettings(max_workers=8), place(tmp_path))
    try:
        server = server_of(bench)
        os.kill(server, signal.SIGSTOP)
        rows = [bench.submit(echo, number) for number in range(8)]  # workers are asked for, and none is forked
        os.kill(server, signal.SIGKILL)
        codes = [item.code for item in bench.wait(*rows)]
        assert sorted(codes)[:7] == [""] * 7
        assert set(codes) <= {"", "WORKER_LOST"}  # the one worker that lived may have begun one
    finally:
        bench.engine.stop(0.5)


def test_walltime_is_of_what_has_begun(pool: Bench) -> None:
    server = server_of(pool)
    os.kill(server, signal.SIGSTOP)
    rows = [pool.submit(nap, 0.0, walltime_s=0.3) for _ in range(4)]
    over = time.monotonic() + 1.0
    pool.until(lambda: time.monotonic() > over)
    os.kill(server, signal.SIGCONT)
    assert [item.code for item in pool.wait(*rows)] == [""] * 4


def test_walltime_and_cancel_do_not_wait_for_the_fork_server(pool: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("user_endpoint.engines.process_pool.engine.KILL_S", 0.3)
    server = server_of(pool)
    rows = [pool.submit(nap, 60.0, walltime_s=0.5), pool.submit(nap, 60.0)]
    pool.until(lambda: pool.started.issuperset(rows))
    os.kill(server, signal.SIGSTOP)
    pool.engine.cancel(rows[1:])
    assert [item.code for item in pool.wait(*rows)] == ["WALLTIME_EXCEEDED", "TASK_CANCELLED"]
    os.kill(server, signal.SIGCONT)


def test_a_fork_server_that_a_task_stops_is_replaced(pool: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("user_endpoint.engines.process_pool.fork_server_link.ANSWER_S", 0.5)
    server = server_of(pool)
    assert pool.value(pool.submit(stop_the_parent)) == 1
    rows = [pool.submit(nap, 60.0) for _ in range(2)]  # the second needs another worker
    pool.until(lambda: rows[0] in pool.ended or rows[1] in pool.ended)
    pool.engine.cancel(rows)
    pool.wait(*rows)
    assert server_of(pool) != server


def test_a_slow_worker_init_after_a_loss_holds_nothing_up(tmp_path: pathlib.Path) -> None:
    slow = f"test -e {tmp_path}/again && sleep 3; touch {tmp_path}/again"
    bench = begun(ProcessPoolSettings(max_workers=1, worker_init=slow), place(tmp_path))
    try:
        os.kill(server_of(bench), signal.SIGKILL)
        bench.until(lambda: bench.turn(0) == [] and (tmp_path / "again").exists())
        row = bench.submit(echo, 1)
        longest, before = 0.0, time.monotonic()
        while row not in bench.ended or bench.ended[row].code:
            bench.turn(0.05)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
            if row in bench.ended:  # it was sent before the loss was seen
                row = bench.submit(echo, 1) if bench.ended[row].code else row
        assert longest < 2.5, "the user endpoint's one thread"
    finally:
        bench.engine.stop(0.5)
