"""From a provider's claims to accounts: whose names a provider may use, and which identities are one person."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from mep_wire.errors import IdentityUnusable, ProviderUnavailable
from mep_wire.identity import Identity
from relay.auth import names
from relay.auth.claims import claimed, identity_id
from relay.auth.people import People
from relay.auth.provider import Provider
from relay.auth.settings import PasswordSettings, PeopleSettings, ProviderSettings
from relay.store.records import Caller
from relay.store.sqlite import SqliteStore

HOME, LAB = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def provider(name: str, **more: Any) -> ProviderSettings:
    return ProviderSettings(name=name, issuer=f"https://{name}.example", client_id="relay", **more)


CAMPUS = provider("campus", username_domains=("example.edu",))
LAX = provider("lax")
HUB = provider("hub", linked_identities=True)
OTHER_HUB = provider("other", linked_identities=True)
SETTINGS = PeopleSettings(
    providers=(CAMPUS, LAX, HUB, OTHER_HUB),
    password=PasswordSettings(domain="host.example"),
    administrators=("Root@x.org",),
)


class Scene:
    def __init__(self) -> None:
        self.store = SqliteStore(None)
        self.people = People(self.store, SETTINGS)

    def login(self, settings: ProviderSettings, sub: str, username: str | None, **claims: Any) -> Caller:
        whole = {"sub": sub, "preferred_username": username, **claims}
        who = claimed(SETTINGS, settings, whole)

        async def admitted() -> Caller:
            return await self.people.admit(who)

        return asyncio.run(admitted())

    def usernames(self, caller: Caller) -> list[str]:
        person = self.store.identity_set(caller.account_id, caller.identity_id)
        assert person is not None
        return [one.username for one in person.identities]

    def built_in(self, username: str) -> str:
        self.store.submit(lambda tx: tx.add_account("built-in", Identity(id="b", username=username))).result()
        return "built-in"


@pytest.fixture
def scene() -> Scene:
    return Scene()


def linked(*others: tuple[str, str], me: tuple[str, str] = (HOME, "me@home.org")) -> list[dict[str, str]]:
    return [{"sub": sub, "username": username} for sub, username in (me, *others)]


def test_a_second_login_is_the_same_account_and_writes_nothing(scene: Scene) -> None:
    first = scene.login(CAMPUS, "s", "a@example.edu")
    groups = scene.store.commits.groups
    assert scene.login(CAMPUS, "s", "a@example.edu") == first
    assert scene.store.commits.groups == groups


def test_equal_subjects_of_two_providers_are_two_people(scene: Scene) -> None:
    one, other = scene.login(CAMPUS, "s", "a@example.edu"), scene.login(LAX, "s", "a@elsewhere.org")
    assert one.account_id != other.account_id
    assert identity_id("a", "bc") != identity_id("ab", "c")


@pytest.mark.parametrize(
    ("settings", "username"),
    [(CAMPUS, "a@elsewhere.org"), (CAMPUS, "plain"), (LAX, "a@example.edu"), (LAX, "A@EXAMPLE.EDU"),
     (LAX, "root@host.example"), (LAX, "x@clients"), (LAX, "a b@x.org"), (LAX, "x" * 300), (LAX, None), (LAX, "")],
)  # fmt: skip
def test_a_provider_speaks_for_its_own_names_alone(scene: Scene, settings: Any, username: str | None) -> None:
    with pytest.raises(IdentityUnusable):
        scene.login(settings, "s", username)


@pytest.mark.parametrize("username", ["bo\N{KELVIN SIGN}@x.org", "\N{LATIN CAPITAL LETTER E WITH ACUTE}va@x.org"])
def test_no_letter_passes_for_another_persons(scene: Scene, username: str) -> None:
    scene.login(LAX, "s", username.lower())
    with pytest.raises(IdentityUnusable, match="not usable"):
        scene.login(LAX, "thief", username)


def test_a_linked_name_is_held_to_the_same_rule(scene: Scene) -> None:
    with pytest.raises(IdentityUnusable):
        scene.login(HUB, HOME, "me@home.org", identity_set=linked((LAB, "dean@example.edu")))


def test_a_built_in_account_becomes_its_domains_providers(scene: Scene) -> None:
    account = scene.built_in("a@example.edu")
    assert scene.login(CAMPUS, "s", "a@example.edu").account_id == account
    assert scene.login(CAMPUS, "s", "a@example.edu").account_id == account
    with pytest.raises(IdentityUnusable):
        scene.login(CAMPUS, "another", "a@example.edu")  # the name is that subject's by now


def test_a_built_in_account_is_no_other_providers(scene: Scene) -> None:
    scene.built_in("a@elsewhere.org")
    with pytest.raises(IdentityUnusable):
        scene.login(LAX, "s", "a@elsewhere.org")


def test_a_provider_elsewhere_names_no_address_of_the_relays_host() -> None:
    class Elsewhere(Provider):
        async def _discover(self) -> dict[str, Any]:
            return {"issuer": CAMPUS.issuer, "jwks_uri": "http://127.0.0.1:1/keys"}

    token = jwt.encode({"alg": "ES256", "kid": "k"}, {"sub": "s"}, ECKey.generate_key("P-256"))
    with pytest.raises(ProviderUnavailable, match="no usable jwks_uri"):
        asyncio.run(Elsewhere(CAMPUS).verify(token, "relay"))


def test_a_name_that_was_given_up_is_no_other_subjects(scene: Scene) -> None:
    """Groups and shares go by usernames: the next one to have it would be taken for the former."""
    former = scene.login(LAX, "s", "a@x.org")
    assert scene.login(LAX, "s", "b@x.org").account_id == former.account_id
    with pytest.raises(IdentityUnusable, match="was another person's"):
        scene.login(LAX, "thief", "A@x.org")
    assert scene.login(LAX, "s", "a@x.org").account_id == former.account_id
    with pytest.raises(IdentityUnusable, match="was another person's"):
        scene.login(LAX, "thief", "b@x.org")
    scene.store.submit(lambda tx: tx.drop_document(names.USERNAME, "b@x.org")).result()
    scene.login(LAX, "next", "b@x.org")


def test_a_removed_person_may_come_back_and_no_other_by_the_name(scene: Scene) -> None:
    former = scene.login(LAX, "s", "a@x.org")
    person = scene.store.identity_set(former.account_id)
    assert person is not None
    scene.store.submit(lambda tx: names.remove_person(tx, person, 1.0)).result()
    with pytest.raises(IdentityUnusable, match="was another person's"):
        scene.login(LAX, "thief", "a@x.org")
    back = scene.login(LAX, "s", "a@x.org")
    assert back.account_id != former.account_id
    assert scene.store.documents(names.USERNAME) == []


def test_people_who_link_their_identities_become_one(scene: Scene) -> None:
    lab = scene.login(HUB, LAB, "me@lab.org")
    home = scene.login(HUB, HOME, "me@home.org", identity_set=linked((LAB, "me@lab.org")))
    assert scene.usernames(home) == ["me@home.org", "me@lab.org"]
    again = scene.login(HUB, LAB, "me@lab.org", identity_set=linked((HOME, "me@home.org"), me=(LAB, "me@lab.org")))
    assert again.account_id == home.account_id
    assert lab.identity_id == again.identity_id
    apart = scene.login(HUB, HOME, "me@home.org", identity_set=linked())
    assert scene.usernames(apart) == ["me@home.org"]
    assert scene.login(HUB, LAB, "me@lab.org").account_id != apart.account_id


def test_one_hub_cannot_claim_anothers_identity(scene: Scene) -> None:
    scene.login(HUB, LAB, "me@lab.org")
    with pytest.raises(IdentityUnusable):
        scene.login(OTHER_HUB, LAB, "thief@lab.org")
    with pytest.raises(IdentityUnusable):
        scene.login(
            OTHER_HUB, HOME, "thief@home.org", identity_set=linked((LAB, "me@lab.org"), me=(HOME, "x@home.org"))
        )


def test_the_scope_admin_is_the_named_peoples(scene: Scene) -> None:
    root, other = scene.login(LAX, "r", "root@x.org"), scene.login(LAX, "o", "other@x.org")
    assert scene.people.allowed_scopes(root.account_id, ("read", "admin", "read")) == ("read", "admin")
    assert scene.people.allowed_scopes(other.account_id, ("read", "admin")) == ("read",)


def test_a_closed_identity_gives_no_rights(scene: Scene) -> None:
    """The provider closed it, and its name may be another person's there by now."""
    closed = [{"sub": HOME, "username": "me@home.org"}, {"sub": LAB, "username": "root@x.org", "status": "closed"}]
    caller = scene.login(HUB, HOME, "me@home.org", identity_set=closed)
    assert scene.usernames(caller) == ["me@home.org", "root@x.org"]
    assert scene.people.allowed_scopes(caller.account_id, ("read", "admin")) == ("read",)
    opened = [{"sub": HOME, "username": "me@home.org"}, {"sub": LAB, "username": "root@x.org"}]
    again = scene.login(HUB, HOME, "me@home.org", identity_set=opened)
    assert scene.people.allowed_scopes(again.account_id, ("read", "admin")) == ("read", "admin")


def test_a_group_that_is_no_name_is_no_group(scene: Scene) -> None:
    odd = ["physics", "", "a\nb", 5, None, "x" * 513, {"n": 1}]
    assert scene.login(CAMPUS, "s", "a@example.edu", groups=odd).login.groups == ("campus:physics",)
