"""One OpenID Connect provider: its metadata and keys, the check of its tokens, and a login there.

Trusts the provider for its own subjects and nothing else: every token's issuer, audience, times, nonce and signature
are checked, with algorithms and keys that the site's configuration and the provider's own document allow. Nothing in a
token's header chooses a key but `kid`. Called by relay.auth.people.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from mep_wire.errors import LoginFailed, ProviderUnavailable, TokenUnknown
from relay.auth.claims import is_time
from relay.auth.fetch import Fetch, Lane
from relay.auth.settings import ProviderSettings, is_safe_url

KEPT_S = 3600.0
"""How long metadata and keys are used before they are fetched again."""
NEW_KEYS_S = 5.0
"""Least time between two looks for a key that is not known."""
PAUSE_S = 5.0
"""How long a provider that has just failed is not asked for its metadata or its keys."""
STALE_S = 24 * KEPT_S
"""How long they are used where no newer ones can be had."""
T = TypeVar("T")
MAX_TOKEN = 16 * 1024
MAX_KEYS = 100
_KEY_TYPES = frozenset({"RSA", "EC", "OKP"})
_CONFIRMATION = "cnf"
_BOUND = "it is bound to a key of its client's (cnf), which a bearer cannot show"
_BEARER_KINDS = {"token_type": ("bearer", "access_token"), "typ": ("bearer", "jwt", "at+jwt"),
                 "token_use": ("access", "access_token")}  # fmt: skip
"""What introspection may call an access token: RFC 7662's own field, and those of Keycloak and of Hydra."""


def pkce_challenge(verifier: str) -> str:
    """Return the S256 challenge of a PKCE verifier (RFC 7636)."""
    return urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


class AuthRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a login at the provider needs at its end."""

    state: str
    nonce: str
    verifier: str
    max_age: int | None = None


class _Kept(Generic[T]):
    """A document of the provider's: one request at a time for all who wait, and none waits while a copy will do."""

    def __init__(self, name: str, fetch: Callable[[], Coroutine[Any, Any, T]], clock: Callable[[], float]) -> None:
        self._name, self._fetch, self._clock = name, fetch, clock
        self.value: T | None = None
        self._got_at = self._asked_at = self._failed_at = float("-inf")
        self._under_way: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Return the document, an hour old at most where the provider answers. Raises ProviderUnavailable."""
        now = self._clock()
        age = now - self._got_at
        if self.value is not None and age < STALE_S:
            if age > KEPT_S and now - self._failed_at > PAUSE_S:
                self._begin()
            return self.value
        return await self._new()

    async def newer(self) -> T:
        """Return the document as it is now, asked for every NEW_KEYS_S at most. Raises ProviderUnavailable."""
        if self.value is None:
            return await self._new()
        if self._under_way is not None or self._clock() - self._asked_at > NEW_KEYS_S:
            try:
                return await self._new()
            except ProviderUnavailable:
                return await self.get()
        return self.value

    async def _new(self) -> T:
        if self._under_way is None and self._clock() - self._failed_at < PAUSE_S:
            raise ProviderUnavailable(provider=self._name, reason="it failed a moment ago")
        return await asyncio.shield(self._begin())

    def _begin(self) -> asyncio.Task[T]:
        if self._under_way is None:
            self._asked_at = self._clock()
            self._under_way = asyncio.get_running_loop().create_task(self._fetch())
            self._under_way.add_done_callback(self._done)
        return self._under_way

    def _done(self, task: asyncio.Task[T]) -> None:
        self._under_way = None
        if task.cancelled() or task.exception() is not None:
            self._failed_at = self._clock()
            return
        self.value, self._got_at = task.result(), self._clock()


class Provider:
    """See the module."""

    def __init__(self, settings: ProviderSettings, clock: Callable[[], float] = time.time, secret: str = "") -> None:
        self.settings = settings
        self._clock = clock
        self._fetch = Fetch(settings.name, settings.ca_file)
        self._metadata = _Kept(settings.name, self._discover, clock)
        self._keys = _Kept(settings.name, self._fetch_keys, clock)
        self._secret = secret
        self._algorithms = [*settings.algorithms, *(["Ed25519"] if "EdDSA" in settings.algorithms else [])]

    def close(self) -> None:
        """Stop its threads."""
        self._fetch.close()

    # --- what it says of itself ---------------------------------------------------------------------

    async def metadata(self) -> dict[str, Any]:
        """Return its discovery document. Raises ProviderUnavailable."""
        return await self._metadata.get()

    async def _discover(self) -> dict[str, Any]:
        url = self.settings.issuer.rstrip("/") + "/.well-known/openid-configuration"
        status, found = await self._fetch.json("GET", url, lane=Lane.KEYS)
        if status != 200 or found.get("issuer") != self.settings.issuer:
            raise self._unavailable("its discovery document is not its own", f"{status} {str(found)[:200]}")
        return found

    async def _address(self, key: str) -> str:
        """Return an address of the discovery document. Raises ProviderUnavailable."""
        url = (await self.metadata()).get(key)
        if not isinstance(url, str) or not is_safe_url(url) or not self._may_name(url):
            raise self._unavailable(f"it has no usable {key}", str(url)[:200])
        return url

    def _may_name(self, url: str) -> bool:
        """Return whether its scheme is right: a provider elsewhere must not name an address of the relay's own host."""
        return url.startswith("https:") or self.settings.issuer.startswith("http:")

    async def _key_set(self, kid: object) -> KeySet:
        keys = await self._keys.get()
        if kid is None or any(key.kid == kid for key in keys.keys):
            return keys
        return await self._keys.newer()

    async def _fetch_keys(self) -> KeySet:
        status, found = await self._fetch.json("GET", await self._address("jwks_uri"), lane=Lane.KEYS)
        keys = found.get("keys")
        if status != 200 or not isinstance(keys, list):
            raise self._unavailable("its keys cannot be read", f"{status} {str(found)[:200]}")
        usable = [
            {name: value for name, value in key.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "key_ops")}
            for key in keys[:MAX_KEYS]
            if isinstance(key, dict) and key.get("kty") in _KEY_TYPES and key.get("use", "sig") == "sig"
        ]
        imported = KeySet([])
        for key in usable:
            try:
                imported.keys.extend(KeySet.import_key_set({"keys": [key]}).keys)
            except (JoseError, ValueError, TypeError, KeyError):
                continue  # a curve, say, that is not known here
        return imported

    def _unavailable(self, reason: str, detail: str = "") -> ProviderUnavailable:
        return ProviderUnavailable(provider=self.settings.name, reason=reason, detail=detail)

    # --- its tokens ---------------------------------------------------------------------------------

    async def verify(self, token: str, audience: str, nonce: str | None = None) -> dict[str, Any]:
        """Return the claims of a JWT. Raises TokenUnknown, with a detail that says why, or ProviderUnavailable."""
        if len(token) > MAX_TOKEN:
            raise TokenUnknown(detail="a token of this provider is too long")
        header = self._header(token)
        keys = await self._key_set(header.get("kid"))
        try:
            claims = jwt.decode(token, keys, algorithms=self._algorithms).claims
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise TokenUnknown(detail=f"{self.settings.name}: signature: {error!r}") from error
        if fault := self._claims_fault(claims, audience, nonce):
            raise TokenUnknown(detail=f"{self.settings.name}: {fault}")
        return claims

    def _header(self, token: str) -> Mapping[str, Any]:
        try:
            header = jws.extract_compact(token.encode()).headers()
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise TokenUnknown(detail=f"not a JWT: {error!r}") from error
        if header.get("alg") not in self._algorithms:
            raise TokenUnknown(detail=f"{self.settings.name}: the algorithm {str(header.get('alg'))[:20]!r}")
        if "crit" in header:
            raise TokenUnknown(detail=f"{self.settings.name}: a critical header")
        return header

    def _claims_fault(self, claims: Mapping[str, Any], audience: str, nonce: str | None) -> str:
        """Return the fault of a token with a right signature; empty if there is none."""
        now, skew = self._clock(), self.settings.skew_s
        if claims.get("iss") != self.settings.issuer:
            return f"the issuer {str(claims.get('iss'))[:200]!r}"
        audiences = claims.get("aud")
        audiences = [audiences] if isinstance(audiences, str) else audiences
        if not isinstance(audiences, list) or audience not in audiences:
            return f"the audience {str(audiences)[:200]}"
        expires = claims.get("exp")
        if not is_time(expires) or now > expires + skew:
            return f"it expired at {expires}, and it is {now:.0f}"
        if fault := self._not_yet(claims):
            return fault
        if not isinstance(claims.get("sub"), str) or not claims["sub"]:
            return "it has no subject"
        if nonce is not None:
            if not isinstance(claims.get("nonce"), str) or not secrets.compare_digest(claims["nonce"], nonce):
                return "its nonce is not that of this login"
            if len(audiences) > 1 and claims.get("azp") != audience:
                return "it was issued to another client"
        elif _CONFIRMATION in claims:
            return _BOUND
        return ""

    def _not_yet(self, claims: Mapping[str, Any]) -> str:
        """Return why a token is not valid yet; empty if it is."""
        now = self._clock()
        for name in ("nbf", "iat"):
            if name in claims and (not is_time(claims[name]) or claims[name] > now + self.settings.skew_s):
                return f"{name} is {str(claims[name])[:40]}, and it is {now:.0f}"
        return ""

    async def introspect(self, token: str, lane: Lane) -> dict[str, Any]:
        """Return the claims of an opaque token (RFC 7662). Raises TokenUnknown or ProviderUnavailable."""
        url = await self._address("introspection_endpoint")
        form = {"token": token, "token_type_hint": "access_token"}
        status, claims = await self._fetch.json("POST", url, *self._authenticated(form), lane=lane)
        if status != 200:
            raise self._unavailable("it refuses to introspect", f"{status} {str(claims)[:200]}")
        if fault := self._introspection_fault(claims):
            raise TokenUnknown(detail=f"{self.settings.name}: introspection: {fault}")
        return claims

    def _introspection_fault(self, claims: Mapping[str, Any]) -> str:
        """Return the fault of an introspected token; empty if there is none."""
        now, audience = self._clock(), self.settings.audience
        if claims.get("active") is not True:
            return "not active"
        audiences = claims.get("aud", [])
        audiences = [audiences] if isinstance(audiences, str) else audiences
        if audience and not (isinstance(audiences, list) and audience in audiences):
            return f"the audience {str(audiences)[:200]}"
        if claims.get("iss", self.settings.issuer) != self.settings.issuer:
            return f"the issuer {str(claims['iss'])[:200]!r}"
        if "exp" in claims and not (is_time(claims["exp"]) and claims["exp"] > now):
            return f"it expired at {str(claims['exp'])[:40]}, and it is {now:.0f}"
        if fault := self._not_yet(claims) or _kind_fault(claims, stated=not audience):
            return fault
        if not isinstance(claims.get("sub"), str) or not claims["sub"]:
            return "it has no subject"
        return ""

    async def userinfo(self, token: str, sub: str, lane: Lane) -> dict[str, Any]:
        """Return the claims of an access token's person. Raises TokenUnknown or ProviderUnavailable."""
        url = await self._address("userinfo_endpoint")
        status, claims = await self._fetch.json("GET", url, {"Authorization": f"Bearer {token}"}, lane=lane)
        if status != 200:
            raise TokenUnknown(detail=f"{self.settings.name}: userinfo: {status}")
        if claims.get("sub") != sub:
            raise TokenUnknown(detail=f"{self.settings.name}: userinfo of another person")
        return claims

    def _authenticated(self, form: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Return headers and form with which the relay is known to the provider."""
        if not self._secret:
            return {}, {**form, "client_id": self.settings.client_id}
        ways = (self._metadata.value or {}).get("token_endpoint_auth_methods_supported")
        if not isinstance(ways, list) or "client_secret_basic" in ways:
            pair = f"{quote(self.settings.client_id, safe='')}:{quote(self._secret, safe='')}"
            return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}, form
        return {}, {**form, "client_id": self.settings.client_id, "client_secret": self._secret}

    # --- a login there ------------------------------------------------------------------------------

    async def login_address(self, request: AuthRequest, redirect_uri: str, *, again: bool, mfa: bool, hint: str) -> str:
        """Return where the browser is sent. Raises ProviderUnavailable."""
        wanted = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.settings.scopes),
            "state": request.state,
            "nonce": request.nonce,
            "code_challenge": pkce_challenge(request.verifier),
            "code_challenge_method": "S256",
        }
        if again:
            wanted["prompt"] = "login"
        if request.max_age is not None:
            wanted["max_age"] = str(request.max_age)
        if mfa and self.settings.mfa_acr_values:
            wanted["acr_values"] = " ".join(self.settings.mfa_acr_values)
        if hint:
            wanted["login_hint"] = hint
        url = await self._address("authorization_endpoint")
        return f"{url}{'&' if '?' in url else '?'}{urlencode(wanted)}"

    async def finish_login(self, request: AuthRequest, code: str, redirect_uri: str) -> dict[str, Any]:
        """Return the person's claims, of ID token and userinfo. Raises LoginFailed or ProviderUnavailable."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": request.verifier,
        }
        url = await self._address("token_endpoint")
        status, answer = await self._fetch.json("POST", url, *self._authenticated(form), lane=Lane.LOGIN)
        id_token, access_token = answer.get("id_token"), answer.get("access_token")
        if status != 200 or not isinstance(id_token, str):
            raise LoginFailed(provider=self.settings.name, reason="it gave no token", detail=str(answer)[:300])
        try:
            claims = await self.verify(id_token, self.settings.client_id, request.nonce)
            if isinstance(access_token, str) and "userinfo_endpoint" in await self.metadata():
                more = await self.userinfo(access_token, claims["sub"], Lane.LOGIN)
                claims = {**more, **claims}
        except TokenUnknown as error:
            raise LoginFailed(
                provider=self.settings.name, reason="its token is not valid", detail=error.detail
            ) from error
        if request.max_age is not None:
            at = claims.get("auth_time")
            if not is_time(at) or at < self._clock() - request.max_age - self.settings.skew_s:
                raise LoginFailed(provider=self.settings.name, reason="the login is older than asked for")
        return claims


def _kind_fault(claims: Mapping[str, Any], *, stated: bool) -> str:
    """Return why an introspected token is no bearer access token; `stated`: its answer must say that it is one.

    A refresh or ID token may be active as well, and nothing but these fields tells it apart.
    """
    for name, kinds in _BEARER_KINDS.items():
        value = claims.get(name)
        if value is not None and not (isinstance(value, str) and value.lower() in kinds):
            return f"{name} is {str(value)[:40]!r}"
    if stated and "token_type" not in claims:
        return "its token_type is not said, which it must be where no audience is configured"
    return _BOUND if _CONFIRMATION in claims else ""
