"""A checker: a short-lived process, forked by the monitor, that looks one account up again and says what it found.

It runs as root (single-user mode: as the owner), since it asks what the keeper asked at the start: NSS, shadow, the
policy in force now, and PAM's account stage where `pam.recheck` is set. It may hang in NSS or PAM, so the monitor ends
it after a while, and what it was to check goes on running. It is no keeper's work because a keeper that a new monitor
has adopted has no channel to it, and knows an old policy.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass, replace
from typing import NoReturn

from mep.boundary.channel import Channel, clip
from mep.boundary.messages import Message, NoLongerAdmitted, NotChecked, StillAdmitted
from mep.errors import SpawnFailed, Stage
from mep.monitor import nss, pam_account, syscalls
from mep.monitor.accounts import AccountRules, StartRefused, check_policy, lookup
from mep.monitor.spawn import Account, reset_signals


@dataclass(frozen=True, slots=True)
class Subject:
    """The account of one or several user endpoints, as it was at their start."""

    local_user: str
    uid: int
    source: str
    """`files` where it was one of this host's own, else empty."""


def checker_main(subject: Subject, rules: AccountRules, channel: Channel, pam_service: str = "") -> NoReturn:
    """Run as the checker of `subject`, in the process that was just forked for it. Never returns."""
    try:
        reset_signals()
        syscalls.set_parent_death_signal(signal.SIGKILL)
        syscalls.set_process_name("mep-checker")
        syscalls.close_all_but([0, 1, 2, channel.fileno()])
        with contextlib.suppress(OSError):
            channel.send(check(subject, rules, pam_service))
    finally:
        os._exit(0)


def check(subject: Subject, rules: AccountRules, pam_service: str = "") -> Message:
    """Return whether the account may still be used. An empty `pam_service`: PAM is not asked."""
    try:
        account = lookup(subject.local_user)
        if account.uid != subject.uid:
            return NoLongerAdmitted(detail=f"{account.name} has uid {account.uid} now, and had {subject.uid}")
        check_policy(account, rules)
        if pam_service:
            pam_account.ask(pam_service, account.name, running=True)
    except SpawnFailed as failure:
        return NotChecked(detail=clip(str(failure), 4096))
    except StartRefused as refusal:
        doubt = ""
        if refusal.stage is Stage.LOOKUP_USER:
            doubt = _gone_doubt(subject)
        elif refusal.stage is Stage.POLICY:
            doubt = _group_doubt(account, rules)
        text = clip(refusal.detail, 4096)
        return NotChecked(detail=clip(f"{text}, but {doubt}", 4096)) if doubt else NoLongerAdmitted(detail=text)
    return StillAdmitted()


def _gone_doubt(subject: Subject) -> str:
    """Why the account may only seem to be gone, or an empty string."""
    if subject.source == nss.LOCAL and not nss.is_listed(subject.local_user, nss.PASSWD_FILE):
        return ""
    silent = nss.silent("passwd", subject.local_user)
    return f"{', '.join(silent)} does not answer" if silent else ""


def _group_doubt(account: Account, rules: AccountRules) -> str:
    """Why the account may only seem to be in none of allowed_groups, or an empty string."""
    groups = rules.policy.allowed_groups
    if not groups or all(nss.is_listed(group, nss.GROUP_FILE) for group in groups):
        return ""
    try:
        check_policy(account, replace(rules, policy=replace(rules.policy, allowed_groups=[])))
    except StartRefused:
        return ""
    silent = nss.silent("group", groups[0])
    return f"{', '.join(silent)} does not answer" if silent else ""
