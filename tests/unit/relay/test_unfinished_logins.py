"""Logins to which a person agreed, before the client has its tokens: they end with the person's other tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mep_wire.identity import Identity
from relay.api.oauth import cookie_name
from relay.auth.oauth import DEVICE_GRANT, AuthorizationServer, OAuthError, Wanted
from relay.auth.people import People
from relay.auth.provider import pkce_challenge
from relay.store.base import Tx
from relay.store.records import Caller
from relay.store.sqlite import SqliteStore

ALICE = Caller(account_id="alice", identity_id="a")
REDIRECT, VERIFIER = "http://127.0.0.1/callback", "v" * 43
REVOCATIONS = (lambda tx: tx.remove_tokens("a"), lambda tx: tx.remove_account("alice"))


class Scene:
    def __init__(self) -> None:
        self.store = SqliteStore(None)
        self.server = AuthorizationServer(self.store, People(self.store), lambda: "http://relay.example")
        self.change(lambda tx: tx.add_account("alice", Identity(id="a", username="alice@example.edu")))

    def change(self, what: Callable[[Tx], object]) -> None:
        self.store.submit(what).result()

    def token(self, **form: str) -> object:
        return asyncio.run(self.server.token({"client_id": "mep-sdk", **form}, ""))

    def device(self) -> dict[str, str]:
        """Return the form of a device to which the person said yes."""
        wanted = Wanted(client_id="mep-sdk")
        begun = asyncio.run(self.server.start_device(wanted))
        found = self.server.device_wanted(begun["user_code"])
        assert found is not None
        assert asyncio.run(self.server.decide_device(found.device, ALICE))
        assert self.server.device_wanted(begun["user_code"]) is None
        return {"grant_type": DEVICE_GRANT, "device_code": begun["device_code"]}

    def code(self) -> dict[str, str]:
        """Return the form of a program to which the person said yes in a browser."""
        wanted = Wanted(client_id="mep-sdk", redirect_uri=REDIRECT, challenge=pkce_challenge(VERIFIER))
        made = asyncio.run(self.server.make_code(wanted, ALICE))
        return {
            "grant_type": "authorization_code", "code": made, "code_verifier": VERIFIER, "redirect_uri": REDIRECT,
        }  # fmt: skip


@pytest.mark.parametrize("way", [Scene.device, Scene.code])
def test_a_login_gives_a_token(way: Callable[[Scene], dict[str, str]]) -> None:
    scene = Scene()
    scene.token(**way(scene))
    assert len(scene.store.tokens("alice", 10)) == 1


@pytest.mark.parametrize("way", [Scene.device, Scene.code])
@pytest.mark.parametrize("revoke", REVOCATIONS)
def test_an_unfinished_login_ends_with_the_tokens(
    way: Callable[[Scene], dict[str, str]], revoke: Callable[[Tx], object]
) -> None:
    """Else a thief with a device code would get tokens after all were revoked, for a quarter of an hour."""
    scene = Scene()
    form = way(scene)
    scene.change(revoke)
    with pytest.raises(OAuthError, match="unknown"):
        scene.token(**form)
    assert scene.store.tokens("alice", 10) == []


def test_a_person_who_was_removed_during_a_login_gets_no_token() -> None:
    scene = Scene()
    scene.change(lambda tx: tx.remove_account("alice"))
    with pytest.raises(OAuthError, match="no longer known"):
        scene.token(**scene.code())
    assert scene.store.tokens("alice", 10) == []


def test_a_login_that_ends_after_two_people_became_one_is_of_that_one() -> None:
    scene = Scene()
    scene.change(lambda tx: tx.add_account("other", Identity(id="o", username="other@example.edu")))
    form = scene.device()
    scene.change(lambda tx: tx.merge_accounts("other", "alice"))
    scene.token(**form)
    assert [one.account_id for one in scene.store.tokens("other", 10)] == ["other"]


def test_a_logins_cookie_over_https_is_the_hosts_own() -> None:
    """Browsers take `__Host-` from nothing but an https answer of the host itself, with Path=/ and no Domain."""
    assert cookie_name("https://relay.example.edu") == "__Host-mep_login"
    assert cookie_name("http://127.0.0.1:8650") == "mep_login"
