"""A home directory with characters that are special to a shell, a glob or a scheduler: paths are quoted."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from mep_sdk.serialize import load_result, serialize_arguments, serialize_function
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import UepProcess, private_home

ENGINES = {
    "process": "engine:\n  type: ProcessPoolEngine\n  max_workers: 1\n  worker_init: {init}\n",
    "htex": "engine:\n  type: GlobusComputeEngine\n  max_workers_per_node: 1\n",
    "htex_init": "engine:\n  type: GlobusComputeEngine\n  max_workers_per_node: 1\n  worker_init: {init}\n",
    "htex_launcher": "engine:\n  type: GlobusComputeEngine\n  max_workers_per_node: 1\n"
    "  provider: {{type: LocalProvider, launcher: {{type: SingleNodeLauncher}}}}\n",
}
INIT = "'set -eu; set -- a b; IFS=/; export MARK=on'"
NAMES = ["my home", "it's", 'a"b"c', "R&D (new)", "x[1]*?", "c$HOME`d`", "semi;colon", "100%j", "back\\slash"]


def about() -> tuple[str, str]:
    import os

    return os.environ["HOME"], os.environ.get("MARK", "")


def run(home: Any, template: str) -> Any:
    relay = FakeRelay()
    try:
        with UepProcess(relay, home, template=template, multi_user=False) as uep:
            relay.welcome()
            relay.expect(messages.Credit)
            code = {"about": serialize_function(about)}
            relay.submit(code, [messages.TaskItem(1, "task-1", "about", serialize_arguments((), {}))])
            result = relay.results(1)[1]
            assert not result.code, (result, uep.log())
            uep.signal(signal.SIGTERM)
            uep.wait()
            return load_result(result.payload)
    finally:
        relay.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ["process", "htex"])
def test_tasks_run_in_such_a_home(engine: str, name: str) -> None:
    with private_home(name) as home:
        expected = (str(home), "on" if engine == "process" else "")
        assert run(home, ENGINES[engine].format(init=INIT)) == expected


@pytest.mark.parametrize("engine", ["htex_init", "htex_launcher"])
def test_tasks_run_in_a_home_with_all_of_it(engine: str) -> None:
    with private_home("".join(NAMES)) as home:
        assert run(home, ENGINES[engine].format(init=INIT))[0] == str(home)
