"""Tokens that nobody has seen: how many are looked at, and that no number of them harms people who are signed in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from mep_wire.errors import LoginFailed, MepError, ProviderUnavailable, RateLimited, RelayBusy, TokenUnknown
from relay.auth import login, token_checks
from relay.auth.fetch import FAILURES, FIRST_PAUSE_S, LAST_PAUSE_S, Breaker, Fetch, Lane
from relay.auth.login import Logins
from relay.auth.oauth import EXCHANGE_GRANT, AuthorizationServer, Client, Wanted
from relay.auth.people import People
from relay.auth.provider import KEPT_S, NEW_KEYS_S, PAUSE_S, AuthRequest, Provider
from relay.auth.settings import PeopleSettings, ProviderSettings
from relay.auth.token_checks import FAMILIAR_S, INACTIVE_KEPT_S, NEW_PER_S, REFUSED_KEPT_S, TokenChecks
from relay.rate_limit import BURST_S, RequestSlots
from relay.store.records import Caller
from relay.store.sqlite import SqliteStore

SETTINGS = ProviderSettings(name="campus", issuer="https://c.example", client_id="relay")
BURST = int(NEW_PER_S * BURST_S) + 1
ALICE = Caller(account_id="alice", identity_id="a")


class Scene:
    """Checks of a provider that knows the tokens that begin with `good`, and answers when `open` is set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[tuple[str, Lane]] = []
        self.failing = False
        self.open = asyncio.Event()
        self.open.set()
        self.checks = TokenChecks(self.ask, lambda: self.now)
        self.checks._new_here._clock = self.checks._new._clock = lambda: self.now

    async def ask(self, token: str, lane: Lane) -> tuple[Caller, float]:
        self.asked.append((token, lane))
        if lane is Lane.STRANGER:
            await self.open.wait()
        if self.failing:
            raise ProviderUnavailable(provider="campus", reason="it is away")
        if not token.startswith("good"):
            raise TokenUnknown
        return ALICE, self.now + 60.0

    async def refused(self, token: str, error: type[MepError] = TokenUnknown, network: str = "here") -> None:
        with pytest.raises(error):
            await self.checks.caller(token, network)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_a_good_and_a_refused_token_are_asked_for_once() -> None:
    async def test() -> None:
        scene = Scene()
        for _ in range(3):
            assert await scene.checks.caller("good", "here") is ALICE
            await scene.refused("bad")
        assert [token for token, _ in scene.asked] == ["good", "bad"]
        scene.now += INACTIVE_KEPT_S - 1
        await scene.refused("bad")
        assert len(scene.asked) == 2
        scene.now += 2
        await scene.refused("bad")
        assert len(scene.asked) == 3

    run(test())


def test_what_is_kept_of_a_refused_token_does_not_hold_the_token() -> None:
    """Ten thousand are kept, each of up to 16 KiB, and a traceback holds the provider's answer as well."""

    async def test() -> None:
        scene = Scene()
        await scene.refused("bad")
        ((_, error),) = scene.checks._refused.values()
        assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)

    run(test())


def test_a_refused_jwt_is_looked_at_again_soon() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.refused("a.b.c")
        scene.now += REFUSED_KEPT_S + 1
        await scene.refused("a.b.c")
        assert len(scene.asked) == 2

    run(test())


def test_equal_tokens_are_looked_at_together() -> None:
    async def test() -> None:
        scene = Scene()
        scene.open.clear()
        waiting = [asyncio.create_task(scene.checks.caller("good", "here")) for _ in range(20)]
        await asyncio.sleep(0)
        scene.open.set()
        assert await asyncio.gather(*waiting) == [ALICE] * 20
        assert len(scene.asked) == 1

    run(test())


def test_one_address_does_not_spend_what_others_may() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.checks.caller("good", "hostile")
        for number in range(BURST - 1):
            await scene.refused(f"guess {number}", network="hostile")
        await scene.refused("one more", RateLimited, "hostile")
        assert await scene.checks.caller("good 2", "elsewhere") is ALICE
        assert await scene.checks.caller("good", "hostile") is ALICE

    run(test())


def test_all_strangers_together_have_a_rate_and_people_who_are_signed_in_have_none() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.checks.caller("good", "office")
        refusals = 0
        for number in range(3 * BURST * 5):
            try:
                await scene.checks.caller(f"guess {number}", f"network {number}")
            except RateLimited:
                refusals += 1
            except TokenUnknown:
                continue
        assert refusals
        scene.now += FAMILIAR_S - 1  # long after its answer was to be believed
        assert await scene.checks.caller("good", "elsewhere") is ALICE
        assert scene.asked[-1] == ("good", Lane.KNOWN)

    run(test())


def test_strangers_that_wait_are_few_and_keep_nobody_waiting() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.checks.caller("good", "office")
        scene.now += 61
        scene.open.clear()  # the provider answers no stranger
        most = token_checks.MAX_NEW_EACH
        waiting = [asyncio.create_task(scene.checks.caller(f"guess {n}", "hostile")) for n in range(most)]
        same = [asyncio.create_task(scene.checks.caller("guess 0", f"n {n}")) for n in range(token_checks.MAX_NEW)]
        await asyncio.sleep(0)
        await scene.refused("guess again", RelayBusy, "hostile")
        await scene.refused("guess 0", RelayBusy, "yet another")  # waiting for the same answer is waiting as well
        assert await scene.checks.caller("good", "office") is ALICE
        scene.open.set()
        outcomes = await asyncio.gather(*waiting, *same, return_exceptions=True)
        assert {type(one) for one in outcomes} == {TokenUnknown, RelayBusy}
        await scene.refused("guess again", TokenUnknown, "hostile")  # its places are free

    run(test())


def test_strangers_make_the_relay_forget_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_checks, "KEPT", 10)

    async def test() -> None:
        scene = Scene()
        await scene.checks.caller("good", "here")
        for number in range(100):
            await scene.refused(f"guess {number}", network=f"network {number}")
        assert len(scene.checks._refused) == 10
        before = len(scene.asked)
        assert await scene.checks.caller("good", "here") is ALICE
        assert len(scene.asked) == before

    run(test())


def test_a_token_that_was_good_and_is_refused_is_a_strangers_from_then_on() -> None:
    async def test() -> None:
        scene = Scene()
        await scene.checks.caller("good", "here")
        scene.now += 61
        scene.failing = True
        await scene.refused("good", ProviderUnavailable)
        assert scene.asked[-1] == ("good", Lane.KNOWN)  # the provider's trouble makes nobody a stranger
        scene.now += FAMILIAR_S
        await scene.refused("good", ProviderUnavailable)
        assert scene.asked[-1] == ("good", Lane.STRANGER)

    run(test())


def test_places_are_counted_by_network_and_given_back() -> None:
    places = RequestSlots(3, 2, "login")
    with places.one("a"), places.one("a"):
        with pytest.raises(RelayBusy), places.one("a"):
            pass
        with places.one("b"), pytest.raises(RelayBusy), places.one("c"):
            pass
        with places.one("c"):
            pass
    assert not places._taken


# --- a provider that does not answer ----------------------------------------------------------------


def test_a_provider_that_does_not_answer_is_left_alone_and_tried_by_one() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES):
        assert not breaker.left_s()
        breaker.note(answered=False)
    assert breaker.left_s() == FIRST_PAUSE_S
    now[0] += FIRST_PAUSE_S
    assert not breaker.left_s()  # this one tries it
    assert breaker.left_s() > 0  # the others wait for its outcome
    breaker.note(answered=False)
    assert breaker.left_s() == 2 * FIRST_PAUSE_S
    for _ in range(10):
        breaker.note(answered=False)
    assert breaker.left_s() == LAST_PAUSE_S
    breaker.note(answered=True)
    assert not breaker.left_s()
    assert not breaker.left_s()


def test_failures_count_in_a_row_alone() -> None:
    breaker = Breaker(lambda: 0.0)
    for _ in range(5 * FAILURES):
        breaker.note(answered=False)
        breaker.note(answered=True)
    assert not breaker.left_s()


def test_a_dead_provider_is_not_asked_again_and_other_lanes_go_on() -> None:
    async def test() -> None:
        fetch = Fetch("campus")
        reasons = []
        for _ in range(FAILURES + 2):
            with pytest.raises(ProviderUnavailable) as caught:
                await fetch.json("GET", "http://127.0.0.1:1/x", lane=Lane.STRANGER)
            reasons.append(caught.value.fields["reason"])
        assert reasons[:FAILURES] == ["it cannot be reached"] * FAILURES
        assert all("asked again in" in str(one) for one in reasons[FAILURES:])
        with pytest.raises(ProviderUnavailable, match="cannot be reached"):
            await fetch.json("GET", "http://127.0.0.1:1/x", lane=Lane.KNOWN)
        fetch.close()

    run(test())


class Documents(Provider):
    """A provider whose documents are counted, and come when `open` is set."""

    def __init__(self, now: list[float]) -> None:
        super().__init__(ProviderSettings(name="campus", issuer="https://c.example", audience="relay"), lambda: now[0])
        self.count, self.failing = 0, False
        self.open = asyncio.Event()
        self.open.set()
        self._metadata._fetch = self._keys._fetch = self.document  # type: ignore[assignment]

    async def document(self) -> dict[str, Any]:
        self.count += 1
        await self.open.wait()
        if self.failing:
            raise ProviderUnavailable(provider="campus", reason="it is away")
        return {"number": self.count}


def test_a_document_is_fetched_once_for_all_and_used_while_the_next_comes() -> None:
    async def test() -> None:
        now = [0.0]
        provider = Documents(now)
        first = await asyncio.gather(*(provider.metadata() for _ in range(20)))
        assert {one["number"] for one in first} == {1}
        now[0] += KEPT_S + 1
        provider.open.clear()  # the provider hangs
        assert (await provider.metadata())["number"] == 1
        await asyncio.sleep(0)
        assert (await provider.metadata())["number"] == 1
        assert provider.count == 2
        provider.open.set()
        assert provider._metadata._under_way is not None
        assert (await provider._metadata._under_way)["number"] == 2
        assert (await provider.metadata())["number"] == 2

    run(test())


def test_unknown_keys_are_looked_for_now_and_then_also_where_that_fails() -> None:
    async def test() -> None:
        now = [0.0]
        provider = Documents(now)
        keys = provider._keys
        await keys.get()
        provider.failing = True
        now[0] += NEW_KEYS_S + 1
        for _ in range(50):
            assert (await keys.newer())["number"] == 1  # type: ignore[call-overload]
        assert provider.count == 2
        now[0] += PAUSE_S + NEW_KEYS_S + 1
        await keys.newer()
        assert provider.count == 3

    run(test())


def test_a_provider_that_never_answered_is_asked_now_and_then() -> None:
    async def test() -> None:
        now = [0.0]
        provider = Documents(now)
        provider.failing = True
        for _ in range(20):
            with pytest.raises(ProviderUnavailable):
                await provider.metadata()
        assert provider.count == 1
        now[0] += PAUSE_S + 1
        with pytest.raises(ProviderUnavailable):
            await provider.metadata()
        assert provider.count == 2

    run(test())


# --- logins that are not finished -------------------------------------------------------------------


def test_a_flood_of_logins_ends_no_other_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "MAX_LOGINS", 20)
    store = SqliteStore(None)
    people = People(store)
    logins = Logins(people, AuthorizationServer(store, people, lambda: ""))
    mine = logins.begin(Wanted(client_id="mep-sdk"), "browser", "office")
    flood = [logins.begin(Wanted(client_id="mep-sdk"), "x", "hostile") for _ in range(200)]
    assert logins.find(mine.handle, "browser") is mine
    assert logins.find(flood[-1].handle, "x") is flood[-1]
    with pytest.raises(LoginFailed):
        logins.find(flood[0].handle, "x")
    assert len(logins._flows) == 20
    logins.end(mine)
    assert set(logins._of_network) == {"hostile"}


def test_codes_from_one_network_leave_room_at_the_provider_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        store = SqliteStore(None)
        people = People(store, PeopleSettings(providers=(SETTINGS,)))
        logins, asked, never = Logins(people, AuthorizationServer(store, people, lambda: "")), [], asyncio.Event()

        async def finish_login(_: Provider, request: AuthRequest, code: str, address: str) -> dict[str, Any]:
            asked.append(code)
            await never.wait()
            raise AssertionError(request, address)

        async def come_back(network: str, code: str) -> None:
            flow = logins.begin(Wanted(client_id="mep-sdk"), "browser", network)
            flow.provider = SETTINGS.name
            flow.request = AuthRequest(state=f"{flow.handle}.s", nonce="n", verifier="v")
            answer = {"state": flow.request.state, "code": code}
            await logins.from_provider(SETTINGS.name, answer, "browser", "http://relay.example")

        monkeypatch.setattr(Provider, "finish_login", finish_login)
        waiting = [asyncio.create_task(come_back("hostile", "made up")) for _ in range(login.MAX_CODES_EACH)]
        await asyncio.sleep(0)
        with pytest.raises(RelayBusy):
            await asyncio.wait_for(come_back("hostile", "one too many"), 60)
        waiting.append(asyncio.create_task(come_back("office", "real")))
        await asyncio.sleep(0)
        assert asked == ["made up"] * login.MAX_CODES_EACH + ["real"]
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        people.close()

    run(test())


@pytest.mark.parametrize("error", [RateLimited(what="new tokens", rate="20", wait_s=1), RelayBusy(what="login")])
def test_an_exchange_that_comes_too_soon_does_not_call_the_token_invalid(
    monkeypatch: pytest.MonkeyPatch, error: MepError
) -> None:
    """Or its client would throw a good token away."""
    store = SqliteStore(None)
    people = People(store)
    server = AuthorizationServer(store, people, lambda: "")
    gateway, secret = asyncio.run(server.add_client(Client(client_id="gateway", name="Gateway", exchange=True)))

    async def too_soon(*_: object) -> Caller:
        raise error

    monkeypatch.setattr(people, "caller", too_soon)
    form = {
        "grant_type": EXCHANGE_GRANT, "client_id": gateway.client_id, "client_secret": secret,
        "subject_token": "foreign", "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    }  # fmt: skip
    with pytest.raises(type(error)):
        asyncio.run(server.token(form, ""))
