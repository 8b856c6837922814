"""The checker of `mep map`: says whether a start as an account would be allowed, by the code that checks accounts.

It is forked before `mep map` permanently becomes the mapper's account, because only root may read shadow entries and
ask PAM. It reads one user name, and no other output of mapping files, callouts or directories. If `mep map` isn't run
by root, there is no such process.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from dataclasses import asdict, dataclass

from mep.boundary.errors import SpawnFailed
from mep.root.account import shadow
from mep.root.account.account_check import admit, run_checker
from mep.root.account.lookup import AccountRules, StartRefused, lookup

DEADLINE_S = 30
"""Time limit, because a directory or a PAM module may hang."""
_MAX_NAME_BYTES, _MAX_RULING_BYTES = 1024, 65536
_NOT_ROOT = "only root can see whether it is locked or expired, and ask PAM: run this as root"


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
        admit(account, rules, pam_service if os.geteuid() == 0 else "")
        if os.geteuid() != 0:
            return Ruling(_NOT_ROOT, "", state)
    except StartRefused as refusal:
        return Ruling(refusal.detail, refusal.stage.name, state)
    except SpawnFailed as failure:
        return Ruling(failure.detail or str(failure), failure.stage.name, state)
    return Ruling(state=state)


def _state(name: str) -> str:
    if os.geteuid() != 0:
        return "not known: only root may read shadow entries"
    try:
        return shadow.closed(name) or _open(shadow.read(name))
    except OSError as error:
        return error.strerror or str(error)


def _open(entry: shadow.Shadow | None) -> str:
    """Describe the entry of an open account in words."""
    if entry is None:
        return "no shadow entry: whether it is locked, its directory and PAM alone know"
    words = "open, with no password" if not entry.password.strip("!*") else "open, with a password"
    if entry.expire >= 0:
        words += f", expires {shadow.date_of(entry.expire)}"
    return words


class MapChecker:
    """The checker of `mep map`, or this process itself if it isn't root's."""

    def __init__(self, rules: AccountRules, pam_service: str) -> None:
        self._rules, self._pam_service = rules, pam_service
        self._socket: socket.socket | None = None
        if os.geteuid() == 0:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:
                run_checker(theirs.fileno(), lambda: _answer(theirs, rules, pam_service))
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
