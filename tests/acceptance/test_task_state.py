"""A task's process against a fresh `python` in a login shell: what may differ is listed, and nothing else does.

The user endpoint runs as its keeper starts it, through its own main, with what that sets for itself.
"""

from __future__ import annotations

import ast
import inspect
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mep_sdk.serialize import load_result, serialize_arguments, serialize_function
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import UepProcess, output_as_user

PROCESS = "engine:\n  type: ProcessPoolEngine\n  max_workers: 1\n"
INIT = PROCESS + "  worker_init: 'set -u; umask 0027'\n"
THREADS = "engine:\n  type: ThreadPoolEngine\n  max_workers: 1\n"
BLOCKS = "engine:\n  type: GlobusComputeEngine\n  max_workers_per_node: 1\n"


def state() -> dict[str, Any]:
    import gc
    import locale
    import os
    import resource
    import signal
    import sys
    import time
    import warnings

    umask = os.umask(0)
    os.umask(umask)
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "gc": (gc.isenabled(), gc.get_threshold()),
        "umask": umask,
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "handlers": [str(signal.getsignal(number)) for number in range(1, 65)],
        "oom": open("/proc/self/oom_score_adj").read(),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "scheduler": os.sched_getscheduler(0),
        "affinity": sorted(os.sched_getaffinity(0)),
        "limits": [(name, resource.getrlimit(getattr(resource, name))) for name in limits],
        "locale": locale.setlocale(locale.LC_ALL),
        "zone": time.tzname,
        "threads": len(os.listdir("/proc/self/task")),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "path": sys.path[:],
        "flags": str(sys.flags),
        "warnings": [(each[0], each[2].__name__) for each in warnings.filters],
        "interpreter": (sys.getswitchinterval(), sys.getrecursionlimit(), sys.get_int_max_str_digits()),
        "hooks": (sys.gettrace(), sys.getprofile(), sys.excepthook is sys.__excepthook__),
        "timers": [signal.getitimer(which) for which in (0, 1, 2)],
        "argv": sys.argv[:],
        "passed on": [each for each in os.listdir("/proc/self/fd") if int(each) > 2 and _passed_on(int(each))],
        "ids": (os.getresuid(), os.getresgid(), os.getgroups()),
        "encodings": (sys.getfilesystemencoding(), sys.stdout.encoding),
    }


def _passed_on(descriptor: int) -> bool:
    import os

    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


FUNCTIONS = {"state": serialize_function(state)}
SHELL = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "PATH"})
"""What a login shell sets for itself."""
OURS = ("GC_TASK_", "PARSL_", "MEP_BLOCK_STARTED", "JOBNAME")


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    made = FakeRelay()
    yield made
    made.close()


def state_of_task(relay: FakeRelay, home: pathlib.Path, template: str, **options: Any) -> dict[str, Any]:
    with UepProcess(relay, home, template=template, multi_user=False, **options) as uep:
        relay.welcome()
        relay.expect(messages.Credit)
        relay.submit(FUNCTIONS, [messages.TaskItem(1, "task-1", "state", serialize_arguments((), {}))])
        found = load_result(relay.results(1)[1].payload)
        assert isinstance(found, dict), uep.log()
        uep.signal(signal.SIGTERM)
        uep.wait()
        return found


def state_of_fresh_python(home: pathlib.Path, environment: dict[str, str], **options: Any) -> dict[str, Any]:
    source = "\n".join(map(inspect.getsource, (state, _passed_on)))
    program = f"from __future__ import annotations\nfrom typing import Any\n{source}\nprint(repr(state()))"
    command = ["/bin/bash", "-lc", 'exec "$0"', sys.executable]
    found = ast.literal_eval(output_as_user(command, program, home, environment, **options))
    assert isinstance(found, dict)
    return found


def differences(task: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    for each in (task, fresh):
        each["environment"] = {
            name: value
            for name, value in each["environment"].items()
            if name not in SHELL and not name.startswith(OURS)
        }
        each["path"] = [entry for entry in each["path"] if entry and "/runner/" not in entry]
    return {name: (task[name], fresh[name]) for name in fresh if task[name] != fresh[name]}


SITE = {"SITE_MODULES": "gcc", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize(
    ("template", "allowed"),
    [(PROCESS, {"flags"}), (BLOCKS, {"directory"}), (INIT, {"umask"})],
    ids=["process", "htex", "worker_init"],
)
def test_it_differs_only_in_what_is_listed(
    relay: FakeRelay, home: pathlib.Path, template: str, allowed: frozenset[str]
) -> None:
    task = state_of_task(relay, home, template, environment=SITE, umask=0o022, open_files=(100, 4096))
    fresh = state_of_fresh_python(home, SITE, umask=0o022, open_files=(100, 4096))
    assert task["umask"] == (0o027 if template == INIT else 0o022)
    assert differences(task, fresh).keys() <= allowed, differences(task, fresh)


# --- one rule for what a Python reads at its start --------------------------------------------------------


def imported(name: str) -> str:
    import importlib

    return str(importlib.import_module(name).__file__)


def loader_path() -> tuple[str | None, bool]:
    import os

    with open("/proc/self/environ") as file:
        started_with = file.read()
    return os.environ.get("LD_LIBRARY_PATH"), "LD_LIBRARY_PATH=/site/lib" in started_with


def optimized() -> tuple[int, bool]:
    import sys

    return sys.flags.optimize, sys.flags.dont_write_bytecode == 1


CODES = {each.__name__: serialize_function(each) for each in (imported, loader_path, optimized)}


def answers(
    relay: FakeRelay, home: pathlib.Path, template: str, calls: list[tuple[Callable[..., object], Any]], **options: Any
) -> list[Any]:
    with UepProcess(relay, home, template=template, multi_user=False, **options) as uep:
        relay.welcome()
        relay.expect(messages.Credit)
        tasks = [
            messages.TaskItem(row, f"task-{row}", function.__name__, serialize_arguments(arguments, {}))
            for row, (function, arguments) in enumerate(calls, 1)
        ]
        relay.submit(CODES, tasks)
        results = relay.results(len(tasks))
        assert not any(results[row].code for row in results), (results, uep.log())
        uep.signal(signal.SIGTERM)
        uep.wait()
        return [load_result(results[row].payload) for row in sorted(results)]


@pytest.mark.parametrize("template", [PROCESS, INIT, THREADS, BLOCKS], ids=["process", "worker_init", "thread", "htex"])
def test_pythonpath_of_the_user_environment_holds_for_tasks(
    relay: FakeRelay, home: pathlib.Path, template: str
) -> None:
    for name in ("first", "second"):
        (home / name).mkdir()
        (home / name / f"of_{name}.py").touch()
        os.chmod(home / name, 0o755)
    environment = {"PYTHONPATH": f"{home}/first:{home}/second"}
    calls = [(imported, ("of_first",)), (imported, ("of_second",))]
    expected = [f"{home}/first/of_first.py", f"{home}/second/of_second.py"]
    assert answers(relay, home, template, calls, environment=environment) == expected


@pytest.mark.parametrize("template", [PROCESS, BLOCKS], ids=["process", "htex"])
def test_what_a_program_reads_at_its_start_holds_for_tasks(relay: FakeRelay, home: pathlib.Path, template: str) -> None:
    environment = {"LD_LIBRARY_PATH": "/site/lib", "PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    found = answers(relay, home, template, [(loader_path, ()), (optimized, ())], environment=environment)
    assert found == [("/site/lib", True), (2, True)]


@pytest.mark.parametrize("engine", [PROCESS, BLOCKS], ids=["process", "htex"])
def test_pythonpath_that_worker_init_exports_holds_for_tasks(relay: FakeRelay, home: pathlib.Path, engine: str) -> None:
    (home / "mine").mkdir()
    (home / "mine" / "of_mine.py").touch()
    template = f"{engine}  worker_init: 'export PYTHONPATH={home}/mine'\n"
    assert answers(relay, home, template, [(imported, ("of_mine",))]) == [f"{home}/mine/of_mine.py"]
