"""Every route and the stream, with each token that must not do: none, expired, revoked, too few scopes, another's."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from relay.api.http import ANY_TOKEN, OPEN
from relay.api.routes import ROUTES, Route
from relay.auth.settings import SCOPES
from tests.support.fake_peer import FakeManager
from tests.support.login import LoginClient, people_file
from tests.support.oidc import HostileProvider
from tests.support.relay import RelayProcess
from tests.support.waiting import until

PIECE = b"a piece of data"
GUARDED = [route for route in ROUTES if not route.open]
BODIES: dict[str, Any] = {
    "RegisterBody": {"endpoint_name": "e", "link_public_key": "11" * 32, "unseal_public_key": "11" * 32},
    "FunctionBody": {"function_name": "f", "function_code": "c"},
    "FunctionDigestsBody": {"function_ids": []},
    "SubmitBody": {"tasks": {}},
    "BatchStatusBody": {"task_ids": []},
    "CancelBody": {"task_ids": []},
    "TokenBody": {"name": "t"},
    "PolicyBody": {"display_name": "p"},
    "GroupBody": {"name": "g"},
    "ClientBody": {"name": "c"},
    "AccessBody": {},
    "FunctionUpdateBody": {"description": "mine now"},
    "RunBody": {"request_id": "r", "body": {}},
    "PiecesBody": {"digests": []},
}
OWN = {"GET /v2/endpoints", "GET /v3/policies", "GET /v3/groups", "GET /v3/tokens", "GET /oauth/userinfo"}
"""Routes that answer anybody, about themselves alone."""
OF_ALL = {"GET /v3/policies/{policy_id}", "POST /v3/functions/digests", "POST /v3/functions", "POST /v2/functions",
          "POST /v3/endpoints", "POST /v3/policies", "POST /v3/groups", "POST /v3/tokens",
          "PUT /v3/data/{digest}"}  # fmt: skip
"""Routes on which nothing belongs to another person."""


@dataclass
class Scene:
    """A relay, Alice's things there, and tokens of each kind."""

    relay: RelayProcess
    provider: HostileProvider
    things: dict[str, str]

    def token(self, name: str, **claims: Any) -> str:
        return self.provider.token({"sub": name, "preferred_username": name, **claims})

    def call(self, route: Route, token: str | None) -> tuple[int, Any]:
        path = re.sub(r"{(\w+)}", lambda found: self.things[found[1]], route.path)
        body = None if route.body is None else BODIES[route.body.__name__]
        return self.relay.request(route.method, path, token, body, PIECE if route.takes_bytes else None)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("relay")
    with HostileProvider() as provider:
        campus = {"name": "campus", "issuer": provider.issuer, "audience": "relay"}
        every = {**campus, "bearer_scopes": list(SCOPES)}
        settings = people_file(directory, providers=[every], administrators=["root@example.edu"])
        with RelayProcess(directory, "--people", str(settings)) as relay:
            made = Scene(relay, provider, {})
            made.things = _things(made)
            yield made


def _things(scene: Scene) -> dict[str, str]:
    """Make one of each thing, all of them Alice's; return their ids by the names of the routes' variables."""
    alice, root = scene.token("alice@example.edu"), scene.token("root@example.edu")

    def make(path: str, body: Any, token: str = alice) -> Any:
        status, answer = scene.relay.request("POST", path, token, body)
        assert status in (200, 202), answer
        return answer

    endpoint = FakeManager(scene.relay, alice).endpoint_id
    function = make("/v3/functions", BODIES["FunctionBody"])["function_uuid"]
    submitted = make(f"/v3/endpoints/{endpoint}/submit", {"tasks": {function: ["x"]}})
    digest = hashlib.sha256(PIECE).hexdigest()
    assert scene.relay.request("PUT", f"/v3/data/{digest}", alice, raw=PIECE)[0] == 200
    run = {"request_id": "one", "body": {"endpoint": endpoint, "tasks": [{"function": function}]}}
    return {
        "endpoint_id": endpoint,
        "function_id": function,
        "task_id": submitted["tasks"][function][0],
        "task_group_id": submitted["task_group_id"],
        "policy_id": make("/v3/policies", BODIES["PolicyBody"])["id"],
        "group_id": make("/v3/groups", BODIES["GroupBody"])["id"],
        "token_id": make("/v3/tokens", BODIES["TokenBody"])["id"],
        "action_id": make("/automate/compute/run", run)["action_id"],
        "digest": digest,
        "client_id": make("/v3/clients", BODIES["ClientBody"], root)["client_id"],
    }


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.mark.parametrize("route", GUARDED, ids=name)
def test_no_route_answers_without_a_good_token(scene: Scene, route: Route) -> None:
    now = int(time.time())
    bad = {
        "none": None,
        "empty": "",
        "unknown": "mep_" + "x" * 43,
        "expired": scene.token("alice@example.edu", exp=now - 3600),
        "of another audience": scene.token("alice@example.edu", aud="elsewhere"),
        "not a token": "a.b.c",
    }
    for kind, token in bad.items():
        status, answer = scene.call(route, token)
        assert (status, answer["code"]) == (401, "TOKEN_UNKNOWN"), kind


@pytest.mark.parametrize("route", GUARDED, ids=name)
def test_a_token_without_the_scope_is_refused(scene: Scene, route: Route) -> None:
    alice = scene.token("alice@example.edu")
    for only in SCOPES[:-1]:
        if only == route.scope or route.scope == ANY_TOKEN:
            continue
        status, made = scene.relay.request("POST", "/v3/tokens", alice, {"name": only, "scopes": [only]})
        assert status == 200
        status, answer = scene.call(route, made["token"])
        assert (status, answer["code"]) == (403, "SCOPE_MISSING"), only
        assert answer["authorization_parameters"]["required_scopes"] == [route.scope]


def test_every_route_says_what_it_asks_for() -> None:
    """There is no default: a route that declares nothing is no route."""
    with pytest.raises(TypeError, match="scope"):
        Route("GET", "/x", list, list, "A route")  # type: ignore[call-arg]
    assert {one.scope for one in ROUTES} <= {*SCOPES, OPEN, ANY_TOKEN}
    assert [name(one) for one in ROUTES if one.scope == ANY_TOKEN] == ["GET /oauth/userinfo", "GET /v3/data"]
    assert all(one.scope == OPEN for one in ROUTES if one.raw)
    opened = {"GET /v2/version", "GET /openapi.json", "GET /healthz", "GET /readyz"}
    assert {name(one) for one in ROUTES if one.scope == OPEN and not one.raw} == {
        *opened, "GET /automate/compute", "GET /automate/compute/"
    }  # fmt: skip


def test_the_specification_says_the_scope(scene: Scene) -> None:
    paths = scene.relay.request("GET", "/openapi.json")[1]["paths"]
    for route in ROUTES:
        told = paths[route.path][route.method.lower()]["security"]
        assert told == ([] if route.open else [{"token": [route.scope] if route.scope in SCOPES else []}])


def test_tokens_are_listed_made_and_revoked_with_their_own_scope_alone(scene: Scene) -> None:
    alice = scene.token("alice@example.edu")
    body = {"name": "all but", "scopes": ["submit", "read", "manage_endpoints"]}
    others = scene.relay.request("POST", "/v3/tokens", alice, body)[1]["token"]
    for method, path, sent in (
        ("GET", "/v3/tokens", None),
        ("POST", "/v3/tokens", {"name": "more"}),
        ("DELETE", f"/v3/tokens/{scene.things['token_id']}", None),
    ):
        status, answer = scene.relay.request(method, path, others, sent)
        assert (status, answer["code"]) == (403, "SCOPE_MISSING")
    quiet = scene.relay.request("POST", "/v3/tokens", alice, {"name": "by default"})[1]
    assert set(quiet["scopes"]) == {"submit", "read", "manage_endpoints"}


def test_no_token_makes_one_that_outlives_it(scene: Scene) -> None:
    ends = int(time.time()) + 300
    alice = scene.token("alice@example.edu", exp=ends)
    status, made = scene.relay.request("POST", "/v3/tokens", alice, {"name": "by default", "scopes": ["manage_tokens"]})
    assert (status, made["expires_at"]) == (200, pytest.approx(ends, abs=1))
    for token in (alice, made["token"]):
        long = {"name": "long", "scopes": ["manage_tokens"], "expires_in": 3600}
        status, answer = scene.relay.request("POST", "/v3/tokens", token, long)
        assert (status, answer["code"]) == (422, "BODY_INVALID"), answer
        assert "outlive" in answer["reason"]
    body = {"name": "short", "scopes": ["manage_tokens"], "expires_in": 60}
    short = scene.relay.request("POST", "/v3/tokens", made["token"], body)[1]
    longer = {**body, "expires_in": 200}
    assert "outlive" in scene.relay.request("POST", "/v3/tokens", short["token"], longer)[1]["reason"]
    root = scene.token("root@example.edu")
    gateway = {"name": "g", "exchange": True, "scopes": ["submit", "read"]}
    client = scene.relay.request("POST", "/v3/clients", root, gateway)[1]
    exchanged = LoginClient(scene.relay, client["client_id"], client["client_secret"]).form(
        "/oauth/token",
        grant_type="urn:ietf:params:oauth:grant-type:token-exchange",
        subject_token=alice,
        subject_token_type="urn:ietf:params:oauth:token-type:access_token",
    )
    assert exchanged[0] == 200
    assert exchanged[1]["expires_in"] <= 300


def test_a_gateway_makes_no_tokens_whatever_it_may(scene: Scene) -> None:
    body = {"name": "g", "scopes": ["manage_tokens"]}
    client = scene.relay.request("POST", "/v3/clients", scene.token("root@example.edu"), body)[1]
    gateway = LoginClient(scene.relay, client["client_id"], client["client_secret"])
    token = gateway.form("/oauth/token", grant_type="client_credentials")[1]["access_token"]
    status, answer = scene.relay.request("POST", "/v3/tokens", token, {"name": "more"})
    assert (status, answer["code"]) == (403, "CLIENT_FORBIDDEN")


def test_a_read_token_changes_nothing() -> None:
    changes = {name(one) for one in GUARDED if one.method != "GET" and one.scope == "read"}
    assert changes == {"POST /v3/functions/digests", "POST /v2/batch_status"}  # questions with a body


@pytest.mark.parametrize("route", [one for one in GUARDED if "{" in one.path and name(one) not in OF_ALL], ids=name)
def test_another_person_reaches_nothing(scene: Scene, route: Route) -> None:
    status, answer = scene.call(route, scene.token("mallory@example.edu"))
    if route.path in ("/v2/endpoints/{endpoint_id}", "/v2/endpoints/{endpoint_id}/status") and route.method == "GET":
        assert status == 200  # an endpoint that is shared with all
        return
    if route.path.endswith("/submit"):
        assert answer["code"] == "BODY_INVALID"  # of a body without tasks: the endpoint is open to all
        return
    assert status in (403, 404), answer


@pytest.mark.parametrize("route", [one for one in GUARDED if name(one) in OWN], ids=name)
def test_lists_have_ones_own_things_alone(scene: Scene, route: Route) -> None:
    status, answer = scene.call(route, scene.token("mallory@example.edu"))
    assert status == 200
    assert not any(thing in str(answer) for thing in scene.things.values())


def test_a_services_token_reaches_nothing_of_people(scene: Scene) -> None:
    root = scene.token("root@example.edu")
    body = {"name": "svc", "scopes": ["submit", "read", "manage_endpoints"]}
    made = scene.relay.request("POST", "/v3/clients", root, body)[1]
    service = LoginClient(scene.relay, made["client_id"], made["client_secret"])
    token = service.form("/oauth/token", grant_type="client_credentials")[1]["access_token"]
    for route in GUARDED:
        if "{" not in route.path or name(route) in OF_ALL or route.path.endswith("/submit"):
            continue
        if route.method == "GET" and route.path.startswith("/v2/endpoints/"):
            continue
        status, answer = scene.call(route, token)
        assert status in (403, 404), (name(route), answer)


def _stream(scene: Scene, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with connect(scene.relay.url.replace("http", "ws", 1) + "/v3/stream", additional_headers=headers, legacy=True):
            return 101
    except InvalidStatus as error:
        return int(error.response.status_code)


def test_the_stream_takes_the_tokens_that_routes_take(scene: Scene) -> None:
    alice = scene.token("alice@example.edu")
    assert _stream(scene, alice) == 101
    for token in (None, "", "mep_" + "x" * 43, scene.token("alice@example.edu", exp=int(time.time()) - 3600)):
        assert _stream(scene, token) == 401
    body = {"name": "s", "scopes": ["submit"]}
    submit_only = scene.relay.request("POST", "/v3/tokens", alice, body)[1]["token"]
    assert _stream(scene, submit_only) == 403


def test_a_revoked_token_ends_soon(scene: Scene) -> None:
    alice = scene.token("alice@example.edu")
    made = scene.relay.request("POST", "/v3/tokens", alice, {"name": "r", "scopes": ["manage_tokens"]})[1]
    assert scene.relay.request("GET", "/v3/tokens", made["token"])[0] == 200
    assert scene.relay.request("DELETE", f"/v3/tokens/{made['id']}", alice)[0] == 200
    until("the end of the token", lambda: scene.relay.request("GET", "/v3/tokens", made["token"])[0] == 401)


def test_what_was_done_is_in_the_audit_log(scene: Scene) -> None:
    import json

    lines = [json.loads(line) for line in (scene.relay.state / "audit.log").read_text().splitlines()]
    done = {one["action"] for one in lines}
    wanted = {"endpoint.register", "function.register", "task.submit", "policy.create", "group.create", "token.create"}
    assert wanted | {"client.create", "action.run"} <= done
    assert all(uuid.UUID(one["account"]) for one in lines if "account" in one)
    assert (scene.relay.state / "audit.log").stat().st_mode & 0o077 == 0
    text = (scene.relay.state / "audit.log").read_text()
    assert "mep_" not in text
    assert "meps_" not in text
