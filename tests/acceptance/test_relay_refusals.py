"""The relay's refusals over HTTP: the status and code of each, and a reason that names the remedy."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from mep_wire.limits import MAX_BODY_BYTES, MAX_PAYLOAD_BYTES, MAX_TASKS_PER_SUBMIT, MAX_USER_CONFIG_BYTES
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.waiting import until

NOWHERE = "7b1a0c1e-3f5c-4a7e-9d55-0c1f2e3d4a5b"
SCHEMA = {
    "type": "object",
    "properties": {
        "PARTITION": {"enum": ["cpu", "gpu"]},
        "NODES": {"type": "integer", "minimum": 1},
        "NAME": {"type": "string", "pattern": "^[a-z]+$"},
    },
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path_factory.mktemp("relay"), "--max-open-tasks", "50") as running:
        yield running


@pytest.fixture(scope="module")
def bob(relay: RelayProcess) -> Person:
    return Person(relay, "bob")


@pytest.fixture(scope="module")
def lab(relay: RelayProcess, alice: Person) -> FakeManager:
    return FakeManager(relay, alice.token, user_config_schema=SCHEMA)


@pytest.fixture(scope="module")
def function(alice: Person) -> str:
    return alice.function()


def submission(endpoint_id: str) -> str:
    return f"/v3/endpoints/{endpoint_id}/submit"


# --- 401 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "nonsense", "mep_" + "x" * 43, "é".encode("latin-1").decode("latin-1")])
def test_an_unknown_token_is_refused_everywhere(relay: RelayProcess, token: str | None) -> None:
    for method, path in [("GET", "/v2/endpoints"), ("POST", "/v3/functions"), ("GET", f"/v2/tasks/{NOWHERE}")]:
        status, answer = relay.request(method, path, token, raw=b"{}" if method == "POST" else None)
        assert (status, answer["code"]) == (401, "TOKEN_UNKNOWN")


def test_a_removed_person_is_out_soon(relay: RelayProcess) -> None:
    carol = Person(relay, "carol")
    carol.ok("GET", "/v2/endpoints")
    relay.cli("user", "remove", carol.username)
    until("the refusal", lambda: carol.call("GET", "/v2/endpoints")[0] == 401)


def test_a_new_token_replaces_the_old_one(relay: RelayProcess) -> None:
    carol = Person(relay, "carol")
    fresh = relay.cli("user", "token", carol.username).stdout.strip()
    assert relay.request("GET", "/v2/endpoints", carol.token)[0] == 401
    assert relay.request("GET", "/v2/endpoints", fresh)[0] == 200


# --- 403 --------------------------------------------------------------------------------------------


def test_a_single_user_endpoint_is_its_owners_alone(relay: RelayProcess, alice: Person, bob: Person) -> None:
    mine = FakeManager(relay, alice.token, multi_user=False)
    body = {"tasks": {bob.function(): ["x"]}}
    bob.refused(403, "ENDPOINT_FORBIDDEN", "POST", submission(mine.endpoint_id), body)
    bob.refused(403, "ENDPOINT_FORBIDDEN", "GET", f"/v2/endpoints/{mine.endpoint_id}")
    bob.refused(403, "ENDPOINT_FORBIDDEN", "GET", f"/v2/endpoints/{mine.endpoint_id}/status")
    alice.submit(mine.endpoint_id, alice.function(), ["x"])


def test_a_multi_user_endpoint_takes_any_authenticated_person(bob: Person, lab: FakeManager) -> None:
    bob.submit(lab.endpoint_id, bob.function(), ["x"])


def test_only_the_owner_changes_or_deletes(bob: Person, lab: FakeManager, function: str) -> None:
    body = {"endpoint_name": "stolen", "multi_user": True}
    bob.refused(403, "NOT_OWNER", "PUT", f"/v3/endpoints/{lab.endpoint_id}", body)
    bob.refused(403, "NOT_OWNER", "DELETE", f"/v2/endpoints/{lab.endpoint_id}")
    bob.refused(403, "NOT_OWNER", "DELETE", f"/v2/functions/{function}")


def test_an_administrator_named_by_the_owner_may_change_and_the_owner_stays(
    relay: RelayProcess, alice: Person, bob: Person
) -> None:
    listed = msgspec.json.decode(relay.cli("user", "add", f"{uuid.uuid4()}@example.edu", "--json").stdout)
    shared = FakeManager(relay, alice.token, admins=[listed["identity_id"]])
    path, body = f"/v3/endpoints/{shared.endpoint_id}", {"endpoint_name": "renamed", "multi_user": False}
    status, answer = relay.request("PUT", path, listed["token"], body)
    assert status == 200
    assert [one["username"] for one in answer["owner"]] == [alice.username]
    bob.refused(403, "NOT_OWNER", "PUT", path, body)
    alice.submit(shared.endpoint_id, alice.function(), ["x"])  # single-user now, and still hers


def test_another_persons_function_runs_only_if_it_is_public(
    alice: Person, bob: Person, lab: FakeManager, function: str
) -> None:
    body = {"tasks": {function: ["x"]}}
    bob.refused(403, "FUNCTION_FORBIDDEN", "POST", submission(lab.endpoint_id), body)
    bob.refused(403, "FUNCTION_FORBIDDEN", "GET", f"/v2/functions/{function}")
    bob.submit(lab.endpoint_id, alice.function(public=True), ["x"])


def test_an_endpoint_with_a_list_runs_only_functions_on_it(relay: RelayProcess, alice: Person) -> None:
    listed, other = alice.function(), alice.function()
    strict = FakeManager(relay, alice.token, allowed_functions=[listed.upper()])
    body = {"tasks": {other: ["x"]}}
    reason = alice.refused(403, "FUNCTION_NOT_ALLOWED", "POST", submission(strict.endpoint_id), body)
    assert other in reason
    alice.submit(strict.endpoint_id, listed, ["x"])


def test_an_endpoint_may_list_code(relay: RelayProcess, alice: Person, bob: Person) -> None:
    listed, other = "sha256:" + hashlib.sha256(b"the code").hexdigest(), alice.function()
    strict = FakeManager(relay, alice.token, allowed_functions=[listed.replace("a", "A").replace("shA", "sha")])
    alice.refused(403, "FUNCTION_NOT_ALLOWED", "POST", submission(strict.endpoint_id), {"tasks": {other: ["x"]}})
    for person in (alice, bob):
        person.submit(strict.endpoint_id, person.function("the code"), ["x"])


def test_digests_are_told_to_anybody_who_knows_the_id(alice: Person, bob: Person) -> None:
    function, gone = alice.function("the code"), alice.function("more")
    alice.ok("DELETE", f"/v2/functions/{gone}")
    digest = hashlib.sha256(b"the code").hexdigest()
    body = {"function_ids": [function.upper(), gone, NOWHERE, "nonsense"]}
    assert bob.ok("POST", "/v3/functions/digests", body) == {"digests": {function: digest}}
    assert alice.ok("GET", f"/v2/functions/{function}")["sha256"] == digest
    bob.refused(422, "BODY_INVALID", "POST", "/v3/functions/digests", {"function_ids": [NOWHERE] * 257})


# --- 404 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NOWHERE, "nonsense", "a" * 5000, "%00", "%C3%A9%0a", "%ff"])
def test_unknown_ids_are_not_found(alice: Person, name: str) -> None:
    alice.refused(404, "ENDPOINT_NOT_FOUND", "DELETE", f"/v2/endpoints/{name}")
    for kind, path in [("ENDPOINT", "endpoints"), ("FUNCTION", "functions"), ("TASK", "tasks")]:
        reason = alice.refused(404, f"{kind}_NOT_FOUND", "GET", f"/v2/{path}/{name}")
        assert "%" in name or name[:60] in reason
    alice.refused(404, "TASK_GROUP_NOT_FOUND", "GET", f"/v2/taskgroup/{name}")


def test_unknown_functions_and_endpoints_of_a_submission(alice: Person, lab: FakeManager, function: str) -> None:
    alice.refused(404, "ENDPOINT_NOT_FOUND", "POST", submission(NOWHERE), {"tasks": {function: ["x"]}})
    alice.refused(404, "FUNCTION_NOT_FOUND", "POST", submission(lab.endpoint_id), {"tasks": {NOWHERE: ["x"]}})


def test_another_persons_tasks_and_groups_do_not_exist(
    alice: Person, bob: Person, lab: FakeManager, function: str
) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["x"])
    (task_id,) = answer["tasks"][function]
    bob.refused(404, "TASK_NOT_FOUND", "GET", f"/v2/tasks/{task_id}")
    bob.refused(404, "TASK_GROUP_NOT_FOUND", "GET", f"/v2/taskgroup/{answer['task_group_id']}")
    both = {"task_ids": [task_id, NOWHERE]}
    assert bob.ok("POST", "/v2/batch_status", both) == {
        "results": {},
        "response": "batch",
        "missing": [task_id, NOWHERE],
        "withheld": [],
    }
    assert bob.ok("POST", "/v3/tasks/cancel", both)["missing"] == [task_id, NOWHERE]
    assert alice.task(task_id)["status"] == "waiting-for-ep"


def test_unknown_routes(alice: Person) -> None:
    reason = alice.refused(404, "ROUTE_NOT_FOUND", "GET", "/v2/nonsense")
    assert "GET /v2/nonsense" in reason
    alice.refused(404, "ROUTE_NOT_FOUND", "DELETE", "/v2/version")


# --- 409 and 429 ------------------------------------------------------------------------------------


def test_ids_that_are_taken(relay: RelayProcess, alice: Person, bob: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["x"])
    taken = answer["tasks"][function]
    body: dict[str, Any] = {"tasks": {bob.function(): ["x"]}}
    body["task_ids"] = {next(iter(body["tasks"])): taken}
    bob.refused(409, "ID_CONFLICT", "POST", submission(lab.endpoint_id), body)
    body = {"tasks": {bob.function(): ["x"]}, "task_group_id": answer["task_group_id"]}
    bob.refused(409, "ID_CONFLICT", "POST", submission(lab.endpoint_id), body)
    with pytest.raises(AssertionError, match="ID_CONFLICT"):
        FakeManager(relay, bob.token, endpoint_uuid=lab.endpoint_id)


def test_a_link_key_cannot_be_registered_twice(relay: RelayProcess, bob: Person) -> None:
    first = FakeManager(relay, bob.token)
    from zmq.utils import z85

    with pytest.raises(AssertionError, match="ID_CONFLICT"):
        FakeManager(relay, bob.token, link_public_key=z85.encode(first.public_key).decode())


def test_a_repeated_submission_is_harmless(alice: Person, lab: FakeManager, function: str) -> None:
    ids = [str(uuid.uuid4())]
    group = str(uuid.uuid4())
    fields: dict[str, Any] = {"task_ids": {function: ids}, "task_group_id": group}
    first = alice.submit(lab.endpoint_id, function, ["x"], **fields)
    again = alice.submit(lab.endpoint_id, function, ["x"], **fields)
    assert first["tasks"] == again["tasks"] == {function: ids}
    assert alice.ok("GET", f"/v2/taskgroup/{group}")["tasks"] == [{"id": ids[0]}]


def test_too_many_waiting_tasks(relay: RelayProcess, lab: FakeManager) -> None:
    dave = Person(relay, "dave")
    function = dave.function()
    dave.submit(lab.endpoint_id, function, ["x"] * 50)
    reason = dave.refused(429, "TOO_MANY_TASKS", "POST", submission(lab.endpoint_id), {"tasks": {function: ["x"]}})
    assert "50 tasks" in reason


# --- 413 --------------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused_before_it_is_sent(relay: RelayProcess, alice: Person) -> None:
    connection = http.client.HTTPConnection(urlsplit(relay.url).netloc, timeout=10)
    connection.putrequest("POST", "/v3/functions")
    connection.putheader("authorization", f"Bearer {alice.token}")
    connection.putheader("content-length", str(MAX_BODY_BYTES + 1))
    connection.endheaders()  # and not a byte of the body
    answer = connection.getresponse()
    assert answer.status == 413
    told = msgspec.json.decode(answer.read())
    assert told["code"] == "PAYLOAD_TOO_LARGE"
    assert str(MAX_BODY_BYTES) in told["reason"]


def test_a_body_without_a_declared_size_is_cut_off(relay: RelayProcess, alice: Person) -> None:
    connection = http.client.HTTPConnection(urlsplit(relay.url).netloc, timeout=30)
    connection.putrequest("POST", "/v3/functions")
    connection.putheader("authorization", f"Bearer {alice.token}")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    chunk = b"%x\r\n%s\r\n" % (1 << 20, b" " * (1 << 20))
    with contextlib.suppress(OSError):  # it may be cut off already
        for _ in range((MAX_BODY_BYTES >> 20) + 8):
            connection.send(chunk)
        connection.send(b"0\r\n\r\n")
    with contextlib.suppress(OSError):  # the answer may be lost with the connection
        assert connection.getresponse().status == 413
    assert alice.ok("GET", "/v2/endpoints") is not None


def test_payloads_functions_and_configurations_over_their_limits(
    alice: Person, lab: FakeManager, function: str
) -> None:
    big = "x" * (MAX_PAYLOAD_BYTES + 1)
    reason = alice.refused(413, "PAYLOAD_TOO_LARGE", "POST", submission(lab.endpoint_id), {"tasks": {function: [big]}})
    assert f"tasks.{function}[0]" in reason
    body = {"function_name": "f", "function_code": big}
    assert "function_code" in alice.refused(413, "PAYLOAD_TOO_LARGE", "POST", "/v3/functions", body)
    for name in ("user_endpoint_config", "user_runtime", "resource_specification"):
        sizes = {"tasks": {function: ["x"]}, name: {"k": "x" * MAX_USER_CONFIG_BYTES}}
        assert name in alice.refused(413, "PAYLOAD_TOO_LARGE", "POST", submission(lab.endpoint_id), sizes)


# --- 422 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("truncated", b""),
        ("malformed", b"nonsense"),
        ("tasks", b"{}"),
        ("tasks", b'{"tasks": 3}'),
        ("tasks", b'{"tasks": {"x": 3}}'),
        ("tasks", b'{"tasks": {}}'),
        ("task_ids", b'{"tasks": {"FUNCTION": ["x"]}, "task_ids": {"FUNCTION": ["x", "y"]}}'),
        ("task_ids", b'{"tasks": {"FUNCTION": ["x"]}, "task_ids": {"FUNCTION": ["nonsense"]}}'),
        ("task_group_id", b'{"tasks": {"FUNCTION": ["x"]}, "task_group_id": "nonsense"}'),
        ("task_group_id", b'{"tasks": {"FUNCTION": ["x"]}, "task_group_id": 3}'),
        ("tasks.FUNCTION[1]", b'{"tasks": {"FUNCTION": ["x", 3]}}'),
        ("tasks.FUNCTION[0]", b'{"tasks": {"FUNCTION": ["b64:***"]}}'),
        ("walltime_s", b'{"tasks": {"FUNCTION": ["x"]}, "walltime_s": -1}'),
        ("walltime_s", b'{"tasks": {"FUNCTION": ["x"]}, "walltime_s": "long"}'),
        ("user_endpoint_config", b'{"tasks": {"FUNCTION": ["x"]}, "user_endpoint_config": []}'),
    ],
)
def test_a_malformed_submission_names_the_field(
    alice: Person, lab: FakeManager, function: str, field: str, body: bytes
) -> None:
    raw = body.replace(b"FUNCTION", function.encode())
    status, answer = alice.call("POST", submission(lab.endpoint_id), raw=raw)
    assert (status, answer["code"]) == (422, "BODY_INVALID"), answer
    assert field.replace("FUNCTION", function) in answer["reason"]


def test_too_many_tasks_in_one_submission(alice: Person, lab: FakeManager, function: str) -> None:
    body = {"tasks": {function: ["x"] * (MAX_TASKS_PER_SUBMIT + 1)}}
    assert "10001" in alice.refused(422, "BODY_INVALID", "POST", submission(lab.endpoint_id), body)


def test_the_same_id_twice(alice: Person, lab: FakeManager, function: str) -> None:
    same = str(uuid.uuid4())
    body = {"tasks": {function: ["x", "y"]}, "task_ids": {function: [same, same]}}
    assert "twice" in alice.refused(422, "BODY_INVALID", "POST", submission(lab.endpoint_id), body)


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("PARTITION", {"PARTITION": "tpu"}),
        ("NODES", {"NODES": 0}),
        ("NODES", {"NODES": "2"}),
        ("NAME", {"NAME": "Capital"}),
        ("ANYTHING", {"ANYTHING": 1}),
    ],
)
def test_a_configuration_against_the_schema_names_the_key(
    alice: Person, lab: FakeManager, function: str, key: str, config: dict[str, Any]
) -> None:
    group = str(uuid.uuid4())
    body = {"tasks": {function: ["x"]}, "user_endpoint_config": config, "task_group_id": group}
    reason = alice.refused(422, "USER_CONFIG_INVALID", "POST", submission(lab.endpoint_id), body)
    assert f": {key}: " in reason
    alice.refused(404, "TASK_GROUP_NOT_FOUND", "GET", f"/v2/taskgroup/{group}")


@pytest.mark.parametrize("key", ["parent_config", "user_runtime", "mapped_identity", "_GC", "_MEP", "range"])
def test_reserved_variables(alice: Person, lab: FakeManager, function: str, key: str) -> None:
    body = {"tasks": {function: ["x"]}, "user_endpoint_config": {key: {}}}
    assert key in alice.refused(422, "USER_CONFIG_RESERVED", "POST", submission(lab.endpoint_id), body)


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("link_public_key", {"link_public_key": ""}),
        ("link_public_key", {"link_public_key": "x" * 39}),
        ("link_public_key", {"link_public_key": "\x00" * 40}),
        ("unseal_public_key", {"unseal_public_key": "zz" * 32}),
        ("unseal_public_key", {"unseal_public_key": 7}),
        ("endpoint_name", {"endpoint_name": ""}),
        ("endpoint_name", {"endpoint_name": "a\nb"}),
        ("endpoint_name", {"endpoint_name": None}),
        ("endpoint_uuid", {"endpoint_uuid": "nonsense"}),
        ("user_config_schema", {"user_config_schema": {"type": "nonsense"}}),
        ("http://127.0.0.1:9/s", {"user_config_schema": {"$ref": "http://127.0.0.1:9/s"}}),
        ("file:///etc/passwd", {"user_config_schema": {"properties": {"a": {"$ref": "file:///etc/passwd"}}}}),
        ("user_config_schema", {"user_config_schema": {"properties": {"a": {"pattern": "(?<=a)b"}}}}),
        ("multi_user", {"multi_user": "yes"}),
    ],
)
def test_a_registration_that_cannot_be(relay: RelayProcess, bob: Person, word: str, fields: dict[str, Any]) -> None:
    keys = {"link_public_key": os.urandom(32).hex(), "unseal_public_key": os.urandom(32).hex()}
    body = {"endpoint_name": "lab", **keys, **fields}
    assert word in bob.refused(422, "BODY_INVALID", "POST", "/v3/endpoints", body)


def test_a_hostile_schema_holds_nobody_up(relay: RelayProcess, bob: Person) -> None:
    doubling: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    schema = {"$defs": {**doubling, "d40": {"type": "object"}}, "$ref": "#/$defs/d0"}
    keys = {"link_public_key": os.urandom(32).hex(), "unseal_public_key": os.urandom(32).hex()}
    before = time.monotonic()
    status, answer = bob.call("POST", "/v3/endpoints", {"endpoint_name": "e", **keys, "user_config_schema": schema})
    assert (status, answer["code"]) == (422, "BODY_INVALID")
    assert time.monotonic() - before < 30


def test_errors_come_in_the_format_that_was_asked_for(relay: RelayProcess, alice: Person, tmp_path: Path) -> None:
    connection = http.client.HTTPConnection(urlsplit(relay.url).netloc, timeout=10)
    headers = {"authorization": f"Bearer {alice.token}", "accept": "application/msgpack"}
    connection.request("GET", f"/v2/tasks/{NOWHERE}", headers=headers)
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "application/msgpack"
    assert msgspec.msgpack.decode(answer.read())["code"] == "TASK_NOT_FOUND"
