"""A task's process is its own: what it changes, leaves running or starts with multiprocessing ends with it.

Each test runs over the process engine and over HTEX's workers, which are forked by the same program.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.test_engines import Bench, begun, echo, nap, place
from tests.support.waiting import until
from user_endpoint.settings import EngineSettings, GlobusComputeSettings, ProcessPoolSettings, ThreadPoolSettings

ONE_WORKER: dict[str, Callable[[], EngineSettings]] = {
    "htex": lambda: GlobusComputeSettings(max_workers_per_node=1),
    "process": lambda: ProcessPoolSettings(max_workers=1),
}


@pytest.fixture(params=sorted(ONE_WORKER))
def bench(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Bench]:
    made = begun(ONE_WORKER[request.param](), place(tmp_path))
    yield made
    made.engine.stop(2.0)


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[Bench]:
    made = begun(ProcessPoolSettings(max_workers=1), place(tmp_path))
    yield made
    made.engine.stop(2.0)


# --- what a task changes --------------------------------------------------------------------------------


AMD64 = os.uname().machine == "x86_64"
HOOKS = ("excepthook", "displayhook", "unraisablehook", "breakpointhook")


def state() -> dict[str, Any]:
    import asyncio
    import atexit
    import builtins
    import ctypes
    import decimal
    import faulthandler
    import gc
    import importlib
    import locale
    import logging
    import multiprocessing
    import os
    import resource
    import signal
    import socket
    import sys
    import threading
    import tracemalloc
    import warnings

    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    umask = os.umask(0)
    os.umask(umask)
    wanted = ("Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp:", "Name")
    reaper, on_death = ctypes.c_int(-1), ctypes.c_int(-1)
    libc.prctl(37, ctypes.byref(reaper), 0, 0, 0)
    libc.prctl(2, ctypes.byref(on_death), 0, 0, 0)
    return {
        "timers": [signal.getitimer(which) for which in (0, 1, 2)],
        "affinity": os.sched_getaffinity(0),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduler": os.sched_getscheduler(0),
        "limits": [resource.getrlimit(number) for number in range(16)],
        "status": [line for line in open("/proc/self/status") if line.startswith(wanted)],
        "signals": [
            int(line.split()[1], 16) & ~(3 << 31)
            for line in open("/proc/self/status")
            if line.startswith(("SigI", "SigC"))
        ],
        "prctl": [libc.prctl(option, 0, 0, 0, 0) for option in (3, 30, 39, 42)],
        "subreaper": (reaper.value, on_death.value),
        "other attributes": (libc.personality(0xFFFFFFFF), libc.syscall(252, 1, 0) if AMD64 else 0),
        "group": os.getpgrp() == os.getpid(),
        "oom": open("/proc/self/oom_score_adj").read(),
        "directory": os.getcwd(),
        "umask": umask,
        "handlers": [str(signal.getsignal(number)) for number in range(1, 65)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "warnings": [(each[0], each[2].__name__) for each in warnings.filters],
        "shows warnings": warnings.showwarning.__module__,
        "path": sys.path[:],
        "argv": sys.argv[:],
        "logging": (logging.root.level, len(logging.root.handlers), logging.root.manager.disable),
        "logger": (logging.getLogger("shared").level, len(logging.getLogger("shared").handlers)),
        "locale": locale.setlocale(locale.LC_ALL),
        "timeout": socket.getdefaulttimeout(),
        "environment": {name: value for name, value in os.environ.items() if name != "GC_TASK_UUID"},
        "own id": [os.environ.get("GC_TASK_UUID") == (libc.getenv(b"GC_TASK_UUID") or b"").decode()],
        "zone": time.tzname,
        "gc": (gc.isenabled(), gc.get_threshold()),
        "interpreter": (sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile()),
        "hooks": [getattr(sys, name) is getattr(sys, f"__{name}__") for name in HOOKS],
        "wakeups": signal.set_wakeup_fd(-1),
        "more of gc": (gc.get_debug(), len(gc.callbacks)),
        "tracing": (
            tracemalloc.is_tracing(),
            faulthandler.is_enabled(),
            threading.excepthook is threading.__excepthook__,
        ),
        "traced threads": (threading.gettrace(), threading.getprofile(), threading.stack_size()),
        "coroutines": (tuple(map(str, tuple(sys.get_asyncgen_hooks()))), sys.get_coroutine_origin_tracking_depth()),
        "asyncio": type(asyncio.get_event_loop_policy()).__name__,
        "imports": (
            list(map(str, sys.meta_path)),
            list(map(str, sys.path_hooks)),
            sys.getdlopenflags(),
            sys.dont_write_bytecode,
        ),
        "names": (sorted(vars(builtins)), builtins.open.__name__, hasattr(sys, "tracebacklimit"), sys.executable),
        "modules": (sys.modules["os"].__name__, importlib.import_module("json").__name__),
        "loggers": (logging.getLoggerClass().__name__, logging.getLogRecordFactory().__name__, logging.raiseExceptions),
        "multiprocessing": multiprocessing.get_start_method(allow_none=True),
        "decimal": decimal.getcontext().prec,
        "threads": threading.active_count(),
        "at exit": atexit._ncallbacks(),  # type: ignore[attr-defined]
        "streams": (sys.stdout is sys.__stdout__, sys.stdout.closed, sys.stdout.line_buffering, vars(sys.stdout)),
        "destructors": sys.unraisablehook is sys.__unraisablehook__,
        "built-ins": (callable(print), hasattr(builtins, "more")),
        "regular expressions": "re" in sys.modules,
        "text": [(each.encoding, each.errors, each.closed) for each in (sys.stdin, sys.stdout, sys.stderr)],
        "standard descriptors": [os.fstat(number)[:3] for number in (0, 1, 2)],
        "blocking": [(os.get_blocking(number), os.get_inheritable(number)) for number in (0, 1, 2)],
        "main": sorted(vars(sys.modules["__main__"])),
    }


def change(what: str) -> int:
    import _thread
    import asyncio
    import atexit
    import builtins
    import ctypes
    import decimal
    import faulthandler
    import gc
    import locale
    import logging
    import multiprocessing
    import os
    import resource
    import signal
    import socket
    import subprocess
    import sys
    import threading
    import tracemalloc
    import warnings

    class Stream:
        """A stream of the task's own. `kind` is what its flush raises; None for a flush that calls itself."""

        def __init__(self, kind: type[BaseException] | None) -> None:
            self.kind = kind

        def flush(self) -> None:
            if self.kind is not None:
                raise self.kind
            self.flush()

    libc = ctypes.CDLL(None)

    def lower(name: str, value: int) -> None:
        number = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(number, (value, resource.getrlimit(number)[1]))

    def other_zone() -> None:
        os.environ["TZ"] = "Asia/Tokyo"
        time.tzset()

    def pend() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)

    def own_logger() -> None:
        logging.getLogger("shared").addHandler(logging.StreamHandler())
        logging.getLogger("shared").setLevel(5)

    {
        "timer": lambda: signal.setitimer(signal.ITIMER_REAL, 0.2),
        "virtual timer": lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 0.01),
        "profiling timer": lambda: signal.setitimer(signal.ITIMER_PROF, 0.01),
        "affinity": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        "nice": lambda: os.nice(3),
        "batch": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
        "soft limit": lambda: lower("NOFILE", 32),
        "core limit": lambda: lower("CORE", 0),
        "hard limit": lambda: resource.setrlimit(resource.RLIMIT_NPROC, (5000, 5000)),
        "rare limit": lambda: lower("RSS", 1 << 30),
        "rare hard limit": lambda: resource.setrlimit(resource.RLIMIT_MSGQUEUE, (0, 0)),
        "limit by a program": lambda: subprocess.run(["prlimit", f"--pid={os.getpid()}", "--core=0:"], check=True),
        "subreaper": lambda: libc.prctl(36, 0, 0, 0, 0),
        "death signal": lambda: libc.prctl(1, 0, 0, 0, 0),
        "dumpable": lambda: libc.prctl(4, 0, 0, 0, 0),
        "name": lambda: libc.prctl(15, b"other", 0, 0, 0),
        "no new privileges": lambda: libc.prctl(38, 1, 0, 0, 0),
        "timer slack": lambda: libc.prctl(29, 1, 0, 0, 0),
        "huge pages": lambda: libc.prctl(41, 1, 0, 0, 0),
        "personality": lambda: libc.personality(0x0040000),
        "priority of disks": lambda: libc.syscall(251, 1, 0, (3 << 13) | 7) if AMD64 else None,
        "handler in C": lambda: libc.signal(signal.SIGUSR1, ctypes.c_void_p(1)),
        "group": lambda: os.setpgid(0, os.getpgid(os.getppid())),
        "oom": lambda: os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"500"),
        "directory": lambda: os.chdir("/"),
        "umask": lambda: os.umask(0),
        "handler": lambda: signal.signal(signal.SIGUSR1, lambda *_: None),
        "real-time handler": lambda: signal.signal(signal.SIGRTMIN + 3, signal.SIG_IGN),
        "mask": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]),
        "pending signal": pend,
        "warnings": lambda: warnings.simplefilter("error"),
        "no warnings": lambda: warnings.resetwarnings(),
        "captured warnings": lambda: logging.captureWarnings(True),
        "path": lambda: sys.path.insert(0, "/tmp"),
        "new path": lambda: setattr(sys, "path", ["/tmp", *sys.path]),
        "argv": lambda: sys.argv.append("more"),
        "logging": lambda: logging.basicConfig(level=logging.DEBUG),
        "no logging": lambda: logging.disable(),
        "logger": own_logger,
        "locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
        "timeout": lambda: socket.setdefaulttimeout(0.01),
        "environment": lambda: os.environ.update(HOME="/nowhere", LEFT="yes"),
        "no environment": lambda: os.environ.clear(),
        "new environment": lambda: setattr(os, "environ", {}),
        "own id": lambda: os.environ.update(GC_TASK_UUID="mine"),
        "no own id": lambda: os.environ.pop("GC_TASK_UUID"),
        "zone": other_zone,
        "gc": lambda: gc.disable(),
        "gc threshold": lambda: gc.set_threshold(1, 1, 1),
        "recursion": lambda: sys.setrecursionlimit(150),
        "switch interval": lambda: sys.setswitchinterval(1.0),
        "trace": lambda: sys.settrace(lambda *_: None),
        "hook": lambda: setattr(sys, "excepthook", print),
        "unraisable hook": lambda: setattr(sys, "unraisablehook", print),
        "breakpoint hook": lambda: setattr(sys, "breakpointhook", print),
        "thread hook": lambda: setattr(threading, "excepthook", print),
        "trace of threads": lambda: (threading.settrace(print), threading.setprofile(print)),  # type: ignore[func-returns-value]
        "stack size": lambda: threading.stack_size(1 << 20),
        "audit hook": lambda: sys.addaudithook(no_processes),
        "wakeups": lambda: signal.set_wakeup_fd(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[1]),
        "gc debug": lambda: gc.set_debug(gc.DEBUG_SAVEALL),
        "gc callback": lambda: gc.callbacks.append(lambda *_: None),
        "tracemalloc": lambda: tracemalloc.start(),
        "faulthandler": lambda: faulthandler.enable(),
        "watchdog": lambda: faulthandler.dump_traceback_later(0.2, exit=True),
        "coroutine origins": lambda: sys.set_coroutine_origin_tracking_depth(5),
        "generator hooks": lambda: sys.set_asyncgen_hooks(print, print),
        "event loop policy": lambda: asyncio.set_event_loop_policy(
            type("Own", (asyncio.DefaultEventLoopPolicy,), {})()
        ),
        "finder": lambda: sys.meta_path.insert(0, threading),  # type: ignore[arg-type]
        "no finders": lambda: sys.meta_path.clear(),
        "path hook": lambda: sys.path_hooks.append(print),  # type: ignore[arg-type]
        "dlopen flags": lambda: sys.setdlopenflags(257),
        "bytecode": lambda: setattr(sys, "dont_write_bytecode", not sys.dont_write_bytecode),
        "traceback limit": lambda: setattr(sys, "tracebacklimit", 0),
        "executable": lambda: setattr(sys, "executable", "/bin/false"),
        "builtin": lambda: setattr(builtins, "leak", 1),
        "other builtin": lambda: setattr(builtins, "open", print),
        "no builtin": lambda: delattr(builtins, "print"),
        "module": lambda: sys.modules.update(os=sys),
        "blocked module": lambda: sys.modules.update(json=None),  # type: ignore[dict-item]
        "logger class": lambda: logging.setLoggerClass(type("Own", (logging.Logger,), {})),
        "log records": lambda: (logging.setLogRecordFactory(dict), setattr(logging, "raiseExceptions", False)),  # type: ignore[arg-type, func-returns-value]
        "start method": lambda: multiprocessing.set_start_method("spawn"),
        "decimal": lambda: setattr(decimal.getcontext(), "prec", 3),
        "thread": lambda: _thread.start_new_thread(time.sleep, (600,)),
        "joined thread": lambda: joined(threading.Thread(target=print)),
        "at exit": lambda: atexit.register(print, "never"),
        "stream": lambda: setattr(sys, "stdout", None),
        "taken stream": lambda: sys.stdout.detach(),
        "other buffering": lambda: sys.stdout.reconfigure(line_buffering=False),
        "own flush": lambda: setattr(sys.stdout, "flush", lambda: sys.exit(3)),
        "flush raises": lambda: setattr(sys, "stdout", Stream(ZeroDivisionError)),
        "flush exits": lambda: setattr(sys, "stdout", Stream(SystemExit)),
        "flush interrupts": lambda: setattr(sys, "stderr", Stream(KeyboardInterrupt)),
        "flush recurses": lambda: setattr(sys, "stdout", Stream(None)),
        "no stream": lambda: delattr(sys, "stdout"),
        "hook of destructors": lambda: setattr(sys, "unraisablehook", lambda *_: os._exit(3)),
        "built-ins": lambda: vars(builtins).update(print=None, more=1),
        "clock": lambda: setattr(time, "time", lambda: sys.exit(3)),
        "no modules": lambda: sys.modules.clear(),
        "original stream": lambda: setattr(sys, "__stdout__", None),
        "closed stream": lambda: sys.stdout.close(),
        "detached stream": lambda: sys.stdout.detach(),
        "encoding": lambda: sys.stdout.reconfigure(encoding="ascii", errors="strict"),  # type: ignore[union-attr]
        "input": lambda: os.dup2(os.open("/etc/passwd", os.O_RDONLY), 0),
        "output": lambda: os.dup2(os.open("/dev/null", os.O_WRONLY), 1),
        "errors": lambda: os.dup2(os.open("/dev/null", os.O_WRONLY), 2),
        "closed output": lambda: os.close(1),
        "not blocking": lambda: os.set_blocking(1, False),
        "not inheritable": lambda: os.set_inheritable(2, False),
        "main": lambda: setattr(sys.modules["__main__"], "leak", 1) or sys.modules.update(__main__=sys),
        "descriptors": lambda: [os.dup(0) for _ in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 40)],
    }[what]()
    return os.getpid()


REPLACES = {
    *("nice", "batch", "hard limit", "oom", "pending signal", "thread", "at exit", "descriptors"),
    *("closed stream", "taken stream", "own flush", "no modules"),
}


def joined(thread: threading.Thread) -> None:
    thread.start()
    thread.join()


def no_processes(event: str, _arguments: object) -> None:
    if event == "subprocess.Popen":
        raise PermissionError(event)


REPLACES |= {"closed stream", "detached stream", "audit hook"}
REPLACES |= {"rare hard limit", "dumpable", "no new privileges", "timer slack", "huge pages", "personality"}
REPLACES |= {"handler in C", "subreaper"} | ({"priority of disks"} if AMD64 else set())
"""Changes that only a new process undoes."""
CHANGES = [
    *("timer", "virtual timer", "profiling timer", "affinity", "nice", "batch", "soft limit", "core limit"),
    *("hard limit", "oom", "directory", "umask", "handler", "real-time handler", "mask", "pending signal"),
    *("warnings", "no warnings", "captured warnings", "path", "new path", "argv", "logging", "no logging", "logger"),
    *("locale", "timeout", "environment", "no environment", "new environment", "own id", "no own id", "zone", "gc"),
    *("gc threshold", "recursion", "switch interval", "trace", "hook", "decimal", "thread", "at exit", "stream"),
    *("main", "descriptors", "closed stream", "taken stream", "other buffering", "own flush", "flush raises"),
    *("flush exits", "flush interrupts", "flush recurses", "no stream", "hook of destructors", "built-ins"),
    *("clock", "no modules"),
    *("original stream", "detached stream", "encoding", "input", "output"),
    *("errors", "closed output", "not blocking", "not inheritable", "unraisable hook", "breakpoint hook"),
    *("thread hook", "trace of threads", "stack size", "audit hook", "wakeups", "gc debug", "gc callback"),
    *(
        "tracemalloc",
        "faulthandler",
        "watchdog",
        "joined thread",
        "coroutine origins",
        "generator hooks",
        "event loop policy",
    ),
    *("finder", "no finders", "path hook", "dlopen flags", "bytecode", "traceback limit", "executable", "builtin"),
    *("rare limit", "rare hard limit", "limit by a program", "subreaper", "death signal", "dumpable", "name"),
    *("no new privileges", "timer slack", "huge pages", "personality", "priority of disks", "handler in C", "group"),
    *("other builtin", "no builtin", "module", "blocked module", "logger class", "log records", "start method"),
]


def pid() -> int:
    import os

    return os.getpid()


def spin(seconds: float) -> str:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def draw() -> float:
    import random

    return random.random()


def seed() -> float:
    import random

    random.seed(7)
    return random.random()


def test_a_seed_does_not_choose_the_numbers_of_the_next_task(pool: Bench) -> None:
    first, after, again = (pool.value(pool.submit(each)) for each in (seed, draw, seed))
    assert first == again
    assert after != pool.value(pool.submit(draw))


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_task_changes_does_not_reach_the_next(pool: Bench, what: str) -> None:
    before = pool.value(pool.submit(state))
    assert isinstance(before, dict)
    worker = pool.value(pool.submit(change, what))
    assert pool.value(pool.submit(spin, 0.05)) == "done"  # a timer would end it
    after = pool.value(pool.submit(state))
    assert after == before
    assert (pool.value(pool.submit(pid)) != worker) == (what in REPLACES)


def pure_state() -> dict[str, Any]:
    import _locale
    import os
    import signal
    import sys
    import time

    with open("/proc/self/status") as file:
        umask = next(line for line in file if line.startswith("Umask"))
    with open("/proc/self/limits") as file:
        limits = file.read()
    return {
        "limits": limits,
        "time zone": time.timezone,
        "groups": (os.getresgid(), os.getgroups()),
        "timers": [signal.getitimer(each)[0] for each in (0, 1, 2)],
        "handlers": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "wakeups": signal.set_wakeup_fd(-1),
        "umask": umask,
        "leads its group": os.getpgrp() == os.getpid(),
        "affinity": os.sched_getaffinity(0),
        "locale": _locale.setlocale(_locale.LC_ALL, None),
        "means": [name for name in ("ctypes", "resource", "_posixsubprocess") if name in sys.modules],
    }


def change_purely(what: str) -> None:
    import _locale
    import os
    import signal
    import time

    def lower_limit() -> None:
        import resource

        resource.prlimit(own, resource.RLIMIT_STACK, (2**20, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    def set_time_zone() -> None:
        os.environ["TZ"] = "Asia/Tokyo"
        time.tzset()
        del os.environ["TZ"]

    def in_a_child(call: Callable[[], object]) -> None:
        child = os.fork()
        if not child:
            call()
            os._exit(0)
        os.waitpid(child, 0)

    one = {min(os.sched_getaffinity(0))}
    own = os.getpid()
    {
        "timer": lambda: signal.setitimer(signal.ITIMER_REAL, 600),
        "alarm": lambda: signal.alarm(600),
        "handler": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        "mask": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]),
        "wakeups": lambda: signal.set_wakeup_fd(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[1]),
        "umask": lambda: os.umask(0),
        "group": lambda: os.setpgid(0, os.getpgid(os.getppid())),
        "affinity": lambda: os.sched_setaffinity(0, one),
        "affinity by a child": lambda: in_a_child(lambda: os.sched_setaffinity(own, one)),
        "locale": lambda: _locale.setlocale(_locale.LC_ALL, "C"),
        "limit by a child": lambda: in_a_child(lower_limit),
        "time zone": set_time_zone,
        "group id": lambda: os.geteuid() or os.setresgid(1, -1, -1),
    }[what]()


PURE = (
    *("timer", "alarm", "handler", "mask", "wakeups", "umask", "group", "affinity", "affinity by a child", "locale"),
    *("limit by a child", "time zone", "group id"),
)


def test_changes_by_calls_that_need_no_other_module_do_not_reach_the_next(pool: Bench) -> None:
    before = pool.value(pool.submit(pure_state))
    assert before["means"] == [], "with these everything is looked at anyway"
    for what in PURE:
        pool.value(pool.submit(change_purely, what))
        assert pool.value(pool.submit(pure_state)) == before, what


def test_nothing_of_many_changes_reaches_the_next_in_blocks(tmp_path: pathlib.Path) -> None:
    bench = begun(ONE_WORKER["htex"](), place(tmp_path))
    try:
        before = bench.value(bench.submit(state))
        for what in ("profiling timer", "nice", "path", "environment", "logging", "hard limit"):
            bench.value(bench.submit(change, what))
            assert bench.value(bench.submit(state)) == before
    finally:
        bench.engine.stop(2.0)


# --- the directory of tasks -----------------------------------------------------------------------------


def remove_directory() -> None:
    import os
    import shutil

    shutil.rmtree(os.getcwd())


def directory() -> str:
    import os

    return os.getcwd()


def no_directory_any_more(where: str) -> None:
    import pathlib
    import shutil

    shutil.rmtree(where)
    pathlib.Path(where).touch()


@pytest.mark.parametrize("kind", [ProcessPoolSettings, GlobusComputeSettings])
@pytest.mark.parametrize("sandbox", [False, True])
def test_a_working_dir_that_is_removed_is_made_again(
    kind: type[ProcessPoolSettings | GlobusComputeSettings], tmp_path: pathlib.Path, *, sandbox: bool
) -> None:
    bench = begun(kind(working_dir="deep/work", run_in_sandbox=sandbox), place(tmp_path))
    try:
        base = tmp_path / "deep" / "work"
        first = bench.value(bench.submit(directory))
        bench.value(bench.submit(remove_directory))
        assert str(bench.value(bench.submit(directory))).startswith(str(base))
        shutil.rmtree(tmp_path / "deep")
        again = bench.value(bench.submit(directory))
        assert pathlib.Path(str(again)).is_dir()
        assert sandbox or first == again == str(base)
    finally:
        bench.engine.stop(2.0)


def test_a_working_dir_that_cannot_be_made_again_is_named(tmp_path: pathlib.Path) -> None:
    bench = begun(ProcessPoolSettings(max_workers=1, working_dir="work"), place(tmp_path))
    try:
        bench.value(bench.submit(no_directory_any_more, str(tmp_path / "work")))
        (item,) = bench.wait(bench.submit(echo, 1))
        assert item.code == "ENGINE_FAILED"
        assert str(tmp_path / "work") in item.text
        (tmp_path / "work").unlink()
        assert bench.value(bench.submit(echo, 2)) == 2
    finally:
        bench.engine.stop(2.0)


# --- what a task leaves running ---------------------------------------------------------------------------


def start_in(how: str, path: str, seconds: float) -> str:
    import ctypes
    import multiprocessing
    import os
    import pathlib
    import signal
    import subprocess
    import sys
    import threading

    program = f"import os,time; open({path!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(600)"
    command = [sys.executable, "-c", program]

    def twice() -> None:
        middle = f"import subprocess,sys; subprocess.Popen({command!r}, start_new_session=True)"
        subprocess.run([sys.executable, "-c", middle], check=True, start_new_session=True)

    def forked() -> None:
        if os.fork() == 0:
            os.setsid()
            os.execv(sys.executable, command)

    def stopped() -> None:
        child = subprocess.Popen(command)
        while not pathlib.Path(path).exists():
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGSTOP)

    def stubborn() -> None:
        ignore = "import signal; [signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 17, 19)]; "
        subprocess.Popen([sys.executable, "-c", ignore + program], start_new_session=True)

    def no_subreaper() -> None:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
        twice()

    def manager() -> None:
        made = multiprocessing.get_context("forkserver").Manager()
        pathlib.Path(path).write_text(f"{made._process.pid}\n")  # type: ignore[attr-defined]
        made.__dict__.clear()  # nothing shuts it down

    ways = {
        "stopped": stopped,
        "stubborn": stubborn,
        "no subreaper": no_subreaper,
        "manager": manager,
        "child": lambda: subprocess.Popen(command),
        "session": lambda: subprocess.Popen(command, start_new_session=True),
        "double fork": twice,
        "fork": forked,
        "tree": lambda: subprocess.Popen(["/bin/sh", "-c", f'"{sys.executable}" -c "$1"; :', "sh", program]),
    }
    if how.startswith("thread's "):
        thread = threading.Thread(target=lambda: (ways[how.removeprefix("thread's ")](), time.sleep(seconds)))
        thread.start()
    else:
        ways[how]()
    while not pathlib.Path(path).exists() or not pathlib.Path(path).read_text().endswith("\n"):
        time.sleep(0.01)
    pathlib.Path(f"{path}.up").touch()
    time.sleep(seconds)
    return "done"


def is_gone(mark: pathlib.Path) -> bool:
    left = [int(line) for line in mark.read_text().split()]
    return not any(alive(each) for each in left)


def alive(process: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


LEFT = ["child", "session", "double fork", "fork", "tree", "thread's child", "thread's session", "thread's double fork"]
LEFT += ["stopped", "stubborn", "no subreaper", "manager"]


@pytest.mark.parametrize("how", LEFT)
@pytest.mark.parametrize("end", ["return", "cancel", "walltime"])
def test_what_a_task_has_left_is_ended(bench: Bench, tmp_path: pathlib.Path, how: str, end: str) -> None:
    mark = tmp_path / "mark"
    seconds, walltime_s = {"return": (0.0, 0.0), "cancel": (600.0, 0.0), "walltime": (600.0, 5.0)}[end]
    row = bench.submit(start_in, how, str(mark), seconds, walltime_s=walltime_s)
    bench.until(lambda: (tmp_path / "mark.up").exists())
    if end == "cancel":
        bench.engine.cancel([row])
    (item,) = bench.wait(row)
    assert item.code == {"return": "", "cancel": "TASK_CANCELLED", "walltime": "WALLTIME_EXCEEDED"}[end]
    bench.until(lambda: is_gone(mark))
    assert bench.value(bench.submit(echo, 1)) == 1


def start_a_killer(path: str) -> None:
    import subprocess
    import sys

    note = f"import os,time; open({path!r}, 'a').write(f'{{os.getpid()}}\\n')"
    program = f"{note}; os.kill(os.getppid(), 9); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    time.sleep(600)


def test_a_child_that_kills_its_worker_is_ended(bench: Bench, tmp_path: pathlib.Path) -> None:
    mark = tmp_path / "mark"
    (item,) = bench.wait(bench.submit(start_a_killer, str(mark)))
    assert item.code == "WORKER_LOST"
    bench.until(lambda: is_gone(mark))
    assert bench.value(bench.submit(echo, 1)) == 1


def test_what_is_left_is_ended_when_the_worker_dies_or_the_engine_stops(tmp_path: pathlib.Path) -> None:
    bench = begun(ProcessPoolSettings(max_workers=2), place(tmp_path))
    marks = [tmp_path / "dies", tmp_path / "stops"]
    rows = [bench.submit(start_in, "thread's double fork", str(mark), 600.0) for mark in marks]
    bench.until(lambda: all(pathlib.Path(f"{mark}.up").exists() for mark in marks))
    worker = next(each for each in bench.engine._workers.values() if each.sent[0].row == rows[0])  # type: ignore[attr-defined]
    bench.engine._server.order(("kill", worker.number, 9))  # type: ignore[attr-defined]
    bench.wait(rows[0])
    bench.until(lambda: is_gone(marks[0]))
    assert not is_gone(marks[1])
    bench.engine.stop(5.0)
    until("the end of the second process", lambda: is_gone(marks[1]))


# --- multiprocessing inside tasks ---------------------------------------------------------------------------


def double(number: int) -> int:
    return 2 * number


class Box:
    def __init__(self, value: int) -> None:
        self.value = value

    def more(self, number: int) -> int:
        return self.value + number


def map_with(method: str, function: Any) -> list[Any]:
    import multiprocessing

    with multiprocessing.get_context(method).Pool(2) as made:
        return made.map(function, [1, -2, 3])


def map_helpers(method: str) -> list[Any]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context(method)
    with context.Pool(2) as made:
        found = [made.map(double, [1, 2]), made.map(Box(5).more, [1, 2]), made.map(lambda n: double(n) + 1, [1, 2])]
        found.append([box.value for box in made.map(Box, [7, 8])])
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        found.append(list(executor.map(double, [5])))
    return found


def start_process(method: str) -> tuple[Any, bool, bool]:
    import multiprocessing

    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=put, args=(queue, Box(3)))
    process.start()
    value = queue.get(timeout=60)
    process.join()
    return value, multiprocessing.current_process().daemon, multiprocessing.parent_process() is None


def put(queue: Any, box: Box) -> None:
    queue.put(box.more(1))


METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
def test_multiprocessing_works_with_what_is_in_the_script(bench: Bench, method: str) -> None:
    assert bench.value(bench.submit(map_with, method, abs)) == [1, 2, 3]
    assert bench.value(bench.submit(map_helpers, method)) == [[2, 4], [6, 7], [3, 5], [7, 8], [10]]
    assert bench.value(bench.submit(map_with, method, double)) == [2, -4, 6]
    assert bench.value(bench.submit(start_process, method)) == (4, False, True)


def leave_shared_memory() -> str:
    from multiprocessing import shared_memory

    return shared_memory.SharedMemory(create=True, size=64).name


def test_shared_memory_that_a_task_has_left_is_removed(pool: Bench) -> None:
    name = pool.value(pool.submit(leave_shared_memory))
    pool.until(lambda: not pathlib.Path(f"/dev/shm/{name}").exists())
    assert pool.value(pool.submit(leave_shared_memory)) != name


# --- threads of the user endpoint -----------------------------------------------------------------------


def fork_and_return(path: str) -> str:
    import os

    if os.fork() == 0:
        time.sleep(0.2)
        return "child"
    time.sleep(1.0)
    return "parent"


def note(path: str) -> None:
    import os

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, b"ran\n")
    os.close(descriptor)


@pytest.mark.parametrize("function", [fork_and_return])
def test_a_fork_in_a_thread_runs_nothing_twice(tmp_path: pathlib.Path, function: Callable[..., object]) -> None:
    bench = begun(ThreadPoolSettings(max_workers=1), place(tmp_path))
    try:
        mark = tmp_path / "mark"
        rows = [bench.submit(function, ""), *(bench.submit(note, str(mark)) for _ in range(10))]
        bench.wait(*rows)
        assert bench.value(rows[0]) == "parent"
        assert mark.read_text() == "ran\n" * 10
    finally:
        bench.engine.stop(2.0)


# --- output -----------------------------------------------------------------------------------------------


def say_and(end: str, text: str) -> None:
    import os
    import signal
    import sys

    print(text)
    print(text, "of standard error", file=sys.stderr)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "leave":
        os._exit(3)
    time.sleep(600)


@pytest.mark.parametrize("end", ["kill", "leave", "cancel", "walltime"])
def test_what_a_task_printed_before_its_worker_was_killed_is_in_the_log(
    bench: Bench, tmp_path: pathlib.Path, end: str
) -> None:
    row = bench.submit(say_and, end, "last words", walltime_s=2.0 if end == "walltime" else 0.0)
    if end == "cancel":
        bench.until(lambda: row in bench.started and said(tmp_path, "of standard error"))
        bench.engine.cancel([row])
    bench.wait(row)
    bench.until(lambda: said(tmp_path, "last words\n") and said(tmp_path, "last words of standard error"))


def said(where: pathlib.Path, text: str) -> bool:
    return any(text in path.read_text() for path in [*where.rglob("worker.log"), *where.rglob("workers.log")])


# --- a long life --------------------------------------------------------------------------------------------


def test_a_worker_does_not_grow(tmp_path: pathlib.Path) -> None:
    """200,000 tasks, and the bytes that malloc has given out before and after the last 150,000."""
    program = pathlib.Path(__file__).with_name("many_tasks.py")
    answer = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=500, check=False)
    assert answer.returncode == 0, answer.stderr
    before, after = map(int, answer.stdout.split())
    assert after - before < 300_000, f"{(after - before) / 150_000:.1f} bytes a task"


def test_a_cancelled_task_leaves_its_worker_slot(bench: Bench) -> None:
    row = bench.submit(nap, 600.0)
    bench.until(lambda: row in bench.started)
    bench.engine.cancel([row])
    bench.wait(row)
    assert bench.value(bench.submit(os.getpid)) != os.getpid()
