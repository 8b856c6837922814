"""Fifty tasks that each misbehave in a different way, beside fifty good ones in the same workers.

Each bad task ends with an error that says what happened, or with its value if it did no harm. Every good task succeeds
and finds its worker unaffected by the tasks before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mep_wire.errors import ResultTooLarge, ResultUnserializable, WalltimeExceeded, WorkerLost
from tests.support.campus import make_campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 50


def good(number: int) -> tuple[int, dict[str, Any]]:
    import os
    import signal
    import sys
    import threading

    umask = os.umask(0)
    os.umask(umask)
    return number, {
        "directory": os.getcwd(),
        "umask": umask,
        "leaks": [name for name in os.environ if name.startswith("LEAK")],
        "path": "PATH" in os.environ,
        "handlers": [str(signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)],
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "threads": threading.active_count(),
        "recursion": sys.getrecursionlimit(),
        "streams": [os.fstat(each).st_mode > 0 for each in (0, 1, 2)] + [sys.stdout is sys.__stdout__],
    }


# --- ends of the process ----------------------------------------------------------------------------------


def leave(status: int) -> None:
    import os

    os._exit(status)


def die_by(name: str) -> None:
    import os
    import signal

    os.kill(os.getpid(), getattr(signal, name))


def die_with_group() -> None:
    import os
    import signal

    os.killpg(0, signal.SIGKILL)


def read_nothing() -> None:
    import ctypes

    ctypes.string_at(0)


def close_everything() -> None:
    import os

    os.closerange(0, 256)


def shut_sockets() -> None:
    import os
    import socket

    for each in os.listdir("/proc/self/fd"):
        try:
            socket.socket(fileno=int(each)).shutdown(socket.SHUT_RDWR)
        except OSError:
            continue


def exec_other() -> None:
    import os

    os.execv("/bin/true", ["true"])


def recurse_without_limit() -> None:
    import ctypes

    def again() -> None:
        through_c()

    through_c: Any = ctypes.CFUNCTYPE(None)(again)

    import sys

    sys.setrecursionlimit(10**9)
    again()


def processor_limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    while True:
        pass


# --- errors of Python -------------------------------------------------------------------------------------


def recurse(depth: int = 0) -> int:
    return recurse(depth + 1)


def hog() -> int:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
    return len(bytearray(1 << 30))


def leave_politely(status: Any) -> None:
    raise SystemExit(status)


def interrupt() -> None:
    raise KeyboardInterrupt


def generator_exit() -> None:
    raise GeneratorExit


def odd_error(kind: str) -> None:
    class Odd(Exception):
        def __init__(self, first: object, second: object) -> None:
            super().__init__("only this")
            self.first = first

        def __str__(self) -> str:
            if kind == "str":
                raise ValueError("no text")
            return "odd"

        def __reduce__(self) -> Any:
            if kind == "pickle":
                raise TypeError("no pickle")
            return super().__reduce__()

    raise Odd(lambda: None, 2)


def long_error() -> None:
    raise ValueError("x" * (32 << 20))


def bad_import() -> None:
    import importlib

    importlib.import_module("there_is_no_such_module")


# --- results ----------------------------------------------------------------------------------------------


def unpicklable(kind: str) -> object:
    import sys
    import threading

    return {"lock": threading.Lock(), "frame": sys._getframe(), "generator": (each for each in [1])}[kind]


def pickles_badly(kind: str) -> object:
    class Bad:
        def __reduce__(self) -> Any:
            if kind == "exit":
                raise SystemExit(4)
            if kind == "recurse":
                return recurse()
            raise ValueError("not today")

    return Bad()


def oversize(size: int) -> bytes:
    return bytes(size)  # its pages are never touched


# --- things left behind -----------------------------------------------------------------------------------


def shout(size: int) -> str:
    import os

    line = b"x" * ((1 << 20) - 1) + b"\n"
    for _ in range(size >> 20):
        os.write(1, line)
    return "done"


def shout_endlessly() -> None:
    while True:
        print("x" * 4096)


def linger(kind: str) -> str:
    import os
    import time

    pid = os.fork()
    if pid == 0:
        if kind != "group":
            os.setsid()
        if kind == "return":
            return "child"
        if kind == "daemon" and os.fork():
            os._exit(0)
        time.sleep(600)
        os._exit(0)
    return "done"


def fork_many() -> str:
    import os
    import time

    for _ in range(30):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    return "done"


def leave_thread(kind: str) -> str:
    import os
    import threading
    import time

    def disturb() -> None:
        while True:
            time.sleep(0.01)
            os.environ["LEAK_BY_THREAD"] = "yes"
            os.chdir("/")

    threading.Thread(target=disturb, daemon=kind == "daemon").start()
    return "done"


def change(what: str) -> str:
    import os
    import resource
    import signal
    import sys

    os.chdir("/") if what == "directory" else None
    os.umask(0) if what == "umask" else None
    os.environ.update(LEAK="yes") if what == "environment" else None
    os.environ.clear() if what == "no environment" else None
    signal.signal(signal.SIGTERM, signal.SIG_IGN) if what == "handler" else None
    signal.signal(signal.SIGUSR1, lambda *_: None) if what == "own handler" else None
    signal.setitimer(signal.ITIMER_REAL, 0.3) if what == "timer" else None
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT]) if what == "mask" else None
    sys.setrecursionlimit(150) if what == "recursion" else None
    os.close(1) if what == "stdout" else None
    sys.stdout.close() if what == "stream" else None
    setattr(sys, "stdout", None) if what == "no stream" else None
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)) if what == "files" else None
    return "done"


def remove_directory() -> str:
    import os
    import tempfile

    campus = tempfile.mkdtemp()
    os.chdir(campus)
    os.rmdir(campus)
    return "done"


def sleep_on(kind: str) -> None:
    import signal
    import time

    for number in range(1, 32) if kind == "deaf" else ():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


def stop_itself() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGSTOP)


LOST, DONE = WorkerLost, "done"
WALLTIME = {"walltime_s": 2.0}
Case = tuple[Callable[..., Any], tuple[Any, ...], Any, dict[str, float]]
BAD: list[Case] = [
    *((leave, (status,), LOST, {}) for status in (0, 1, 255)),
    *((die_by, (name,), LOST, {}) for name in ("SIGKILL", "SIGSEGV", "SIGTERM", "SIGABRT", "SIGUSR1")),
    *((function, (), LOST, {}) for function in (die_with_group, read_nothing, close_everything, shut_sockets)),
    *((function, (), LOST, {}) for function in (exec_other, recurse_without_limit, processor_limit)),
    (recurse, (), RecursionError, {}),
    (hog, (), MemoryError, {}),
    *((leave_politely, (status,), BaseException, {}) for status in (3, "text")),
    (interrupt, (), BaseException, {}),
    (generator_exit, (), BaseException, {}),
    *((odd_error, (kind,), Exception, {}) for kind in ("str", "pickle", "plain")),
    (long_error, (), Exception, {}),
    (bad_import, (), ModuleNotFoundError, {}),
    *((unpicklable, (kind,), ResultUnserializable, {}) for kind in ("lock", "frame", "generator")),
    *((pickles_badly, (kind,), ResultUnserializable, {}) for kind in ("exit", "recurse", "plain")),
    (oversize, (2200 << 20,), ResultTooLarge, {}),
    (shout, (1 << 30,), DONE, {}),
    (shout_endlessly, (), WalltimeExceeded, WALLTIME),
    *((linger, (kind,), DONE, {}) for kind in ("group", "session", "daemon", "return")),
    (fork_many, (), DONE, {}),
    *((leave_thread, (kind,), DONE, {}) for kind in ("daemon", "other")),
    *((change, (what,), DONE, {}) for what in ("directory", "umask", "environment", "no environment", "handler")),
    *((change, (what,), DONE, {}) for what in ("own handler", "timer", "mask", "recursion", "stdout", "stream")),
    *((change, (what,), DONE, {}) for what in ("no stream", "files")),
    (remove_directory, (), DONE, {}),
    *((sleep_on, (kind,), WalltimeExceeded, WALLTIME) for kind in ("deaf", "plain")),
    (stop_itself, (), WalltimeExceeded, WALLTIME),
]


@pytest.fixture
def campus() -> Iterator[Any]:
    with make_campus("multi", "unruly") as made:
        made.endpoint.start()
        yield made


def processes_of(uid: int) -> list[str]:
    found = []
    for each in Path("/proc").iterdir():
        try:
            if each.name.isdigit() and each.stat().st_uid == uid:
                found.append(f"{each.name}: {(each / 'stat').read_text()}")
        except OSError:
            continue
    return found


def ended_as(future: Any) -> Any:
    try:
        return future.result(timeout=RESULT_S)
    except BaseException as error:  # SystemExit and KeyboardInterrupt come back too
        return error


@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["ProcessPoolEngine", "GlobusComputeEngine"])
def test_fifty_bad_tasks_beside_fifty_good_ones(campus: Any, engine: str) -> None:
    began = time.monotonic()
    assert len(BAD) >= 50
    with campus.executor("alice", workers=4, engine=engine) as executor:
        first = executor.submit(good, -1).result(timeout=RESULT_S)[1]
        bad, fine = [], []
        for number, (function, arguments, _, options) in enumerate(BAD):
            executor.walltime_s = options.get("walltime_s")
            bad.append(executor.submit(function, *arguments))
            executor.walltime_s = None
            fine.append(executor.submit(good, number))
        wrong = [
            (function.__name__, arguments, repr(found)[:300])
            for (function, arguments, expected, _), found in zip(BAD, map(ended_as, bad), strict=True)
            if not (found == DONE if expected == DONE else isinstance(found, expected))
        ]
        found = [ended_as(future) for future in fine]
    assert not wrong
    assert [each for number, each in enumerate(found) if each != (number, first)] == []
    assert first["threads"] == 1
    assert not first["leaks"]
    print(f"{engine}: {time.monotonic() - began:.1f} s")
    campus.endpoint.stop()
    uid = campus.accounts["alice"].uid
    until("the end of the processes", lambda: not processes_of(uid), details=lambda: processes_of(uid))
