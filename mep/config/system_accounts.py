"""The system accounts that the endpoints of this host run their processes as."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from mep.boundary import nss_database
from mep.boundary.errors import ConfigRefused
from mep.config import paths as names
from mep.config.options import EndpointOptions
from mep.config.parser import MAX_CONFIG_BYTES, read_document
from mep.config.paths import EndpointPaths, Roots, endpoint_paths, list_names
from mep.config.template_files import read_trusted


@dataclass(frozen=True, slots=True)
class HelperAccounts:
    """The accounts of one endpoint's manager and mapper."""

    manager: pwd.struct_passwd
    mapper: pwd.struct_passwd


def system_account(name: str) -> pwd.struct_passwd:
    """Return the system account `name`. Raises ConfigRefused with the command that creates it."""
    try:
        entry = nss_database.passwd_by_name(name)
    except OSError as error:
        raise ConfigRefused("system accounts", name, str(error.strerror)) from None
    if entry is None:
        command = f"useradd --system --user-group --no-create-home --shell /usr/sbin/nologin {name}"
        raise ConfigRefused("system accounts", name, f"does not exist; run: {command}")
    return entry.as_struct()


def helper_accounts(where: EndpointPaths, options: EndpointOptions) -> HelperAccounts:
    """Return the accounts of a multi-user endpoint's manager and mapper. Raises ConfigRefused naming the key."""
    found = HelperAccounts(system_account(options.manager_account), system_account(options.mapper_account))
    for key, account in (("manager_account", found.manager), ("mapper_account", found.mapper)):
        if 0 in (account.pw_uid, account.pw_gid):
            raise ConfigRefused(str(where.config), key, "has uid or gid 0: no helper process is root")
    if found.manager.pw_uid == found.mapper.pw_uid:
        reason = "must not be the manager's: a compromised manager could map any identity to any account"
        raise ConfigRefused(str(where.config), "mapper_account", reason)
    return found


def account_names(roots: Roots) -> dict[str, tuple[str, str]]:
    """Return manager_account and mapper_account of every endpoint under `roots` with a readable config.yaml."""
    found = {}
    for name in list_names(roots):
        path = endpoint_paths(roots, name).config
        try:
            text = read_trusted(path, cap=MAX_CONFIG_BYTES, owner=os.geteuid())
            options = read_document(text, str(path)).options
        except (ConfigRefused, OSError):
            continue
        found[name] = options.manager_account, options.mapper_account
    return found


def own_accounts(roots: Roots, options: EndpointOptions) -> list[str]:
    """Return the accounts of all endpoints of this host. No identity is mapped to them."""
    others = [account for pair in account_names(roots).values() for account in pair] if roots.privileged else []
    return names.own_accounts(options.manager_account, options.mapper_account, *others)


def sharing_notes(where: EndpointPaths, roots: Roots, options: EndpointOptions) -> list[str]:
    """Return a warning for each account of this endpoint that another endpoint of this host also uses, by uid."""
    notes = []
    keys = {"manager_account": options.manager_account, "mapper_account": options.mapper_account}
    for name, pair in account_names(roots).items():
        theirs = {_uid(account) for account in pair}
        for key, account in keys.items():
            if name != where.name and _uid(account) in theirs:
                notes.append(
                    f"{where.config}: {key}: {account} is an account of endpoint {name} too: a process of either "
                    "endpoint that runs as it can read the keys of both and stop both; give each endpoint accounts of "
                    "its own"
                )
    return notes


def _uid(name: str) -> int | str:
    """Return the uid of account `name`, or the name if there is no such account."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return name
