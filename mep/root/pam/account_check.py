"""PAM's account stage alone: whether PAM would let an account in now. No session is opened.

Called in a short-lived process of its own, as root, because a module may hang or change its caller. `mep map` calls it
where a start would; a checker calls it if `pam.recheck` is set.
"""

from __future__ import annotations

from mep.boundary.errors import Refusal, SpawnFailed, Stage, public_text
from mep.root.account.lookup import StartRefused
from mep.root.pam import libpam

CLOSED = frozenset({6, 10, 13, 27})
"""No permission, no such user, account expired, password expired and inactive. Other refusals are temporary:
pam_nologin's (7), a password that has to be changed (12)."""


def ask(service: str, user: str, *, running: bool = False) -> None:
    """Raise StartRefused if PAM's `service` doesn't admit `user`, SpawnFailed if PAM doesn't work.

    `running`: the user has running processes. Then only a closed account raises StartRefused, and all other failures
    raise SpawnFailed.
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
