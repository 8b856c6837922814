"""The work of `mep map`: maps identities as the endpoint would, and reports the local account and whether it may be
used.

As root, it first becomes the mapper's account permanently. Files that the mapper couldn't read then fail here too, and
no callout runs as root. The account itself is checked by the keeper's own code, in a separate root process
(mep/cli/map_checker.py).
"""

from __future__ import annotations

import json
import os
import pwd
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

import identity.loader
from identity import account
from identity.allowed_domains import AllowedDomains
from identity.callout.mapper import NO_GATEWAY
from identity.chain import ANY_DOMAIN, Chain, Explanation
from identity.errors import AccountMissing, MappingFileInvalid
from identity.tracked_files import Files, Rules
from mep.boundary import nss_database, untraceable
from mep.boundary.file_trust import Trust, ours
from mep.boundary.resolved_config import Policy
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.map_checker import MapChecker, Ruling
from mep.config import paths as names
from mep.root.account.lookup import AccountRules
from mep_wire.identity import Identity

MAX_IDENTITIES_BYTES = 4 * 1024 * 1024
MAX_IDENTITIES = 1000
"""More than any person has; the relay links fewer."""


@dataclass(frozen=True, slots=True)
class Site:
    """The mapping's path and the endpoint's policy; defaults for a file without an endpoint."""

    file: Path
    gateway: str = NO_GATEWAY
    policy: Policy = field(default_factory=Policy)
    mapper_account: str = "mep-idmap"
    pam_service: str = ""
    """The PAM service that a start uses; empty without PAM."""
    hook: str = ""
    """The hook that a start also asks; `mep map` doesn't."""
    endpoint: str = ""
    domains: AllowedDomains = ANY_DOMAIN
    own_accounts: tuple[str, ...] = ()
    """The accounts of this host's endpoints; if empty, the default ones."""
    banned: tuple[str, ...] = ()
    """The accounts that `mep ban` has added to the policy."""

    def rules(self) -> AccountRules:
        """Return the rules that decide whether an account may be used here."""
        own = self.own_accounts or tuple(names.own_accounts())
        own_uids = tuple(entry.pw_uid for name in own if (entry := _entry(name)) is not None)
        return AccountRules(self.policy, own, own_uids, only_uid=None)


@dataclass(frozen=True, slots=True)
class MappingVerdict:
    """The result: `problem` is empty if the account may be used."""

    explanation: Explanation
    account: account.LocalAccount | None
    ruling: Ruling

    @property
    def problem(self) -> str:
        """Why no account may be used, or an empty text."""
        return self.ruling.problem

    def as_json(self, site: Site) -> dict[str, Any]:
        """Return it for --json."""
        steps = [
            {
                **asdict(step),
                "answers": [{"identity": a.identity.get("username", ""), "name": a.name} for a in step.answers],
            }
            for step in self.explanation.steps
        ]
        user = self.explanation.user
        found = self.account
        return {
            "file": str(site.file),
            "usable": not self.problem,
            "problem": self.problem,
            "refused_at": self.ruling.stage,
            "user": user.name if user else None,
            "identity": dict(user.identity) if user else None,
            "decided_by": user.mapper if user else None,
            "account": {**asdict(found), "groups": [{"gid": g, "name": n} for g, n in found.groups]} if found else None,
            "account_state": self.ruling.state,
            "ignored": self.explanation.ignored,
            "mappers": steps,
        }


def endpoint_site(name: str) -> Site:
    """Return the mapping and policy of endpoint `name`. Raises ConfigRefused, CliFailed."""
    from mep.boundary.errors import ConfigRefused
    from mep.cli.admin_client import require_reader
    from mep.cli.common import locate
    from mep.config.registration import read_registration
    from mep.config.resolver import policy_in_force, read_config
    from mep.config.system_accounts import own_accounts
    from mep.config.template_bundle import find_file

    where, roots = locate(name)
    require_reader(where)
    options = read_config(where).options
    if not options.multi_user:
        raise CliFailed(f"endpoint {where.name} serves its owner alone and maps nobody; only multi-user endpoints map")
    try:
        gateway = read_registration(where.registration, where.name).endpoint_id
    except ConfigRefused:
        gateway = NO_GATEWAY
    file = find_file(where.config_dir, options.identity_mapping_config_path, names.MAPPING)
    pam = options.pam.service_name if options.pam.enable else ""
    hook = options.pre_start_hook.path or ""
    policy = Policy(**asdict(options.policy))
    if os.geteuid() == 0:  # who alone can read the bans, and check an account
        policy = policy_in_force(where, options)
    banned = tuple(name for name in policy.denied_users if name not in options.policy.denied_users)
    own = tuple(own_accounts(roots, options))
    domains = AllowedDomains(options.allowed_domains, options.excluded_domains)
    return Site(file, gateway, policy, options.mapper_account, pam, hook, where.name, domains, own, banned)


def become_mapper(site: Site) -> str:
    """As root, permanently become the mapper's account. Return a warning if that isn't possible.

    Callouts gain no privilege, no matter which account runs this, as under the mapper.
    """
    if os.geteuid() == 0:
        entry = _entry(site.mapper_account)
        if entry is None:
            return f"there is no account {site.mapper_account}: mapping as root, and callouts will not run"
        untraceable.become(entry.pw_uid, entry.pw_gid)
        untraceable.close_to_tracers()
    untraceable.gain_no_privilege()
    return ""


def load(site: Site) -> Chain:
    """Return the chain. Raises CliFailed naming file, document and reason.

    If an endpoint was named, files that others could have written are refused, as the mapper does.
    """
    try:
        return identity.loader.load(
            site.file, gateway=site.gateway, files=Files(_trusted(site) if site.endpoint else None),
            domains=site.domains,
        )  # fmt: skip
    except MappingFileInvalid as error:
        mapper = _entry(site.mapper_account)
        denied = "Permission denied" in str(error) and mapper is not None and mapper.pw_uid == os.geteuid()
        hint = f" (to {site.mapper_account}, which the mapper runs as, and this command too)" if denied else ""
        raise CliFailed(f"{error}{hint}", Exit.CONFIG) from None


def distrust(site: Site) -> str:
    """Return why the mapper would refuse a file without an endpoint at its present path, or an empty text.

    The file may be a draft. The text is empty if this process hasn't become the mapper's account.
    """
    mapper = _entry(site.mapper_account)
    if site.endpoint or mapper is None or mapper.pw_uid != os.geteuid():
        return ""
    problems = _trusted(site).mapping.problems(site.file)
    return f"the mapper would refuse this file where it is: {'; '.join(problems)}" if problems else ""


def _trusted(site: Site) -> Rules:
    """Return the owners that the mapper trusts: the mapping must be root's; files it names may be the mapper's too."""
    mapper = _entry(site.mapper_account)
    dropped = mapper is not None and mapper.pw_uid == os.geteuid()
    return Rules(mapping=Trust() if dropped else ours(), named=ours())


def verdict_on(
    chain: Chain, identities: Sequence[Mapping[str, str]], checker: MapChecker, *, every: bool = False,
    end_user: str = "",
) -> MappingVerdict:  # fmt: skip
    """Map `identities`, look the account up, and ask whether it may be used. `every`: include all mappers."""
    explanation = chain.explain(identities, every=every, end_user=end_user)
    if explanation.user is None:
        return MappingVerdict(
            explanation, None, Ruling(f"{type(explanation.error).__name__}: {explanation.error}", "MAP")
        )
    try:
        found = account.resolve(explanation.user.name)
    except AccountMissing as error:
        return MappingVerdict(explanation, None, Ruling(str(error), "LOOKUP_USER"))
    return MappingVerdict(explanation, found, checker.ask(explanation.user.name))


def _entry(name: str) -> pwd.struct_passwd | None:
    """Return the account `name`; None if there is none. Raises CliFailed if that can't be determined."""
    try:
        entry = nss_database.passwd_by_name(name)
    except OSError as error:
        raise CliFailed(str(error.strerror)) from None
    return None if entry is None else entry.as_struct()


def typed_identity(text: str) -> list[dict[str, str]]:
    """Parse --identity: a user name, which is the e-mail address too, or identities in JSON."""
    if text.lstrip().startswith(("{", "[")):
        return identities_in(text, "--identity")
    if not text.strip():
        raise CliFailed("--identity: is empty", Exit.USAGE)
    return [as_the_relay_has_it({"username": text, "email": text if "@" in text else ""}, "--identity")]


def identities_in(data: str, where: str) -> list[dict[str, str]]:
    """Return one person's identities in JSON: one, a list, or an object with `identities`.

    Such an object is the relay's identity set, and the output of `globus get-identities -F json`. Raises CliFailed.
    """
    value = _json(data, where)
    at = "identities"
    if isinstance(value, dict):
        value = value.get("identities", [value] if {"username", "id"} & value.keys() else None)
    else:
        at = "entry"
    if not isinstance(value, list):
        raise CliFailed(f"{where}: neither an identity, a list of them, nor an object with `identities`", Exit.USAGE)
    if not value:
        raise CliFailed(f"{where}: the list of identities is empty: Globus prints that for an unknown person",
                        Exit.USAGE)  # fmt: skip
    if len(value) > MAX_IDENTITIES:
        raise CliFailed(f"{where}: more than {MAX_IDENTITIES} identities", Exit.USAGE)
    return [as_the_relay_has_it(one, f"{where}: {at}[{index}]") for index, one in enumerate(value)]


def as_the_relay_has_it(given: object, where: str) -> dict[str, str]:
    """Return an identity with exactly the fields of one from the relay. A missing id is generated.

    Raises CliFailed, naming `where` and the key.
    """
    if not isinstance(given, dict):
        raise CliFailed(f"{where}: is not an object with an identity's fields", Exit.USAGE)
    made = str(uuid.uuid5(uuid.NAMESPACE_URL, str(given.get("username"))))
    fields = {name: str(value) for name, value in msgspec.structs.asdict(Identity(id=made, username="")).items()}
    for name in fields:
        value = given.get(name)
        if value is not None and not isinstance(value, str):
            raise CliFailed(f"{where}: {name}: must be a text, and is {json.dumps(value)[:80]}", Exit.USAGE)
        if value is not None:
            fields[name] = value
    if not fields["username"] and "id" not in given:
        raise CliFailed(f"{where}: has neither `username` nor `id`", Exit.USAGE)
    return {name: value for name, value in fields.items() if value}  # the mapper drops empty fields too


def _json(data: str, where: str) -> Any:
    if not data.strip():
        raise CliFailed(f"{where}: is empty; give --identity NAME@DOMAIN, or identities as JSON", Exit.USAGE)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CliFailed(f"{where}: not JSON: {error}", Exit.USAGE) from None
