"""Logins in a browser: from a client's request, by a provider or a password, to the person's consent.

A login belongs to one browser, which has a cookie for it: another browser that gets hold of its addresses can do
nothing with them. Once the person is known, it goes on under another handle, which only the browser that logged in has
seen: a cookie can be planted. Logins that are not finished live in memory, bounded; a restart of the relay ends them.
Called by relay.api.oauth, which makes the pages.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from mep_wire.errors import LoginFailed
from relay.auth.claims import claimed
from relay.auth.oauth import AuthorizationServer, Wanted, hashed
from relay.auth.passwords import Passwords
from relay.auth.people import People
from relay.auth.provider import AuthRequest
from relay.rate_limit import RequestSlots
from relay.store.records import Caller

LOGIN_S = 900.0
MAX_LOGINS = 10_000
MAX_CODES, MAX_CODES_EACH = 256, 16
"""Most codes that are with providers at once, of all addresses and of one: anybody can send codes that they made up,
and a provider has room for 32."""


@dataclass(slots=True)
class Flow:
    """One login on its way."""

    handle: str
    """A secret of its pages."""
    browser: str
    """The hash of the browser's cookie."""
    wanted: Wanted
    until: float
    caller: Caller | None = None
    """Who it is, once that is known."""
    refused: str = ""
    """What the finished login lacks."""
    provider: str = ""
    request: AuthRequest | None = None
    """The login at the provider that is under way."""
    user_code: str = ""
    network: str = ""
    """Where the browser is."""


class Logins:
    """See the module."""

    def __init__(self, people: People, server: AuthorizationServer) -> None:
        self._people, self._server = people, server
        self._flows: OrderedDict[str, Flow] = OrderedDict()
        self._of_network: dict[str, OrderedDict[str, None]] = {}
        """The handles of each network's logins, the oldest first."""
        password = people.settings.password
        self._passwords = Passwords(password) if password else None
        self._codes = RequestSlots(MAX_CODES, MAX_CODES_EACH, "login")

    def begin(self, wanted: Wanted, browser: str, network: str, user_code: str = "") -> Flow:
        """Begin a login for the browser with this cookie.

        Where there are too many, the network with the most of them loses its oldest: a flood ends no logins of others.
        """
        now = time.monotonic()
        while self._flows and (oldest := next(iter(self._flows.values()))).until < now:
            self.end(oldest)
        if len(self._flows) >= MAX_LOGINS:
            most = max(self._of_network.values(), key=len)
            self.end(self._flows[next(iter(most))])
        flow = Flow(
            handle=secrets.token_urlsafe(24),
            browser=hashed(browser),
            wanted=wanted,
            until=now + LOGIN_S,
            user_code=user_code,
            network=network,
        )
        self._add(flow)
        return flow

    def _add(self, flow: Flow) -> None:
        self._flows[flow.handle] = flow
        self._of_network.setdefault(flow.network, OrderedDict())[flow.handle] = None

    def find(self, handle: str, browser: str) -> Flow:
        """Return a login of this browser's. Raises LoginFailed."""
        flow = self._flows.get(handle)
        if (
            flow is None
            or not browser
            or not hmac.compare_digest(flow.browser, hashed(browser))
            or flow.until < time.monotonic()
        ):
            raise LoginFailed(provider="this relay", reason="it was begun in another browser, or too long ago")
        return flow

    def end(self, flow: Flow) -> bool:
        """Forget a login; return whether it was known."""
        if self._flows.pop(flow.handle, None) is None:
            return False
        del self._of_network[flow.network][flow.handle]
        if not self._of_network[flow.network]:
            del self._of_network[flow.network]
        return True

    async def to_provider(self, flow: Flow, name: str, redirect_uri: str) -> str:
        """Return the provider's address for a login. Raises LoginFailed or ProviderUnavailable."""
        provider = self._people.providers.get(name)
        if provider is None or not provider.settings.client_id:
            raise LoginFailed(provider=name[:64], reason="there is no such way to log in")
        wanted = flow.wanted
        request = AuthRequest(
            state=f"{flow.handle}.{secrets.token_urlsafe(24)}",
            nonce=secrets.token_urlsafe(24),
            verifier=secrets.token_urlsafe(48),
            max_age=self._server.age_wanted(wanted),
        )
        address = await provider.login_address(
            request, redirect_uri, again=wanted.again, mfa=self._server.mfa_wanted(wanted), hint=wanted.login_hint
        )
        flow.provider, flow.request, flow.caller, flow.refused = name, request, None, ""
        return address

    async def from_provider(self, name: str, values: dict[str, str], browser: str, redirect_uri: str) -> Flow:
        """Return the login that a provider sends the browser back from. Raises LoginFailed, IdentityUnusable, ..."""
        state = values.get("state", "")
        flow = self.find(state.partition(".")[0], browser)
        request, flow.request = flow.request, None  # each may come back once
        provider = self._people.providers.get(name)
        if (
            request is None
            or provider is None
            or flow.provider != name
            or not hmac.compare_digest(state.encode(), request.state.encode())
        ):
            raise LoginFailed(provider=name[:64], reason="it is not the login that was begun here")
        if values.get("iss", provider.settings.issuer) != provider.settings.issuer:
            raise LoginFailed(provider=name, reason="another provider answered")
        if "error" in values or not values.get("code"):
            detail = f"{values.get('error', '')[:64]} {values.get('error_description', '')[:200]}".strip()
            raise LoginFailed(provider=name, reason="the provider says no", detail=detail)
        with self._codes.one(flow.network):
            claims = await provider.finish_login(request, values["code"], redirect_uri)
        await self._finish(flow, await self._people.admit(claimed(self._people.settings, provider.settings, claims)))
        return flow

    async def by_password(self, flow: Flow, user: str, password: str, network: str) -> None:
        """Log in with an account of the host. Raises LoginFailed, ProviderUnavailable, IdentityUnusable, RelayBusy."""
        if self._passwords is None:
            raise LoginFailed(provider="this relay", reason="there is no such way to log in")
        await self._finish(flow, await self._people.admit(await self._passwords.login(user, password, network)))

    async def _finish(self, flow: Flow, caller: Caller) -> None:
        flow.caller = caller
        flow.refused = self._server.unfulfilled(flow.wanted, caller)
        if self.end(flow):  # else it was, while its provider was asked
            flow.handle = secrets.token_urlsafe(24)
            self._add(flow)
