"""The relay as an OAuth 2.0 authorization server: codes, device codes, refresh tokens, clients, exchange, revocation.

Its state is documents of the store, and each step that spends something is one transaction there. Of every secret only
the hash is stored. docs/relay-login.md describes it for clients. Called by relay.api.oauth.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
import uuid
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from mep_wire.errors import MepError
from mep_wire.identity import Identity
from relay.auth.claims import CLIENTS_DOMAIN
from relay.auth.people import People
from relay.auth.policies import Policies, find
from relay.auth.provider import pkce_challenge
from relay.auth.settings import DEFAULT_SCOPES, SCOPES
from relay.auth.tokens import CLIENT, REFRESH_PREFIX, new_token, token_hash
from relay.store.base import Store, Tx
from relay.store.records import Caller, Document, Login, TokenRecord

CODE_S = 60.0
SPENT_S = 600.0
"""How long a spent code is remembered, to notice that it comes again."""
DEVICE_S = 900.0
INTERVAL_S = 5.0
MAX_POLLED = 10_000
"""Devices of which the time of the last request is remembered."""
GRACE_S = 60.0
"""How long a spent refresh token works once more, in case the answer was lost."""
MAX_TOKEN_NAME = 128
MAX_END_USER = 256
"""A longer one is refused: two that were cut would be one person at an endpoint that is told end users."""
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
GRANTS = ("authorization_code", DEVICE_GRANT, "refresh_token", "client_credentials", EXCHANGE_GRANT)
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name
_SUBJECT_TYPES = (ACCESS_TOKEN_TYPE, "urn:ietf:params:oauth:token-type:jwt")
_USER_CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1"})


class OAuthError(Exception):
    """A refusal in the shape of RFC 6749."""

    def __init__(self, error: str, description: str, status: int = 400, detail: str = "") -> None:
        self.error, self.description, self.status, self.detail = error, description, status, detail
        super().__init__(f"{error}: {description}")


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """A program that gets tokens. A public one has no secret."""

    client_id: str
    name: str
    redirect_uris: tuple[str, ...] = ()
    """Exact addresses; on loopback with any port."""
    secret_hash: bytes = b""
    account_id: str = ""
    """The account of a service's own."""
    identity_id: str = ""
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    exchange: bool = False
    """Whether it may get tokens of people who gave it theirs."""
    functions: tuple[str, ...] = ()
    """The only functions that its tokens may submit; empty: any."""
    created_by: str = ""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A client's wishes, at an authorization or for a device."""

    client_id: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    redirect_uri: str = ""
    state: str = ""
    challenge: str = ""
    max_age: int | None = None
    again: bool = False
    mfa: bool = False
    policies: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    token_name: str = ""
    login_method: str = ""
    login_hint: str = ""
    device: str = ""
    """The device code's hash, where it is for a device."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One login of a client's, from which tokens are made until it is revoked."""

    grant_id: str
    client_id: str
    identity_id: str
    scopes: tuple[str, ...]
    login: Login
    name: str
    created_at: float


class _Code(msgspec.Struct, frozen=True, kw_only=True):
    wanted: Wanted
    caller: Caller
    made_at: float
    grant_id: str = ""
    """The grant that was made of it; empty until then."""


class _Device(msgspec.Struct, frozen=True, kw_only=True):
    wanted: Wanted
    made_at: float
    caller: Caller | None = None
    denied: bool = False


class _Refresh(msgspec.Struct, frozen=True, kw_only=True):
    spent_at: float = 0.0


_client_decoder = msgspec.msgpack.Decoder(Client)
_grant_decoder = msgspec.msgpack.Decoder(Grant)
_code_decoder = msgspec.msgpack.Decoder(_Code)
_device_decoder = msgspec.msgpack.Decoder(_Device)
_refresh_decoder = msgspec.msgpack.Decoder(_Refresh)
_encode = msgspec.msgpack.encode


def hashed(secret: str) -> str:
    """Return the id of a document that is found by a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _bad(description: str) -> OAuthError:
    return OAuthError("invalid_request", description)


class AuthorizationServer:
    """See the module."""

    def __init__(self, store: Store, people: People, issuer: Callable[[], str]) -> None:
        self._store, self._people, self._issuer = store, people, issuer
        self._settings = people.settings
        self._policies = Policies(store, people.settings)
        self._polled: OrderedDict[str, float] = OrderedDict()

    async def _do(self, change: Callable[[Tx], Any]) -> Any:
        return await asyncio.wrap_future(self._store.submit(change))

    # --- clients ------------------------------------------------------------------------------------

    def client(self, client_id: str) -> Client | None:
        """Return a client that is known here."""
        if client_id == "mep-sdk":
            redirects = ("http://127.0.0.1/callback", "http://[::1]/callback")
            return Client(client_id=client_id, name="MEP's SDK", redirect_uris=redirects, scopes=SCOPES)
        if client_id == "mep-console":
            console = (self._issuer() + "/console/callback",)
            return Client(client_id=client_id, name="The relay's console", redirect_uris=console, scopes=SCOPES)
        document = self._store.document(CLIENT, client_id[:128])
        return _client_decoder.decode(document.body) if document else None

    async def add_client(self, client: Client) -> tuple[Client, str]:
        """Make a client with an account of its own; return it and its secret, which is not stored."""
        secret = new_token("meps_")
        identity = Identity(
            id=client.client_id,
            username=f"{client.client_id}@{CLIENTS_DOMAIN}",
            name=client.name,
            identity_provider="clients",
            identity_type="service",
        )
        made = msgspec.structs.replace(
            client, secret_hash=token_hash(secret), account_id=str(uuid.uuid4()), identity_id=identity.id
        )

        def change(tx: Tx) -> None:
            tx.add_account(made.account_id, identity)
            tx.put_document(client_document(made))

        await self._do(change)
        return made, secret

    def authenticated(self, form: Mapping[str, str], authorization: str) -> Client:
        """Return the client of a request, having checked its secret. Raises OAuthError."""
        client_id, secret = form.get("client_id", ""), form.get("client_secret", "")
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                pair = b64decode(value, validate=True).decode()
            except ValueError:
                raise OAuthError("invalid_client", "The authorization header cannot be read.", 401) from None
            client_id, _, secret = (unquote(part) for part in pair.partition(":"))
        client = self.client(client_id)
        expected = client.secret_hash if client else b"\0" * 32
        right = hmac.compare_digest(token_hash(secret), expected) if expected else not secret
        if client is None or not right:
            raise OAuthError("invalid_client", "The client is unknown, or its secret is wrong.", 401)
        return client

    def check_redirect(self, client: Client, redirect_uri: str) -> None:
        """Check that a browser may be sent there. Raises OAuthError."""
        if not any(_same_address(one, redirect_uri) for one in client.redirect_uris):
            raise _bad("The redirect_uri is not one of this client's.")

    # --- what a client wants ------------------------------------------------------------------------

    def wanted(self, client: Client, values: Mapping[str, str]) -> Wanted:
        """Return what an authorization or device request asks for. Raises OAuthError."""
        scopes = self.scopes(values.get("scope", ""), client.scopes)
        max_age = values.get("max_age")
        if max_age is not None and (not max_age.isascii() or not max_age.isdigit() or len(max_age) > 9):
            raise _bad("max_age is a number of seconds.")
        policies = _words(values.get("session_required_policies", ""))
        for one in policies:
            if find(self._store, one) is None:
                raise _bad("session_required_policies names a policy that does not exist.")
        name = values.get("token_name", "")[:MAX_TOKEN_NAME]
        return Wanted(
            client_id=client.client_id,
            scopes=scopes,
            max_age=int(max_age) if max_age is not None else None,
            again="login" in values.get("prompt", "").split(),
            mfa=values.get("session_required_mfa", "").lower() in ("true", "1"),
            policies=policies,
            domains=_words(values.get("session_required_single_domain", "")),
            token_name=name if name.isprintable() else "",
            login_method=values.get("login_method", "")[:64],
            login_hint=values.get("login_hint", "")[:256],
        )

    @staticmethod
    def scopes(text: str, most: tuple[str, ...]) -> tuple[str, ...]:
        """Return the requested scopes, or the default ones, as far as a client may have them. Raises OAuthError."""
        asked = tuple(dict.fromkeys(text.split())) or DEFAULT_SCOPES
        unknown = [one for one in asked if one not in SCOPES]
        if unknown:
            raise OAuthError("invalid_scope", f"There is no scope {unknown[0][:64]!r}; there are {', '.join(SCOPES)}.")
        given = tuple(one for one in asked if one in most)
        if not given:
            raise OAuthError("invalid_scope", "This client may have none of these scopes.")
        return given

    def age_wanted(self, wanted: Wanted) -> int | None:
        """Return the oldest login that is taken, of what the client and its policies ask."""
        ages = [wanted.max_age] if wanted.max_age is not None else []
        for one in wanted.policies:
            policy = find(self._store, one)
            if policy is not None and policy.authentication_assurance_timeout is not None:
                ages.append(policy.authentication_assurance_timeout)
        return min(ages, default=None)

    def mfa_wanted(self, wanted: Wanted) -> bool:
        """Return whether a second factor is asked for."""
        found = [find(self._store, one) for one in wanted.policies]
        return wanted.mfa or any(one is not None and one.required_mfa for one in found)

    def unfulfilled(self, wanted: Wanted, caller: Caller) -> str:
        """Return what a finished login lacks, empty if it is as it was asked for."""
        try:
            self._policies.enforce(wanted.policies, caller, "this relay")
        except MepError as error:
            return error.text
        if wanted.mfa and not self._policies.used_mfa(caller.login):
            return "The login used no second factor, and one is asked for."
        if wanted.max_age is not None and time.time() - caller.login.at > wanted.max_age + 60:
            return "The login is older than asked for."
        if wanted.domains:
            person = self._store.identity_set(caller.account_id, caller.identity_id)
            username = person.identities[0].username if person else ""
            if username.rpartition("@")[2].lower() not in map(str.lower, wanted.domains):
                return f"The identity must be one of {' or '.join(wanted.domains)}."
        return ""

    # --- the person has decided ---------------------------------------------------------------------

    async def make_code(self, wanted: Wanted, caller: Caller) -> str:
        """Return an authorization code for a person who agreed."""
        code = secrets.token_urlsafe(32)
        record = _Code(wanted=self._granted(wanted, caller), caller=caller, made_at=time.time())
        document = Document(
            kind="code",
            id=hashed(code),
            owner=caller.identity_id,
            expires=time.time() + SPENT_S,
            body=_encode(record),
        )
        await self._do(lambda tx: tx.put_document(document))
        return code

    def _granted(self, wanted: Wanted, caller: Caller) -> Wanted:
        """Return the request with those scopes alone that the person may have."""
        scopes = self._people.allowed_scopes(caller.account_id, wanted.scopes)
        return msgspec.structs.replace(wanted, scopes=scopes)

    async def start_device(self, wanted: Wanted) -> dict[str, Any]:
        """Return the answer to a device authorization request."""
        code = secrets.token_urlsafe(32)
        letters = [secrets.choice(_USER_CODE_LETTERS) for _ in range(8)]
        user_code = "".join(letters[:4]) + "-" + "".join(letters[4:])
        record = _Device(wanted=msgspec.structs.replace(wanted, device=hashed(code)), made_at=time.time())
        document = Document(
            kind="device", id=hashed(code), owner=user_code, expires=time.time() + DEVICE_S, body=_encode(record)
        )
        await self._do(lambda tx: tx.put_document(document))
        return {
            "device_code": code,
            "user_code": user_code,
            "verification_uri": f"{self._issuer()}/device",
            "verification_uri_complete": f"{self._issuer()}/device?user_code={user_code}",
            "expires_in": int(DEVICE_S),
            "interval": int(INTERVAL_S),
        }

    def device_wanted(self, user_code: str) -> Wanted | None:
        """Return what the device with this code asks for; None where there is no such device."""
        plain = re.sub(r"[^A-Z]", "", user_code.upper()[:32])
        for document in self._store.documents("device", f"{plain[:4]}-{plain[4:]}", limit=2):
            record = _device_decoder.decode(document.body)
            if document.expires > time.time() and record.caller is None and not record.denied:
                return record.wanted
        return None

    async def decide_device(self, device: str, caller: Caller | None) -> bool:
        """Note what the person decided (None: no) for a device; False where it is too late."""

        may = self._people.allowed_scopes(caller.account_id, SCOPES) if caller else ()

        def change(tx: Tx) -> bool:
            document = tx.get_document("device", device)
            if document is None or document.expires <= time.time():
                return False
            record = _device_decoder.decode(document.body)
            if record.caller is not None or record.denied:
                return False
            scopes = tuple(one for one in record.wanted.scopes if one in may)
            wanted = msgspec.structs.replace(record.wanted, scopes=scopes)
            decided = msgspec.structs.replace(record, wanted=wanted, caller=caller, denied=caller is None)
            owner = caller.identity_id if caller else document.owner
            tx.put_document(msgspec.structs.replace(document, owner=owner, body=_encode(decided)))
            return True

        return bool(await self._do(change))

    # --- the token endpoint -------------------------------------------------------------------------

    async def token(self, form: Mapping[str, str], authorization: str) -> dict[str, Any]:
        """Return the answer of the token endpoint. Raises OAuthError or MepError."""
        kind = form.get("grant_type", "")
        if kind not in GRANTS:
            raise OAuthError("unsupported_grant_type", f"Expected one of {', '.join(GRANTS)}.")
        client = self.authenticated(form, authorization)
        if kind == "authorization_code":
            return await self._from_code(client, form)
        if kind == DEVICE_GRANT:
            return await self._from_device(client, form)
        if kind == "refresh_token":
            return await self._from_refresh(client, form)
        if kind == "client_credentials":
            return await self._from_credentials(client, form)
        return await self._from_exchange(client, form)

    def _known(self, kind: str, secret: str, unknown: str) -> str:
        """Return the id of the document of a secret. Raises OAuthError for an unknown one, which costs no commit."""
        key = hashed(secret)
        if self._store.document(kind, key) is None:
            raise OAuthError("invalid_grant", unknown)
        return key

    async def _from_code(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        key = self._known("code", form.get("code", ""), "The code is unknown or expired.")
        verifier = form.get("code_verifier", "")

        def change(tx: Tx) -> tuple[Any, ...] | str:
            document = tx.get_document("code", key)
            if document is None:
                return "The code is unknown or expired."
            record = _code_decoder.decode(document.body)
            if record.wanted.client_id != client.client_id:
                return "The code was issued to another client."
            if record.grant_id:
                self._revoke_grant(tx, record.grant_id)
                return "The code was used before; its tokens are revoked."
            if time.time() - record.made_at > CODE_S:
                return "The code is unknown or expired."
            if not _VERIFIER.fullmatch(verifier) or not hmac.compare_digest(
                pkce_challenge(verifier), record.wanted.challenge
            ):
                return "The code_verifier does not fit."
            if record.wanted.redirect_uri != form.get("redirect_uri", ""):
                return "The redirect_uri is not that of the authorization."
            grant, answer = self._new_grant(tx, client, record.wanted, record.caller)
            spent = msgspec.structs.replace(record, grant_id=grant.grant_id)
            tx.put_document(msgspec.structs.replace(document, body=_encode(spent)))
            return (answer,)

        return _answered(await self._do(change))

    async def _from_device(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        key = self._known("device", form.get("device_code", ""), "The device code is unknown, or was used.")
        self._check_pace(key)

        def change(tx: Tx) -> tuple[Any, ...] | OAuthError | str:
            document = tx.get_document("device", key)
            if document is None:
                return "The device code is unknown, or was used."
            record = _device_decoder.decode(document.body)
            if record.wanted.client_id != client.client_id:
                return "The device code was issued to another client."
            if document.expires <= time.time():
                return OAuthError("expired_token", "The person has not decided in time.")
            if record.denied:
                tx.drop_document("device", key)
                return OAuthError("access_denied", "The person said no.")
            if record.caller is None:
                return OAuthError("authorization_pending", "The person has not decided yet.")
            tx.drop_document("device", key)
            return (self._new_grant(tx, client, record.wanted, record.caller)[1],)

        return _answered(await self._do(change))

    def _check_pace(self, key: str) -> None:
        """Raises OAuthError where a device asks too often. The device exists: nobody else's are forgotten for it."""
        now = time.monotonic()
        last = self._polled.get(key)
        if last is not None and now - last < INTERVAL_S - 1.0:
            raise OAuthError("slow_down", f"Ask every {INTERVAL_S:g} s at most.")
        self._polled[key] = now
        self._polled.move_to_end(key)
        if len(self._polled) > MAX_POLLED:
            self._polled.popitem(last=False)

    async def _from_refresh(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        key = self._known("refresh", form.get("refresh_token", ""), "The refresh token is unknown, expired or revoked.")

        def change(tx: Tx) -> tuple[Any, ...] | OAuthError | str:
            document = tx.get_document("refresh", key)
            kept = tx.get_document("grant", document.owner) if document else None
            if document is None or kept is None or document.expires <= time.time():
                return "The refresh token is unknown, expired or revoked."
            grant = _grant_decoder.decode(kept.body)
            if grant.client_id != client.client_id:
                return "The refresh token was issued to another client."
            spent_at = _refresh_decoder.decode(document.body).spent_at
            if spent_at and time.time() - spent_at > GRACE_S:
                self._revoke_grant(tx, grant.grant_id)
                return "The refresh token was used before; all tokens of this login are revoked."
            account = tx.account_of_identity(grant.identity_id)
            if account is None:
                return "The person is no longer known here."
            try:
                scopes = self.scopes(form.get("scope", "") or " ".join(grant.scopes), grant.scopes)
            except OAuthError as error:
                return error
            if not spent_at:
                spent = _Refresh(spent_at=time.time())
                tx.put_document(msgspec.structs.replace(document, body=_encode(spent)))
            tx.put_document(_grant_document(grant, time.time() + self._settings.refresh_token_s))
            caller = Caller(account_id=account, identity_id=grant.identity_id, login=grant.login)
            return (self._tokens(tx, client, grant, caller, scopes),)

        return _answered(await self._do(change))

    async def _from_credentials(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        if not client.account_id:
            raise OAuthError("unauthorized_client", "This client is public and has no account of its own.")
        scopes = self.scopes(form.get("scope", "") or " ".join(client.scopes), client.scopes)
        caller = Caller(
            account_id=client.account_id,
            identity_id=client.identity_id,
            login=Login(provider="clients", at=time.time()),
        )
        end_user = form.get("end_user", "")
        if len(end_user) > MAX_END_USER or not end_user.isprintable():
            raise _bad(f"end_user: at most {MAX_END_USER} printable characters.")
        answer = await self._do(lambda tx: self._access(tx, client, caller, scopes, "", client.name, end_user))
        return dict(answer)

    async def _from_exchange(self, client: Client, form: Mapping[str, str]) -> dict[str, Any]:
        if not client.exchange:
            raise OAuthError("unauthorized_client", "This client may not exchange tokens.")
        if form.get("subject_token_type") not in _SUBJECT_TYPES:
            raise _bad(f"subject_token_type: expected {' or '.join(_SUBJECT_TYPES)}.")
        if "actor_token" in form:
            raise _bad("actor_token is not taken: the client is the actor.")
        try:
            bearer = f"Bearer {form.get('subject_token', '')}"
            subject = await self._people.caller(bearer, f"client {client.client_id}")
        except MepError as error:
            if error.http_status in (429, 503):
                raise
            raise OAuthError("invalid_grant", "The subject token is not valid here.", detail=error.detail) from error
        most = tuple(one for one in client.scopes if one in subject.scopes)
        scopes = self.scopes(form.get("scope", "") or " ".join(most) or "submit", most)
        limited = msgspec.structs.replace(client, functions=_of_both(client.functions, subject.functions))
        until = subject.expires_at  # or tokens could be renewed for ever by exchange
        answer = await self._do(
            lambda tx: self._access(tx, limited, subject, scopes, "", client.name, subject.end_user, until=until)
        )
        return {**answer, "issued_token_type": ACCESS_TOKEN_TYPE}

    # --- making and revoking ------------------------------------------------------------------------

    def _new_grant(self, tx: Tx, client: Client, wanted: Wanted, caller: Caller) -> tuple[Grant, dict[str, Any]]:
        grant = Grant(
            grant_id=str(uuid.uuid4()),
            client_id=client.client_id,
            identity_id=caller.identity_id,
            scopes=wanted.scopes,
            login=caller.login,
            name=wanted.token_name or client.name,
            created_at=time.time(),
        )
        tx.put_document(_grant_document(grant, time.time() + self._settings.refresh_token_s))
        return grant, self._tokens(tx, client, grant, caller, grant.scopes)

    def _tokens(self, tx: Tx, client: Client, grant: Grant, caller: Caller, scopes: tuple[str, ...]) -> dict[str, Any]:
        answer = self._access(tx, client, caller, scopes, grant.grant_id, grant.name, "")
        refresh, kept_s = new_token(REFRESH_PREFIX), self._settings.refresh_token_s
        tx.put_document(
            Document(
                kind="refresh",
                id=hashed(refresh),
                owner=grant.grant_id,
                expires=time.time() + kept_s,
                body=_encode(_Refresh()),
            )
        )
        return {**answer, "refresh_token": refresh, "refresh_expires_in": int(kept_s)}

    def _access(
        self,
        tx: Tx,
        client: Client,
        caller: Caller,
        scopes: tuple[str, ...],
        grant_id: str,
        name: str,
        end_user: str,
        *,
        until: float = 0.0,
    ) -> dict[str, Any]:
        """Store a new access token; `until`: it ends then at the latest. Raises OAuthError for a person who was removed
        since they logged in."""
        now, token = time.time(), new_token()
        account = tx.account_of_identity(caller.identity_id)
        if account is None:
            raise OAuthError("invalid_grant", "The person is no longer known here.")
        expires = min(now + self._settings.access_token_s, until or float("inf"))
        record = TokenRecord(
            token_id=str(uuid.uuid4()),
            account_id=account,
            identity_id=caller.identity_id,
            created_at=now,
            expires_at=expires,
            grant_id=grant_id,
            name=name,
            scopes=scopes,
            login=caller.login,
            client_id=client.client_id,
            end_user=end_user,
            functions=client.functions,
        )
        tx.add_token(token_hash(token), record)
        return {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": max(1, int(expires - now)),
            "scope": " ".join(scopes),
            "token_id": record.token_id,
        }

    @staticmethod
    def _revoke_grant(tx: Tx, grant_id: str) -> None:
        tx.remove_grant_tokens(grant_id)
        tx.drop_documents("refresh", grant_id)
        tx.drop_document("grant", grant_id)

    async def revoke(self, form: Mapping[str, str], authorization: str) -> str:
        """Revoke a token and the others of its login; return the identity that had it, empty if nothing was revoked.

        Unknown ones are no error (RFC 7009). Raises OAuthError.
        """
        client = self.authenticated(form, authorization)
        token = form.get("token", "")
        record = self._store.token(token_hash(token))

        def change(tx: Tx) -> str:
            document = tx.get_document("refresh", hashed(token))
            kept = tx.get_document("grant", document.owner) if document else None
            if kept is not None and _grant_decoder.decode(kept.body).client_id == client.client_id:
                self._revoke_grant(tx, kept.id)
                return kept.owner
            if record is None or record.client_id not in ("", client.client_id):
                return ""
            if record.grant_id and record.client_id:
                self._revoke_grant(tx, record.grant_id)
            else:
                tx.remove_token(record.token_id, record.account_id)
            return record.identity_id

        return str(await self._do(change))


def client_document(client: Client) -> Document:
    """Return the document of a client."""
    return Document(kind=CLIENT, id=client.client_id, owner=client.created_by, body=_encode(client))


def client_from(document: Document) -> Client:
    """Return the client in a document."""
    return _client_decoder.decode(document.body)


def _grant_document(grant: Grant, expires: float) -> Document:
    return Document(kind="grant", id=grant.grant_id, owner=grant.identity_id, expires=expires, body=_encode(grant))


def _answered(outcome: tuple[Any, ...] | OAuthError | str) -> dict[str, Any]:
    """Return a grant's answer. A transaction gives its refusals back, since raising one would undo a revocation."""
    if isinstance(outcome, OAuthError):
        raise outcome
    if isinstance(outcome, str):
        raise OAuthError("invalid_grant", outcome)
    return dict(outcome[0])


def _of_both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Return the functions that two lists permit, where an empty list permits any. Raises OAuthError."""
    if not (one and other):
        return one or other
    both = tuple(each for each in one if each in other)
    if not both:
        raise OAuthError("invalid_grant", "The subject token permits none of this client's functions.")
    return both


def _words(text: str) -> tuple[str, ...]:
    return tuple(one.strip()[:255] for one in text.replace(",", " ").split()[:20])


def _same_address(known: str, asked: str) -> bool:
    """Return whether `asked` is the address `known`; on loopback the port may be any (RFC 8252, 7.3)."""
    if known == asked:
        return True
    try:
        one, other = urlsplit(known), urlsplit(asked)
        ports_fit = one.port is None and (other.port or 0) > 0
    except ValueError:
        return False
    if one.scheme != "http" or one.hostname not in _LOOPBACK_HOSTS or not ports_fit:
        return False
    host = f"[{one.hostname}]" if ":" in (one.hostname or "") else one.hostname
    return asked == f"http://{host}:{other.port}{one.path}"
