"""What `mep map` does: maps identities as the endpoint would, and says which local account comes out and whether it
may be used.

As root it first becomes the mapper's account for good, so that what the mapper could not read fails here too and no
callout runs as root. The account itself is looked up and judged by the keeper's own code.
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

import identity.config
from identity import account
from identity.callout import NO_GATEWAY
from identity.chain import Chain, Explanation
from identity.errors import AccountMissing, MappingFileInvalid
from mep.boundary.resolved import Policy
from mep.cli.failures import CliFailed, Exit
from mep.config.paths import own_accounts
from mep.errors import SpawnFailed
from mep.monitor.accounts import AccountRules, StartRefused, check_policy, lookup
from mep_wire.identity import Identity

MAX_IDENTITIES_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Site:
    """Where the mapping is and what the endpoint's policy says; defaults for a file without an endpoint."""

    file: Path
    gateway: str = NO_GATEWAY
    policy: Policy = field(default_factory=Policy)
    mapper_account: str = "mep-idmap"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out: `problem` is empty where the account may be used."""

    explanation: Explanation
    account: account.Account | None
    problem: str

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
            "user": user.name if user else None,
            "identity": dict(user.identity) if user else None,
            "decided_by": user.mapper if user else None,
            "account": {**asdict(found), "groups": [{"gid": g, "name": n} for g, n in found.groups]} if found else None,
            "ignored": self.explanation.ignored,
            "mappers": steps,
        }


def endpoint_site(name: str) -> Site:
    """Return the mapping and policy of endpoint `name`. Raises ConfigRefused, CliFailed."""
    from mep.cli.common import locate
    from mep.config import paths as names
    from mep.config.bundle import find_file
    from mep.config.registration import read_registration
    from mep.config.resolver import read_config
    from mep.errors import ConfigRefused

    where, _ = locate(name)
    options = read_config(where).options
    if not options.multi_user:
        raise CliFailed(f"endpoint {name} serves its owner alone and maps nobody; only multi-user endpoints map")
    try:
        gateway = read_registration(where.registration, name).endpoint_id
    except ConfigRefused:
        gateway = NO_GATEWAY
    file = find_file(where.config_dir, options.identity_mapping_config_path, names.MAPPING)
    return Site(file, gateway, Policy(**asdict(options.policy)), options.mapper_account)


def become_mapper(site: Site) -> str:
    """As root, become the mapper's account for good. Return a warning where that cannot be done."""
    if os.geteuid() != 0:
        return ""
    try:
        entry = pwd.getpwnam(site.mapper_account)
    except KeyError:
        return f"there is no account {site.mapper_account}: mapping as root, and callouts will not run"
    os.setgroups([])
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    return ""


def load(site: Site) -> Chain:
    """Return the chain. Raises CliFailed naming file, document and reason."""
    try:
        return identity.config.load(site.file, gateway=site.gateway)
    except MappingFileInvalid as error:
        raise CliFailed(str(error), Exit.CONFIG) from None


def judge(chain: Chain, identities: Sequence[Mapping[str, str]], site: Site) -> Verdict:
    """Map `identities`, look the account up, and ask the policy."""
    explanation = chain.explain(identities)
    if explanation.user is None:
        return Verdict(explanation, None, f"{type(explanation.error).__name__}: {explanation.error}")
    try:
        found = account.resolve(explanation.user.name)
    except AccountMissing as error:
        return Verdict(explanation, None, str(error))
    own = tuple(own_accounts(site.mapper_account))
    own_uids = tuple(entry.pw_uid for name in own if (entry := _entry(name)) is not None)
    try:
        check_policy(lookup(found.name), AccountRules(site.policy, own, own_uids, only_uid=None))
    except (StartRefused, SpawnFailed) as error:
        return Verdict(explanation, found, error.detail)
    return Verdict(explanation, found, "")


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def typed_identity(text: str) -> dict[str, str]:
    """Return the identity that --identity means: a user name, which is the e-mail address too, or a JSON object."""
    if text.lstrip().startswith("{"):
        return as_the_relay_has_it(_json(text, "--identity"))
    return as_the_relay_has_it({"username": text, "email": text if "@" in text else ""})


def identities_in(data: str, where: str) -> list[dict[str, str]]:
    """Return the identities in JSON: a list, an identity set, or what `globus get-identities -F json` prints."""
    value = _json(data, where)
    listed = value.get("identities") if isinstance(value, dict) else value
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise CliFailed(f"{where}: neither a list of identities nor an object with `identities`", Exit.USAGE)
    return [as_the_relay_has_it(one) for one in listed]


def as_the_relay_has_it(given: Mapping[str, Any]) -> dict[str, str]:
    """Return an identity with the fields that one from the relay has, and no others; an id is made where it lacks."""
    made = str(uuid.uuid5(uuid.NAMESPACE_URL, str(given.get("username"))))
    template = Identity(id=made, username="")
    fields = {name: str(value) for name, value in msgspec.structs.asdict(template).items()}
    return {name: given[name] if isinstance(given.get(name), str) else value for name, value in fields.items()}


def _json(data: str, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CliFailed(f"{where}: not JSON: {error}", Exit.USAGE) from None
