"""A science gateway's end users run as accounts of their own, at a real site, where its mapping says so."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from sitekit.endpoint import MAPPING
from sitekit.site import ADMIN

from mep_sdk import Client, Executor
from mep_wire.errors import IdentityNotMapped
from tests.support.campus import Campus, make_campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 90


def ask(campus: Campus, method: str, path: str, token: str, body: Any) -> Any:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    request = urllib.request.Request(campus.site.relay.url + path, json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def stay() -> int:
    import os
    import time

    time.sleep(5)
    return os.getuid()


def administrators(campus: Campus) -> None:
    """Make the endpoint's owner an administrator of the relay too."""
    state = campus.site.relay.state
    for name, text in (
        ("mep-relay.toml", f'people = "{state}/people.toml"\n'),
        ("people.toml", f"administrators = {json.dumps([ADMIN])}\n"),
    ):
        (state / name).write_text(text)
        (state / name).chmod(0o600)
        shutil.chown(state / name, "mep-relay", "mep-relay")
    campus.site.relay.stop()
    campus.site.relay.start()


class Gateway:
    """A client of the relay's with a community account, and the endpoint's mapping of its people."""

    def __init__(self, campus: Campus) -> None:
        self.campus = campus
        words = [
            "user",
            "token",
            ADMIN,
            "--keep",
            "--scope",
            "admin",
            "--scope",
            "manage_endpoints",
            "--json",
        ]
        root = json.loads(campus.site.relay.run(*words))["token"]
        made = ask(campus, "POST", "/v3/clients", root, {"name": "portal", "scopes": ["submit", "read"]})
        self._basic = b64encode(f"{made['client_id']}:{made['client_secret']}".encode()).decode()
        ask(campus, "PUT", f"/v3/endpoints/{campus.endpoint.id}/access", root, {"pass_end_users": True})
        self.username = made["username"]

    def token(self, end_user: str) -> str:
        form = urlencode({"grant_type": "client_credentials", "end_user": end_user}).encode()
        request = urllib.request.Request(
            self.campus.site.relay.url + "/oauth/token", form, {"authorization": f"Basic {self._basic}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.loads(answer.read())["access_token"])

    def uid(self, end_user: str, function: Callable[[], int] = os.getuid) -> int:
        client = Client(relay_url=self.campus.site.relay.url, token=self.token(end_user))
        executor = Executor(endpoint_id=self.campus.endpoint.id, client=client)
        try:
            return int(executor.submit(function).result(timeout=RESULT_S))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with make_campus("multi", "gateway") as campus:
        administrators(campus)
        campus.endpoint.add_config("recheck_interval_s: 1\n")
        campus.endpoint.start()
        yield Gateway(campus)


def use_mapping(gateway: Gateway, *, accounts: str) -> None:
    campus = gateway.campus
    before = campus.log().count("mapping loaded:")
    campus.endpoint.write(MAPPING, mapping(gateway, accounts=accounts))
    until("the new mapping", lambda: campus.log().count("mapping loaded:") > before)


def mapping(gateway: Gateway, *, accounts: str) -> list[dict[str, Any]]:
    alice, bob = (gateway.campus.accounts[name].name for name in ("alice", "bob"))
    source = {"source": "{username}", "match": gateway.username, "literal": True}
    prefix = alice.removesuffix("alice")
    named = {**source, "end_user": r"(alice|root|daemon)@example\.edu", "output": prefix + "{0}"}
    document: dict[str, Any] = {
        "DATA_TYPE": "expression_identity_mapping#1.0.0",
        "mappings": [{**source, "output": bob}],
    }
    if accounts:
        document = {**document, "mappings": [named, *document["mappings"]], "end_user_accounts": [accounts]}
    return [document]


def test_end_users_have_the_accounts_that_the_mapping_gives_them(gateway: Gateway) -> None:
    campus = gateway.campus
    alice, bob = campus.accounts["alice"], campus.accounts["bob"]
    use_mapping(gateway, accounts=alice.name.removesuffix("alice") + "*")
    assert gateway.uid("alice@example.edu") == alice.uid
    assert gateway.uid("carol@example.edu") == bob.uid  # no rule for her: the community account's own
    audit = "".join(file.read_text() for file in campus.site.root.rglob("audit.log") if "relay" not in str(file))
    assert '\\"end_user\\": \\"alice@example.edu\\"' in audit
    # Re-checks, once a second here, carry the name too: without it they would end her user endpoint.
    assert gateway.uid("alice@example.edu", stay) == alice.uid


def test_an_end_user_reaches_no_account_that_was_not_named(gateway: Gateway) -> None:
    campus = gateway.campus
    use_mapping(gateway, accounts=campus.accounts["bob"].name)
    with pytest.raises(IdentityNotMapped):
        gateway.uid("alice@example.edu")


def test_a_mapping_that_does_not_ask_maps_the_community_account(gateway: Gateway) -> None:
    campus = gateway.campus
    use_mapping(gateway, accounts="")
    assert gateway.uid("someone-else@example.edu") == campus.accounts["bob"].uid
