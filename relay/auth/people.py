"""Who a request comes from, whichever way the person logged in: the relay's own tokens and those of its providers.

A person who comes by a provider for the first time gets an account; the identities that the provider says are linked
belong to it. A provider's word counts for its own subjects alone. Called by the HTTP API on every request; answers
about providers' tokens are kept for a minute at most.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Callable

import msgspec

from mep_wire.errors import IdConflict, IdentityUnusable, NameReserved, TokenUnknown
from relay.auth import names
from relay.auth.claims import Claimed, Subject, claimed, identity_id, open_identities
from relay.auth.fetch import Lane
from relay.auth.provider import MAX_TOKEN, Provider
from relay.auth.settings import PeopleSettings
from relay.auth.token_checks import TokenChecks
from relay.auth.tokens import PREFIX, REFRESH_PREFIX, TokenAuth
from relay.store.base import Store, Tx
from relay.store.records import Caller, Document

FOREIGN_KEPT_S = 60.0
"""How long a provider's token is believed without asking again."""
SUBJECT = "subject"
_json = msgspec.json.Decoder()


class _SubjectRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The document by which a provider's subject is known, under the id that `identity_id` makes of it."""

    provider: str
    sub: str
    identity_id: str


_subject_decoder = msgspec.msgpack.Decoder(_SubjectRecord)


class People:
    """See the module."""

    def __init__(
        self,
        store: Store,
        settings: PeopleSettings | None = None,
        clock: Callable[[], float] = time.time,
        auth: TokenAuth | None = None,
        read_secret: Callable[[str], str] = lambda _: "",
    ) -> None:
        self.settings = settings or PeopleSettings()
        self.providers = {
            one.name: Provider(one, clock, read_secret(one.client_secret_file)) for one in self.settings.providers
        }
        self._store, self._clock = store, clock
        self._own = auth or TokenAuth(store)
        self._checks = TokenChecks(self._ask, clock)

    def close(self) -> None:
        """Ask the providers nothing more."""
        for one in self.providers.values():
            one.close()

    async def caller(self, authorization: str, network: str) -> Caller:
        """Return the person with this `Authorization` header; `network` is where it comes from.

        Raises TokenUnknown, ProviderUnavailable and others.
        """
        try:
            return self.own(authorization)
        except TokenUnknown:
            token = authorization.partition(" ")[2]
            if not self.providers or token.startswith((PREFIX, REFRESH_PREFIX)) or not 0 < len(token) <= MAX_TOKEN:
                raise
            if authorization.partition(" ")[0].lower() != "bearer":
                raise
        return await self._checks.caller(token, network)

    def own(self, authorization: str) -> Caller:
        """Return the person with one of the relay's own tokens. Raises TokenUnknown."""
        caller = self._own.caller(authorization)
        if "admin" in caller.scopes and not self.is_administrator(caller.account_id):
            scopes = tuple(one for one in caller.scopes if one != "admin")
            return msgspec.structs.replace(caller, scopes=scopes)
        return caller

    async def _ask(self, token: str, lane: Lane) -> tuple[Caller, float]:
        """Return the person of a provider's token, and until when that holds. Raises as `caller` does."""
        provider = self._provider_of(token)
        if provider is None:
            raise TokenUnknown(detail="no provider takes tokens of this kind")
        settings = provider.settings
        by_key = bool(settings.audience) and token.count(".") == 2
        claims = await (provider.verify(token, settings.audience) if by_key else provider.introspect(token, lane))
        granted = claims.get("scope", "")
        words = granted.split() if isinstance(granted, str) else granted if isinstance(granted, list) else []
        if settings.required_scope and settings.required_scope not in words:
            raise TokenUnknown(detail=f"{settings.name}: the token lacks the scope {settings.required_scope}")
        if settings.username_claim not in claims or (settings.linked_identities and "identity_set" not in claims):
            claims = {**await provider.userinfo(token, claims["sub"], Lane.KNOWN), **claims}
        who = await self.admit(claimed(self.settings, settings, claims))
        now = self._clock()
        ends = float(claims.get("exp", now + self.settings.access_token_s))
        scopes = self.allowed_scopes(who.account_id, settings.bearer_scopes)
        return msgspec.structs.replace(who, scopes=scopes, expires_at=ends), min(now + FOREIGN_KEPT_S, ends)

    def _provider_of(self, token: str) -> Provider | None:
        """Return the provider that made a token. Its issuer is only a hint here: `verify` checks it."""
        issuer = _issuer(token)
        for one in self.providers.values():
            settings = one.settings
            if issuer is None:
                if settings.introspect:
                    return one
            elif issuer == settings.issuer and (settings.audience or settings.introspect):
                return one
        return None

    # --- accounts -----------------------------------------------------------------------------------

    async def admit(self, who: Claimed) -> Caller:
        """Return the account of a person who has just proved who they are; make or correct it if need be.

        Raises IdentityUnusable or RelayUnavailable.
        """
        first = self._stored(who)
        if first is None:
            try:
                first = await asyncio.wrap_future(self._store.submit(lambda tx: _admit(tx, self.settings, who)))
            except NameReserved as error:
                raise IdentityUnusable(
                    provider=who.login.provider, reason="its username was another person's here", detail=error.text
                ) from error
            except IdConflict as error:
                raise IdentityUnusable(
                    provider=who.login.provider, reason="its username is another person's here", detail=str(error)
                ) from error
        return msgspec.structs.replace(first, login=who.login)

    def _stored(self, who: Claimed) -> Caller | None:
        """Return the account where the store knows all of these identities as they are, linked in just this way."""
        found: list[str] = []
        for subject in who.subjects:
            document = self._store.document(SUBJECT, _key(self.settings, subject))
            if document is None:
                return None
            found.append(_subject_decoder.decode(document.body).identity_id)
        account = self._store.owner_of_identity(found[0])
        known = self._store.identity_set(account, found[0]) if account else None
        if account is None or known is None:
            return None
        by_id = {one.id: one for one in known.identities}
        for identity, subject in zip(found, who.subjects, strict=True):
            if by_id.get(identity) != msgspec.structs.replace(subject.identity, id=identity):
                return None
        if who.linked and any(one not in found and self._is_of(one, who.login.provider) for one in by_id):
            return None
        return Caller(account_id=account, identity_id=found[0])

    def _is_of(self, identity: str, provider: str) -> bool:
        document = self._store.document(SUBJECT, identity)
        return document is not None and _subject_decoder.decode(document.body).provider == provider

    def allowed_scopes(self, account_id: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the scopes that this person may have."""
        return tuple(one for one in dict.fromkeys(wanted) if one != "admin" or self.is_administrator(account_id))

    def is_administrator(self, account_id: str) -> bool:
        """Return whether the configuration names one of this person's identities."""
        if not self.settings.administrators:
            return False
        named = {one.lower() for one in self.settings.administrators}
        person = self._store.identity_set(account_id)
        return any(one.username.lower() in named for one in open_identities(person))


def _issuer(token: str) -> str | None:
    """Return the issuer that a JWT claims, unverified; None where it is no JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = _json.decode(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return str(claims.get("iss")) if isinstance(claims, dict) else None


def _key(settings: PeopleSettings, subject: Subject) -> str:
    """Return the id of a subject's document."""
    issuer = next((one.issuer for one in settings.providers if one.name == subject.provider), subject.provider)
    as_is = subject.identity.id
    return as_is if as_is == subject.sub.lower() else identity_id(issuer, subject.sub)


def _admit(tx: Tx, settings: PeopleSettings, who: Claimed) -> Caller:
    """Store these identities as one person; return the first. Raises IdConflict, IdentityUnusable."""
    ids = [_identity(tx, settings, subject) for subject in who.subjects]
    owners = [tx.account_of_identity(one) for one in ids]
    account = next((one for one in owners if one is not None), None)
    if owners[0] is not None:
        account = owners[0]
    for subject, one, owner in zip(who.subjects, ids, owners, strict=True):
        identity = msgspec.structs.replace(subject.identity, id=one)
        _rename(tx, one, identity.username)
        if account is None:
            account = str(uuid.uuid4())
            tx.add_account(account, identity)
        else:
            if owner is not None and owner != account and _is_all_of(tx, owner, subject.provider):
                tx.merge_accounts(account, owner)
            tx.add_identity(account, identity)
        record = _SubjectRecord(provider=subject.provider, sub=subject.sub, identity_id=one)
        for key in {_key(settings, subject), one}:  # two, where a built-in account was taken over
            tx.put_document(Document(kind=SUBJECT, id=key, owner=one, body=msgspec.msgpack.encode(record)))
    assert account is not None
    if who.linked:
        for other in tx.identities_of(account):
            if other not in ids and _provider_of(tx, other) == who.login.provider:
                tx.move_identity(other, str(uuid.uuid4()))
    return Caller(account_id=account, identity_id=ids[0])


def _rename(tx: Tx, identity_id: str, username: str) -> None:
    """Give an identity its username, and keep an earlier one for it. Raises NameReserved."""
    old = tx.username_of(identity_id)
    if old is not None and old.lower() == username.lower():
        return
    names.take(tx, names.USERNAME, username, identity_id)
    if old is not None:
        names.reserve(tx, names.USERNAME, old, identity_id, identity_id, time.time())


def _identity(tx: Tx, settings: PeopleSettings, subject: Subject) -> str:
    """Return the id under which a subject's identity is stored, or is to be. Raises IdentityUnusable."""
    key = _key(settings, subject)
    document = tx.get_document(SUBJECT, key)
    if document is not None:
        record = _subject_decoder.decode(document.body)
        if record.provider != subject.provider:
            raise IdentityUnusable(provider=subject.provider, reason="another provider has an identity with this id")
        return record.identity_id
    if tx.account_of_identity(key) is not None:
        raise IdentityUnusable(provider=subject.provider, reason="there is another identity with this id")
    named = tx.identity_named(subject.identity.username)
    if named is not None and _may_adopt(settings, subject) and tx.get_document(SUBJECT, named.identity_id) is None:
        return named.identity_id  # a built-in account of this name, in a domain that is the provider's
    return key


def _may_adopt(settings: PeopleSettings, subject: Subject) -> bool:
    domain = subject.identity.username.rpartition("@")[2].lower()
    for one in settings.providers:
        if one.name == subject.provider:
            return domain in {each.lower() for each in one.username_domains}
    password = settings.password
    return password is not None and password.name == subject.provider and domain == password.domain.lower()


def _provider_of(tx: Tx, identity: str) -> str:
    document = tx.get_document(SUBJECT, identity)
    return _subject_decoder.decode(document.body).provider if document else ""


def _is_all_of(tx: Tx, account: str, provider: str) -> bool:
    return all(_provider_of(tx, one) == provider for one in tx.identities_of(account))
