"""Authentication policies, sharing, groups, locks, names, high assurance and gateways at a real relay."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.api.routes import ROUTES
from tests.support.fake_peer import FakeManager
from tests.support.login import LoginClient, people_file
from tests.support.oidc import HostileProvider
from tests.support.relay import RelayProcess
from tests.support.waiting import until

ALL = ["submit", "read", "manage_endpoints", "manage_tokens", "admin"]


@pytest.fixture(scope="module")
def provider() -> Iterator[HostileProvider]:
    with HostileProvider() as running:
        yield running


@pytest.fixture(scope="module")
def relay(provider: HostileProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    directory = tmp_path_factory.mktemp("relay")
    campus = {"name": "campus", "issuer": provider.issuer, "audience": "relay", "bearer_scopes": ALL}
    settings = people_file(directory, providers=[campus], administrators=["root@example.edu"])
    with RelayProcess(directory, "--people", str(settings)) as running:
        yield running


class Someone:
    """A person who has logged in at the provider in some way."""

    def __init__(self, relay: RelayProcess, provider: HostileProvider, name: str, **claims: Any) -> None:
        self.relay, self.username = relay, name
        claims = {"auth_time": int(time.time()), "jti": str(uuid.uuid4()), **claims}
        self.token = provider.token({"sub": name, "preferred_username": name, **claims})

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return self.relay.request(method, path, self.token, body)

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.call(method, path, body)
        assert status == 200, answer
        return answer

    def refused(self, code: str, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.call(method, path, body)
        assert answer.get("code") == code, (status, answer)
        assert status == answer["http_status_code"]
        return answer

    def function(self, **fields: Any) -> str:
        body = {"function_name": "f", "function_code": "code", **fields}
        return str(self.ok("POST", "/v3/functions", body)["function_uuid"])

    def submission(self, endpoint_id: str, function_id: str | None = None) -> tuple[str, str, Any]:
        body = {"tasks": {function_id or self.function(): ["x"]}}
        return "POST", f"/v3/endpoints/{endpoint_id}/submit", body


@pytest.fixture(scope="module")
def someone(relay: RelayProcess, provider: HostileProvider) -> Any:
    def make(name: str, **claims: Any) -> Someone:
        return Someone(relay, provider, name, **claims)

    return make


@pytest.fixture(scope="module")
def owner(someone: Any) -> Someone:
    person: Someone = someone("owner@example.edu")
    return person


def policy(owner: Someone, **fields: Any) -> str:
    return str(owner.ok("POST", "/v3/policies", {"display_name": "staff only", **fields})["id"])


def guarded(relay: RelayProcess, owner: Someone, **fields: Any) -> str:
    """Return an endpoint with a policy of these fields."""
    made: str = FakeManager(relay, owner.token, authentication_policy=policy(owner, **fields)).endpoint_id
    return made


# --- policies ---------------------------------------------------------------------------------------


def test_an_old_login_is_sent_back_in_the_shape_that_globus_sdks_know(
    relay: RelayProcess, owner: Someone, someone: Any
) -> None:
    endpoint = guarded(relay, owner, authentication_assurance_timeout=600)
    someone("pat@example.edu").ok(*someone("pat@example.edu").submission(endpoint))
    late = someone("pat@example.edu", auth_time=int(time.time()) - 3600)
    answer = late.refused("LOGIN_REQUIRED", *late.submission(endpoint))
    wanted = answer["authorization_parameters"]
    assert wanted["prompt"] == "login"
    assert len(wanted["session_required_policies"]) == 1
    assert "older than 600 s" in answer["reason"]
    unknown = someone("pat@example.edu", auth_time=None)
    assert "not known" in unknown.refused("LOGIN_REQUIRED", *unknown.submission(endpoint))["reason"]
    assert _as_globus_sdk_reads(answer) == wanted["session_required_policies"]


def _as_globus_sdk_reads(answer: Any) -> Any:
    """Return the policies that globus_sdk finds in a refusal; it is in the environment of a researcher's."""
    script = (
        "import json, sys; from globus_sdk.gare import to_gare; "
        "print(json.dumps(to_gare(json.load(sys.stdin)).authorization_parameters.session_required_policies))"
    )
    python = Path(f"{sys.prefix}-science", "bin", "python")
    assert python.exists(), f"{python} is missing: packaging/install.py --tests makes it"
    ran = subprocess.run([python, "-c", script], input=json.dumps(answer), capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_domains_are_included_and_excluded(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    endpoint = guarded(
        relay, owner,
        domain_constraints_include=["example.edu", "*.example.org"], domain_constraints_exclude=["bad.example.org"],
    )  # fmt: skip
    for name in ("a@example.edu", "b@lab.example.org", "c@Deep.Lab.Example.Org"):
        person = someone(name)
        person.ok(*person.submission(endpoint))
    for name in ("a@notexample.edu", "a@sub.example.edu", "b@example.org", "plain"):
        person = someone(name)
        answer = person.refused("LOGIN_REQUIRED", *person.submission(endpoint))
        assert answer["authorization_parameters"]["session_required_single_domain"] == ["example.edu"]
    person = someone("x@bad.example.org")
    assert "authorization_parameters" not in person.refused("POLICY_REFUSED", *person.submission(endpoint))


def test_a_second_factor_is_asked_for(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    endpoint = guarded(relay, owner, required_mfa=True)
    person = someone("mfa@example.edu", amr=["pwd"])
    answer = person.refused("LOGIN_REQUIRED", *person.submission(endpoint))
    assert answer["authorization_parameters"]["session_required_mfa"] is True
    for claims in ({"amr": ["pwd", "otp"]}, {"acr": "mfa"}):
        person = someone("mfa@example.edu", **claims)
        person.ok(*person.submission(endpoint))


def test_a_provider_can_be_required(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    endpoint = guarded(relay, owner, required_providers=["campus"])
    person = someone("p@example.edu")
    person.ok(*person.submission(endpoint))
    function = person.function(public=True)
    status, answer = relay.request("POST", f"/v3/endpoints/{endpoint}/submit", relay.add_user("builtin@example.com"),
                                   {"tasks": {function: ["x"]}})  # fmt: skip
    assert (status, answer["code"]) == (403, "LOGIN_REQUIRED")


def test_a_template_names_a_policy_too(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    schema = {"type": "object", "x-authentication-policy": policy(owner, required_mfa=True)}
    endpoint = FakeManager(relay, owner.token, user_config_schema=schema).endpoint_id
    person = someone("t@example.edu")
    person.refused("LOGIN_REQUIRED", *person.submission(endpoint))


def test_a_deleted_policy_admits_nobody_and_is_its_owners(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    made = policy(owner)
    endpoint = FakeManager(relay, owner.token, authentication_policy=made).endpoint_id
    person = someone("d@example.edu")
    person.ok(*person.submission(endpoint))
    person.refused("NOT_OWNER", "DELETE", f"/v3/policies/{made}")
    person.refused("NOT_OWNER", "PUT", f"/v3/policies/{made}", {"display_name": "x"})
    assert person.ok("GET", f"/v3/policies/{made}")["display_name"] == "staff only"
    owner.ok("DELETE", f"/v3/policies/{made}")
    person.refused("POLICY_REFUSED", *person.submission(endpoint))
    owner.refused("POLICY_REFUSED", *owner.submission(endpoint))


@pytest.mark.parametrize(
    "fields",
    [
        {"display_name": ""},
        {"display_name": "a\nb"},
        {"domain_constraints_include": ["*edu"]},
        {"domain_constraints_include": ["a b"]},
        {"domain_constraints_exclude": ["*.*.edu"]},
        {"authentication_assurance_timeout": 0},
        {"authentication_assurance_timeout": 10**12},
        {"high_assurance": True},
        {"required_providers": ["elsewhere"]},
    ],
    ids=str,
)
def test_a_bad_policy_is_refused(owner: Someone, fields: dict[str, Any]) -> None:
    owner.refused("BODY_INVALID", "POST", "/v3/policies", {"display_name": "p", **fields})


# --- high assurance ---------------------------------------------------------------------------------


def test_high_assurance_binds_functions_to_one_endpoint(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    strong = policy(owner, high_assurance=True, authentication_assurance_timeout=600)
    body = {"high_assurance": True, "authentication_policy": strong}
    endpoint, other, plain = (FakeManager(relay, owner.token, **each).endpoint_id for each in (body, body, {}))
    person = someone("ha@example.edu")
    bound = person.function(ha_endpoint_id=endpoint)
    person.ok(*person.submission(endpoint, bound))
    person.refused("HIGH_ASSURANCE", *person.submission(endpoint))
    person.refused("HIGH_ASSURANCE", *person.submission(other, bound))
    person.refused("HIGH_ASSURANCE", *person.submission(plain, bound))
    assert person.ok("GET", f"/v2/functions/{bound}")["ha_endpoint_id"] == endpoint
    code = {"function_name": "f", "function_code": "c"}
    person.refused("BODY_INVALID", "POST", "/v3/functions", {**code, "ha_endpoint_id": plain})
    person.refused("BODY_INVALID", "POST", "/v3/functions", {**code, "ha_endpoint_id": endpoint, "public": True})
    late = someone("ha@example.edu", auth_time=1)
    late.refused("LOGIN_REQUIRED", "POST", "/v3/functions", {**code, "ha_endpoint_id": endpoint})


def test_high_assurance_needs_such_a_policy(relay: RelayProcess, owner: Someone) -> None:
    keys = {"link_public_key": "00" * 32, "unseal_public_key": "00" * 32, "endpoint_name": "e", "multi_user": True}
    weak = policy(owner)
    for fields in ({"high_assurance": True}, {"high_assurance": True, "authentication_policy": weak}):
        owner.refused("BODY_INVALID", "POST", "/v3/endpoints", {**keys, **fields})
    owner.refused("POLICY_NOT_FOUND", "POST", "/v3/endpoints", {**keys, "authentication_policy": str(uuid.uuid4())})


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v3/functions", {"container_uuid": str(uuid.uuid4())}), ("submit", {"result_serializers": ["JSONData"]})],
)
def test_what_cannot_be_honoured_is_refused(relay: RelayProcess, owner: Someone, path: str, fields: Any) -> None:
    if path == "submit":
        method, path, body = owner.submission(FakeManager(relay, owner.token).endpoint_id)
    else:
        method, body = "POST", {"function_name": "f", "function_code": "c"}
    reason = owner.refused("BODY_INVALID", method, path, {**body, **fields})["reason"]
    assert next(iter(fields)) in reason


# --- sharing ----------------------------------------------------------------------------------------


def test_an_endpoint_is_shared_with_people_and_groups(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    endpoint = FakeManager(relay, owner.token).endpoint_id
    friend, member, pupil, stranger = (someone(f"{n}@example.edu") for n in ("friend", "member", "pupil", "stranger"))
    pupil = someone("pupil@example.edu", groups=["physics"])
    group = owner.ok("POST", "/v3/groups", {"name": "lab", "members": ["Member@Example.edu"]})["id"]
    stranger.ok(*stranger.submission(endpoint))
    rules = {"people": ["friend@example.edu"], "groups": [group, "campus:physics"]}
    owner.ok("PUT", f"/v3/endpoints/{endpoint}/access", rules)
    for person in (owner, friend, member, pupil):
        person.ok(*person.submission(endpoint))
        person.ok("GET", f"/v2/endpoints/{endpoint}")
    stranger.refused("ENDPOINT_NOT_SHARED", *stranger.submission(endpoint))
    stranger.refused("ENDPOINT_NOT_SHARED", "GET", f"/v2/endpoints/{endpoint}")
    stranger.refused("ENDPOINT_NOT_SHARED", "GET", f"/v2/endpoints/{endpoint}/status")
    stranger.refused("NOT_OWNER", "PUT", f"/v3/endpoints/{endpoint}/access", rules)
    stranger.refused("NOT_OWNER", "GET", f"/v3/endpoints/{endpoint}/access")
    stranger.refused("GROUP_NOT_FOUND", "GET", f"/v3/groups/{group}")
    assert member.ok("GET", f"/v3/groups/{group}")["name"] == "lab"
    member.refused("NOT_OWNER", "PUT", f"/v3/groups/{group}", {"name": "mine"})
    owner.ok("PUT", f"/v3/groups/{group}", {"name": "lab", "members": []})
    member.refused("ENDPOINT_NOT_SHARED", *member.submission(endpoint))


def test_lists_of_endpoints_leave_out_what_can_be_large(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    large = {"metadata": {"text": "m" * 60_000}, "user_config_schema": {"type": "object", "title": "s" * 200_000}}
    endpoint = FakeManager(relay, owner.token, public=True, allowed_functions=[str(uuid.uuid4())], **large).endpoint_id
    owner.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"alias": "large-one"})
    lists = [(owner, "/v2/endpoints"), (someone("p@example.edu"), "/v2/endpoints?role=any")]
    for person, path in [*lists, (owner, "/v3/endpoints/find?name=large-one")]:
        (listed,) = (one for one in person.ok("GET", path) if one["uuid"] == endpoint)
        assert listed["alias"] == "large-one"
        assert len(json.dumps(listed)) < 2000, path
    whole = owner.ok("GET", f"/v2/endpoints/{endpoint}")
    assert {key: whole[key] for key in large} == large
    assert len(whole["allowed_functions"]) == 1


def test_public_endpoints_are_seen_and_not_used(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    endpoint = FakeManager(relay, owner.token, public=True).endpoint_id
    owner.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"people": []})
    person = someone("s@example.edu")
    assert endpoint in {one["uuid"] for one in person.ok("GET", "/v2/endpoints?role=any")}
    person.ok("GET", f"/v2/endpoints/{endpoint}")
    person.refused("ENDPOINT_NOT_SHARED", *person.submission(endpoint))


def test_a_lock_a_name_and_a_deletion(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    endpoint = FakeManager(relay, owner.token).endpoint_id
    person = someone("l@example.edu")
    rules = {"locked": True, "lock_reason": "maintenance until noon", "alias": "The-Cluster"}
    owner.ok("PUT", f"/v3/endpoints/{endpoint}/access", rules)
    assert "until noon" in person.refused("ENDPOINT_LOCKED", *person.submission(endpoint))["reason"]
    owner.ok(*owner.submission(endpoint))
    found = person.ok("GET", "/v2/endpoints/the-cluster")
    assert (found["uuid"], found["alias"], found["locked"]) == (endpoint, "the-cluster", True)
    other = FakeManager(relay, owner.token).endpoint_id
    owner.refused("ID_CONFLICT", "PUT", f"/v3/endpoints/{other}/access", {"alias": "the-cluster"})
    owner.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"alias": "the-cluster"})
    assert person.ok(*person.submission("the-cluster"))["endpoint_id"] == endpoint
    owner.ok("DELETE", f"/v2/endpoints/{endpoint}")
    person.refused("ENDPOINT_NOT_FOUND", "GET", "/v2/endpoints/the-cluster")
    owner.ok("PUT", f"/v3/endpoints/{other}/access", {"alias": "the-cluster"})


def test_administrators_manage_as_the_owner_does(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    second, root = someone("second@example.edu"), someone("root@example.edu")
    identity = second.ok("GET", "/oauth/userinfo")["sub"]
    endpoint = FakeManager(relay, owner.token, admins=[identity]).endpoint_id
    for person in (second, root):
        person.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"locked": False})
    second.ok("DELETE", f"/v2/endpoints/{endpoint}")


def test_functions_are_shared_with_a_group(owner: Someone, someone: Any) -> None:
    member, stranger = someone("fm@example.edu"), someone("fs@example.edu")
    group = owner.ok("POST", "/v3/groups", {"name": "g", "members": ["fm@example.edu", "owner@example.edu"]})["id"]
    function = owner.function(group=group)
    assert member.ok("GET", f"/v2/functions/{function}")["group"] == group
    stranger.refused("FUNCTION_FORBIDDEN", "GET", f"/v2/functions/{function}")
    stranger.refused("NOT_OWNER", "PUT", f"/v3/functions/{function}", {"public": True})
    body = {"function_name": "f", "function_code": "c", "group": group}
    stranger.refused("GROUP_NOT_FOUND", "POST", "/v3/functions", body)
    owner.ok("PUT", f"/v3/functions/{function}", {"group": "", "description": "for me"})
    member.refused("FUNCTION_FORBIDDEN", "GET", f"/v2/functions/{function}")
    assert owner.ok("GET", f"/v2/functions/{function}")["description"] == "for me"


# --- services and gateways --------------------------------------------------------------------------


def test_a_gateway_acts_for_its_people_and_runs_only_its_functions(
    relay: RelayProcess, owner: Someone, someone: Any
) -> None:
    root, person = someone("root@example.edu"), someone("portal-user@example.edu")
    endpoint = FakeManager(relay, owner.token).endpoint_id
    allowed, other = owner.function(public=True), owner.function(public=True)
    body = {"name": "portal", "scopes": ["submit", "read"], "exchange": True, "functions": [allowed]}
    made = root.ok("POST", "/v3/clients", body)
    person.refused("SCOPE_MISSING", "POST", "/v3/clients", body)
    gateway = LoginClient(relay, made["client_id"], made["client_secret"])
    grant = "urn:ietf:params:oauth:grant-type:token-exchange"
    kind = "urn:ietf:params:oauth:token-type:jwt"
    exchange = {"grant_type": grant, "subject_token": person.token, "subject_token_type": kind}
    status, answer = gateway.form("/oauth/token", **exchange, scope="submit")
    assert (status, answer["scope"]) == (200, "submit"), answer
    token = answer["access_token"]
    userinfo = relay.request("GET", "/oauth/userinfo", token)[1]
    assert userinfo["preferred_username"] == "portal-user@example.edu"
    assert userinfo["mep"]["client_id"] == made["client_id"]
    submit = f"/v3/endpoints/{endpoint}/submit"
    assert relay.request("POST", submit, token, {"tasks": {allowed: ["x"]}})[0] == 200
    assert relay.request("POST", submit, token, {"tasks": {other: ["x"]}})[1]["code"] == "CLIENT_FORBIDDEN"
    assert relay.request("GET", "/v2/endpoints", token)[1]["code"] == "SCOPE_MISSING"
    assert relay.request("POST", "/v3/tokens", token, {"name": "more"})[1]["code"] == "SCOPE_MISSING"
    community = gateway.form("/oauth/token", grant_type="client_credentials", end_user="ada")[1]["access_token"]
    assert relay.request("POST", submit, community, {"tasks": {allowed: ["x"]}})[0] == 200
    audit = [json.loads(line) for line in (relay.state / "audit.log").read_text().splitlines()]
    last = next(one for one in reversed(audit) if one["action"] == "task.submit")
    assert (last["end_user"], last["client_id"]) == ("ada", made["client_id"])
    wrong = LoginClient(relay, made["client_id"], "meps_wrong")
    assert wrong.form("/oauth/token", **exchange)[0] == 401
    assert wrong.form("/oauth/token", grant_type="client_credentials")[1]["error"] == "invalid_client"
    public = LoginClient(relay)
    assert public.form("/oauth/token", **exchange)[1]["error"] == "unauthorized_client"
    assert gateway.form("/oauth/token", **{**exchange, "subject_token": "x"})[1]["error"] == "invalid_grant"
    root.ok("DELETE", f"/v3/clients/{made['client_id']}")
    assert gateway.form("/oauth/token", grant_type="client_credentials")[0] == 401


def _exchanged(client: LoginClient, token: str, **more: str) -> tuple[int, Any]:
    grant = "urn:ietf:params:oauth:grant-type:token-exchange"
    kind = "urn:ietf:params:oauth:token-type:access_token"
    return client.form("/oauth/token", grant_type=grant, subject_token=token, subject_token_type=kind, **more)


def test_an_exchange_gives_no_more_than_the_token_before(relay: RelayProcess, owner: Someone, someone: Any) -> None:
    root, person = someone("root@example.edu"), someone("exchanged@example.edu")
    endpoint = FakeManager(relay, owner.token).endpoint_id
    one, other = owner.function(public=True), owner.function(public=True)

    def client(*functions: str) -> LoginClient:
        body = {"name": "portal", "scopes": ["submit", "read"], "exchange": True, "functions": functions}
        made = root.ok("POST", "/v3/clients", body)
        return LoginClient(relay, made["client_id"], made["client_secret"])

    narrow, wide, elsewhere = client(one), client(), client(other)
    community = narrow.form("/oauth/token", grant_type="client_credentials", end_user="ada")[1]["access_token"]
    token = _exchanged(wide, community)[1]["access_token"]
    submit = f"/v3/endpoints/{endpoint}/submit"
    assert relay.request("POST", submit, token, {"tasks": {other: ["x"]}})[1]["code"] == "CLIENT_FORBIDDEN"
    assert relay.request("POST", submit, token, {"tasks": {one: ["x"]}})[0] == 200
    audit = [json.loads(line) for line in (relay.state / "audit.log").read_text().splitlines()]
    assert next(each for each in reversed(audit) if each["action"] == "task.submit")["end_user"] == "ada"
    assert _exchanged(elsewhere, community)[1]["error"] == "invalid_grant"
    short = person.ok("POST", "/v3/tokens", {"name": "short", "expires_in": 60})["token"]
    answer = _exchanged(wide, short)[1]
    assert answer["expires_in"] <= 60
    assert _exchanged(wide, answer["access_token"])[1]["expires_in"] <= 60


def test_an_end_user_is_told_whole_or_not_at_all(relay: RelayProcess, someone: Any) -> None:
    """Two names that were cut would be one person at an endpoint that is told end users."""
    made = someone("root@example.edu").ok("POST", "/v3/clients", {"name": "portal"})
    gateway = LoginClient(relay, made["client_id"], made["client_secret"])
    for end_user in ("x" * 257, "ada\nbob", "ada\0"):
        answer = gateway.form("/oauth/token", grant_type="client_credentials", end_user=end_user)
        assert (answer[0], answer[1]["error"]) == (400, "invalid_request")


def test_a_gateway_of_certain_functions_changes_none(relay: RelayProcess, someone: Any) -> None:
    root, person = someone("root@example.edu"), someone("careless@example.edu")
    function = person.function()
    body = {"name": "portal", "scopes": ["submit"], "exchange": True, "functions": [function]}
    made = root.ok("POST", "/v3/clients", body)
    personal = person.ok("POST", "/v3/tokens", {"name": "given", "scopes": ["submit"]})["token"]
    token = _exchanged(LoginClient(relay, made["client_id"], made["client_secret"]), personal)[1]["access_token"]
    for method, path, change in (("PUT", "/v3", {"public": True}), ("DELETE", "/v2", None)):
        status, answer = relay.request(method, f"{path}/functions/{function}", token, change)
        assert (status, answer["code"]) == (403, "CLIENT_FORBIDDEN")


def test_a_person_makes_lists_and_revokes_tokens(relay: RelayProcess, someone: Any) -> None:
    person, other = someone("tok@example.edu"), someone("other@example.edu")
    made = person.ok("POST", "/v3/tokens", {"name": "ci", "scopes": ["read"], "expires_in": 300})
    assert made["scopes"] == ["read"]
    token = made["token"]
    assert relay.request("GET", "/v2/endpoints", token)[0] == 200
    assert relay.request("POST", "/v3/functions", token, {})[1]["code"] == "SCOPE_MISSING"
    assert relay.request("POST", "/v3/tokens", token, {"name": "x", "scopes": ["submit"]})[1]["code"] == "SCOPE_MISSING"
    listed = person.ok("GET", "/v3/tokens")["tokens"]
    assert [(one["name"], one["kind"]) for one in listed] == [("ci", "personal")]
    assert token not in json.dumps(listed)
    other.refused("TOKEN_NOT_FOUND", "DELETE", f"/v3/tokens/{made['id']}")
    person.ok("DELETE", f"/v3/tokens/{made['id']}")
    for body in (
        {"name": ""},
        {"name": "x", "expires_in": 0},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["z"]},
    ):
        person.refused("BODY_INVALID", "POST", "/v3/tokens", body)
    short = person.ok("POST", "/v3/tokens", {"name": "short", "expires_in": 1})["token"]
    until("the token's end", lambda: relay.request("GET", "/v2/endpoints", short)[0] == 401)


def test_a_freed_alias_is_no_other_persons(relay: RelayProcess, someone: Any) -> None:
    """Scripts that have the name would send their tasks to its next owner."""
    former, thief = someone("former@example.edu"), someone("thief@example.edu")
    first, second = (FakeManager(relay, former.token).endpoint_id for _ in range(2))
    stolen = FakeManager(relay, thief.token).endpoint_id
    former.ok("PUT", f"/v3/endpoints/{first}/access", {"alias": "gpu"})
    former.ok("PUT", f"/v3/endpoints/{first}/access", {"alias": "gpu-2"})
    thief.refused("NAME_RESERVED", "PUT", f"/v3/endpoints/{stolen}/access", {"alias": "GPU"})
    former.ok("PUT", f"/v3/endpoints/{second}/access", {"alias": "gpu"})
    former.ok("DELETE", f"/v2/endpoints/{second}")
    thief.refused("NAME_RESERVED", "PUT", f"/v3/endpoints/{stolen}/access", {"alias": "gpu"})
    former.refused("ENDPOINT_NOT_FOUND", *former.submission("gpu"))
    relay.cli("endpoint", "remove", first)
    thief.refused("NAME_RESERVED", "PUT", f"/v3/endpoints/{stolen}/access", {"alias": "gpu-2"})
    listed = relay.cli("name", "list").stdout
    assert f"gpu  alias of {second}" in listed
    assert f"gpu-2  alias of {first}" in listed
    relay.cli("name", "free", "gpu")
    thief.ok("PUT", f"/v3/endpoints/{stolen}/access", {"alias": "gpu"})
    assert relay.cli("name", "free", "gpu", check=False).returncode == 1


def test_names_are_not_reserved_by_having_each_for_a_moment(relay: RelayProcess, someone: Any) -> None:
    greedy = someone("greedy@example.edu")
    endpoint = FakeManager(relay, greedy.token).endpoint_id
    answers = [greedy.call("PUT", f"/v3/endpoints/{endpoint}/access", {"alias": f"a{n}"})[0] for n in range(110)]
    assert answers.count(200) == 101
    greedy.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"alias": "a100", "locked": True})
    greedy.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"alias": "a7"})
    greedy.refused("BODY_INVALID", "PUT", f"/v3/endpoints/{endpoint}/access", {"alias": "another"})


def test_ones_own_name_goes_before_another_persons_alias(relay: RelayProcess, someone: Any) -> None:
    mine, thief = someone("mine@example.edu"), someone("thief@example.edu")
    own = FakeManager(relay, mine.token, endpoint_name="workstation").endpoint_id
    stolen = FakeManager(relay, thief.token).endpoint_id
    thief.ok("PUT", f"/v3/endpoints/{stolen}/access", {"alias": "workstation"})
    found = mine.ok("GET", "/v3/endpoints/find?name=workstation")
    assert [one["uuid"] for one in found] == [own]


def test_a_deleted_gateways_tokens_end_also_those_of_people(relay: RelayProcess, someone: Any) -> None:
    root, person = someone("root@example.edu"), someone("portal-user@example.edu")
    body = {"name": "portal", "scopes": ["submit", "read"], "exchange": True}
    made = root.ok("POST", "/v3/clients", body)
    gateway = LoginClient(relay, made["client_id"], made["client_secret"])
    own = gateway.form("/oauth/token", grant_type="client_credentials")[1]["access_token"]
    exchanged = _exchanged(gateway, person.token)[1]["access_token"]
    for token in (own, exchanged):
        assert relay.request("GET", "/oauth/userinfo", token)[0] == 200
    root.ok("DELETE", f"/v3/clients/{made['client_id']}")
    for token in (own, exchanged):
        until("the token's end", lambda token=token: relay.request("GET", "/oauth/userinfo", token)[0] == 401)
    assert person.ok("GET", "/oauth/userinfo")


def test_one_person_makes_so_many_groups_policies_and_endpoints(tmp_path: Path) -> None:
    """A group is as many rows as it has members: without an end they fill the store."""

    class Cramped(RelayProcess):
        def _command(self, *words: str) -> list[str]:
            *python, code = super()._command()[:4]
            patch = "import relay.api.sharing as s, relay.api.endpoints as e; s.MAX_LISTED = e.MAX_ENDPOINTS = 3;"
            return [*python, f"{patch} s.MAX_MEMBERS_LISTED = 4; {code}", *words, *self._at()]

        def _at(self) -> list[str]:
            return ["--state", str(self.state)]

    with Cramped(tmp_path) as relay:
        token, other = relay.add_user("many@example.edu"), relay.add_user("other@example.edu")
        for path, body in (("/v3/groups", {"name": "g"}), ("/v3/policies", {"display_name": "p"})):
            made = [relay.request("POST", path, token, body) for _ in range(4)]
            assert [status for status, _ in made] == [200, 200, 200, 422]
            assert relay.request("POST", path, other, body)[0] == 200
            assert relay.request("DELETE", f"{path}/{made[0][1]['id']}", token)[0] == 200
            assert relay.request("POST", path, token, body)[0] == 200
        for _ in range(3):
            last = FakeManager(relay, token).endpoint_id
        keys = {"link_public_key": "33" * 32, "unseal_public_key": "33" * 32}
        assert relay.request("POST", "/v3/endpoints", token, {"endpoint_name": "e", **keys})[0] == 422
        again = {"endpoint_name": "e", "endpoint_uuid": last, **keys}
        assert relay.request("POST", "/v3/endpoints", token, again)[0] == 200
        for group in relay.request("GET", "/v3/groups", token)[1]:
            body = {"name": "g", "members": ["a@x.org", "b@x.org", "c@x.org"]}
            assert relay.request("PUT", f"/v3/groups/{group['id']}", token, body)[0] == 200
        assert len(relay.request("GET", "/v3/groups", token)[1]) == 1


def test_a_repeated_request_with_a_key_makes_nothing_twice(relay: RelayProcess, owner: Someone) -> None:
    def post(path: str, body: Any, key: str) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {owner.token}", "Content-Type": "application/json", "Idempotency-Key": key}
        request = urllib.request.Request(relay.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    bodies = {
        "/v3/functions": {"function_name": "f", "function_code": "c"},
        "/v3/policies": {"display_name": "p"},
        "/v3/groups": {"name": "g"},
    }
    for path, body in bodies.items():
        key = str(uuid.uuid4())
        first = post(path, body, key)
        assert first[0] == 200, first
        assert post(path, body, key) == first
        other = {**body, next(iter(body)): "another"}
        assert post(path, other, key)[1]["code"] == "ID_CONFLICT"
        assert post(path, body, str(uuid.uuid4()))[1] != first[1]
    assert post("/v3/groups", bodies["/v3/groups"], "x" * 256)[1]["code"] == "BODY_INVALID"
    before = owner.ok("GET", "/v3/tokens")
    for path, body in (
        ("/v3/tokens", {"name": "t"}),
        ("/v3/clients", {"name": "c"}),
        ("/v3/endpoints", {"endpoint_name": "e", "link_public_key": "22" * 32, "unseal_public_key": "22" * 32}),
        (f"/v3/endpoints/{uuid.uuid4()}/submit", {"tasks": {}}),
    ):
        status, answer = post(path, body, "key")
        assert (status, answer["code"]) in ((422, "BODY_INVALID"), (403, "SCOPE_MISSING")), path
        assert "Idempotency-Key" in answer["reason"] or path == "/v3/clients"
    assert owner.ok("GET", "/v3/tokens") == before
    status, answer = post("/oauth/token", {}, "key")
    assert (status, answer["code"]) == (422, "BODY_INVALID")


def test_a_route_that_takes_a_key_is_known_to_make_nothing_twice() -> None:
    repeatable = {one.path for one in ROUTES if one.repeatable}
    made = {"/v3/functions", "/v2/functions", "/v3/policies", "/v3/groups"}  # their ids follow from the key
    asked = {"/v3/functions/digests", "/v2/batch_status"}  # they make nothing
    same = {"/v3/tasks/cancel", "/v3/endpoints/{endpoint_id}/stop", "/automate/compute/run"}  # once is as good as twice
    assert repeatable == {
        *made,
        *asked,
        *same,
        *(f"/automate/compute/{{action_id}}/{x}" for x in ("cancel", "release")),
    }
