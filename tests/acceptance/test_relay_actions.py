"""The action provider at a real relay, with tasks that run, against the published schema; and the example gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mep_sdk.function_serializer import serialize_function
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.login import LoginClient, free_port, people_file
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = "globus-action-provider-tools==0.21.0"
"""Has the published schema of the interface."""
STATUS_SCHEMA: dict[str, Any] = {}
REQUEST_SCHEMA: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def published(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("published")
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    subprocess.run([base, "-m", "venv", place / "env"], check=True)
    words = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", place, PUBLISHED]
    subprocess.run([place / "env/bin/python", "-I", *words], check=True, capture_output=True)
    for known, name in ((STATUS_SCHEMA, "action_status"), (REQUEST_SCHEMA, "action_request")):
        known.update(yaml.safe_load((place / "globus_action_provider_tools" / f"{name}.yaml").read_text()))


def double(value: int) -> dict[str, int]:
    return {"twice": 2 * value}


def fail(value: int) -> None:
    raise ValueError(f"no {value}")


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    directory = tmp_path_factory.mktemp("relay")
    settings = people_file(directory, administrators=["root@example.edu"])
    with RelayProcess(directory, "--people", str(settings)) as running:
        yield running


@pytest.fixture(scope="module")
def alice(relay: RelayProcess) -> Person:
    return Person(relay, "alice")


@pytest.fixture(scope="module")
def endpoint(relay: RelayProcess, alice: Person) -> Iterator[str]:
    with FakeEndpoint(relay, alice.token) as serving:
        yield serving.endpoint_id


@pytest.fixture(scope="module")
def function(alice: Person) -> str:
    return registered(alice, double)


def registered(person: Person, function: Any) -> str:
    from mep_wire.api import opaque_to_text

    code = opaque_to_text(serialize_function(function))
    body = {"function_name": function.__name__, "function_code": code, "public": True}
    return str(person.ok("POST", "/v3/functions", body)["function_uuid"])


def action(endpoint: str, function: str, *values: Any, **fields: Any) -> dict[str, Any]:
    tasks = [{"function": function, "args": [value]} for value in values]
    return {"request_id": str(uuid.uuid4()), "body": {"endpoint": endpoint, "tasks": tasks}, **fields}


def begin(person: Person, body: dict[str, Any]) -> Any:
    jsonschema.validate(body, REQUEST_SCHEMA)
    status, answer = person.call("POST", "/automate/compute/run", body)
    assert status == 202, answer
    jsonschema.validate(answer, STATUS_SCHEMA)
    return answer


def ended(person: Person, action_id: str) -> Any:
    last: Any = {}

    def done() -> bool:
        nonlocal last
        last = person.ok("GET", f"/automate/compute/{action_id}/status")
        jsonschema.validate(last, STATUS_SCHEMA)
        return bool(last["status"] != "ACTIVE")

    until("the action's end", done)
    return last


def test_a_flow_reads_what_the_provider_takes(relay: RelayProcess) -> None:
    for path in ("/automate/compute", "/automate/compute/"):
        status, told = relay.request("GET", path)
        assert status == 200
        jsonschema.Draft202012Validator.check_schema(told["input_schema"])
    good = action(str(uuid.uuid4()), str(uuid.uuid4()), 1)["body"]
    jsonschema.validate(good, told["input_schema"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "more": 1}, told["input_schema"])
    assert told["types"] == ["ACTION"]
    assert told["synchronous"] is False


def test_an_action_runs_and_is_released(alice: Person, endpoint: str, function: str) -> None:
    begun = begin(alice, action(endpoint, function, 1, 21, label="double"))
    assert begun["label"] == "double"
    last = ended(alice, begun["action_id"])
    assert last["status"] == "SUCCEEDED"
    assert [one["output"] for one in last["details"]["results"]] == [{"twice": 2}, {"twice": 42}]
    path = f"/automate/compute/{begun['action_id']}"
    assert alice.ok("POST", f"{path}/cancel")["status"] == "SUCCEEDED"
    assert alice.ok("POST", f"{path}/release")["status"] == "SUCCEEDED"
    alice.refused(404, "ACTION_NOT_FOUND", "GET", f"{path}/status")
    alice.refused(404, "ACTION_NOT_FOUND", "POST", f"{path}/release")


def test_a_failed_task_fails_the_action(alice: Person, endpoint: str) -> None:
    begun = begin(alice, action(endpoint, registered(alice, fail), 3))
    last = ended(alice, begun["action_id"])
    assert last["status"] == "FAILED"
    assert last["details"]["results"][0]["code"] == "TASK_FAILED"


def many(value: int) -> str:
    return "x" * value


def test_large_outputs_come_from_chunks_as_far_as_one_answer_holds_them(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    relay.state.mkdir(mode=0o700)
    (relay.state / "mep-relay.toml").write_text(f"chunks = '{tmp_path / 'chunks'}'\n")
    with relay:
        person = Person(relay, "dora")
        with FakeEndpoint(relay, person.token) as serving:
            sizes = [9_000_000] * 4 + [10]
            begun = begin(person, action(serving.endpoint_id, registered(person, many), *sizes))
            last = ended(person, begun["action_id"])
    assert last["status"] == "SUCCEEDED"
    results = last["details"]["results"]
    assert [len(one["output"]) for one in results if "output" in one] == [9_000_000] * 3 + [10]
    assert [one["status"] for one in results if one.get("withheld")] == ["success"]


def test_a_repeated_request_is_the_same_action(alice: Person, endpoint: str, function: str) -> None:
    body = action(endpoint, function, 5)
    first = begin(alice, body)
    assert begin(alice, body)["action_id"] == first["action_id"]
    assert len(ended(alice, first["action_id"])["details"]["results"]) == 1
    alice.refused(409, "ID_CONFLICT", "POST", "/automate/compute/run", {**body, "label": "another"})


def test_an_action_that_waits_is_cancelled_and_not_released(relay: RelayProcess, alice: Person, function: str) -> None:
    with FakeEndpoint(relay, alice.token, serve=False) as away:
        begun = begin(alice, action(away.endpoint_id, function, 1))
        path = f"/automate/compute/{begun['action_id']}"
        alice.refused(409, "ACTION_NOT_FINISHED", "POST", f"{path}/release")
        alice.ok("POST", f"{path}/cancel")
        assert ended(alice, begun["action_id"])["status"] == "FAILED"


def test_an_action_is_seen_by_those_it_names(relay: RelayProcess, alice: Person, endpoint: str, function: str) -> None:
    bob, carol = Person(relay, "bob"), Person(relay, "carol")
    me = bob.ok("GET", "/oauth/userinfo")["sub"]
    begun = begin(alice, action(endpoint, function, 1, monitor_by=[f"urn:globus:auth:identity:{me}"]))
    path = f"/automate/compute/{begun['action_id']}"
    assert bob.ok("GET", f"{path}/status")["action_id"] == begun["action_id"]
    bob.refused(404, "ACTION_NOT_FOUND", "POST", f"{path}/cancel")
    carol.refused(404, "ACTION_NOT_FOUND", "GET", f"{path}/status")


WRONG: list[dict[str, Any]] = [
    {"request_id": ""},
    {"body": {}},
    {"body": {"endpoint": "x", "tasks": []}},
    {"body": {"endpoint": "x", "tasks": [{"function": "f", "no": 1}]}},
    {"label": "x" * 65},
    {"release_after": "soon"},
    {"release_after": "PT0S"},
    {"release_after": "PT59S"},
    {"release_after": "P367D"},
    {"monitor_by": ["alice"]},
    {"allowed_clients": ["creator"]},
    {"deadline": "tomorrow"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_action_is_refused(alice: Person, endpoint: str, function: str, wrong: Any) -> None:
    body = {**action(endpoint, function, 1), **wrong}
    alice.refused(422, "BODY_INVALID", "POST", "/automate/compute/run", body)


def test_a_refused_action_leaves_nothing(alice: Person, function: str) -> None:
    body = action(str(uuid.uuid4()), function, 1)
    alice.refused(404, "ENDPOINT_NOT_FOUND", "POST", "/automate/compute/run", body)
    alice.refused(404, "ENDPOINT_NOT_FOUND", "POST", "/automate/compute/run", {**body, "label": "once more"})


def test_the_example_gateway_runs_a_function_for_its_people(
    relay: RelayProcess, alice: Person, endpoint: str, function: str
) -> None:
    root = relay.add_user("root@example.edu")
    body = {"name": "portal", "functions": [function]}
    status, refused = relay.request("POST", "/v3/clients", root, body)
    assert (status, refused["code"]) == (403, "SCOPE_MISSING")  # a built-in token has not the scope
    admin = relay.cli("user", "token", "root@example.edu", "--keep", "--scope", "admin").stdout.strip()
    client = relay.request("POST", "/v3/clients", admin, body)[1]
    secrets = {"GATEWAY_CLIENT_ID": client["client_id"], "GATEWAY_CLIENT_SECRET": client["client_secret"]}
    port = free_port()
    command = [sys.executable, str(ROOT / "demo" / "gateway.py"), relay.url, endpoint, function, str(port)]
    gateway = subprocess.Popen(command, env={**os.environ, **secrets}, stderr=subprocess.DEVNULL)
    try:

        def press(path: str, data: bytes | None) -> Any:
            headers = {"X-Portal-User": "ada", "Content-Length": str(len(data or b""))}
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        begun = until("the gateway", lambda: press("/", b"4"), unready=(LookupError, urllib.error.URLError))
        until("the result", lambda: press(f"/{begun['action']}", None)["status"] == "SUCCEEDED")
        assert press(f"/{begun['action']}", None)["results"][0]["output"] == {"twice": 8}
    finally:
        gateway.terminate()
        gateway.wait(30)
    audit = [json.loads(line) for line in (relay.state / "audit.log").read_text().splitlines()]
    assert {"ada"} == {one["end_user"] for one in audit if one.get("client_id") == client["client_id"]}
    assert (
        LoginClient(relay, client["client_id"], "wrong").form("/oauth/token", grant_type="client_credentials")[0] == 401
    )
