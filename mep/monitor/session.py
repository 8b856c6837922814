"""The PAM session of one user endpoint, in the keeper: opened before the fork, closed when all is over.

The order is sshd's: account; gid and groups; credentials (modules may add groups); session. The keeper then forks
the child, which keeps what PAM made of the process, and calls `keep` to be itself again. No authentication: who the
person is was the identity's matter. Trusts PAM's modules with root, as everything that uses PAM does; trusts what
they want in the environment only within `admitted`.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace

from mep.boundary.channel import clip
from mep.boundary.log import Log
from mep.errors import Refusal, SpawnFailed, Stage, public_text
from mep.monitor import pam
from mep.monitor.accounts import StartRefused
from mep.monitor.context import Context
from mep.monitor.spawn import Account, prepare

CLOSE_S = 20.0
"""A module that takes longer to close the session ends the keeper: by then nothing else is left to do."""
_ALARM_AFTER_S = 10.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MAX_VALUE, _MAX_VARIABLES = 8192, 128
_FIXED = frozenset({"HOME", "USER", "LOGNAME", "SHELL"})
_REFUSED = frozenset({"BASH_ENV", "ENV", "IFS", "GCONV_PATH", "LOCPATH", "NLSPATH"})
_REFUSED_PREFIXES = ("LD_", "PYTHON", "GLIBC_", "MALLOC_", "BASH_FUNC")


class Session:
    """One account's session with PAM service `service`."""

    def __init__(self, service: str, account: Account, log: Log) -> None:
        self._service, self._account, self._log = service, account, log
        self._context: Context | None = None
        self._transaction: pam.Transaction | None = None
        self._has_credentials = self._is_open = False
        self.keyring = False
        """Whether PAM made a session keyring, which the user endpoint then keeps."""
        self.environment: dict[str, str] = {}

    def open(self, begin: Callable[[Stage], None], left_s: float, open_files: tuple[int, int]) -> Account:
        """Return the account with the groups it has by now. Raises StartRefused, SpawnFailed; `close` undoes all.

        `begin` is told each stage, and may refuse it: a module may never come back from it.
        """
        signal.setitimer(signal.ITIMER_REAL, left_s + _ALARM_AFTER_S)  # for when there is no monitor to end us
        self._context = Context()
        prepare(open_files)
        self._stage(Stage.PAM_ACCOUNT, begin, self._begin)
        self._stage(Stage.SETGROUPS, begin, self._take_groups)
        self._stage(Stage.PAM_CRED, begin, self._establish)
        self._stage(Stage.PAM_SESSION, begin, self._open)
        self.keyring = self._context.keyring_changed()
        return replace(self._account, groups=tuple(os.getgroups()))

    def keep(self) -> None:
        """Be the keeper again, and hold the session."""
        if self._context is not None:
            self._context.restore(self._log)
            self._context = None
        signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self) -> None:
        """Close the session and delete the credentials, as far as there are any. What fails is logged."""
        transaction, self._transaction = self._transaction, None
        self.keep()
        if transaction is None:
            return
        signal.setitimer(signal.ITIMER_REAL, CLOSE_S)
        steps = [(self._is_open, transaction.close_session), (self._has_credentials, transaction.delete_credentials)]
        for wanted, step in [*steps, (True, transaction.end)]:
            try:
                if wanted:
                    step()
            except pam.PamFailed as failure:
                self._log.error("PAM could not close a session", user=self._account.name, error=str(failure))
        signal.setitimer(signal.ITIMER_REAL, 0)

    # --- the stages -----------------------------------------------------------------------------------

    def _stage(self, stage: Stage, begin: Callable[[Stage], None], step: Callable[[], None]) -> None:
        begin(stage)
        try:
            step()
        except pam.PamFailed as failure:
            if failure.code in pam.BROKEN:
                raise SpawnFailed(stage, 0, str(failure)) from None
            public = public_text(Refusal.ACCOUNT_REFUSED)
            raise StartRefused(stage, Refusal.ACCOUNT_REFUSED, public, str(failure)) from None
        except OSError as error:
            raise SpawnFailed(stage, error.errno or 0, str(error)) from None

    def _begin(self) -> None:
        self._transaction = pam.Transaction(self._service, self._account.name, self._hear)
        self._transaction.check_account()
        if (name := self._transaction.user()) != self._account.name:
            detail = f"PAM service {self._service} means another user: {clip(name, 64)}"
            raise StartRefused(Stage.PAM_ACCOUNT, Refusal.ACCOUNT_REFUSED, public_text(Refusal.ACCOUNT_REFUSED), detail)

    def _take_groups(self) -> None:
        """Modules for credentials add to the user's own groups, so these have to be there first."""
        os.setgroups(self._account.groups)
        os.setresgid(self._account.gid, self._account.gid, self._account.gid)

    def _establish(self) -> None:
        assert self._transaction is not None
        self._has_credentials = True  # one that failed half-way may have left something
        self._transaction.establish_credentials()

    def _open(self) -> None:
        assert self._transaction is not None
        self._transaction.open_session()
        self._is_open = True
        self.environment, dropped = admitted(self._transaction.environment())
        if dropped:
            self._log.warning("PAM's environment: not passed on", names=clip(" ".join(dropped), 512))

    def _hear(self, text: str) -> None:
        self._log.info("PAM says", user=self._account.name, service=self._service, text=clip(text, 512))


def admitted(entries: Iterable[bytes]) -> tuple[dict[str, str], list[str]]:
    """Return PAM's variables that a user endpoint gets, and the names of those that it does not get.

    What decides which code runs in a program (loader, Python, shells) and what says who the user is are not PAM's.
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
