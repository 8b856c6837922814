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
from dataclasses import dataclass
from typing import NoReturn

from mep.boundary.channel import Channel, clip
from mep.boundary.errors import SpawnFailed, Stage
from mep.boundary.messages import Message, NoLongerAdmitted, NotChecked, StillAdmitted
from mep.root.account import nss
from mep.root.account.lookup import AccountRules, NotKnownNow, StartRefused, check_policy, lookup
from mep.root.kernel import syscalls
from mep.root.kernel.spawn import reset_signals
from mep.root.pam import account_check


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
            account_check.ask(pam_service, account.name, running=True)
    except SpawnFailed as failure:
        return NotChecked(detail=clip(str(failure), 4096))
    except StartRefused as refusal:
        text = clip(refusal.detail, 4096)
        unsure = isinstance(refusal, NotKnownNow) and not _is_gone(subject, refusal.stage)
        return NotChecked(detail=text) if unsure else NoLongerAdmitted(detail=text)
    return StillAdmitted()


def _is_gone(subject: Subject, stage: Stage) -> bool:
    """Tell whether an account was this host's own and is no more: no directory need say that."""
    was_here = subject.source == nss.LOCAL and stage is Stage.LOOKUP_USER
    return was_here and nss.is_listed(subject.local_user, nss.PASSWD_FILE) is False
