"""An open result stream ends soon after the right to it has ended, whatever ends it, and says why.

Nothing is sent on these streams while they lose their right: a stream that waits is looked after as well.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from mep_sdk import Client, Executor
from mep_wire import api, messages
from mep_wire.errors import EndpointNotShared, TokenUnknown
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.fake_peer import FakeManager
from tests.support.login import people_file
from tests.support.oidc import HostileProvider
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person, Stream
from tests.support.waiting import until

WAIT_S = 60.0
ALL = ["submit", "read", "manage_endpoints", "manage_tokens"]


class AttentiveRelay(RelayProcess):
    """A relay that believes a provider's token for a second, and looks at open streams as often."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        patch = "import relay.auth.people as p, relay.api.result_stream as s; p.FOREIGN_KEPT_S = s.AGAIN_S = 1.0;"
        return [*python, f"{patch} {code}", *words, "--state", str(self.state)]


class CrampedRelay(RelayProcess):
    """A relay where one person may have three streams."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        patch = "import relay.api.context as c; c.MAX_STREAMS_OF_ONE = 3;"
        return [*python, f"{patch} {code}", *words, "--state", str(self.state)]


@dataclass
class Scene:
    """A relay, its provider, and an endpoint of Olga's that Ann submits to."""

    relay: RelayProcess
    provider: HostileProvider
    olga: str
    endpoint: str

    def person(self, token: str) -> Person:
        """Return a person by their token."""
        made = Person.__new__(Person)
        made.relay, made.token = self.relay, token
        return made

    def ann(self, **claims: Any) -> str:
        """Return an opaque token of Ann's, whom the provider knows until a test says otherwise."""
        token, name = f"opaque-{uuid.uuid4()}", claims.pop("name", "ann@example.edu")
        known = {"active": True, "token_type": "Bearer", "sub": name, "preferred_username": name, "scope": "compute"}
        self.provider.active[token] = {**known, **claims}
        return token

    def stream(self, token: str, endpoint: str = "") -> Stream:
        """Submit a task that nobody runs, and follow its group with this token."""
        person = self.person(token)
        group = str(uuid.uuid4())
        answer = person.submit(endpoint or self.endpoint, person.function(), ["p"], task_group_id=group)
        assert answer["task_group_id"] == group
        return person.stream(group)

    def ok(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        status, answer = self.relay.request(method, path, token or self.olga, body)
        assert status == 200, answer
        return answer


def refusal(stream: Stream) -> str:
    """Return the code with which the relay ends a stream."""
    frame: Any = stream.socket.recv(WAIT_S)
    told: api.StreamFrame = msgspec.msgpack.decode(frame, type=api.StreamFrame)
    assert isinstance(told, api.StreamRefused), told
    return told.code


def goes_on(stream: Stream) -> None:
    """Check that a stream outlives several looks at its right."""
    with pytest.raises(TimeoutError):
        stream.socket.recv(4)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("relay")
    with HostileProvider() as provider:
        campus = {"name": "campus", "issuer": provider.issuer, "client_id": "relay", "introspect": True}
        taking = {**campus, "required_scope": "compute", "bearer_scopes": ALL}
        with AttentiveRelay(directory, "--people", str(people_file(directory, providers=[taking]))) as relay:
            olga = relay.add_user("olga@example.edu")
            made = Scene(relay, provider, olga, FakeManager(relay, olga).endpoint_id)
            yield made


def test_a_stream_with_a_right_goes_on(scene: Scene) -> None:
    goes_on(scene.stream(scene.ann()))
    goes_on(scene.stream(scene.olga))


def test_a_revoked_token(scene: Scene) -> None:
    body = {"name": "r", "scopes": ["submit", "read"]}
    made = scene.ok("POST", "/v3/tokens", body)
    stream = scene.stream(made["token"])
    scene.ok("DELETE", f"/v3/tokens/{made['id']}")
    assert refusal(stream) == "TOKEN_UNKNOWN"


def test_an_expired_token(scene: Scene) -> None:
    made = scene.ok("POST", "/v3/tokens", {"name": "e", "scopes": ["submit", "read"], "expires_in": 10})
    assert refusal(scene.stream(made["token"])) == "TOKEN_UNKNOWN"


@pytest.mark.parametrize("change", [{"active": False}, {"scope": "mail"}, {"exp": 1}, {"iss": "https://x.example"}])
def test_a_providers_token_that_is_revoked_scoped_anew_or_over(scene: Scene, change: dict[str, Any]) -> None:
    token = scene.ann()
    stream = scene.stream(token)
    scene.provider.active[token].update(change)
    assert refusal(stream) == "TOKEN_UNKNOWN"


def test_a_removed_person(scene: Scene) -> None:
    stream = scene.stream(scene.relay.add_user("rick@example.edu"))
    scene.relay.cli("user", "remove", "rick@example.edu")
    assert refusal(stream) == "TOKEN_UNKNOWN"


def test_a_removed_person_of_a_provider(scene: Scene) -> None:
    """They may come back by the provider, as a new account: what the former had is not theirs."""
    stream = scene.stream(scene.ann(name="rita@example.edu"))
    scene.relay.cli("user", "remove", "rita@example.edu")
    assert refusal(stream) in ("TOKEN_UNKNOWN", "TASK_GROUP_NOT_FOUND")


def test_an_identity_that_is_no_longer_linked(scene: Scene) -> None:
    kept, other = scene.relay.add_user("lin@example.edu"), scene.relay.add_user("lin@lab.example.org")
    scene.relay.cli("user", "link", "lin@example.edu", "lin@lab.example.org")
    mine, others = scene.stream(kept), scene.stream(other)
    scene.relay.cli("user", "unlink", "lin@lab.example.org")
    assert refusal(others) == "TASK_GROUP_NOT_FOUND"
    goes_on(mine)


def test_a_group_that_is_left(scene: Scene) -> None:
    group = scene.ok("POST", "/v3/groups", {"name": "g", "members": ["ann@example.edu"]})["id"]
    endpoint = FakeManager(scene.relay, scene.olga).endpoint_id
    scene.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"groups": [group]})
    stream = scene.stream(scene.ann(), endpoint)
    goes_on(stream)
    scene.ok("PUT", f"/v3/groups/{group}", {"name": "g", "members": []})
    assert refusal(stream) == "ENDPOINT_NOT_SHARED"


def test_the_output_of_a_task_that_came_later_is_of_its_own_endpoint(scene: Scene) -> None:
    """The group may have begun at another endpoint, to which the right goes on."""
    token, group = scene.ann(), str(uuid.uuid4())
    person, lab = scene.person(token), FakeManager(scene.relay, scene.olga)
    lab.hello()
    function = person.function()
    person.submit(scene.endpoint, function, ["p"], task_group_id=group)
    stream = person.stream(group, output=True)
    goes_on(stream)
    person.submit(lab.endpoint_id, function, ["p"], task_group_id=group)
    uep = lab.start()
    uep.credit(1)
    (task,) = uep.take(1)
    item = messages.PrintedItem(task.row, task.task_id, 1, 0, 0, b"hers\n")
    uep.send(messages.Printed(items=[item]))
    assert stream.output() == [(task.task_id, 0, b"hers\n")]
    scene.ok("PUT", f"/v3/endpoints/{lab.endpoint_id}/access", {"people": []})
    assert refusal(stream) == "ENDPOINT_NOT_SHARED"


def test_a_policy_that_admits_no_longer(scene: Scene) -> None:
    policy = scene.ok("POST", "/v3/policies", {"display_name": "p"})["id"]
    endpoint = FakeManager(scene.relay, scene.olga, authentication_policy=policy).endpoint_id
    stream = scene.stream(scene.ann(), endpoint)
    goes_on(stream)
    excluding = {"display_name": "p", "domain_constraints_exclude": ["example.edu"]}
    scene.ok("PUT", f"/v3/policies/{policy}", excluding)
    assert refusal(stream) == "POLICY_REFUSED"


def test_a_login_that_grows_too_old_counts_at_high_assurance_alone(scene: Scene) -> None:
    body = {"display_name": "fresh", "authentication_assurance_timeout": 15, "high_assurance": True}
    policy = scene.ok("POST", "/v3/policies", body)["id"]
    plain = FakeManager(scene.relay, scene.olga, authentication_policy=policy).endpoint_id
    assured = FakeManager(scene.relay, scene.olga, authentication_policy=policy, high_assurance=True).endpoint_id
    token = scene.ann(auth_time=int(time.time()) + 1)
    waits = scene.stream(token, plain)
    person = scene.person(token)
    fields = {"function_name": "f", "function_code": "c", "ha_endpoint_id": assured}
    function = scene.ok("POST", "/v3/functions", fields, token)["function_uuid"]
    group = str(uuid.uuid4())
    person.submit(assured, function, ["p"], task_group_id=group)
    assert refusal(person.stream(group)) == "LOGIN_REQUIRED"
    goes_on(waits)


def test_who_watches_an_action_fulfils_the_endpoints_policy(scene: Scene) -> None:
    """Ann's login is as the endpoint wants it, and Bob's is not. It need not be shared with Bob."""
    policy = scene.ok("POST", "/v3/policies", {"display_name": "p"})["id"]
    endpoint = FakeManager(scene.relay, scene.olga, authentication_policy=policy)
    endpoint.hello()
    ann, bob = scene.person(scene.ann()), scene.person(scene.ann(name="bob@other.example"))
    scene.ok("PUT", f"/v3/endpoints/{endpoint.endpoint_id}/access", {"people": ["ann@example.edu"]})
    watcher = f"urn:globus:auth:identity:{bob.ok('GET', '/oauth/userinfo')['sub']}"
    body = {"endpoint": endpoint.endpoint_id, "tasks": [{"function": ann.function()}]}
    run = {"request_id": "w", "body": body, "monitor_by": [watcher]}
    _, begun = scene.relay.request("POST", "/automate/compute/run", ann.token, run)
    path = f"/automate/compute/{begun['action_id']}/status"
    uep = endpoint.start()
    uep.credit(1)
    uep.finish(uep.take(1))
    until("the action's end", lambda: ann.ok("GET", path)["status"] == "SUCCEEDED")
    assert "output" in bob.ok("GET", path)["details"]["results"][0]
    including = {"display_name": "p", "domain_constraints_include": ["example.edu"]}
    scene.ok("PUT", f"/v3/policies/{policy}", including)
    assert "output" in ann.ok("GET", path)["details"]["results"][0]
    (told,) = bob.ok("GET", path)["details"]["results"]
    assert told["withheld"]
    assert "output" not in told


def test_results_are_not_had_by_asking_either(scene: Scene) -> None:
    endpoint = FakeManager(scene.relay, scene.olga)
    endpoint.hello()
    token = scene.ann()
    person = scene.person(token)
    function = person.function()
    (task,) = person.submit(endpoint.endpoint_id, function, ["p"])["tasks"][function]
    uep = endpoint.start()
    uep.credit(1)
    uep.finish(uep.take(1))
    person.stream(_group(scene, token)).results(1)
    assert person.task(task)["status"] == "success"
    run = {"request_id": "r", "body": {"endpoint": endpoint.endpoint_id, "tasks": [{"function": function}]}}
    action = scene.relay.request("POST", "/automate/compute/run", token, run)[1]["action_id"]
    uep.credit(1)
    uep.finish(uep.take(1))
    path = f"/automate/compute/{action}/status"
    until("the action's end", lambda: person.ok("GET", path)["status"] == "SUCCEEDED")
    assert "output" in person.ok("GET", path)["details"]["results"][0]
    scene.ok("PUT", f"/v3/endpoints/{endpoint.endpoint_id}/access", {"people": []})
    status, answer = scene.relay.request("GET", f"/v2/tasks/{task}", token)
    assert (status, answer["code"]) == (403, "ENDPOINT_NOT_SHARED")
    many = person.ok("POST", "/v2/batch_status", {"task_ids": [task]})["results"][task]
    assert many["code"] == "ENDPOINT_NOT_SHARED"
    assert "result" not in many
    [told] = person.ok("GET", path)["details"]["results"]
    assert (told["withheld"], told["code"]) == (True, "ENDPOINT_NOT_SHARED")
    assert "output" not in told


def test_those_whom_an_action_names_have_its_outputs_while_its_owner_may(scene: Scene) -> None:
    policy = scene.ok("POST", "/v3/policies", {"display_name": "p"})["id"]
    endpoint = FakeManager(scene.relay, scene.olga, authentication_policy=policy)
    endpoint.hello()
    ann, bob = scene.person(scene.ann()), scene.person(scene.ann(name="bob@elsewhere.edu"))
    scene.ok("PUT", f"/v3/endpoints/{endpoint.endpoint_id}/access", {"people": ["ann@example.edu"]})
    monitor = f"urn:globus:auth:identity:{bob.ok('GET', '/oauth/userinfo')['sub']}"
    body = {"endpoint": endpoint.endpoint_id, "tasks": [{"function": ann.function()}]}
    status, answer = ann.call(
        "POST", "/automate/compute/run", {"request_id": str(uuid.uuid4()), "body": body, "monitor_by": [monitor]}
    )
    assert status == 202
    uep = endpoint.start()
    uep.credit(1)
    uep.finish(uep.take(1))
    path = f"/automate/compute/{answer['action_id']}/status"
    until("the action's end", lambda: ann.ok("GET", path)["status"] == "SUCCEEDED")

    def shown() -> str:
        """Return the code with which the output is withheld from Bob, empty where he has it."""
        [told] = bob.ok("GET", path)["details"]["results"]
        assert ("output" in told) != told.get("withheld", False)
        return str(told.get("code", ""))

    assert not shown()  # he may not submit there
    scene.ok("PUT", f"/v3/policies/{policy}", {"display_name": "p", "domain_constraints_exclude": ["elsewhere.edu"]})
    assert shown() == "POLICY_REFUSED"
    scene.ok("PUT", f"/v3/policies/{policy}", {"display_name": "p"})
    assert not shown()
    scene.ok("PUT", f"/v3/endpoints/{endpoint.endpoint_id}/access", {"people": []})
    assert shown() == "ENDPOINT_NOT_SHARED"


def _group(scene: Scene, token: str) -> str:
    """Return the newest task group of a person."""
    return str(scene.ok("GET", "/v3/taskgroups", None, token)["taskgroups"][0]["taskgroup_id"])


def test_one_persons_streams_leave_room_for_others(tmp_path: Path) -> None:
    """An open stream holds a descriptor, and no limit by address counts it."""
    with CrampedRelay(tmp_path) as relay:
        many, other = Person(relay, "many"), Person(relay, "other")
        endpoint = FakeManager(relay, other.token).endpoint_id
        groups = {one: str(uuid.uuid4()) for one in (many, other)}
        for person, group in groups.items():
            person.submit(endpoint, person.function(), ["p"], task_group_id=group)
        streams = [many.stream(groups[many]) for _ in range(3)]
        with pytest.raises(InvalidStatus) as refused:
            many.stream(groups[many])
        assert refused.value.response.status_code == 503
        other.stream(groups[other]).close()
        streams.pop().close()
        until("a place", lambda: many.stream(groups[many]), unready=(InvalidStatus,))


# --- what a script is told --------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    return a + b


def test_a_script_is_told_why(scene: Scene) -> None:
    endpoint = FakeEndpoint(scene.relay, scene.olga, serve=False)
    token = scene.ann()
    executor = Executor(endpoint.endpoint_id, client=Client(scene.relay.url, token))
    future = executor.submit(add, 1, 2)
    assert future.task_id
    scene.ok("PUT", f"/v3/endpoints/{endpoint.endpoint_id}/access", {"people": []})
    assert isinstance(future.exception(WAIT_S), EndpointNotShared)
    scene.ok("PUT", f"/v3/endpoints/{endpoint.endpoint_id}/access", {})
    second = executor.submit(add, 1, 2)
    assert second.task_id
    scene.provider.active[token]["active"] = False
    assert isinstance(second.exception(WAIT_S), TokenUnknown)
    executor.shutdown(wait=False, cancel_futures=True)
