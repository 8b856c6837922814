"""A template's policy, enforced by the user endpoint itself: functions, and serialization strategies."""

from __future__ import annotations

import pathlib
import signal
import sys
from collections.abc import Iterator
from hashlib import sha256

import msgspec
import pytest

from mep_sdk import encoding
from mep_sdk.serialize import load_result, serialize_arguments
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import TEMPLATE, UepProcess

from .test_user_endpoint import FUNCTIONS, echo, nap, task, up

STRICT = """
engine:
  type: {{ ENGINE }}
  allowed_serializers:
    - globus_compute_sdk.serialize.PureSourceTextInspect
    - globus_compute_sdk.serialize.JSONData
"""


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    made = FakeRelay()
    yield made
    if not made.router.closed:
        made.close()


@pytest.mark.parametrize("engine", ["ProcessPoolEngine", "ThreadPoolEngine", "GlobusComputeEngine"])
def test_serializers(relay: FakeRelay, home: pathlib.Path, engine: str) -> None:
    with UepProcess(relay, home, template=STRICT, config={"ENGINE": engine}) as uep:
        up(relay, uep)
        as_json = serialize_arguments(("x",), {}, as_json=True)
        relay.submit(FUNCTIONS, [task(1, echo, "x"), messages.TaskItem(2, "task-2", "echo", as_json)])
        results = relay.results(2)
    assert results[1].code == "SERIALIZER_NOT_ALLOWED"
    assert "It accepts: PureSourceTextInspect, JSONData." in results[1].text
    assert load_result(results[2].payload) == "x"


@pytest.mark.parametrize(
    ("names", "says"),
    [("[globus_compute_sdk.serialize.JSONData]", "at least one"), ("[JSONDatum]", "'JSONDatum' is not")],
)
def test_a_list_that_makes_no_sense_is_said_before_it_joins(
    relay: FakeRelay, home: pathlib.Path, names: str, says: str
) -> None:
    with UepProcess(relay, home, template=f"{TEMPLATE}  allowed_serializers: {names}\n") as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "ENDPOINT_MISCONFIGURED"]
        assert "engine.allowed_serializers: " in report[3]
        assert says in report[3]


def test_functions_of_the_template_narrow_those_of_the_endpoint(relay: FakeRelay, home: pathlib.Path) -> None:
    template = TEMPLATE + "allowed_functions: {{ FUNCTIONS }}\n"
    listed = {name: f"sha256:{sha256(FUNCTIONS[name]).hexdigest()}" for name in ("echo", "nap", "surroundings")}
    config = {"FUNCTIONS": [listed["echo"], listed["surroundings"]]}
    allowed = [listed["echo"], listed["nap"]]
    with UepProcess(relay, home, template=template, config=config, allowed_functions=allowed) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, nap, 0.0), task(2, echo, 2), messages.TaskItem(3, "t", "surroundings", b"")])
        results = relay.results(3)
    assert [results[row].code for row in (1, 2, 3)] == ["FUNCTION_NOT_ALLOWED", "", "FUNCTION_NOT_ALLOWED"]
    assert "runs only the functions its administrator lists, and nap is not among them" in results[1].text


def test_no_function_at_all(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, template=TEMPLATE + "allowed_functions: []\n") as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, echo, 1)])
        assert relay.results(1)[1].code == "FUNCTION_NOT_ALLOWED"


@pytest.mark.parametrize(
    "template",
    [
        f"{TEMPLATE}  worker_init: export MARK=1\n",
        "engine:\n  type: GlobusComputeEngine\n  worker_init: export MARK=1\n",
    ],
)
def test_the_workers_files_go_with_the_user_endpoint(relay: FakeRelay, home: pathlib.Path, template: str) -> None:
    with UepProcess(relay, home, template=template) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, echo, 1)])
        assert relay.results(1)[1].code == ""
        assert (uep.state / "run" / "runner" / "packages" / "mep_sdk").exists()
        uep.signal(signal.SIGTERM)
        assert uep.wait() == 0
        assert not (uep.state / "run" / "runner").exists()


@pytest.mark.parametrize("engine", ["ProcessPoolEngine", "ThreadPoolEngine", "GlobusComputeEngine"])
def test_the_relay_is_told_the_workers_python(relay: FakeRelay, home: pathlib.Path, engine: str) -> None:
    with UepProcess(relay, home, template=f"engine:\n  type: {engine}\n") as uep:
        relay.welcome()
        assert uep.next_report() == ["READY"]
        credit = relay.expect(messages.Credit)
        if not credit.worker_python:  # no block is up yet
            relay.submit(FUNCTIONS, [task(1, echo, 1)])
            relay.results(1)
            credit = relay.expect(messages.Credit)
    assert credit.worker_python == ".".join(map(str, sys.version_info[:3]))


def test_setup_runs_before_the_engine_and_teardown_after_it(relay: FakeRelay, home: pathlib.Path) -> None:
    log = home / "log"
    template = (
        f"endpoint_setup: echo setup >> {log}; export MARK=1\nendpoint_teardown: echo teardown >> {log}\n{TEMPLATE}"
        f"  worker_init: echo worker >> {log}\n"
    )
    with UepProcess(relay, home, template=template) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, echo, 1)])
        assert relay.results(1)[1].code == ""
        uep.signal(signal.SIGTERM)
        assert uep.wait() == 0
        assert log.read_text().split() == ["setup", "worker", "teardown"]
        assert not uep.children()


MPI = """
engine:
  type: GlobusMPIEngine
  provider: {type: LocalProvider, init_blocks: 0, min_blocks: 0, max_blocks: 1}
allowed_functions: {{ FUNCTIONS }}
"""


def test_options_of_a_launcher_name_no_program_besides_the_listed_functions(
    relay: FakeRelay, home: pathlib.Path
) -> None:
    config = {"FUNCTIONS": [f"sha256:{sha256(FUNCTIONS['echo']).hexdigest()}"]}
    spec = msgspec.msgpack.encode({"num_nodes": 1, "launcher_options": "/usr/bin/touch elsewhere"})
    with UepProcess(relay, home, template=MPI, config=config) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [msgspec.structs.replace(task(1, echo, 1), resource_spec=spec)])
        result = relay.results(1)[1]
    assert result.code == "RESOURCE_SPEC_INVALID"
    assert "launcher_options" in result.text


def test_damaged_arguments_end_their_task_alone(relay: FakeRelay, home: pathlib.Path) -> None:
    as_json = serialize_arguments(("x",), {}, as_json=True)
    damaged = [
        *(b"", b"MEPo", b"MEPr", b"MEPo\0\0\0\0", b"MEPr\0\0\0\0\4jsonMEPo"),
        encoding.with_output(b"", [b"", b""]),
    ]
    with UepProcess(relay, home, template=STRICT, config={"ENGINE": "ProcessPoolEngine"}) as uep:
        up(relay, uep)
        bad = [messages.TaskItem(row, f"task-{row}", "echo", each) for row, each in enumerate(damaged, start=2)]
        relay.submit(FUNCTIONS, [*bad, messages.TaskItem(1, "task-1", "echo", as_json)])
        results = relay.results(1 + len(bad))
    assert load_result(results[1].payload) == "x"
    assert {results[item.row].code for item in bad} == {"SERIALIZER_NOT_ALLOWED"}
