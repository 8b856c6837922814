"""The root part of `mep map`: a process that tells whether a start as one account would be allowed, and ends.

It is forked before `mep map` permanently becomes the mapper's account, because only root may read shadow entries and
ask PAM. It reads one user name and no other output of mapping files, callouts or directories. It calls the same code
as a keeper before it starts a user endpoint. If `mep map` isn't run by root, there is no such process. Called by
mep/cli/map_identities.py. Standard library only, like all of root's code.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import signal
import socket
from dataclasses import asdict, dataclass
from typing import NoReturn

from mep.boundary import untraceable
from mep.boundary.errors import SpawnFailed
from mep.root.account import shadow
from mep.root.account.lookup import AccountRules, StartRefused, check_policy, lookup
from mep.root.kernel import syscalls
from mep.root.pam import libpam

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


class Judge:
    """Asks the root part, or this process itself if it isn't root's."""

    def __init__(self, rules: AccountRules, pam_service: str) -> None:
        self._rules, self._pam_service = rules, pam_service
        self._socket: socket.socket | None = None
        if os.geteuid() == 0:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:
                _serve(theirs, rules, pam_service)
            theirs.close()

    def ask(self, name: str) -> Ruling:
        """Return whether a start as `name` would be allowed. May be called once."""
        if self._socket is None:
            return rule(name, self._rules, self._pam_service)
        with self._socket as judge:
            judge.send(name.encode("utf-8", "surrogateescape"))
            poll = select.poll()
            poll.register(judge, select.POLLIN)
            data = judge.recv(_MAX_RULING_BYTES) if poll.poll((DEADLINE_S + 1) * 1000) else b""
        if not data:
            return Ruling(f"NSS or PAM has not said within {DEADLINE_S} s whether {name} may be used")
        return Ruling(**json.loads(data))


def _serve(asker: socket.socket, rules: AccountRules, pam_service: str) -> NoReturn:
    """Answer one question in the process just forked. Never returns."""
    try:
        syscalls.set_process_name("mep-map-root")
        syscalls.close_all_but([0, 1, 2, asker.fileno()])
        with contextlib.suppress(OSError):
            name = asker.recv(_MAX_NAME_BYTES)  # end-of-file: there is no question
            if name:
                signal.alarm(DEADLINE_S)
                ruling = rule(name.decode("utf-8", "surrogateescape"), rules, pam_service)
                asker.send(json.dumps(asdict(ruling)).encode()[:_MAX_RULING_BYTES])
    finally:
        os._exit(0)
