"""Decides which local account a start may run as: the keeper's NSS look-up and the site's policy.

Called by the keeper alone, because NSS may block for as long as a directory server does. Trusts NSS. Trusts the
mapper for the account's name only: root and the endpoint's own accounts are refused whatever the mapper says.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mep.boundary import nss_database
from mep.boundary.errors import Refusal, StartStage, public_text
from mep.boundary.resolved_config import HELPER_UIDS, GroupLimits, Limits, Policy
from mep.root.account import nss, shadow
from mep.root.account.system_accounts import gids_of
from mep.root.kernel.spawn import SpawnAccount

_UNCHANGED = 2**32 - 1
_ROOT_GID = 0
_SHELLS = "/etc/shells"
_OVERFLOW_UID_FILE = "/proc/sys/kernel/overflowuid"
_NOBODY = 65534
_MAX_FACT = 4096


class StartRefused(Exception):
    """A start was refused at `stage` with `code`. `public` may leave the host; `detail` may not.

    Without `public`, it is the code's own sentence with `fields`.
    """

    def __init__(self, stage: StartStage, code: str, detail: str, public: str = "", **fields: object) -> None:
        self.stage, self.code, self.detail = stage, code, detail
        self.public = public or public_text(Refusal(code), **fields)
        super().__init__(f"{stage.name}: {code}: {detail}")


class NotKnownNow(StartRefused):
    """The decision can't be made now, because a directory doesn't answer. Try again later; don't admit."""


@dataclass(frozen=True, slots=True)
class AccountRules:
    """The rules that decide whether an account may be used."""

    policy: Policy
    own_accounts: tuple[str, ...]
    own_uids: tuple[int, ...]
    only_uid: int | None
    """Single-user mode: the uid that all processes run as."""


def lookup(name: str) -> SpawnAccount:
    """Return the account `name` with its groups, from NSS. Raises StartRefused, NotKnownNow."""
    try:
        entry = nss_database.passwd_by_name(name)
    except OSError as error:
        raise not_known(StartStage.LOOKUP_USER, str(error.strerror)) from None
    if entry is None:
        detail = f"there is no account {name!r} on this host"
        if silent := nss.silent("passwd", name):
            raise not_known(StartStage.LOOKUP_USER, f"{detail}, but {', '.join(silent)} does not answer")
        raise StartRefused(StartStage.LOOKUP_USER, Refusal.ACCOUNT_REFUSED, detail)
    groups = _groups_of(entry.name, entry.gid)
    if source_of(entry.name) != nss.LOCAL:  # a local account can do without the directory
        _memberships_answered(entry.name, StartStage.LOOKUP_USER)
    return SpawnAccount(entry.name, entry.uid, entry.gid, groups, entry.home, entry.shell, entry.gecos)


def _groups_of(name: str, primary: int) -> tuple[int, ...]:
    """Return the group ids of account `name`. Raises NotKnownNow if even this host's own can't be read.

    libc leaves out the groups of a service that fails, and reports nothing: see _memberships_answered.
    """
    try:
        nss.check_readable(nss.GROUP_FILE)
        return tuple(os.getgrouplist(name, primary))
    except OSError as error:
        raise not_known(StartStage.LOOKUP_USER, f"the groups of {name!r} cannot be read: {error.strerror}") from None


def _memberships_answered(name: str, stage: StartStage) -> None:
    """Raise NotKnownNow if a directory doesn't say now which groups account `name` is in."""
    if silent := nss.silent("initgroups", name):
        raise not_known(stage, f"the groups of {name!r} are not known: {', '.join(silent)} does not answer")


def facts_of(account: SpawnAccount) -> dict[str, object]:
    """Return the account as templates see it (`mapped_identity.local`). `groups` begins with the primary group.

    The names of groups are looked up by the process that renders: root need not ask a directory for each of them.
    """
    return {
        "uname": _utf8(account.name),
        "uid": account.uid,
        "gid": account.gid,
        "groups": list(dict.fromkeys((account.gid, *sorted(account.groups)))),
        "gecos": _utf8(account.gecos),
        "dir": _utf8(account.home),
        "shell": _utf8(account.shell),
    }


def _utf8(value: str) -> str:
    """Return `value` without bytes that are no UTF-8, and clipped."""
    return os.fsencode(value).decode("utf-8", "replace")[:_MAX_FACT]


def source_of(name: str) -> str:
    """Return the source of account `name`: `files` if /etc/passwd lists it, else an empty string."""
    return nss.LOCAL if nss.is_listed(name, nss.PASSWD_FILE) else ""


def check_policy(account: SpawnAccount, rules: AccountRules) -> None:
    """Raise StartRefused(POLICY) if `rules` don't admit `account` or it is closed, NotKnownNow if NSS can't say."""
    if rules.only_uid is not None:
        objection = "" if account.uid == rules.only_uid != 0 else f"{account.name} is not this endpoint's owner"
    else:
        objection = _objection(account, rules)
    try:
        objection = objection or shadow.closed(account.name)
    except OSError as error:
        raise not_known(StartStage.POLICY, str(error)) from None
    if objection:
        raise StartRefused(StartStage.POLICY, Refusal.ACCOUNT_REFUSED, objection)
    if rules.only_uid is None:
        _known_users(rules.policy.denied_users)
        _answered(rules.policy.denied_groups, StartStage.POLICY, account)
        _privileged_known(account, rules.policy)


def _objection(account: SpawnAccount, rules: AccountRules) -> str:
    policy, name = rules.policy, account.name
    if account.uid == 0 or account.gid == 0 or name == "root":
        return f"{name} has uid {account.uid} and gid {account.gid}: root is never used"
    if _UNCHANGED in (account.uid, account.gid):
        return f"{name} has uid {account.uid} and gid {account.gid}: to the kernel that means no change"
    if name == "nobody" or account.uid in {_NOBODY, _overflow_uid()}:
        return f"{name} has uid {account.uid}, which is not a real account's"
    if name in rules.own_accounts or account.uid in rules.own_uids:
        return f"{name} is one of the endpoint's own accounts"
    if account.uid in HELPER_UIDS:
        return f"{name} has uid {account.uid}: {HELPER_UIDS[0]} to {HELPER_UIDS[-1]} are for accounts of endpoints"
    if own := _own_group(account, rules.own_accounts):
        return f"{name} is in the group of {own}, one of the endpoint's own accounts"
    if objection := privileged_objection(name, {account.gid, *account.groups}, forbidden_gids(policy)):
        return objection
    if not policy.min_uid <= account.uid <= policy.max_uid:
        return f"{name} has uid {account.uid}, allowed are {policy.min_uid} to {policy.max_uid}"
    if denied := _denied_name(account, policy.denied_users):
        return f"{name} is in denied_users" + ("" if denied == name else f", as {denied}, with the same uid")
    if objection := _denied_group(account, policy.denied_groups):
        return objection
    if policy.allowed_groups and not _members(account, policy.allowed_groups):
        _answered(policy.allowed_groups, StartStage.POLICY, account)
        return f"{name} is in none of allowed_groups"
    if policy.require_valid_shell and account.shell not in _valid_shells():
        return f"{name} has the shell {account.shell}, which {_SHELLS} does not list"
    return ""


def forbidden_gids(policy: Policy) -> dict[int, str]:
    """Return the privileged groups that no user endpoint may be in: their gids with their names. Raises NotKnownNow."""
    names = {_ROOT_GID: "0", **_gids_of(policy.privileged_groups)}
    allowed = _gids_of(policy.allowed_privileged_groups)
    return {gid: name for gid, name in names.items() if gid not in allowed}


def _gids_of(groups: Sequence[str]) -> dict[int, str]:
    found = ((_group(group, StartStage.POLICY), group) for group in groups)
    return {entry.gid: name for entry, name in found if entry is not None}


def _privileged_known(account: SpawnAccount, policy: Policy) -> None:
    """Raise NotKnownNow if a group of `account` could be a privileged one of a directory that doesn't answer.

    This host's own groups are known. So a directory that is down keeps no account out that is in those alone.
    """
    missing = [name for name in policy.privileged_groups if _group(name, StartStage.POLICY) is None]
    if not missing or {account.gid, *account.groups} <= nss.listed_gids():
        return
    if silent := nss.silent("group", missing[0]):
        detail = f"which gid {missing[0]} has is not known: {', '.join(silent)} does not answer"
        raise not_known(StartStage.POLICY, detail)


def privileged_objection(name: str, gids: Iterable[int], forbidden: Mapping[int, str]) -> str:
    """Return an objection if account `name` has one of the groups `forbidden` (of forbidden_gids) among `gids`."""
    found = sorted(forbidden.keys() & set(gids))
    if not found:
        return ""
    return f"{name} is in group {forbidden[found[0]]}, which is privileged: policy.allowed_privileged_groups lacks it"


def _own_group(account: SpawnAccount, own_accounts: Sequence[str]) -> str:
    """Return the one of the endpoint's own accounts with a primary group that `account` belongs to."""
    mine = {account.gid, *account.groups}
    return next((name for name, gid in gids_of(own_accounts).items() if gid in mine), "")


def _denied_name(account: SpawnAccount, users: Sequence[str]) -> str:
    """Return the entry of `users` that is the account's name, or a name of its uid. Raises NotKnownNow."""
    if account.name in users:
        return account.name
    return next((user for user in users if _uid_of(user) == account.uid), "")


def _known_users(users: Sequence[str]) -> None:
    """Raise NotKnownNow if a directory that could know the uids of `users` doesn't answer."""
    missing = [user for user in users if _uid_of(user) is None]
    if missing and (silent := nss.silent("passwd", missing[0])):
        detail = f"which uid {missing[0]} has is not known: {', '.join(silent)} does not answer"
        raise not_known(StartStage.POLICY, detail)


def _uid_of(user: str) -> int | None:
    """Return the uid of an entry of the policy: an account's name, or, as in chown(1), a uid that is no name."""
    entry = _entry(user)
    return nss_database.number_of(user) if entry is None else entry.uid


def _entry(user: str) -> nss_database.Passwd | None:
    try:
        return nss_database.passwd_by_name(user)
    except OSError as error:
        raise not_known(StartStage.POLICY, str(error.strerror)) from None


def _denied_group(account: SpawnAccount, groups: Sequence[str]) -> str:
    """Return an objection if the account, under this or another name of its uid, belongs to one of `groups`."""
    if not groups:
        return ""
    if denied := _members(account, groups):
        return f"{account.name} is in the denied group {denied}"
    for name in _other_names(account):
        entry = _entry(name)
        if entry is None or entry.uid != account.uid:
            continue
        other = replace(account, gid=entry.gid, groups=_groups_of(name, entry.gid))
        _memberships_answered(name, StartStage.POLICY)
        if denied := _members(other, groups):
            return f"{account.name} is in the denied group {denied}, as {name}, with the same uid"
    return ""


def _other_names(account: SpawnAccount) -> list[str]:
    """Return the other names of the account's uid: those in this host's file, and the one that NSS gives for it."""
    try:
        found = nss.names_of(account.uid)
        entry = nss_database.passwd_by_uid(account.uid)
    except OSError as error:
        raise not_known(StartStage.POLICY, f"the names of uid {account.uid} are not known: {error.strerror}") from None
    names = [*found, *([entry.name] if entry is not None else [])]
    return [name for name in dict.fromkeys(names) if name != account.name]


def _overflow_uid() -> int:
    """Return the overflow uid. The kernel shows it for any uid that it can't map, so its files may be anyone's."""
    try:
        with open(_OVERFLOW_UID_FILE) as file:
            return int(file.read())
    except (OSError, ValueError):
        return _NOBODY


def _members(account: SpawnAccount, groups: Sequence[str], stage: StartStage = StartStage.POLICY) -> str:
    """Return the first of `groups` that the account belongs to. A group that doesn't exist has no members.

    Raises NotKnownNow if it can't be determined whether a group exists.
    """
    mine = {account.gid, *account.groups}
    for group in groups:
        entry = _group(group, stage)
        if entry is not None and entry.gid in mine:
            return group
    return ""


def _group(name: str, stage: StartStage) -> nss_database.Group | None:
    """Return the group of an entry of the policy: a group's name, or, as in chown(1), a gid that is no name."""
    try:
        found = nss_database.group_by_name(name)
    except OSError as error:
        raise not_known(stage, str(error.strerror)) from None
    gid = nss_database.number_of(name)
    return nss_database.Group(name, gid, ()) if found is None and gid is not None else found


def _answered(groups: Sequence[str], stage: StartStage, account: SpawnAccount) -> None:
    """Raise NotKnownNow if a directory that could know whether `account` is in one of `groups` doesn't answer.

    libc doesn't report this: it says that the group doesn't exist, or omits it from the account's group list.
    """
    if not groups:
        return
    if silent := nss.silent("group", groups[0]):
        raise not_known(stage, f"who is in {', '.join(groups)} is not known: {', '.join(silent)} does not answer")
    _memberships_answered(account.name, stage)


def limits_of(account: SpawnAccount, everybody: Limits, groups: Sequence[GroupLimits]) -> Limits:
    """Return the limits of the first of `groups` that the account belongs to, else the defaults. Raises NotKnownNow."""
    first = _members(account, [one.group for one in groups], StartStage.RLIMITS)
    if not groups or first != groups[0].group:
        _answered([one.group for one in groups], StartStage.RLIMITS, account)
    return next((one.limits for one in groups if one.group == first), everybody)


def _valid_shells() -> set[str]:
    try:
        with open(_SHELLS) as file:
            lines = [line.split("#")[0].strip() for line in file]
    except FileNotFoundError:
        return {"/bin/sh", "/bin/bash"}
    return {line for line in lines if line and not line.endswith(("/nologin", "/false"))}


def not_known(stage: StartStage, detail: str) -> NotKnownNow:
    """Return the refusal of a start if its account can't be checked now."""
    return NotKnownNow(stage, Refusal.MAPPER_UNAVAILABLE, detail)
