"""The PAM process of one user endpoint: opens its session, forks it, waits for its end, closes the session.

If PAM is enabled, the keeper forks it (pam_session.py), and it runs as root too. It is a process of its own for three
reasons. Modules change their caller in ways that can't all be undone (a hard limit without CAP_SYS_RESOURCE, a mount
namespace). A module that hangs must not hang the keeper. The session has to be closed even if the keeper is killed.
The order is sshd's: account; gid and groups; credentials (modules may add groups); session. There is no
authentication: the identity provider has authenticated the person.

The user endpoint must inherit the changes that modules make to their caller, so it is forked here. It must also be the
keeper's child. So an intermediate process forks it and exits: the orphan goes to the nearest subreaper, the keeper,
because this process isn't one. (CLONE_PARENT would do the same, but needs a raw system call that the interpreter
doesn't know of.)

End-of-file from the keeper means the end: the user endpoint is killed if it still runs, then the session is closed.
Trusts PAM's modules with root, like every user of PAM. Trusts their environment variables only within `admitted`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from mep.boundary.channel import clip
from mep.boundary.errors import Refusal, SpawnFailed, StartStage
from mep.boundary.log import Log
from mep.root.account.lookup import StartRefused, privileged_objection
from mep.root.kernel import process_exit, syscalls
from mep.root.kernel.signals import wait_readable
from mep.root.kernel.spawn import SpawnPlan, prepare, reset_signals, spawn_for
from mep.root.pam import libpam
from mep.root.pam.process_context import Context

CLOSE_S = 20.0
"""Time limit for the modules to close a session."""
_ALARM_AFTER_S = 10.0
_DEAF_TO = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGXFSZ)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MAX_VALUE, _MAX_VARIABLES = 8192, 128
_FIXED = frozenset({"HOME", "USER", "LOGNAME", "SHELL"})
_REFUSED = frozenset({"BASH_ENV", "ENV", "IFS", "GCONV_PATH", "LOCPATH", "NLSPATH"})
_REFUSED_PREFIXES = ("LD_", "PYTHON", "GLIBC_", "MALLOC_", "BASH_FUNC")


@dataclass(frozen=True, slots=True)
class Login:
    """Tells a PAM process what to do. Descriptors are inherited from the keeper."""

    service: str
    plan: SpawnPlan
    """The user endpoint as it would be without PAM."""
    forbidden: Mapping[int, str]
    """The privileged groups that the user endpoint may not be in, with their names."""
    keeper: int
    pipe: int
    """The pipe on which the user endpoint reports a failed stage."""
    left_s: float


class KeeperGone(Exception):
    """The keeper ended or gave up the start: nothing further may be opened."""


def pam_process(login: Login, keeper: socket.socket) -> NoReturn:
    """Be the PAM process of `login`; `keeper` is the socket to the keeper. Never returns."""
    plan = login.plan
    kept = [0, 1, 2, keeper.fileno(), login.pipe, *plan.descriptors, *(plan.gate or ())]
    _run(lambda session: session.serve(login, keeper), login.service, plan.account.name, kept)


def pam_substitute(service: str, user: str) -> NoReturn:
    """Close the session of a killed PAM process, as far as a new transaction can. Never returns."""
    _run(PamSession.close_for_another, service, user, [0, 1, 2])


def _run(work: Callable[[PamSession], None], service: str, user: str, kept: Iterable[int]) -> NoReturn:
    log = Log("pam")

    def be_it() -> None:
        reset_signals()
        _turn_deaf()
        syscalls.set_process_name("mep-pam")
        syscalls.close_all_but(kept)
        work(PamSession(service, user, log))

    process_exit.run_process(be_it, log, user=user)


def _turn_deaf() -> None:
    """Ignore signals, by handlers: exec resets those in the modules' programs. The keeper decides on the end."""
    for number in _DEAF_TO:
        signal.signal(number, lambda *_: None)


class PamSession:
    """The session of one user endpoint."""

    def __init__(self, service: str, user: str, log: Log) -> None:
        self._service, self._user, self._log = service, user, log
        self._transaction: libpam.Transaction | None = None
        self._has_credentials = self._is_open = False

    def serve(self, login: Login, keeper: socket.socket) -> None:
        """Open the session, fork the user endpoint, hold the session until the keeper is done with it, close it."""
        signal.setitimer(signal.ITIMER_REAL, login.left_s + _ALARM_AFTER_S)  # in case no keeper is left to kill us
        try:
            user_endpoint = self._log_in(login, keeper)
        except (StartRefused, SpawnFailed) as failure:
            with contextlib.suppress(KeeperGone):
                _say(keeper, failed=failure.stage, detail=failure.detail, **_words(failure))
        except KeeperGone:
            pass
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._wait(user_endpoint, keeper)
        finally:
            self._close()

    def close_for_another(self) -> None:
        """Close a session that another process opened."""
        self._transaction = libpam.Transaction(self._service, self._user, self._hear)
        self._has_credentials = self._is_open = True
        self._close()

    # --- opening --------------------------------------------------------------------------------------

    def _log_in(self, login: Login, keeper: socket.socket) -> int:
        """Return a pidfd of the user endpoint. Raises StartRefused, SpawnFailed, KeeperGone."""
        plan, context = login.plan, Context()
        try:
            prepare(plan.open_files)
            self._stage(StartStage.PAM_ACCOUNT, keeper, self._check_account)
            self._stage(StartStage.SETGROUPS, keeper, lambda: _take_groups(plan))
            self._stage(StartStage.PAM_CRED, keeper, self._establish)
            self._stage(StartStage.PAM_SESSION, keeper, self._open)
            self._check_groups(login.forbidden)
            pid, user_endpoint = self._fork(login, self._in_session(plan, context))
        finally:
            context.restore(self._log)
            _turn_deaf()
            for descriptor in {login.pipe, *plan.descriptors, *(plan.gate or ())}:
                os.close(descriptor)
        _say(keeper, pid=pid)
        return user_endpoint

    def _stage(self, stage: StartStage, keeper: socket.socket, step: Callable[[], None]) -> None:
        """Report the next stage first, because a module may never return. Then run it."""
        if wait_readable([keeper.fileno()], 0):
            raise KeeperGone
        _say(keeper, stage=stage)
        try:
            step()
        except libpam.PamFailed as failure:
            if failure.code in libpam.BROKEN:
                raise SpawnFailed(stage, libpam.shortage(failure.code), str(failure)) from None
            raise libpam.refusal_of(stage, failure) from None
        except OSError as error:
            raise SpawnFailed(stage, error.errno or 0, str(error)) from None

    def _check_account(self) -> None:
        self._transaction = libpam.Transaction(self._service, self._user, self._hear)
        self._transaction.check_account()
        if (name := self._transaction.user()) != self._user:
            detail = f"PAM service {self._service} means another user: {clip(name, 64)}"
            raise StartRefused(StartStage.PAM_ACCOUNT, Refusal.ACCOUNT_REFUSED, detail)

    def _establish(self) -> None:
        assert self._transaction is not None
        self._has_credentials = True  # a call that failed half-way may have left credentials
        self._transaction.establish_credentials()

    def _open(self) -> None:
        assert self._transaction is not None
        self._transaction.open_session()
        self._is_open = True

    def _check_groups(self, forbidden: Mapping[int, str]) -> None:
        """Raise StartRefused if modules have added a privileged group, which policy refuses for the account itself."""
        if objection := privileged_objection(self._user, os.getgroups(), forbidden):
            detail = f"after PAM's modules: {objection}"
            raise StartRefused(StartStage.PAM_SESSION, Refusal.ACCOUNT_REFUSED, detail)

    def _fork(self, login: Login, plan: SpawnPlan) -> tuple[int, int]:
        """Return pid and pidfd of the user endpoint. Limits that modules have set apply to this process too."""
        try:
            pid = spawn_for(login.keeper, plan, login.pipe)
            return pid, os.pidfd_open(pid)  # the keeper does not reap it before it is told of it
        except OSError as error:
            raise SpawnFailed(StartStage.FORK, error.errno or 0) from None

    def _in_session(self, plan: SpawnPlan, context: Context) -> SpawnPlan:
        """Return `plan` with the session's environment and settings."""
        assert self._transaction is not None
        environment, dropped = admitted(self._transaction.environment())
        if dropped:
            self._log.warning("PAM's environment: not passed on", names=clip(" ".join(dropped), 512))
        return replace(
            plan, account=replace(plan.account, groups=tuple(os.getgroups())), prepared=True,
            environment={**plan.environment, **environment}, keyring=context.keyring_changed(),
        )  # fmt: skip

    def _hear(self, text: str) -> None:
        self._log.info("PAM says", user=self._user, service=self._service, text=clip(text, 512))

    # --- the end --------------------------------------------------------------------------------------

    def _wait(self, user_endpoint: int, keeper: socket.socket) -> None:
        """Return once the keeper is done or dead, and the user endpoint is gone."""
        wait_readable([keeper.fileno()], None)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(user_endpoint, signal.SIGKILL)
        if not wait_readable([user_endpoint], CLOSE_S):
            self._log.error("closing the session of a user endpoint that does not end", user=self._user)

    def _close(self) -> None:
        """Close the session and delete the credentials, as far as they exist. Failures are logged."""
        transaction = self._transaction
        if transaction is None:
            return
        signal.setitimer(signal.ITIMER_REAL, CLOSE_S)
        steps = [(self._is_open, transaction.close_session), (self._has_credentials, transaction.delete_credentials)]
        for wanted, step in [*steps, (True, transaction.end)]:
            try:
                if wanted:
                    step()
            except libpam.PamFailed as failure:
                self._log.error("PAM could not close a session", user=self._user, error=str(failure))


def _say(keeper: socket.socket, **words: object) -> None:
    """Send `words` to the keeper. Raises KeeperGone."""
    try:
        keeper.send(json.dumps(words).encode())
    except OSError:
        raise KeeperGone from None


def _words(failure: StartRefused | SpawnFailed) -> dict[str, object]:
    """Return what the keeper is told of a failure besides stage and detail."""
    if isinstance(failure, SpawnFailed):
        return {"errno": failure.errno}
    return {"code": failure.code, "public": failure.public}


def _take_groups(plan: SpawnPlan) -> None:
    """Set the user's own groups first, because credential modules add to them."""
    account = plan.account
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)


def admitted(entries: Iterable[bytes]) -> tuple[dict[str, str], list[str]]:
    """Return PAM's variables that a user endpoint gets, and the names of those that it doesn't get.

    PAM may not set variables that decide which code a program runs (loader, Python, shells) or who the user is.
    """
    found: dict[str, str] = {}
    dropped = []
    for entry in entries:
        name, equals, value = os.fsdecode(entry).partition("=")
        refused = name in _FIXED or name in _REFUSED or name.startswith(_REFUSED_PREFIXES)
        odd = not equals or not _NAME.fullmatch(name) or len(value) > _MAX_VALUE or len(found) >= _MAX_VARIABLES
        if name == "PATH" and not all(part.startswith("/") for part in value.split(":")):
            odd = True
        if refused or odd:
            dropped.append(name)
        else:
            found[name] = value
    return found, dropped
