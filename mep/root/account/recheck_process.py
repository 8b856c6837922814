"""A checker: a short-lived process, forked by the monitor, that looks up one account again and reports the result.

It runs as root (single-user mode: as the owner), because it repeats the keeper's checks at the start: NSS, shadow, the
policy in force now, and PAM's account stage if `pam.recheck` is set. It may hang in NSS or PAM. The monitor then kills
it after a time limit, and the user endpoints that it was checking keep running. Keepers don't do this work, because
an adopted keeper has no channel to the new monitor and knows only the old policy.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import NoReturn

from mep.boundary.channel import Channel, clip
from mep.boundary.errors import SpawnFailed, StartStage
from mep.boundary.messages import Message, NoLongerAdmitted, NotChecked, StillAdmitted
from mep.root.account import nss
from mep.root.account.lookup import AccountRules, NotKnownNow, StartRefused, check_policy, lookup
from mep.root.kernel import syscalls
from mep.root.kernel.spawn import reset_signals
from mep.root.pam import libpam


@dataclass(frozen=True, slots=True)
class Subject:
    """The account of one or more user endpoints, as it was when they started."""

    local_user: str
    uid: int
    source: str
    """`files` if the account was local to this host, else empty."""


def checker_main(subject: Subject, rules: AccountRules, channel: Channel, pam_service: str = "") -> NoReturn:
    """Run as the checker of `subject` in the process just forked for it. Never returns."""
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
    """Return whether the account may still be used. If `pam_service` is empty, PAM isn't asked."""
    try:
        account = lookup(subject.local_user)
        if account.uid != subject.uid:
            return NoLongerAdmitted(detail=f"{account.name} has uid {account.uid} now, and had {subject.uid}")
        check_policy(account, rules)
        if pam_service:
            libpam.check_account(pam_service, account.name, running=True)
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
