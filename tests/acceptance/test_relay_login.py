"""Logins at a real relay: codes, devices, refresh, revocation, consent, and a provider that lies in every way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import RSAKey

from tests.support.browser import Browser, Page
from tests.support.login import REDIRECT, ROOT, LoginClient, OidcProvider, free_port, people_file
from tests.support.oidc import HostileProvider
from tests.support.relay import RelayProcess
from tests.support.waiting import until


@pytest.fixture(scope="module")
def provider() -> Iterator[HostileProvider]:
    with HostileProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def honest(provider: HostileProvider) -> None:
    """Each test begins with a provider that does not lie."""
    fresh = HostileProvider.__new__(HostileProvider)
    fresh.__dict__ |= {"id_token": {}, "algorithm": "RS256", "signing_key": None, "raw_token": None, "metadata": {}}
    provider.__dict__ |= fresh.__dict__
    provider.claims = {"sub": "alice-1", "preferred_username": "alice@example.edu", "name": "Alice"}
    provider.answer_iss, provider.delay_s, provider.down = None, 0.0, False
    provider.active.clear()


@pytest.fixture(scope="module")
def relay(provider: HostileProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    directory = tmp_path_factory.mktemp("relay")
    trusting = {"name": "campus", "issuer": provider.issuer, "client_id": "relay-login", "audience": "relay"}
    settings = people_file(
        directory,
        providers=[{**trusting, "introspect": True, "linked_identities": True}],
        administrators=["root@example.edu"],
    )
    with RelayProcess(directory, "--people", str(settings)) as running:
        yield running


@pytest.fixture
def client(relay: RelayProcess) -> LoginClient:
    return LoginClient(relay)


def logged_in(client: LoginClient, browser: Browser, **more: str) -> Page:
    """Return the page to which a login leads: consent, or a refusal."""
    return browser.follow(browser.get(client.address(**more)))


def tokens(client: LoginClient, **more: str) -> dict[str, Any]:
    """Log in and return the tokens."""
    browser = Browser()
    told = client.consented(browser, logged_in(client, browser, **more))
    assert told["state"] == client.state
    assert told["iss"] == client.relay.url
    status, answer = client.redeem(told["code"])
    assert status == 200, answer
    return dict(answer)


def who(relay: RelayProcess, token: str) -> Any:
    status, answer = relay.request("GET", "/oauth/userinfo", token)
    assert status == 200, answer
    return answer


# --- a login that goes well -------------------------------------------------------------------------


def test_a_login_gives_tokens_that_work_until_they_are_revoked(relay: RelayProcess, client: LoginClient) -> None:
    answer = tokens(client, scope="submit read manage_tokens", token_name="laptop")
    assert answer["scope"] == "submit read manage_tokens"
    assert answer["access_token"].startswith("mep_")
    person = who(relay, answer["access_token"])
    assert person["preferred_username"] == "alice@example.edu"
    assert person["identity_provider"] == "campus"
    assert abs(person["last_authentication"] - time.time()) < 600
    listed = relay.request("GET", "/v3/tokens", answer["access_token"])[1]["tokens"]
    assert ("laptop", "login") in {(one["name"], one["kind"]) for one in listed}
    assert client.form("/oauth/revoke", token=answer["refresh_token"]) == (200, {})
    until("the end of the token", lambda: relay.request("GET", "/v3/tokens", answer["access_token"])[0] == 401)
    assert client.refresh(answer["refresh_token"])[1]["error"] == "invalid_grant"


def test_the_audit_log_says_for_whom_tokens_are_made_and_revoked(relay: RelayProcess, client: LoginClient) -> None:
    answer = tokens(client)
    person = who(relay, answer["access_token"])
    client.form("/oauth/revoke", token="unknown")
    client.form("/oauth/revoke", token=answer["refresh_token"])
    audit = [json.loads(line) for line in (relay.state / "audit.log").read_text().splitlines()]
    made, revoked = audit[-2:]
    assert (made["action"], made["account"]) == ("token.issue", person["mep"]["account_id"])
    assert (made["identity"], made["client_id"], made["token_id"]) == (person["sub"], "mep-sdk", answer["token_id"])
    assert (revoked["action"], revoked["identity"]) == ("token.revoke", person["sub"])


def test_the_same_subject_is_the_same_person_under_a_new_name(
    relay: RelayProcess, client: LoginClient, provider: HostileProvider
) -> None:
    before = who(relay, tokens(client)["access_token"])
    provider.claims["preferred_username"] = "alice.renamed@example.edu"
    after = who(relay, tokens(client)["access_token"])
    assert after["preferred_username"] == "alice.renamed@example.edu"
    assert (before["sub"], before["mep"]["account_id"]) == (after["sub"], after["mep"]["account_id"])


def test_linked_identities_come_and_go_as_the_provider_says(
    relay: RelayProcess, client: LoginClient, provider: HostileProvider
) -> None:
    home, lab = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    me = {"sub": home, "preferred_username": "lin@example.edu", "name": "Lin"}
    other = {"sub": lab, "username": "lin@lab.example.org", "identity_provider": "lab", "email": "", "name": "Lin"}
    provider.claims = {**me, "identity_set": [{"sub": home, "username": "lin@example.edu"}, other]}
    first = who(relay, tokens(client)["access_token"])
    assert [one["sub"] for one in first["identity_set"]] == [home, lab]
    assert first["identity_set"][1]["username"] == "lin@lab.example.org"
    provider.claims = {**me, "identity_set": [{"sub": home, "username": "lin@example.edu"}]}
    second = who(relay, tokens(client)["access_token"])
    assert [one["sub"] for one in second["identity_set"]] == [home]
    assert second["mep"]["account_id"] == first["mep"]["account_id"]


def test_a_person_may_refuse(client: LoginClient) -> None:
    browser = Browser()
    told = client.consented(browser, logged_in(client, browser), "no")
    assert told["error"] == "access_denied"
    assert "code" not in told


def test_a_login_is_made_as_a_policy_wants_it(
    relay: RelayProcess, client: LoginClient, provider: HostileProvider
) -> None:
    token = tokens(client, scope="manage_endpoints")["access_token"]
    body = {"display_name": "strong", "required_mfa": True, "authentication_assurance_timeout": 600}
    policy = relay.request("POST", "/v3/policies", token, body)[1]["id"]
    browser = Browser()
    page = logged_in(client, browser, session_required_policies=policy, prompt="login")
    assert page.status == 403
    assert "no second factor" in page.text
    asked = provider.authorizations[-1]
    assert (asked["prompt"], asked["max_age"]) == ("login", "600")
    forced = {"flow": page.url.partition("flow=")[2], "decision": "yes"}
    assert browser.post(f"{relay.url}/login/consent", forced).status == 403
    provider.id_token["amr"] = ["pwd", "otp"]
    again = browser.follow(browser.get(browser.get(page.links[0]).links[0]))
    assert client.consented(browser, again)["code"]
    provider.id_token["auth_time"] = int(time.time()) - 7200
    assert logged_in(client, Browser(), session_required_policies=policy).status == 403


def test_only_administrators_get_the_scope_admin(
    relay: RelayProcess, client: LoginClient, provider: HostileProvider
) -> None:
    assert tokens(client, scope="read admin")["scope"] == "read"
    provider.claims = {"sub": "root-1", "preferred_username": "root@example.edu"}
    answer = tokens(client, scope="read admin")
    assert answer["scope"] == "read admin"
    assert relay.request("GET", "/v3/clients", answer["access_token"]) == (200, [])


def test_a_device_waits_for_its_person(relay: RelayProcess, client: LoginClient) -> None:
    status, started = client.form("/oauth/device", scope="read")
    assert status == 200, started
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    ask = {"grant_type": grant, "device_code": started["device_code"]}
    assert client.form("/oauth/token", **ask)[1]["error"] == "authorization_pending"
    assert client.form("/oauth/token", **ask)[1]["error"] == "slow_down"
    browser = Browser()
    page = browser.follow(browser.submit(browser.get(started["verification_uri_complete"])))
    assert started["user_code"] in page.text
    assert browser.submit(page, decision="yes").status == 200
    answer: dict[str, Any] = {}

    def given() -> bool:
        answer.update(client.form("/oauth/token", **ask)[1])
        return "access_token" in answer

    until("the tokens", given, look_s=5.0)
    assert who(relay, answer["access_token"])["mep"]["scopes"] == ["read"]
    assert client.form("/oauth/token", **ask)[1]["error"] in ("invalid_grant", "slow_down")


def test_a_wrong_device_code_is_said(relay: RelayProcess) -> None:
    browser = Browser()
    assert browser.submit(browser.get(f"{relay.url}/device"), user_code="BBBB-BBBB").status == 400


# --- codes and refresh tokens -----------------------------------------------------------------------


def test_a_code_that_comes_twice_revokes_what_was_made_of_it(relay: RelayProcess, client: LoginClient) -> None:
    browser = Browser()
    code = client.consented(browser, logged_in(client, browser))["code"]
    status, answer = client.redeem(code)
    assert status == 200
    assert client.redeem(code)[1]["error"] == "invalid_grant"
    until("the end of the token", lambda: relay.request("GET", "/v3/tokens", answer["access_token"])[0] == 401)
    assert client.refresh(answer["refresh_token"])[1]["error"] == "invalid_grant"


@pytest.mark.parametrize(
    "wrong", [{"code_verifier": "x" * 43}, {"code_verifier": ""}, {"redirect_uri": "http://127.0.0.1:10/callback"},
              {"client_id": "mep-console"}], ids=str)  # fmt: skip
def test_a_code_is_bound_to_its_client_verifier_and_address(client: LoginClient, wrong: dict[str, str]) -> None:
    browser = Browser()
    code = client.consented(browser, logged_in(client, browser))["code"]
    status, answer = client.redeem(code, **wrong)
    assert (status, answer["error"]) == (400, "invalid_grant")


def test_refresh_gives_less_never_more(relay: RelayProcess, client: LoginClient) -> None:
    answer = tokens(client, scope="submit read")
    status, less = client.refresh(answer["refresh_token"], scope="read")
    assert (status, less["scope"]) == (200, "read")
    assert client.refresh(less["refresh_token"], scope="manage_endpoints")[1]["error"] == "invalid_scope"
    assert client.refresh(answer["refresh_token"])[0] == 200  # its answer may have been lost
    assert relay.request("GET", "/oauth/userinfo", answer["refresh_token"])[0] == 401


# --- where a browser is sent ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/callback",
        "http://127.0.0.1:9/other",
        "http://127.0.0.1:9/callback?x=1",
        "http://127.0.0.1@evil.example/callback",
        "http://127.0.0.1:9@evil.example/callback",
        "http://localhost:9/callback",
        "http://127.0.0.1:9/callback#x",
        "http://127.0.0.1:9/callback/../x",
        "http://127.0.0.1:9\\@evil.example/callback",
        "javascript:alert(1)",
        "",
    ],
)
def test_a_browser_is_sent_to_no_other_address(client: LoginClient, address: str) -> None:
    page = Browser().get(client.address(redirect_uri=address))
    assert page.status == 400
    assert "location" not in page.headers


def test_an_unknown_client_is_shown_and_not_redirected(relay: RelayProcess) -> None:
    page = Browser().get(LoginClient(relay, "nobody").address())
    assert page.status == 400
    assert "location" not in page.headers


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": "everything"}, "invalid_scope"),
        ({"max_age": "-1"}, "invalid_request"),
        ({"session_required_policies": "none"}, "invalid_request"),
    ],
    ids=str,
)
def test_a_wrong_request_goes_back_to_its_client(client: LoginClient, wrong: dict[str, str | None], error: str) -> None:
    page = Browser().get(client.address(**wrong))
    assert page.status == 303
    assert page.location.startswith(f"{REDIRECT}?error={error}")


def test_another_browser_can_do_nothing_with_a_login(client: LoginClient) -> None:
    victim, thief = Browser(), Browser()
    thief.get(client.address())  # has a cookie of its own
    page = logged_in(client, victim)
    assert thief.get(page.url).status == 403
    assert thief.submit(page, decision="yes").status == 403
    assert client.consented(victim, page)["code"]


def test_a_browser_with_a_planted_cookie_does_not_give_its_login_away(client: LoginClient) -> None:
    """A host of the same domain can plant a cookie in a browser, and so can a network. The thief has the same one, has
    begun a login with it, and leads the victim there."""
    thief = Browser()
    begun = thief.get(client.address())
    victim = Browser({host: dict(jar) for host, jar in thief.cookies.items()})
    page = victim.follow(victim.get(begun.location))
    assert "Allow access?" in page.text
    (flow,) = parse_qs(urlsplit(begun.location).query)["flow"]
    assert thief.get(f"{client.relay.url}/login/consent?flow={flow}").status == 403
    taken = thief.post(f"{client.relay.url}/login/consent", {"flow": flow, "decision": "yes"})
    assert taken.status == 403
    assert client.consented(victim, page)["code"]


@pytest.mark.parametrize("cookie", [f'"{24 * "a"}\\015\\012x-evil: 1"', f'{24 * "a"}"; Domain=x.example"', 24 * "a"])
def test_a_cookie_that_is_not_the_relays_is_not_sent_back(client: LoginClient, cookie: str) -> None:
    browser = Browser({urlsplit(client.relay.url).netloc: {"mep_login": cookie}})
    page = browser.get(client.address())
    assert page.status == 303
    assert "x-evil" not in page.headers
    assert "aaa" not in page.headers["set-cookie"]


def test_the_pages_can_be_framed_and_scripted_by_nobody(client: LoginClient) -> None:
    page = logged_in(client, Browser())
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script" not in page.text


# --- a provider that lies ---------------------------------------------------------------------------


def _none_token(provider: HostileProvider) -> None:
    provider.raw_token = "eyJhbGciOiJub25lIn0." + provider.token(provider.claims).split(".")[1] + "."


def _confused(provider: HostileProvider) -> None:
    provider.algorithm = "HS256"


LIES = {
    "alg none": _none_token,
    "key confusion": _confused,
    "another issuer": lambda p: p.id_token.update(iss="https://evil.example"),
    "another audience": lambda p: p.id_token.update(aud="another-client"),
    "expired": lambda p: p.id_token.update(exp=int(time.time()) - 3600),
    "from the future": lambda p: p.id_token.update(iat=int(time.time()) + 3600),
    "not yet valid": lambda p: p.id_token.update(nbf=int(time.time()) + 3600),
    "no expiry": lambda p: p.id_token.update(exp=None),
    "another nonce": lambda p: p.id_token.update(nonce="another"),
    "no nonce": lambda p: p.id_token.update(nonce=None),
    "another person's userinfo": lambda p: p.id_token.update(sub="mallory"),
    "a key of its own": lambda p: setattr(p, "signing_key", RSAKey.generate_key(2048)),
    "for another client too": lambda p: p.id_token.update(aud=["relay-login", "x"], azp="x"),
    "answers as another": lambda p: setattr(p, "answer_iss", "https://evil.example"),
    "no username": lambda p: setattr(p, "claims", {"sub": "x"}),
    "a username with control characters": lambda p: p.claims.update(preferred_username="a\n@example.edu"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_provider_logs_nobody_in(client: LoginClient, provider: HostileProvider, lie: str) -> None:
    LIES[lie](provider)
    page = logged_in(client, Browser())
    assert page.status == 403, page.text
    assert "decision" not in page.text


def test_the_state_of_a_login_is_spent_once(client: LoginClient) -> None:
    browser = Browser()
    at_provider = browser.follow(browser.get(client.address()), "http://127.0.0.1")
    back = browser.get(browser.get(at_provider.location).location if at_provider.status == 303 else at_provider.url)
    while "/oauth/callback/" not in back.url:
        back = browser.get(back.location)
    assert back.status == 303
    assert browser.get(back.url).status == 403


def test_no_provider_takes_the_name_of_another_person(
    relay: RelayProcess, client: LoginClient, provider: HostileProvider
) -> None:
    relay.add_user("taken@example.edu")
    provider.claims = {"sub": "mallory-1", "preferred_username": "TAKEN@example.edu"}
    assert logged_in(client, Browser()).status == 403


def test_a_provider_that_is_down_is_said_and_comes_back(client: LoginClient, provider: HostileProvider) -> None:
    provider.down = True
    assert logged_in(client, Browser()).status in (403, 503)
    provider.down = False
    until("the provider", lambda: logged_in(client, Browser()).status == 200)


# --- tokens of providers ----------------------------------------------------------------------------


def test_a_providers_access_token_is_taken(relay: RelayProcess, provider: HostileProvider) -> None:
    person = who(relay, provider.token())
    assert person["preferred_username"] == "alice@example.edu"
    assert person["mep"]["scopes"] == ["submit", "read"]


def _refused(relay: RelayProcess, token: str) -> None:
    status, answer = relay.request("GET", "/oauth/userinfo", token)
    assert (status, answer["code"]) == (401, "TOKEN_UNKNOWN")


def test_lying_access_tokens_are_refused(relay: RelayProcess, provider: HostileProvider) -> None:
    now = int(time.time())
    for claims in ({"aud": "other"}, {"aud": None}, {"exp": now - 300}, {"exp": None}, {"nbf": now + 300}, {"sub": ""}):
        _refused(relay, provider.token(claims))
    _refused(relay, provider.token(key=RSAKey.generate_key(2048)))
    _refused(relay, provider.confused_token())
    _refused(relay, provider.token({"iss": "https://evil.example"}))
    _refused(relay, provider.token(jku=f"{provider.issuer}/evil", kid="unknown", key=RSAKey.generate_key(2048)))
    body = provider.token().split(".")[1]
    _refused(relay, f"eyJhbGciOiJub25lIn0.{body}.")
    _refused(relay, f"eyJhbGciOiJub25lIn0.{body}.x")
    assert "/evil" not in provider.asked
    within_skew = provider.token({"exp": now - 20})
    assert relay.request("GET", "/oauth/userinfo", within_skew)[0] == 200


def test_keys_rotate(tmp_path: Path) -> None:
    with HostileProvider() as rotating:
        campus = {"name": "campus", "issuer": rotating.issuer, "audience": "relay"}
        settings = people_file(tmp_path, providers=[campus])
        with RelayProcess(tmp_path, "--people", str(settings)) as relay:
            who(relay, rotating.token())
            old = rotating.token({"jti": "old"})
            rotating.rotate("two")

            def taken() -> bool:
                token = rotating.token({"jti": str(time.time())}, kid="two")
                return relay.request("GET", "/oauth/userinfo", token)[0] == 200

            until("the new key", taken, look_s=1.0)
            _refused(relay, old)


def test_an_opaque_token_is_introspected_and_kept_briefly(relay: RelayProcess, provider: HostileProvider) -> None:
    _refused(relay, "opaque-unknown")
    provider.active["opaque-1"] = {
        "active": True, "sub": "alice-1", "aud": "relay", "preferred_username": "alice@example.edu", "identity_set": [],
        "exp": int(time.time()) + 600,
    }  # fmt: skip
    assert who(relay, "opaque-1")["preferred_username"] == "alice@example.edu"
    asked = provider.asked.count("/introspect")
    assert who(relay, "opaque-1")["preferred_username"] == "alice@example.edu"
    assert provider.asked.count("/introspect") == asked
    for number, claims in enumerate(_lying_introspections()):
        token = f"opaque-lie-{number}"
        provider.active[token] = {**provider.active["opaque-1"], **claims}
        _refused(relay, token)


def _lying_introspections() -> list[dict[str, Any]]:
    now = int(time.time())
    times: list[dict[str, Any]] = [{"exp": now - 1}, {"nbf": now + 300}, {"iat": now + 300}, {"nbf": "soon"}]
    kinds: list[dict[str, Any]] = [{"token_type": "DPoP"}, {"token_type": 5}, {"typ": "Refresh"}, {"typ": "ID"}]
    named: list[dict[str, Any]] = [{"aud": "other"}, {"aud": None}, {"iss": "https://evil.example"}, {"sub": ""}]
    more: list[dict[str, Any]] = [{"active": "yes"}, {"token_use": "refresh_token"}, {"cnf": {"jkt": "x"}}]
    return times + kinds + named + more


def test_introspection_by_scope_takes_tokens_for_the_relay_alone(tmp_path: Path, provider: HostileProvider) -> None:
    """A person gives any service a token of the provider: that service must not be able to use it here."""
    by_scope = {"issuer": provider.issuer, "client_id": "relay-login", "introspect": True, "required_scope": "compute"}
    settings = people_file(tmp_path, providers=[{"name": "campus", **by_scope}])
    known = {"active": True, "sub": "alice-1", "preferred_username": "alice@example.edu", "client_id": "another"}
    provider.active["for-another"] = {**known, "scope": "openid mail", "token_type": "Bearer"}
    provider.active["of-a-kind-not-said"] = {**known, "scope": "compute"}
    provider.active["for-the-relay"] = {**known, "scope": "openid compute", "token_type": "Bearer"}
    with RelayProcess(tmp_path, "--people", str(settings)) as relay:
        _refused(relay, "for-another")
        _refused(relay, "of-a-kind-not-said")
        assert who(relay, "for-the-relay")["preferred_username"] == "alice@example.edu"


def test_a_relay_that_would_take_every_clients_tokens_does_not_start(tmp_path: Path, provider: HostileProvider) -> None:
    lax = {"name": "campus", "issuer": provider.issuer, "client_id": "relay-login", "introspect": True}
    file = people_file(tmp_path, providers=[lax])
    with pytest.raises(RuntimeError, match=re.escape(f"{file}: providers[0].introspect: needs audience or required")):
        RelayProcess(tmp_path, "--people", str(file)).start()
    providers = [{**lax, "accept_any_client": True}]
    known = {"active": True, "sub": "alice-1", "preferred_username": "alice@example.edu", "token_type": "Bearer"}
    provider.active["any"] = known
    with RelayProcess(tmp_path, "--people", str(people_file(tmp_path, providers=providers))) as relay:
        assert who(relay, "any")["preferred_username"] == "alice@example.edu"


def test_strangers_keep_neither_people_nor_logins_waiting(
    relay: RelayProcess, client: LoginClient, provider: HostileProvider
) -> None:
    """Hundreds of tokens that the provider does not answer for: few reach it, and the rest of the relay goes on."""
    provider.active["opaque-known"] = {
        "active": True, "sub": "alice-1", "aud": "relay", "preferred_username": "alice@example.edu", "identity_set": [],
        "exp": int(time.time()) + 600,
    }  # fmt: skip
    who(relay, "opaque-known")
    before, descriptors = provider.asked.count("/introspect"), len(os.listdir(f"/proc/{relay.pid}/fd"))
    with ThreadPoolExecutor(100) as strangers:
        asked = [strangers.submit(relay.request, "GET", "/oauth/userinfo", f"slow-{number}") for number in range(100)]
        until("the first refusals", lambda: sum(one.done() for one in asked) >= 30)
        assert {one.result()[0] for one in asked if one.done()} <= {429, 503}
        assert provider.asked.count("/introspect") - before <= 2  # at once
        assert len(os.listdir(f"/proc/{relay.pid}/fd")) - descriptors < 110
        assert who(relay, "opaque-known")["preferred_username"] == "alice@example.edu"
        assert who(relay, provider.token({"jti": "new"}))["preferred_username"] == "alice@example.edu"
        assert tokens(client)["access_token"]
        provider.gate.set()
    assert {one.result()[0] for one in asked} <= {401, 429, 503}

    def asks_again() -> bool:
        return relay.request("GET", "/oauth/userinfo", f"slow-{time.time()}")[0] == 401

    until("the provider is asked for strangers again", asks_again, look_s=1.0)


def test_unknown_codes_cost_no_commit(relay: RelayProcess, client: LoginClient) -> None:
    before = _commits(relay)
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    for number in range(20):
        assert client.form("/oauth/token", grant_type=grant, device_code=f"x{number}")[1]["error"] == "invalid_grant"
        assert client.redeem(f"x{number}")[1]["error"] == "invalid_grant"
        assert client.refresh(f"mepr_{number}")[1]["error"] == "invalid_grant"
    assert _commits(relay) - before < 20


def _commits(relay: RelayProcess) -> float:
    if "prometheus@" not in relay.cli("user", "list").stdout:
        relay.add_user("prometheus@example.edu")
    token = relay.cli("user", "token", "prometheus@example.edu").stdout.strip()
    asked = urllib.request.Request(f"{relay.url}/metrics", headers={"authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        text = answer.read().decode()
    return float(re.findall(r"^mep_relay_store_commits_total (\S+)", text, re.MULTILINE)[0])


def test_claims_of_a_wrong_kind_are_refused_and_no_fault_of_the_relays(
    relay: RelayProcess, provider: HostileProvider
) -> None:
    for field, value in (("exp", 10**400), ("exp", "soon"), ("aud", 5), ("aud", {}), ("sub", 5)):
        _refused(relay, provider.token({field: value}))
        token = f"opaque-{field}-{str(value)[:10]}"
        provider.active[token] = {"active": True, "sub": "alice-1", "aud": "relay", field: value}
        _refused(relay, token)
    _refused(relay, provider.token({"exp": float("nan")}))
    provider.active["nobody"] = {"active": True, "aud": "relay"}
    _refused(relay, "nobody")
    deep = urlsafe_b64encode(b"[" * 9000).decode().rstrip("=")
    for token in (f"{deep}.e30.x", f"e30.{deep}.x", f"{deep}.{provider.token().split('.')[1]}.x"):
        _refused(relay, token)


def test_the_relays_own_tokens_go_to_no_provider(relay: RelayProcess, provider: HostileProvider) -> None:
    before = len(provider.asked)
    for token in ("mep_" + "x" * 43, "mepr_" + "x" * 43):
        _refused(relay, token)
    assert len(provider.asked) == before


# --- a real provider --------------------------------------------------------------------------------


def test_a_login_at_oidc_provider(tmp_path: Path) -> None:
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    (tmp_path / "secret").write_text("a secret of the tests\n")
    (tmp_path / "secret").chmod(0o600)
    campus = {
        "name": "campus",
        "issuer": issuer,
        "client_id": "relay-login",
        "client_secret_file": str(tmp_path / "secret"),
        "audience": "relay-api",
        "username_domains": ["campus.example.edu"],
    }
    settings = people_file(tmp_path, providers=[campus])
    with RelayProcess(tmp_path, "--people", str(settings)) as relay, OidcProvider(relay.url, port) as provider:
        client, browser = LoginClient(relay), Browser()
        start = browser.follow(browser.get(client.address(scope="read", prompt="login")), issuer)
        page = browser.follow(provider.log_in(browser, start, "alice"))
        answer = client.redeem(client.consented(browser, browser.follow(page))["code"])[1]
        person = who(relay, answer["access_token"])
        assert person["preferred_username"] == "alice@campus.example.edu"
        assert person["mep"]["groups"] == ["campus:physics"]
        mine = provider.token("portal", "a secret of the portal", scope="compute", resource="https://relay.example")
        status, refused = relay.request("GET", "/oauth/userinfo", mine["access_token"])
        assert (status, refused["code"]) == (401, "TOKEN_UNKNOWN")  # a client is no person: it has no userinfo


CANAILLE = "canaille[front,oidc]==0.3.6"


@pytest.fixture
def canaille_python(tmp_path: Path) -> Path:
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    subprocess.run([base, "-m", "venv", tmp_path / "canaille"], check=True)
    python = tmp_path / "canaille" / "bin" / "python"
    words = ["-I", "-m", "pip", "install", "-q", "--disable-pip-version-check", CANAILLE]
    subprocess.run([python, *words], check=True, capture_output=True)
    return python


@pytest.mark.timeout(300)
def test_a_login_at_canaille(tmp_path: Path, canaille_python: Path) -> None:
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    (tmp_path / "secret").write_text("a secret of the tests\n")
    (tmp_path / "secret").chmod(0o600)
    lab = {
        "name": "lab",
        "issuer": issuer,
        "client_id": "relay-login",
        "client_secret_file": str(tmp_path / "secret"),
        "username_claim": "sub",
        "username_domain": "lab.example.edu",
    }
    with RelayProcess(tmp_path, "--people", str(people_file(tmp_path, providers=[lab]))) as relay:
        words = [ROOT / "tests/services/canaille_server.py", str(port), f"{relay.url}/oauth/callback/lab"]
        serving = subprocess.Popen(
            [canaille_python, "-I", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until("canaille", lambda: Browser().get(f"{issuer}/login").status == 200, unready=(OSError,))
            client, browser = LoginClient(relay), Browser()
            page = browser.follow(browser.get(client.address()))
            page = browser.follow(browser.submit(page, login="alice"))
            page = browser.follow(browser.submit(page, password="correct horse"))
            answer = client.redeem(client.consented(browser, page)["code"])[1]
        finally:
            serving.terminate()
            serving.wait(30)
        assert who(relay, answer["access_token"])["preferred_username"] == "alice@lab.example.edu"
