"""PAM's account stage by itself: whether PAM would let an account in now. Nothing is opened.

Called in a short-lived process of its own, as root: a module may hang, and may change its caller. `mep map` asks it
where a start would, a checker where `pam.recheck` is set.
"""

from __future__ import annotations

from mep.boundary.errors import Refusal, SpawnFailed, Stage, public_text
from mep.root.account.lookup import StartRefused
from mep.root.pam import libpam

CLOSED = frozenset({6, 10, 13, 27})
"""No permission, no such user, account expired, password expired and inactive. Other refusals are of the moment:
pam_nologin's (7), a password that has to be changed (12)."""


def ask(service: str, user: str, *, running: bool = False) -> None:
    """Raise StartRefused where PAM's `service` does not admit `user`, SpawnFailed where it does not work.

    `running`: something of theirs runs, which only what closes the account is to end; the rest is SpawnFailed too.
    """
    try:
        transaction = libpam.Transaction(service, user, lambda _: None)
        transaction.check_account()
        name = transaction.user()
        transaction.end()
    except libpam.PamFailed as failure:
        if failure.code in libpam.BROKEN or (running and failure.code not in CLOSED):
            raise SpawnFailed(Stage.PAM_ACCOUNT, 0, str(failure)) from None
        raise _refused(str(failure)) from None
    except OSError as error:
        raise SpawnFailed(Stage.PAM_ACCOUNT, error.errno or 0, str(error)) from None
    if name != user:
        raise _refused(f"PAM service {service} means another user: {name}")


def _refused(detail: str) -> StartRefused:
    code = Refusal.ACCOUNT_REFUSED
    return StartRefused(Stage.PAM_ACCOUNT, code, public_text(code), detail)
