"""A checker: a short-lived process that looks up one account, reports whether it may be used, and ends.

It repeats the keeper's checks at the start by the same code: NSS, shadow, the policy in force now, and PAM's account
stage. It may hang in NSS or PAM, and has a time limit therefore.

A keeper forks one to check the account of its user endpoint again, which keeps running if it hangs. It runs as root
(single-user mode: as the owner), and asks PAM if `pam.recheck` is set. The policy in force comes from the monitor.

`mep map` forks one before it permanently becomes the mapper's account, because only root may read shadow entries and
ask PAM. This one reads one user name, and no other output of mapping files, callouts or directories. If `mep map` isn't
run by root, there is no such process.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

from mep.boundary import untraceable
from mep.boundary.channel import Channel, clip
from mep.boundary.errors import SpawnFailed, StartStage
from mep.boundary.messages import Message, NoLongerAdmitted, NotChecked, StillAdmitted
from mep.boundary.resolved_config import Policy
from mep.root.account import nss, shadow
from mep.root.account.lookup import AccountRules, NotKnownNow, StartRefused, check_policy, lookup
from mep.root.kernel import syscalls
from mep.root.kernel.spawn import reset_signals
from mep.root.pam import libpam

DEADLINE_S = 30
"""Time limit, because a directory or a PAM module may hang."""
_MAX_NAME_BYTES, _MAX_RULING_BYTES = 1024, 65536
_NOT_ROOT = "only root can see whether it is locked or expired, and ask PAM: run this as root"


@dataclass(frozen=True, slots=True)
class Subject:
    """The account of one or more user endpoints, as it was when they started."""

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
    _run_checker(channel.fileno(), lambda: channel.send(check(subject, checks.rules, checks.pam_service)))


def _run_checker(descriptor: int, work: Callable[[], object]) -> NoReturn:
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


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether an account may be used: `problem` is empty, or gives the reason against it.

    `stage` is the stage at which a start would fail; empty if not known.
    """

    problem: str = ""
    stage: str = ""
    state: str = ""
    """The state of the shadow entry."""


def rule(name: str, rules: AccountRules, pam_service: str) -> Ruling:
    """Return whether a start as `name` would be allowed, by the keeper's own code. Without `pam_service`, no PAM."""
    state = ""
    try:
        account = lookup(name)
        state = _state(account.name)
        check_policy(account, rules)
        if os.geteuid() != 0:
            return Ruling(_NOT_ROOT, "", state)
        if pam_service:
            libpam.check_account(pam_service, account.name)
    except StartRefused as refusal:
        return Ruling(refusal.detail, refusal.stage.name, state)
    except SpawnFailed as failure:
        return Ruling(failure.detail or str(failure), failure.stage.name, state)
    return Ruling(state=state)


def _state(name: str) -> str:
    if os.geteuid() != 0:
        return "not known: only root may read shadow entries"
    try:
        return shadow.closed(name) or shadow.describe(shadow.read(name))
    except OSError as error:
        return error.strerror or str(error)


def become(entry: pwd.struct_passwd | None) -> None:
    """Permanently become this account (None: the current one) with only its primary group; exec gains no privilege."""
    if entry is not None:
        untraceable.become(entry.pw_uid, entry.pw_gid)
        untraceable.close_to_tracers()
    syscalls.set_no_new_privs()


class MapChecker:
    """The checker of `mep map`, or this process itself if it isn't root's."""

    def __init__(self, rules: AccountRules, pam_service: str) -> None:
        self._rules, self._pam_service = rules, pam_service
        self._socket: socket.socket | None = None
        if os.geteuid() == 0:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:
                _run_checker(theirs.fileno(), lambda: _answer(theirs, rules, pam_service))
            theirs.close()

    def ask(self, name: str) -> Ruling:
        """Return whether a start as `name` would be allowed. May be called once."""
        if self._socket is None:
            return rule(name, self._rules, self._pam_service)
        with self._socket as checker:
            checker.send(name.encode("utf-8", "surrogateescape"))
            poll = select.poll()
            poll.register(checker, select.POLLIN)
            data = checker.recv(_MAX_RULING_BYTES) if poll.poll((DEADLINE_S + 1) * 1000) else b""
        if not data:
            return Ruling(f"NSS or PAM has not said within {DEADLINE_S} s whether {name} may be used")
        return Ruling(**json.loads(data))


def _answer(asker: socket.socket, rules: AccountRules, pam_service: str) -> None:
    """Answer one question, within the time limit."""
    name = asker.recv(_MAX_NAME_BYTES)  # end-of-file: there is no question
    if name:
        signal.alarm(DEADLINE_S)
        ruling = rule(name.decode("utf-8", "surrogateescape"), rules, pam_service)
        asker.send(json.dumps(asdict(ruling)).encode()[:_MAX_RULING_BYTES])
