"""A checker: a short-lived process that looks up one account, reports whether it may be used, and ends.

It repeats the keeper's checks at the start by the same code: NSS, shadow, the policy in force now, and PAM's account
stage. It may hang in NSS or PAM, and has a time limit therefore.

A keeper forks one to check the account of its user endpoint again, which keeps running if it hangs. It runs as root
(single-user mode: as the owner), and asks PAM if `pam.recheck` is set. The policy in force comes from the monitor.

`mep map` forks one too (mep/cli/map_checker.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from mep.boundary.channel import Channel, clip
from mep.boundary.errors import SpawnFailed, StartStage
from mep.boundary.messages import Message, NoLongerAdmitted, NotChecked, StillAdmitted
from mep.boundary.resolved_config import Policy
from mep.root.account import nss
from mep.root.account.lookup import AccountRules, NotKnownNow, StartRefused, check_policy, lookup
from mep.root.kernel import syscalls
from mep.root.kernel.spawn import SpawnAccount, reset_signals
from mep.root.pam import libpam


@dataclass(frozen=True, slots=True)
class Subject:
    """The account of a user endpoint, as it was when that started."""

    local_user: str
    uid: int
    source: str
    """`files` if the account was local to this host, else empty."""


@dataclass(frozen=True, slots=True)
class AccountChecks:
    """The checks of running user endpoints' accounts that the site wants."""

    rules: AccountRules
    interval_s: float
    """0: no checks."""
    pam_service: str = ""
    """Empty: PAM isn't asked."""

    def to_json(self) -> bytes:
        """Return the document that the monitor sends to keepers."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> AccountChecks:
        """Return the checks of a document. Raises ValueError, KeyError and TypeError if it is of another version."""
        value = json.loads(data)
        said = value["rules"]
        rules = AccountRules(
            Policy(**said["policy"]), tuple(said["own_accounts"]), tuple(said["own_uids"]), said["only_uid"]
        )
        return cls(rules, value["interval_s"], value["pam_service"])


def checker_main(subject: Subject, checks: AccountChecks, channel: Channel) -> NoReturn:
    """Run as the checker of `subject` in the process just forked for it. Never returns."""
    run_checker(channel.fileno(), lambda: channel.send(check(subject, checks.rules, checks.pam_service)))


def run_checker(descriptor: int, work: Callable[[], object]) -> NoReturn:
    """Do `work`, which needs only `descriptor`, in the process just forked for it, and end."""
    try:
        reset_signals()
        syscalls.set_parent_death_signal(signal.SIGKILL)
        syscalls.set_process_name("mep-checker")
        syscalls.close_all_but([0, 1, 2, descriptor])
        with contextlib.suppress(OSError):
            work()
    finally:
        os._exit(0)


def admit(account: SpawnAccount, rules: AccountRules, pam_service: str, *, running: bool = False) -> None:
    """Check the account by policy, shadow entry and, with `pam_service`, PAM. Raises StartRefused, SpawnFailed."""
    check_policy(account, rules)
    if pam_service:
        libpam.check_account(pam_service, account.name, running=running)


def check(subject: Subject, rules: AccountRules, pam_service: str = "") -> Message:
    """Return whether the account may still be used. If `pam_service` is empty, PAM isn't asked."""
    try:
        account = lookup(subject.local_user)
        if account.uid != subject.uid:
            return NoLongerAdmitted(detail=f"{account.name} has uid {account.uid} now, and had {subject.uid}")
        admit(account, rules, pam_service, running=True)
    except SpawnFailed as failure:
        return NotChecked(detail=clip(str(failure), 4096))
    except StartRefused as refusal:
        text = clip(refusal.detail, 4096)
        unsure = isinstance(refusal, NotKnownNow) and not _is_gone(subject, refusal.stage)
        return NotChecked(detail=text) if unsure else NoLongerAdmitted(detail=text)
    return StillAdmitted()


def _is_gone(subject: Subject, stage: StartStage) -> bool:
    """Tell whether a local account no longer exists. No directory has to confirm that."""
    was_here = subject.source == nss.LOCAL and stage is StartStage.LOOKUP_USER
    return was_here and nss.is_listed(subject.local_user, nss.PASSWD_FILE) is False
