"""Authentication policies: what a login must be like for an endpoint, and whether one is.

The fields are those of Globus Auth's policies, and `required_providers`. A policy is a document of the store. Called by
the HTTP API for each submission and at the end of a login.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mep_wire.errors import BodyInvalid, LoginRequired, MepError, PolicyRefused
from mep_wire.identity import IdentitySet
from relay.auth.settings import PeopleSettings
from relay.store.base import Store
from relay.store.records import Caller, Document, Login

KIND = "policy"
MAX_DOMAINS = 200
MAX_NAME = 128
MAX_DESCRIPTION = 2048
MAX_TIMEOUT_S = 366 * 86400
_DOMAIN = re.compile(r"(\*|(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)")


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One authentication policy."""

    id: str
    display_name: str
    description: str = ""
    owner: str = ""
    high_assurance: bool = False
    authentication_assurance_timeout: int | None = None
    """The oldest login that is taken, in seconds."""
    required_mfa: bool = False
    domain_constraints_include: list[str] | None = None
    """Domains of usernames, `*.` before one for those below it; null: any."""
    domain_constraints_exclude: list[str] | None = None
    required_providers: list[str] | None = None
    """MEP only: names of the relay's ways to log in; null: any."""


_decoder = msgspec.msgpack.Decoder(Policy)


def check(policy: Policy, settings: PeopleSettings) -> None:
    """Check a policy's fields. Raises BodyInvalid."""
    if not 0 < len(policy.display_name) <= MAX_NAME or not policy.display_name.isprintable():
        raise BodyInvalid(reason=f"display_name: 1 to {MAX_NAME} printable characters")
    if len(policy.description) > MAX_DESCRIPTION:
        raise BodyInvalid(reason=f"description: at most {MAX_DESCRIPTION} characters")
    timeout = policy.authentication_assurance_timeout
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_S:
        raise BodyInvalid(reason=f"authentication_assurance_timeout: 1 to {MAX_TIMEOUT_S} seconds")
    if policy.high_assurance and timeout is None:
        raise BodyInvalid(reason="authentication_assurance_timeout: a high-assurance policy needs one")
    for key in ("domain_constraints_include", "domain_constraints_exclude"):
        domains = getattr(policy, key) or []
        if len(domains) > MAX_DOMAINS:
            raise BodyInvalid(reason=f"{key}: at most {MAX_DOMAINS} domains")
        for one in domains:
            if len(one) > 255 or not _DOMAIN.fullmatch(one.lower()):
                raise BodyInvalid(reason=f"{key}: {one[:100]!r} is no domain, nor one after `*.`")
    known = [one.name for one in settings.providers] + ([settings.password.name] if settings.password else [])
    for one in policy.required_providers or []:
        if one not in known:
            names = ", ".join(known) or "none"
            raise BodyInvalid(reason=f"required_providers: {one[:50]!r} is not a way to log in here ({names})")


def to_document(policy: Policy) -> Document:
    """Return the document of a policy."""
    return Document(kind=KIND, id=policy.id, owner=policy.owner, body=msgspec.msgpack.encode(policy))


def from_document(document: Document) -> Policy:
    """Return the policy in a document; its owner is the document's."""
    return msgspec.structs.replace(_decoder.decode(document.body), owner=document.owner)


def find(store: Store, policy_id: str) -> Policy | None:
    """Return a policy."""
    document = store.document(KIND, policy_id)
    return from_document(document) if document else None


def in_domains(username: str, domains: Sequence[str]) -> bool:
    """Return whether a username's domain is one of these. A name without @ is in none."""
    domain = username.rpartition("@")[2].lower() if "@" in username else ""
    if not domain:
        return False
    for wanted in map(str.lower, domains):
        if wanted in ("*", domain) or (wanted.startswith("*.") and domain.endswith(wanted[1:])):
            return True
    return False


class Policies:
    """Judges logins by policies."""

    def __init__(self, store: Store, settings: PeopleSettings) -> None:
        self._store = store
        self._mfa = {one.name: frozenset(one.mfa_values) for one in settings.providers}

    def enforce(self, policy_ids: Sequence[str], caller: Caller, subject: str, *, age: bool = True) -> None:
        """Check that a login fulfils these policies; `subject` names the thing that they guard, and `age` says whether
        the login's age counts.

        Raises LoginRequired or PolicyRefused. A policy that is gone admits nobody.
        """
        for policy_id in policy_ids:
            if not policy_id:
                continue
            policy = find(self._store, policy_id)
            if policy is None:
                raise PolicyRefused(policy=policy_id, reason="it was deleted", subject=subject)
            person = self._store.identity_set(caller.account_id, caller.identity_id)
            if not age:
                policy = msgspec.structs.replace(policy, authentication_assurance_timeout=None)
            self.judge(policy, caller.login, person, subject)

    def judge(self, policy: Policy, login: Login, person: IdentitySet | None, subject: str) -> None:
        """Check one login. Raises LoginRequired or PolicyRefused."""
        username = person.identities[0].username if person else ""
        others = [one.username for one in person.identities[1:]] if person else []
        self._judge_domains(policy, username, others, subject)
        wanted: dict[str, Any] = {}
        reasons: list[str] = []
        if policy.required_providers and login.provider not in policy.required_providers:
            reasons.append(f"it was not at {' or '.join(policy.required_providers)}")
        if policy.required_mfa and not self.used_mfa(login):
            reasons.append("it used no second factor")
            wanted["session_required_mfa"] = True
        timeout = policy.authentication_assurance_timeout
        if timeout is not None and (not login.at or time.time() - login.at > timeout):
            reasons.append(f"it is older than {timeout} s" if login.at else "its time is not known")
            wanted["max_age"] = timeout
        if reasons:
            raise refusal(policy, " and ".join(reasons), wanted)

    def _judge_domains(self, policy: Policy, username: str, others: Sequence[str], subject: str) -> None:
        excluded = policy.domain_constraints_exclude or []
        included = policy.domain_constraints_include
        name = policy.display_name

        def fits(one: str) -> bool:
            return not in_domains(one, excluded) and (included is None or in_domains(one, included))

        if fits(username):
            return
        if in_domains(username, excluded) and not any(map(fits, others)):
            domain = username.rpartition("@")[2]
            raise PolicyRefused(policy=name, reason=f"identities of {domain} are excluded", subject=subject)
        wanted = [one for one in included or [] if "*" not in one]
        parameters = {"session_required_single_domain": wanted} if wanted else {}
        where = f" of {' or '.join(included)}" if included else ", one of your others"
        raise refusal(policy, f"it was not with an identity{where}", parameters)

    def used_mfa(self, login: Login) -> bool:
        """Return whether a login used a second factor, as far as its provider says."""
        values = self._mfa.get(login.provider, frozenset())
        return login.acr in values or not values.isdisjoint(login.amr)


def refusal(policy: Policy, reason: str, parameters: Mapping[str, Any]) -> MepError:
    """Return the refusal of a login that another login would mend."""
    how = [
        *([f"with an identity of {' or '.join(parameters['session_required_single_domain'])}"]
          if parameters.get("session_required_single_domain") else []),
        *(["with a second factor"] if parameters.get("session_required_mfa") else []),
        *([f"at {' or '.join(policy.required_providers)}"] if policy.required_providers else []),
    ]  # fmt: skip
    error = LoginRequired(policy=policy.display_name, reason=reason, remedy=", ".join(how) or "once more, now")
    error.authorization_parameters = {
        "session_message": error.text,
        "session_required_policies": [policy.id],
        "prompt": "login",
        **parameters,
    }
    return error
